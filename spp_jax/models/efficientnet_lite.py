"""`efficientnet_lite0`, `1` and `2`: small networks, whose ImageNet weights small packages carry."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import BatchNorm, Conv, DepthwiseConv
from spp_jax.models.abstract import without_values
from spp_jax.models.sppnet import (
    Classifier,
    LinearHead,
    Pyramid,
    QuadraticHead,
    SPPNet,
    Stage,
    Stages,
)
from spp_jax.padded import Padded
from spp_jax.pooling.bins import Level
from spp_jax.pooling.reductions import Reduction

__all__ = ["Block", "blocks_of", "efficientnet_lite", "judging_stages", "several_stages"]


class Block(NamedTuple):
    """What is static about a block.

    Attributes:
        kernel: cells a side of the depthwise convolution.
        strides: its step.
        expansion: channels of it for each channel that comes in.
        width: channels that go out.
    """

    kernel: int
    strides: int
    expansion: int
    width: int


_GROUPS = (  # the first block of each, and how many there are
    (Block(3, 1, 1, 16), 1),
    (Block(3, 2, 6, 24), 2),
    (Block(5, 2, 6, 40), 2),
    (Block(3, 2, 6, 80), 3),
    (Block(5, 1, 6, 112), 3),
    (Block(5, 2, 6, 192), 4),
    (Block(3, 1, 6, 320), 1),
)
_MULTIPLIERS = {  # of widths, of tenths of depths, and the dropout before the head
    "efficientnet_lite0": (1.0, 10, 0.2),
    "efficientnet_lite1": (1.0, 11, 0.2),
    "efficientnet_lite2": (1.1, 12, 0.3),
}
_STEM, _LAST = 32, 1280
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3


def blocks_of(name: str) -> tuple[Block, ...]:
    """The blocks of a network, in order."""
    return tuple(
        first if not number else first._replace(strides=1)
        for first, count in _groups_of(name)
        for number in range(count)
    )


def _groups_of(name: str) -> list[tuple[Block, int]]:
    """As ``_GROUPS``; depths of all but the first and the last are multiplied, rounded up."""
    width, tenths, _ = _MULTIPLIERS[name]
    return [
        (
            first._replace(width=_multiple_of_8(first.width * width)),
            -(-count * tenths // 10) if 0 < number < len(_GROUPS) - 1 else count,
        )
        for number, (first, count) in enumerate(_GROUPS)
    ]


def _multiple_of_8(width: float) -> int:
    """The nearest, but not more than a tenth below (Tan and Le 2019, in their code)."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


def several_stages(name: str, levels: Sequence[Level] = (1, 2, 4)) -> tuple[Pyramid, ...]:
    """How to read the network for judging pictures: the best of those measured, for ``maps``.

    Mean, deviation and maximum over the whole of three inner maps, of 4, 8 and 16 pixels a cell: how the
    picture looks; then mean and maximum of the last map over a pyramid: what is in it, and where.

    Args:
        name: of the network.
        levels: the pyramid over the last map.

    Example::

        model = create_model(
            "efficientnet_lite0", maps=several_stages("efficientnet_lite0"), pretrained=True, rngs=nnx.Rngs(0)
        )
        vectors = model.features(images)
    """
    ends = list(itertools.accumulate(count for _, count in _groups_of(name)))  # the stem is stage 0
    inner = (Pyramid(ends[group], (1,), ("mean", "deviation", "max")) for group in (1, 2, 4))
    return (*inner, Pyramid(-1, tuple(levels), ("mean", "max")))


def judging_stages(name: str) -> tuple[Pyramid, ...]:
    """How the judges that ship read the network, whole maps all: the best for quality of those measured.

    The square roots of mean, deviation and maximum of the last map of each group but the last, from 2 to 16
    pixels a cell, and of the mean of the last convolution's. Made as :func:`several_stages` is.
    """
    ends = list(itertools.accumulate(count for _, count in _groups_of(name)))[:-1]
    inner = (Pyramid(stage, (1,), ("mean", "deviation", "max"), 0.5) for stage in ends)
    return (*inner, Pyramid(-1, (1,), ("mean",), 0.5))


