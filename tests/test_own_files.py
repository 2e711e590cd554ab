"""What a researcher adds in a file of their own, with no line of ours changed."""

import re
import textwrap

import numpy as np
import pytest
from conftest import png

from spp_jax import create_model
from spp_jax.checkpoints import Checkpoints
from spp_jax.cli import evaluate, train
from spp_jax.models.configured import build_model
from spp_jax.pooling import bins
from spp_jax.registry import Registry, absolute, fingerprint
from spp_jax.testing import assert_padding_exact

OWN = '''
"""A network, a loss and a data set in one file."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conftest import noise_records
from spp_jax.layers import Conv, DepthwiseConv
from spp_jax.models.sppnet import SPPNet, Stages
from spp_jax.pooling import Monoid, spatial_pyramid_pool
from spp_jax.pooling.reductions import reduction
from spp_jax.training import Loss


class Separable(nnx.Module):
    """Depthwise-separable convolution (Chollet 2017) with squeeze-excite (Hu et al. 2018)."""

    def __init__(self, before, width, *, strides, rngs):
        self.depthwise = DepthwiseConv(before, 3, strides=strides, rngs=rngs)
        self.pointwise = Conv(before, width, 1, rngs=rngs)
        self.squeeze = nnx.Linear(width, width // 4, rngs=rngs)
        self.excite = nnx.Linear(width // 4, width, rngs=rngs)
        self.chain = (self.depthwise.geometry, self.pointwise.geometry)

    def __call__(self, x):
        x = self.pointwise(self.depthwise(x)).map(nnx.relu)
        mean = spatial_pyramid_pool(x.values, x.sizes, levels=(1,), reduce="mean")[:, 0]
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(mean))))
        return x.map(lambda values: values * gate[:, None, None])


def network(*, levels=(1, 2, 4), outputs=1, widths: tuple[int, ...] = (8, 8), slope: float = 1.0, rngs):
    """Two separable stages."""
    pairs = zip((3, *widths), widths)
    stages = [Separable(a, b, strides=2, rngs=rngs) for a, b in pairs]
    return SPPNet.of_imagenet(
        Stages(stages),
        features=widths[-1],
        levels=levels,
        reduce=("max", "mean"),
        hidden=(),
        outputs=outputs,
        dtype=None,
        rngs=rngs,
    )


def absolute_error(**context):
    return Loss(
        outputs=1,
        of=lambda logits, batch: jnp.abs(jax.nn.sigmoid(logits[:, 0]) - batch.scores),
        score=lambda logits: jax.nn.sigmoid(logits[:, 0]),
    )


@reduction
class MeanSquare(Monoid):
    """The mean of the squares, times what is learnt."""

    scale: jax.Array = np.float32(1)

    def lift(self, cells):
        return cells**2

    def finish(self, state, count):
        return self.scale * state / count


def pictures(data_dir, decoding):
    return noise_records(), {}
'''


RULE = next(name for name in bins._RULES if name != "adaptive")


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_network_loss_and_data_set_of_ones_own_are_trained_and_their_checkpoint_says_where_they_are(
    own, tmp_path, capsys, monkeypatch
):
    cache = ["--cache-dir", str(tmp_path / "xla")]
    arguments = ["--model", f"{own}:network", "--model-options", "widths=(4,8)", "--data", f"{own}:pictures"]
    arguments += ["--loss", f"{own}:absolute_error", "--buckets", "1", "--pixels-per-step", "20000"]
    status = train.main([*arguments, "--steps", "2", "--out", str(tmp_path / "run"), *cache])
    assert status == 0, capsys.readouterr().err
    with Checkpoints(tmp_path / "run") as checkpoints:
        about = checkpoints.about()
        assert checkpoints.model_variables()["body/stages/1/pointwise/kernel"].shape == (1, 1, 4, 8)
    assert about.config.model == f"{own}:network"
    assert set(about.parts) == {f"{own}:network", f"{own}:absolute_error"}

    monkeypatch.chdir("/")  # from anywhere
    (tmp_path / "a.png").write_bytes(png(np.zeros((40, 30, 3), np.uint8)))
    score = [*cache, "--checkpoint", str(tmp_path / "run"), "--photos", str(tmp_path / "a.png")]
    assert evaluate.main(score) == 0
    assert "has changed since" not in capsys.readouterr().err
    own.write_text(OWN + "\n# changed\n")
    assert evaluate.main(score) == 0
    assert f"{own}:network has changed since this checkpoint was written" in capsys.readouterr().err
    own.unlink()
    assert evaluate.main(score) == 2
    assert f"{own}: there is no such file; put it back" in capsys.readouterr().err


