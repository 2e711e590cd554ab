"""Weights of torchvision: its own networks, with random variables, are the reference."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spp_jax import create_model
from spp_jax.errors import UsageError
from spp_jax.models.weights import from_torchvision, read_tensors, take_variables

LEVELS = {"alexnet": (6,), "vgg16": (7,), "resnet18": (1,), "resnet50": (1,)}


@pytest.mark.parametrize(
    ("name", "dtype", "file"),
    [
        ("alexnet", np.float32, "weights.safetensors"),
        *(
            pytest.param(name, dtype, f"weights{suffix}", marks=pytest.mark.slow)
            for name in LEVELS
            for dtype, suffix in ((np.float32, ".pth"), (np.float64, ".safetensors"))
            if (name, dtype) != ("alexnet", np.float32)
        ),
    ],
)
def test_a_file_of_torchvision_gives_its_1000_logits(name, dtype, file, tmp_path):
    torch_networks = pytest.importorskip("torch_networks")
    torch = torch_networks.torch
    network = torch_networks.network(name).to(torch.float64 if dtype is np.float64 else torch.float32)
    if file.endswith(".pth"):
        torch.save(network.state_dict(), tmp_path / file)
    else:
        pytest.importorskip("safetensors.torch").save_file(network.state_dict(), tmp_path / file)
    pictures = np.random.default_rng(0).uniform(size=(2, 224, 224, 3)).astype(dtype)
    with torch.no_grad():
        pixels = torch.cat([torch_networks.normalized(picture)[1] for picture in pictures])
        expected = network(pixels).numpy()
    with jax.enable_x64(dtype is np.float64):
        model = create_model(name, levels=LEVELS[name], outputs=1000, rngs=nnx.Rngs(0))
        model.eval()
        graph, like = nnx.split(model)
        like = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, like)
        imported = from_torchvision(name, read_tensors(tmp_path / file), LEVELS[name])
        assert imported.unused == imported.missing == ()
        state, _, left = take_variables(like, imported.variables)
        assert all("dropout" in path for path in left)
        logits = np.asarray(
            jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(pictures))
        )
    assert logits.dtype == dtype
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error <= (1e-9 if dtype is np.float64 else 1e-4)


def alexnet_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """As torchvision names and shapes them, with a small classifier."""
    rng = np.random.default_rng(seed)
    convs = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    tensors = {f"features.{n}.weight": rng.normal(size=(*shape, shape[-1])) for n, shape in convs.items()}
    tensors |= {f"features.{n}.bias": rng.normal(size=shape[0]) for n, shape in convs.items()}
    for n, (before, width) in {1: (256 * 36, 8), 4: (8, 8), 6: (8, 1000)}.items():
        tensors[f"classifier.{n}.weight"] = rng.normal(size=(width, before))
        tensors[f"classifier.{n}.bias"] = rng.normal(size=width)
    return {name: array.astype(np.float32) for name, array in tensors.items()}


@pytest.fixture(scope="module")
def small():
    return nnx.state(create_model("alexnet", hidden=(8, 8), rngs=nnx.Rngs(0)))


def test_with_another_pyramid_the_first_layer_of_the_head_is_left_fresh_and_named(small):
    imported = from_torchvision("alexnet", alexnet_tensors(), (1, 2, 4))
    assert imported.unused == ("classifier.1.weight", "classifier.1.bias")
    _, taken, left = take_variables(small, imported.variables)
    assert "body/stages/2/convs/2/kernel" in taken
    # The last layer has other outputs.
    assert {path for path in left if "dropout" not in path} == {
        "head/hidden/0/kernel",
        "head/hidden/0/bias",
        "head/logits/kernel",
        "head/logits/bias",
    }


def test_levels_with_as_many_bins_as_the_weights_were_made_for_do_not_take_them():
    assert "classifier.1.weight" in from_torchvision("alexnet", alexnet_tensors(), (4, 4, 2)).unused
    assert from_torchvision("alexnet", alexnet_tensors(), ((6, 6),)).unused == ()
    assert "classifier.1.weight" in from_torchvision("alexnet", alexnet_tensors(), ((4, 9),)).unused


def test_what_has_no_place_and_what_is_missing_is_named():
    tensors = alexnet_tensors()
    del tensors["classifier.4.bias"]
    imported = from_torchvision("alexnet", tensors | {"extra.weight": np.zeros(3)}, (6,))
    assert imported.unused == ("extra.weight",)
    assert imported.missing == ("classifier.4.bias",)


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("compact", {}, "taken by alexnet, vgg16, mna, resnet18, resnet50, not by compact"),
        ("zf5", {}, "not by zf5"),
        (
            "resnet18",
            {"features.0.weight": np.zeros((1, 1, 1, 1))},
            "no state dict of torchvision's resnet18",
        ),
        ("vgg16", alexnet_tensors(), "no state dict of torchvision's vgg16: features.3.weight is too much"),
        (
            "alexnet",
            {name: array for name, array in alexnet_tensors().items() if name != "features.3.bias"},
            "no state dict of torchvision's alexnet: features.3.bias is missing",
        ),
        (
            "alexnet",
            alexnet_tensors() | {"classifier.1.weight": np.zeros((8, 256 * 36 + 1))},
            "classifier.1.weight has 9217 inputs",
        ),
        (
            "alexnet",
            alexnet_tensors() | {"classifier.4.weight": np.zeros(8)},
            "classifier.4.weight has 1 axes",
        ),
    ],
)
def test_weights_of_no_or_another_network_are_refused(name, tensors, said):
    with pytest.raises(UsageError, match=said):
        from_torchvision(name, tensors, (1,))


class Harmful:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_file_is_never_unpickled_beyond_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"features.0.weight": Harmful(tmp_path / "harm")}, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path / 'weights.pth'} holds no state dict")):
        read_tensors(tmp_path / "weights.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_and_missing_files_are_said(name, tmp_path):
    pytest.importorskip("torch" if name.endswith("pth") else "safetensors")
    with pytest.raises(UsageError, match="no such file"):
        read_tensors(tmp_path / name)
    (tmp_path / name).write_bytes(b"not tensors at all")
    with pytest.raises(UsageError, match="holds no state dict of plain tensors"):
        read_tensors(tmp_path / name)