def efficientnet_lite(
    name: str,
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    hidden: Sequence[int] = (),
    reduce: Sequence[Reduction] = ("mean", "max"),
    maps: Sequence[Pyramid] | str | None = None,
    head: str = "classifier",
    rank: int = 48,
    dropout: float | None = None,
    pretrained: bool = False,
    freeze_norm: bool = False,
    dtype: Dtype | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> SPPNet:
    """EfficientNet-Lite (R. Liu 2020, in Google's code; Tan and Le 2019, arXiv:1905.11946).

    Mobile blocks without squeeze and excitation, and ReLU6, which bear low precision.
    With the one level 1, the mean alone and 1,000 outputs it is the original, whose classifier then comes
    with ``pretrained``. Padding is TensorFlow's SAME at even sizes; at odd ones it stays as it is there,
    since it may not depend on the picture's size. Drop-connect, of the original's training, is not built.

    Args:
        name: efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2.
        levels: the pyramid.
        outputs: how many logits.
        hidden: widths of the head's hidden layers.
        reduce: the reductions of the pyramid.
        maps: instead of ``levels`` and ``reduce``, a pyramid for each of several stages' maps: the stem is
            stage 0, then each block is one, then the last convolution. ``several`` is
            :func:`several_stages` with ``levels``, ``judging`` :func:`judging_stages`.
        head: ``classifier``, fully connected layers; or what a probe fills: ``linear``, one layer over
            standardised features (:class:`~spp_jax.models.sppnet.LinearHead`), or ``quadratic``, with squares
            of some directions too (:class:`~spp_jax.models.sppnet.QuadraticHead`).
        rank: of a quadratic head, directions for each output.
        dropout: share of the input of the last layer that is dropped in training; None: as published.
        pretrained: begin with ImageNet's weights; needs the extra ``pretrained``.
        freeze_norm: batch normalisation by its running statistics in training too, which then stay.
        dtype: to compute in; None: what parameters and input promote to.
        remat: as :class:`~spp_jax.models.sppnet.Stages` takes it; a stage is a block.
        rngs: for the initial parameters and for what is dropped.

    Raises:
        ValueError: there is no such head, or no maps of such a name.
        UsageError: the weights are not installed.
    """
    if head not in ("classifier", "linear", "quadratic"):
        raise ValueError(f"head={head!r} is unknown; known are 'classifier', 'linear', 'quadratic'")
    if isinstance(maps, str):
        if maps not in ("several", "judging"):
            raise ValueError(f"maps={maps!r} is unknown; known are 'several', 'judging', and pyramids")
        maps = judging_stages(name) if maps == "judging" else several_stages(name, levels)
    drops = (*(0,) * len(hidden), _MULTIPLIERS[name][2] if dropout is None else dropout)

    def make_body(rngs: nnx.Rngs) -> Stages:
        stages = _stages(blocks_of(name), freeze_norm=freeze_norm, dtype=dtype, rngs=rngs)
        return Stages(stages, remat=remat)

    def make_head(bins: int, features: int) -> Classifier | LinearHead | QuadraticHead:
        if head == "linear":
            return LinearHead(bins * features, outputs, dtype=dtype, rngs=rngs)
        if head == "quadratic":
            return QuadraticHead(bins * features, outputs, rank=rank, dtype=dtype, rngs=rngs)
        return Classifier(
            bins, features, hidden=hidden, outputs=outputs, dropout=drops, dtype=dtype, rngs=rngs
        )

    # Shapes alone, where every variable is replaced: drawing numbers compiles a program for each shape.
    body = without_values(make_body) if pretrained else make_body(rngs)
    model = SPPNet(
        body, make_head, features=_LAST, levels=levels, reduce=reduce, maps=maps, mean=_MEAN, std=_STD
    )
    if pretrained:
        from spp_jax.models.weights import from_imagenet, take_variables  # which knows our blocks

        state, _, _ = take_variables(nnx.state(model), from_imagenet(name, levels).variables)
        nnx.update(model, state)
    return model


efficientnet_lite0 = functools.partial(efficientnet_lite, "efficientnet_lite0")
efficientnet_lite1 = functools.partial(efficientnet_lite, "efficientnet_lite1")
efficientnet_lite2 = functools.partial(efficientnet_lite, "efficientnet_lite2")


def _stages(
    blocks: Sequence[Block], *, freeze_norm: bool, dtype: Dtype | None, rngs: nnx.Rngs
) -> list[Stage]:
    options = {"freeze_norm": freeze_norm, "dtype": dtype, "rngs": rngs}
    stem = Conv(3, _STEM, 3, strides=2, padding=_same(3, 2), **_conv(dtype, rngs))
    stages: list = [_ConvNorm(stem, **options)]
    for block in blocks:
        stages.append(_Block(stages[-1].width, block, **options))
    stages.append(_ConvNorm(Conv(stages[-1].width, _LAST, 1, **_conv(dtype, rngs)), **options))
    return stages


def _same(kernel: int, strides: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """TensorFlow's SAME of an even size; behind, one more, so that odd sizes are halved upwards."""
    before = (kernel - strides) // 2
    edges = before, kernel - 1 - before
    return edges, edges


def _conv(dtype: Dtype | None, rngs: nnx.Rngs) -> dict:
    init = nnx.initializers.variance_scaling(2, "fan_out", "normal")
    return {"use_bias": False, "kernel_init": init, "dtype": dtype, "rngs": rngs}


class _ConvNorm(nnx.Module):
    """A convolution, batch normalisation, and ReLU6 where it is asked for."""

    def __init__(
        self, conv: Conv, *, activate: bool = True, freeze_norm: bool, dtype: Dtype | None, rngs: nnx.Rngs
    ):
        self.conv = conv
        self.norm = BatchNorm(
            conv.out_features, momentum=0.99, epsilon=1e-3, frozen=freeze_norm, dtype=dtype, rngs=rngs
        )
        self.activate = activate
        self.chain, self.width = (conv.geometry,), conv.out_features

    def __call__(self, x: Padded) -> Padded:
        x = self.norm(self.conv(x))
        return x.map(nnx.relu6) if self.activate else x


class _Block(nnx.Module):
    """Expansion, depthwise convolution, projection; and the input, where the shape is kept."""

    def __init__(self, before: int, block: Block, *, freeze_norm: bool, dtype: Dtype | None, rngs: nnx.Rngs):
        options = {"freeze_norm": freeze_norm, "dtype": dtype, "rngs": rngs}
        conv, wide = _conv(dtype, rngs), before * block.expansion
        self.expand = _ConvNorm(Conv(before, wide, 1, **conv), **options) if block.expansion > 1 else None
        self.depthwise = _ConvNorm(
            DepthwiseConv(
                wide, block.kernel, strides=block.strides, padding=_same(block.kernel, block.strides), **conv
            ),
            **options,
        )
        self.project = _ConvNorm(Conv(wide, block.width, 1, **conv), activate=False, **options)
        self.keeps = block.strides == 1 and before == block.width
        self.chain, self.width = self.depthwise.chain, block.width

    def __call__(self, x: Padded) -> Padded:
        branch = x if self.expand is None else self.expand(x)
        branch = self.project(self.depthwise(branch))
        return branch.map(lambda values: values + x.values) if self.keeps else branch
