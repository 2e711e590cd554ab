"""The networks of the field: as published, exact on padded batches, and trainable; torch is the reference."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import spp_jax.models
from spp_jax import Padded, create_model, list_models, pad_batch
from spp_jax.config import RunConfig
from spp_jax.data.loading import Batch
from spp_jax.models.abstract import without_values
from spp_jax.models.weights import flat_names, from_torchvision, take_variables
from spp_jax.testing import padded_tensors, relative_errors
from spp_jax.training import configured_training, train_step

PUBLISHED = {  # parameters of the convolutional part; of the ResNets all but their last layer
    "alexnet": 2_469_696,
    "efficientnet_lite0": 4_652_008 - 1_281_000,
    "efficientnet_lite1": 5_416_680 - 1_281_000,
    "efficientnet_lite2": 6_092_072 - 1_281_000,
    "mna": 14_714_688,
    "resnet18": 11_689_512 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "vgg16": 14_714_688,
    "zf5": 3_726_464,
}
TORCHVISION = [name for name in PUBLISHED if not name.startswith("efficientnet")]  # those: test_efficientnet
ONE_OF_A_FAMILY = [*TORCHVISION, "efficientnet_lite0"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name != "alexnet" else name for name in ONE_OF_A_FAMILY]


@functools.cache
def abstract(name: str):
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", ["compact", "alexnet", "efficientnet_lite0"])
def test_a_network_without_values_has_the_variables_of_one_with_them(name):
    def described(model):
        return {path: (leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(nnx.state(model))}

    found = without_values(lambda rngs: create_model(name, rngs=rngs))
    assert described(found) == described(abstract(name))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(found)))


def test_each_network_but_compact_is_compared_with_what_was_published():
    assert set(list_models()) == {"compact", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_body_has_as_many_parameters_as_published(name):
    params = jax.tree.leaves(nnx.state(abstract(name).body, nnx.Param))
    assert sum(param.size for param in params) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "cells"),
    {
        "alexnet": 13,
        "zf5": 13,
        "vgg16": 14,
        "resnet18": 7,
        "compact": 28,
        "efficientnet_lite0": 7,
    }.items(),  # resnet50: as resnet18
)
def test_on_224_pixels_the_last_map_is_as_published(name, cells):
    def last(model, pixels):
        return model.body(Padded.whole(pixels))[-1]

    found = nnx.eval_shape(last, abstract(name), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert found.values.shape[1:3] == (cells, cells)
    *_, geometry = abstract(name).body.geometries
    assert geometry.output_sizes(jnp.array([[224, 224]])).tolist() == [[cells, cells]]


NOT_LITE = [
    name for name in list_models() if not name.startswith("efficientnet")
]  # theirs: test_efficientnet


@pytest.mark.parametrize("name", sorted({*NOT_LITE} - {"resnet50"}))  # which has resnet18's maps
def test_min_size_is_the_smallest_that_leaves_every_map_a_cell(name):
    model = abstract(name)

    def cells(side):
        *_, geometry = model.body.geometries
        shape = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        found = nnx.eval_shape(lambda m, x: m.body(Padded.whole(x))[-1].values, model, shape).shape[1]
        return found if side >= geometry.strides[0] else 0

    assert model.min_size[0] == model.min_size[1]
    assert cells(model.min_size[0]) >= 1
    with contextlib.suppress(ValueError, TypeError):  # XLA refuses a map without cells
        assert cells(model.min_size[0] - 1) == 0


def by_our_names(name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if name != "zf5":
        return from_torchvision(name, tensors, (99,)).variables
    convs = [(stage, conv) for stage, count in enumerate((1, 1, 3)) for conv in range(count)]
    names = [f"body/stages/{stage}/convs/{c}/{part}" for stage, c in convs for part in ("kernel", "bias")]
    arrays = [array.transpose(2, 3, 1, 0) if array.ndim == 4 else array for array in tensors.values()]
    return dict(zip(names, arrays, strict=True))


def classify(params, vector, head: str):
    numbers = sorted({key.split("/")[-2] for key in params if key.startswith(f"{head}/hidden/")})
    for number in numbers:
        layer = f"{head}/hidden/{number}"
        vector = (vector @ params[f"{layer}/kernel"] + params[f"{layer}/bias"]).relu()
    return vector @ params[f"{head}/logits/kernel"] + params[f"{head}/logits/bias"]


def tensors_in_torch(
    name: str, model, images: list[np.ndarray], levels, reduce: str
) -> dict[str, np.ndarray]:
    """What `lone_tensors` would give, by torch; the model gets the variables of torch's body."""
    torch_networks = pytest.importorskip("torch_networks")
    torch = torch_networks.torch
    body, prefix = torch_networks.body(name)
    body = body.double()
    theirs = by_our_names(name, {prefix + key: value.numpy() for key, value in body.state_dict().items()})
    state, taken, _ = take_variables(nnx.state(model), theirs)
    assert len(taken) == len(theirs)
    nnx.update(model, state)
    params = nnx.to_pure_dict(nnx.state(model.head, nnx.Param))
    head = {
        f"head/{key}": torch.tensor(np.asarray(leaf, np.float64), requires_grad=True)
        for key, leaf in zip(flat_names(params), jax.tree.leaves(params), strict=True)
    }
    result = {}
    for number, image in enumerate(images):
        leaf, pixels = torch_networks.normalized(image)
        pooled = torch_networks.pyramid(body(pixels), levels, reduce)
        if name == "mna":
            parts = torch.split(pooled, [level**2 for level in levels])
            logits = [classify(head, part.flatten(), f"head/heads/{n}") for n, part in enumerate(parts)]
            logits = torch.stack(logits).mean(0)
        else:
            logits = classify(head, pooled.flatten(), "head")
        weights = np.random.default_rng((0, number)).normal(size=len(logits))
        (logits * torch.tensor(weights)).sum().backward()
        result[f"output of image {number}"] = logits.detach().numpy()
        result[f"input gradient of image {number}"] = leaf.grad.numpy()
    tensors = {key: value.numpy() for key, value in body.named_buffers()}
    tensors |= {key: value.grad.numpy() for key, value in body.named_parameters()}
    grads = by_our_names(name, {prefix + key: value for key, value in tensors.items()})
    result |= {key: grad for key, grad in grads.items() if not key.endswith(("/mean", "/var"))}
    return result | {key: value.grad.numpy() for key, value in head.items()}


