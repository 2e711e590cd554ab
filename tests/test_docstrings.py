"""The examples of public docstrings, run."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import spp_jax

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(spp_jax.__path__, "spp_jax.")
    if not module.name.endswith(("_dataset_builder", "__main__"))
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{name} needs {error.name}")
    with np.printoptions(legacy="1.25"):
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not result.failed
