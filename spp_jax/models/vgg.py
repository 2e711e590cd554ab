"""`vgg16`, and `mna`, which shares its body among heads."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import Conv, MaxPool
from spp_jax.models.sppnet import IMAGENET_MEAN, IMAGENET_STD, Classifier, ConvStage, Pyramid, SPPNet, Stages
from spp_jax.pooling.bins import Level, normalize_levels, num_bins
from spp_jax.pooling.reductions import Reduction

__all__ = ["CONVS", "mna", "vgg16"]

CONVS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
"""Channels before, and after each convolution of, the stages of VGG-16."""


def vgg16(
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    hidden: Sequence[int] = (4096, 4096),
    reduce: Sequence[Reduction] = ("max",),
    maps: Sequence[Pyramid] | None = None,
    dropout: float = 0.5,
    dtype: Dtype | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> SPPNet:
    """VGG-16 (Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D), its last pool a pyramid.

    On pictures of 224x224 pixels the map before the pyramid has 14x14 cells, and a pyramid of the one level
    7 is the very pool that it replaces. The SPP paper's pyramids are levels (1, 2, 3, 6) and (1, 2, 3, 4).

    Args:
        levels: the pyramid.
        outputs: how many logits.
        hidden: widths of the head's hidden layers.
        reduce: the reductions of the pyramid.
        maps: as :class:`~spp_jax.models.sppnet.SPPNet` takes it, instead of the two.
        dropout: share of the inputs of the head's last two layers that is dropped in training.
        dtype: to compute in; None: what parameters and input promote to.
        remat: as :class:`~spp_jax.models.sppnet.Stages` takes it.
        rngs: for the initial parameters and for what is dropped.
    """
    return SPPNet.of_imagenet(
        _body(dtype, remat, rngs),
        features=512,
        levels=levels,
        reduce=reduce,
        maps=maps,
        hidden=hidden,
        outputs=outputs,
        dropout=(0, dropout, dropout),
        dtype=dtype,
        rngs=rngs,
    )


def mna(
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    hidden: Sequence[int] = (4096, 4096),
    reduce: Sequence[Reduction] = ("max",),
    dropout: float = 0.5,
    dtype: Dtype | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> SPPNet:
    """MNA-CNN (Mai, Jin and Liu 2016, section 3.2): one body of VGG-16, a head for each pool size, averaged.

    Every level of ``levels`` is a sub-network of its own: its adaptive pool, its fully connected layers. The
    body runs once, and one reading of its map gives every pool. What is averaged are the logits; the paper's
    aggregation by scene is not built.

    Args:
        levels: the adaptive pool size of each head.
        outputs: how many logits.
        hidden: widths of each head's hidden layers.
        reduce: the reductions of the pools.
        dropout: share of the inputs of each head's last two layers that is dropped in training.
        dtype: to compute in; None: what parameters and input promote to.
        remat: as :class:`~spp_jax.models.sppnet.Stages` takes it.
        rngs: for the initial parameters and for what is dropped.
    """
    bins_of = [num_bins([level]) for level in normalize_levels(levels, 2)]

    def heads(_: int, features: int) -> "_Heads":
        options = {"hidden": hidden, "outputs": outputs, "dropout": (0, dropout, dropout)}
        return _Heads(
            [Classifier(bins, features, **options, dtype=dtype, rngs=rngs) for bins in bins_of], bins_of
        )

    return SPPNet(
        _body(dtype, remat, rngs),
        heads,
        features=512,
        levels=levels,
        reduce=reduce,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


class _Heads(nnx.Module):
    def __init__(self, heads: Sequence[Classifier], bins: Sequence[int]):
        self.heads, self.bins = nnx.List(heads), tuple(bins)

    def __call__(self, pooled: jax.Array) -> jax.Array:
        parts = jnp.split(pooled, list(itertools.accumulate(self.bins))[:-1], axis=1)
        logits = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        return jnp.mean(jnp.stack(logits), axis=0)


def _body(dtype: Dtype | None, remat: bool, rngs: nnx.Rngs) -> Stages:
    init = nnx.initializers.he_normal()
    stages = [
        ConvStage(
            [
                Conv(before, width, 3, kernel_init=init, dtype=dtype, rngs=rngs)
                for before, width in itertools.pairwise(widths)
            ],
            pool=MaxPool(2) if number else None,
        )
        for number, widths in enumerate(CONVS)
    ]
    return Stages(stages, remat=remat)
