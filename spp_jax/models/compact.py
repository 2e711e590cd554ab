"""`compact`: a small network over local contrast that learns in minutes on two cores."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import Conv
from spp_jax.models.sppnet import ConvStage, Pyramid, SPPNet, Stages
from spp_jax.padded import Padded
from spp_jax.pooling.bins import Level
from spp_jax.pooling.reductions import Reduction

__all__ = ["compact"]

_GAIN = 20.0  # a step of 1/20 of the range between neighbours is a middling contrast


def compact(
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    widths: Sequence[int] = (24, 48),
    hidden: int = 64,
    reduce: Sequence[Reduction] = ("mean", "max"),
    maps: Sequence[Pyramid] | None = None,
    dtype: Dtype | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> SPPNet:
    """A stem that sees contrast, and stages that halve the map; the pyramid pools first and last.

    The stem's filters start as differences (they sum to zero over their window), and its activation is
    the logarithm of their magnitude: what sets sharp from blurred, clean from noisy and coded from
    natural is the strength of fine detail by orders of magnitude, and its sign says nothing. Local
    contrast, in other forms, opens many networks that judge pictures (Kang et al. 2014, CNNIQA,
    section 3.1). The pyramid over the stem goes to the head beside that of the last stage: the strength
    itself judges well also where few photographs teach. There is no normalisation layer: it would
    divide that strength out.

    Args:
        levels: the pyramid.
        outputs: how many logits.
        widths: channels of the stem, which takes contrast at every fourth row and column, and of each
            stage, which halves the map.
        hidden: width of the head's hidden layer.
        reduce: the reductions of the pyramid.
        maps: as :class:`~spp_jax.models.sppnet.SPPNet` takes it, instead of the two.
        dtype: to compute in; None: what parameters and input promote to.
        remat: as :class:`~spp_jax.models.sppnet.Stages` takes it.
        rngs: for the initial parameters.

    Returns:
        The network.
    """
    he = nnx.initializers.he_normal()
    halving = (
        ConvStage([Conv(before, width, 3, strides=2, kernel_init=he, dtype=dtype, rngs=rngs)])
        for before, width in itertools.pairwise(widths)
    )
    stem = _Contrast(widths[0], dtype=dtype, rngs=rngs)
    several = len(widths) > 1
    return SPPNet(
        Stages([stem, *halving], maps=(0, -1) if several else (0,), remat=remat),
        lambda bins, features: _Head(bins * features, hidden, outputs, dtype=dtype, rngs=rngs),
        features=widths[0] + widths[-1] if several else widths[0],
        levels=levels,
        reduce=reduce,
        maps=maps,
    )


class _Contrast(nnx.Module):
    def __init__(self, width: int, *, dtype: Dtype | None, rngs: nnx.Rngs):
        self.conv = Conv(
            3, width, 3, strides=4, use_bias=False, kernel_init=_differences, dtype=dtype, rngs=rngs
        )
        self.chain, self.width = (self.conv.geometry,), width

    def __call__(self, x: Padded) -> Padded:
        return self.conv(x).map(lambda values: jnp.log1p(_GAIN / 4 * jnp.abs(values)))


class _Head(nnx.Module):
    def __init__(self, width: int, hidden: int, outputs: int, *, dtype: Dtype | None, rngs: nnx.Rngs):
        # Adam moves each weight by about the learning rate, so a sum over a vector this long would leap
        # and leave hidden units dead: the vector is scaled down, and the weights are of order 1.
        self.scale = width**-0.5
        init, zeros = nnx.initializers.normal(1.0), nnx.initializers.zeros_init()
        self.hidden = nnx.Linear(width, hidden, kernel_init=init, dtype=dtype, rngs=rngs)
        self.logits = nnx.Linear(hidden, outputs, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, pooled: jax.Array) -> jax.Array:
        vector = pooled.reshape(pooled.shape[0], -1)
        return self.logits(nnx.gelu(self.hidden(vector * self.scale)))


def _differences(key: jax.Array, shape: tuple[int, ...], dtype, **_) -> jax.Array:
    """Kernels ``[*window, in, out]`` that sum to zero over the window, each of norm 1."""
    window = tuple(range(len(shape) - 2))
    kernel = jax.random.normal(key, shape, dtype)
    kernel -= kernel.mean(window, keepdims=True)
    return kernel / jnp.linalg.norm(kernel.reshape(-1, shape[-1]), axis=0)