def with_paths(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``gradient of ['head']['logits']['bias'].value`` is ``head/logits/bias``."""
    paths = {key: re.findall(r"\w+", key)[2:-1] for key in tensors if key.startswith("gradient of")}
    return {"/".join(paths[key]) if key in paths else key: value for key, value in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_padded_it_gives_what_torch_gives_on_each_of_20_pictures_alone(name):
    reduce = "mean" if name.startswith("resnet") else "max"
    model = create_model(name, outputs=2, hidden=(6, 5), rngs=nnx.Rngs(0))
    model.eval()
    rng = np.random.default_rng(len(name))
    sizes = rng.integers(model.min_size[0], 72, (20, 2))
    images = [rng.uniform(size=(*size, 3)) for size in sizes]
    expected = tensors_in_torch(name, model, images, (1, 2, 4), reduce)
    found = with_paths(padded_tensors(model, images))
    assert found.pop("input gradient outside the images") == 0
    errors = relative_errors(found, expected)
    assert len(errors) > 50
    assert max(errors.values()) <= 1e-9, errors


@pytest.fixture
def narrow_heads(monkeypatch):
    """Making and moving a hundred million weights of 4,096 units takes longer than all else of a step."""
    for name in ("alexnet", "mna", "vgg16", "zf5"):
        narrow = functools.partial(spp_jax.models.MODELS[name], hidden=(64, 64))
        monkeypatch.setitem(spp_jax.models.MODELS._entries, name, narrow)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SLOW)
def test_it_trains_a_step(name, dtype, narrow_heads):
    recipe, state = configured_training(
        RunConfig(model=name, dtype=dtype, warmup=0, remat=(name, dtype) == ("resnet18", "bfloat16")), 10, 2.0
    )
    rng = np.random.default_rng(0)
    images = pad_batch(
        [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 55), (64, 33))], (64, 64)
    )
    batch = Batch(
        images=jax.tree.map(jnp.asarray, images),
        scores=jnp.array([0.1, 0.9]),
        good=jnp.array([False, True]),
        weights=jnp.ones(2),
    )
    before = jax.tree.map(np.asarray, state.params)
    after, metrics = jax.jit(train_step, static_argnums=0, donate_argnums=1)(recipe, state, batch)
    assert np.isfinite(metrics.loss)
    assert metrics.grad_norm > 0
    for param in jax.tree.leaves(after.params):
        assert param.dtype == jnp.float32
        assert jnp.isfinite(param).all()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, before)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_of_resnet50_that_are_alike_are_traced_once(remat, monkeypatch):
    model = nnx.eval_shape(lambda: create_model("resnet50", remat=remat, rngs=nnx.Rngs(0)))
    traced = []
    block = type(model.body.stages[1])
    call = block.__call__

    def counted(self, x):
        traced.append((x.values.shape, self.shortcut is None))
        return call(self, x)

    monkeypatch.setattr(block, "__call__", counted)
    pixels = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    nnx.eval_shape(lambda m, x: m(Padded.whole(x)), model, pixels)
    assert len(model.body.stages) == 1 + 16
    assert len(traced) == len(set(traced)) == 4 * 2  # of each group the first, and the others


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_rematerialised_it_keeps_a_map_a_stage_for_the_backward_pass(name):
    """As traced. XLA's CPU backend undoes it, so what a compiled program takes there tells nothing."""

    def kept(remat: bool) -> int:
        model = nnx.eval_shape(lambda: create_model(name, hidden=(8,), remat=remat, rngs=nnx.Rngs(0)))
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def backward(params, rest, x):
            def logits(params):
                return nnx.merge(graph, params, rest, copy=True)(x)

            return jax.vjp(logits, params)[1]

        x = jax.ShapeDtypeStruct((1, 256, 384, 3), jnp.float32)
        leaves = jax.tree.leaves(jax.eval_shape(backward, params, rest, x))
        given = sum(leaf.size for leaf in jax.tree.leaves((params, rest)))
        return sum(leaf.size for leaf in leaves) - given

    assert kept(True) < 0.5 * kept(False)
