"""`alexnet`: five convolutions, as torchvision has them."""

from collections.abc import Sequence

from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import Conv, MaxPool
from spp_jax.models.sppnet import ConvStage, Pyramid, SPPNet, Stages
from spp_jax.pooling.bins import Level
from spp_jax.pooling.reductions import Reduction

__all__ = ["alexnet"]


def alexnet(
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
    """AlexNet (Krizhevsky 2014, arXiv:1404.5997, as torchvision has it), its last pool a pyramid.

    On pictures of 224x224 pixels the map before the pyramid has 13x13 cells, and a pyramid of the one level
    6 is the very pool that it replaces.

    Args:
        levels: the pyramid.
        outputs: how many logits.
        hidden: widths of the head's hidden layers.
        reduce: the reductions of the pyramid.
        maps: as :class:`~spp_jax.models.sppnet.SPPNet` takes it, instead of the two.
        dropout: share of the inputs of the head's first two layers that is dropped in training.
        dtype: to compute in; None: what parameters and input promote to.
        remat: as :class:`~spp_jax.models.sppnet.Stages` takes it.
        rngs: for the initial parameters and for what is dropped.
    """

    def conv(before: int, width: int, kernel: int, **options) -> Conv:
        init = nnx.initializers.he_normal()
        return Conv(before, width, kernel, kernel_init=init, dtype=dtype, rngs=rngs, **options)

    stages = (
        ConvStage([conv(3, 64, 11, strides=4, padding=2)]),
        ConvStage([conv(64, 192, 5)], pool=MaxPool(3, strides=2)),
        ConvStage([conv(192, 384, 3), conv(384, 256, 3), conv(256, 256, 3)], pool=MaxPool(3, strides=2)),
    )
    return SPPNet.of_imagenet(
        Stages(stages, remat=remat),
        features=256,
        levels=levels,
        reduce=reduce,
        maps=maps,
        hidden=hidden,
        outputs=outputs,
        dropout=(dropout, dropout),
        dtype=dtype,
        rngs=rngs,
    )