def test_a_reduction_of_ones_own_and_another_rule_are_trained_from_the_command_line(own, tmp_path, capsys):
    arguments = ["--data", f"{own}:pictures", "--reduce", "max", f"{own}:MeanSquare", "--rule", RULE]
    arguments += ["--levels", "1", "2", "--buckets", "1", "--pixels-per-step", "20000", "--steps", "3"]
    arguments += ["--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "xla")]
    assert train.main(arguments) == 0, capsys.readouterr().err
    with Checkpoints(tmp_path / "run") as checkpoints:
        about, variables = checkpoints.about(), checkpoints.model_variables()
    assert f"{own}:MeanSquare" in about.parts
    (learnt,) = [value for name, value in variables.items() if "learnt" in name]
    assert learnt != 1
    model = build_model(about.config, 1)
    assert {pool.rule for pool in model.pools} == {RULE}


def test_a_network_of_ones_own_is_held_to_the_promise(own):
    from flax import nnx

    network = create_model(f"{own}:network", levels=(1, 2), rngs=nnx.Rngs(0))
    network.eval()
    assert_padding_exact(network, sizes=((9, 14), (16, 12)))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("nosuch=1", "--model-options nosuch=1: expected NAME=VALUE; .* has widths, slope"),
        ("widths=4", r"--model-options widths=4: must be of type tuple\[int, \.\.\.\]"),
        ("slope=steep", "--model-options slope=steep: must be of type float"),
        ("widths", "expected NAME=VALUE"),
    ],
)
def test_options_are_typed_by_the_networks_own_signature(own, tmp_path, capsys, option, said):
    arguments = ["--model", f"{own}:network", "--data", f"{own}:pictures", "--model-options", option]
    assert train.main([*arguments, "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path)]) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "nosuch.py:thing", "there is no such file"),
        ("x = 1", "own.py:thing", "has no thing; it has x"),
        ("import nosuchmodule", "own.py:thing", "there is no module nosuchmodule"),
        ("1 / 0", "own.py:thing", "cannot be imported: ZeroDivisionError"),
        ("", "nosuchpackage.module:thing", "there is no module nosuchpackage"),
        ("", "thing", "'thing' is unknown; known are path, and module:attribute or file.py:attribute"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(tmp_path, monkeypatch, text, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Registry("part", {"path": "pathlib:Path"}, argument="part")[name]
    assert "\n" not in str(caught.value)


def test_a_file_is_run_once_and_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = [3]")
    (tmp_path / "own.py").write_text(
        textwrap.dedent("""
        import dataclasses
        from beside import VALUE

        @dataclasses.dataclass
        class Thing:
            value: int = VALUE[0]
    """)
    )
    registry = Registry("part", {}, argument="part")
    assert registry[f"{tmp_path}/own.py:Thing"]().value == 3
    assert registry[f"{tmp_path}/own.py:Thing"] is registry[f"{tmp_path}/own.py:Thing"]


def test_a_name_is_made_absolute_and_a_fingerprint_changes_with_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part.py").write_text("x = 1")
    assert absolute("part.py:x") == f"{tmp_path}/part.py:x"
    assert absolute("compact") == "compact"
    before = fingerprint("part.py:x")
    (tmp_path / "part.py").write_text("x = 2")
    assert fingerprint("part.py:x") != before
    assert fingerprint("compact") is None


def test_a_part_can_be_given_a_name():
    registry = Registry("part", {}, argument="part")
    registry.add("mine", 3)
    assert registry["mine"] == 3
    with pytest.raises(ValueError, match="is taken"):
        registry.add("mine", 4)
