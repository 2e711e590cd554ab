"""`zf5`: the SPP paper's network, after Zeiler and Fergus."""

from collections.abc import Sequence

import jax
from flax import nnx
from flax.typing import Dtype
from jax import lax

from spp_jax.layers import Conv, MaxPool
from spp_jax.models.sppnet import ConvStage, Pyramid, SPPNet, Stages
from spp_jax.pooling.bins import Level
from spp_jax.pooling.reductions import Reduction

__all__ = ["local_response_norm", "zf5"]


def zf5(
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
    """ZF-5 (SPP-net, section 3.1.1 and table 1; Zeiler and Fergus 2013, arXiv:1311.2901, figure 3).

    The paper's pyramids of it are levels (1, 2, 3, 6) and (1, 2, 3, 4). On 224x224 pixels its maps have 55,
    28 and 13 cells a side.

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

    def conv(before: int, width: int, kernel: int, strides: int = 1) -> Conv:
        init = nnx.initializers.he_normal()
        return Conv(before, width, kernel, strides=strides, kernel_init=init, dtype=dtype, rngs=rngs)

    def after_pool(*convs: Conv) -> ConvStage:
        return ConvStage(convs, pool=MaxPool(3, strides=2), normalize=local_response_norm)

    stages = (
        ConvStage([conv(3, 96, 7, 2)]),
        after_pool(conv(96, 256, 5, 2)),
        after_pool(conv(256, 384, 3), conv(384, 384, 3), conv(384, 256, 3)),
    )
    return SPPNet.of_imagenet(
        Stages(stages, remat=remat),
        features=256,
        levels=levels,
        reduce=reduce,
        maps=maps,
        hidden=hidden,
        outputs=outputs,
        dropout=(0, dropout, dropout),
        dtype=dtype,
        rngs=rngs,
    )


def local_response_norm(values: jax.Array) -> jax.Array:
    """Each of ``[..., channels]`` by the energy of the five around it (Krizhevsky et al. 2012, 3.3)."""
    rank = values.ndim - 1
    window, ones, none = (1,) * rank + (5,), (1,) * (rank + 1), ((0, 0),) * rank
    energy = lax.reduce_window(values * values, 0.0, lax.add, window, ones, (*none, (2, 2)))
    return values / (2 + 1e-4 * energy) ** 0.75
