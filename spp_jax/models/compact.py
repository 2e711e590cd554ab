"""`compact`: a small residual network that learns in minutes on two cores."""

from collections.abc import Sequence

from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import BatchNorm, Conv
from spp_jax.models.sppnet import SPPNet
from spp_jax.padded import Padded
from spp_jax.pooling import Level

__all__ = ["compact"]


def compact(
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    widths: Sequence[int] = (16, 32, 64, 96),
    reduce: str = "max",
    hidden: int = 64,
    dtype: Dtype | None = None,
    rngs: nnx.Rngs,
) -> SPPNet:
    """Four stages, each halving the map; the deeper two with a residual block (He et al. 2016).

    Args:
        levels: the pyramid.
        outputs: how many logits.
        widths: channels of each stage, one stage per entry.
        reduce: of the pyramid.
        hidden: width of the head's hidden layer.
        dtype: to compute in; None: what parameters and input promote to.
        rngs: for the initial parameters.

    Returns:
        The network; its ``min_size`` is one cell of the last stage, 2**stages pixels.
    """
    body = _Body(tuple(widths), dtype=dtype, rngs=rngs)
    smallest = 2 ** len(widths)
    return SPPNet(
        body,
        features=widths[-1],
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
        stages = []
        for stage, (before, width) in enumerate(zip((3, *widths), widths, strict=False)):
            stages.append(_ConvNorm(before, width, strides=2, dtype=dtype, rngs=rngs))
            if stage >= len(widths) - 2:
                stages.append(_Residual(width, dtype=dtype, rngs=rngs))
        self.stages = nnx.List(stages)

    def __call__(self, x: Padded) -> Padded:
        for stage in self.stages:
            x = stage(x).map(nnx.relu)
        return x


class _ConvNorm(nnx.Module):
    def __init__(self, before: int, width: int, *, strides: int, dtype: Dtype | None, rngs: nnx.Rngs):
        self.conv = Conv(before, width, 3, strides=strides, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Padded) -> Padded:
        return self.norm(self.conv(x))


class _Residual(nnx.Module):
    def __init__(self, width: int, *, dtype: Dtype | None, rngs: nnx.Rngs):
        self.branch = _ConvNorm(width, width, strides=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Padded) -> Padded:
        branch = self.branch(x)
        return x.map(lambda values: values + branch.values)
