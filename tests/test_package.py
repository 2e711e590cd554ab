import inspect
import subprocess
import sys

import spp_jax

USE_THE_OP = """
import sys
import numpy as np
import spp_jax
spp_jax.spatial_pyramid_pool(np.ones((1, 5, 7, 2), np.float32), [[3, 4]])
spp_jax.plan_buckets([(3, 4)], 1)
print(sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_using_the_op_loads_neither_data_sets_nor_checkpoints_nor_pictures():
    loaded = subprocess.run(
        [sys.executable, "-c", USE_THE_OP], capture_output=True, text=True, check=True
    ).stdout
    for name in ("tensorflow_datasets", "tensorflow", "orbax", "PIL", "flax", "torch", "tyro"):
        assert f"'{name}'" not in loaded


def test_every_public_name_is_there_and_says_what_it_is():
    for name in spp_jax.__all__:
        documented = inspect.getdoc(getattr(spp_jax, name))
        assert documented, name
        assert documented.splitlines()[0].endswith((".", "``.")), f"{name}: {documented.splitlines()[0]}"


def test_options_are_keyword_only_and_public_functions_document_every_argument():
    for name in spp_jax.__all__:
        function = getattr(spp_jax, name)
        if not inspect.isfunction(function):
            continue
        documented = inspect.getdoc(function) or ""
        for parameter in inspect.signature(function).parameters.values():
            assert f"{parameter.name}:" in documented, f"{name} does not say what {parameter.name} is"
            if parameter.default is not inspect.Parameter.empty and parameter.name != "sizes":
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY or name == "num_bins", (
                    f"{name}: {parameter.name} is optional and should be keyword-only"
                )


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(spp_jax, "spatial_pyramid_pooling")
