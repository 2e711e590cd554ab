"""`compact`: a small network over local contrast that learns in minutes on two cores."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from spp_jax.bins import Level
from spp_jax.layers import Conv, Geometry
from spp_jax.models.sppnet import SPPNet
from spp_jax.padded import Padded
from spp_jax.reductions import Reduction

__all__ = ["compact"]

_GAIN = 20.0  # a step of 1/20 of the range between neighbours is a middling contrast


def compact(
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    widths: Sequence[int] = (24, 48),
    hidden: int = 64,
    reduce: Sequence[Reduction] = ("mean", "max"),
    dtype: Dtype | None = None,
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
        dtype: to compute in; None: what parameters and input promote to.
        rngs: for the initial parameters.

    Returns:
        The network; its ``min_size`` is one cell of the last stage, 2 * 2**len(widths) pixels.
    """
    smallest = 2 * 2 ** len(widths)
    return SPPNet(
        _Body(tuple(widths), dtype=dtype, rngs=rngs),
        features=widths[0] + widths[-1] if len(widths) > 1 else widths[0],
        min_size=(smallest, smallest),
        levels=levels,
        reduce=reduce,
        hidden=hidden,
        outputs=outputs,
        dtype=dtype,
        rngs=rngs,
    )


class _Body(nnx.Module):
    def __init__(self, widths: tuple[int, ...], *, dtype: Dtype | None, rngs: nnx.Rngs):
        stem, *_ = widths
        self.stem = Conv(
            3, stem, 3, strides=4, use_bias=False, kernel_init=_differences, dtype=dtype, rngs=rngs
        )
        he = nnx.initializers.he_normal()
        self.stages = nnx.List(
            Conv(before, width, 3, strides=2, kernel_init=he, dtype=dtype, rngs=rngs)
            for before, width in itertools.pairwise(widths)
        )

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """From the picture's pixels to the cells of each map."""
        first = self.stem.geometry
        last = functools.reduce(Geometry.then, (stage.geometry for stage in self.stages), first)
        return (first, last) if self.stages else (first,)

    def __call__(self, x: Padded) -> tuple[Padded, ...]:
        contrast = x = self.stem(x).map(lambda values: jnp.log1p(_GAIN / 4 * jnp.abs(values)))
        for stage in self.stages:
            x = stage(x).map(nnx.relu)
        return (contrast, x) if self.stages else (x,)


def _differences(key: jax.Array, shape: tuple[int, ...], dtype, **_) -> jax.Array:
    """Kernels ``[*window, in, out]`` that sum to zero over the window, each of norm 1."""
    window = tuple(range(len(shape) - 2))
    kernel = jax.random.normal(key, shape, dtype)
    kernel -= kernel.mean(window, keepdims=True)
    return kernel / jnp.linalg.norm(kernel.reshape(-1, shape[-1]), axis=0)
