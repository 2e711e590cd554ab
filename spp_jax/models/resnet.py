"""`resnet18` and `resnet50`, as torchvision has them."""

from collections.abc import Callable, Sequence

from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import BatchNorm, Conv, Geometry, MaxPool
from spp_jax.models.sppnet import Pyramid, SPPNet, Stages
from spp_jax.padded import Padded
from spp_jax.pooling.bins import Level
from spp_jax.pooling.reductions import Reduction

__all__ = ["resnet18", "resnet50"]


def resnet18(**options) -> SPPNet:
    """ResNet-18 (He et al. 2015, arXiv:1512.03385, table 1): blocks of two convolutions.

    Options as of :func:`resnet`.
    """
    return resnet(_Basic, (2, 2, 2, 2), **options)


def resnet50(**options) -> SPPNet:
    """ResNet-50: bottlenecks, with torchvision's stride in their middle convolution.

    Options as of :func:`resnet`.
    """
    return resnet(_Bottleneck, (3, 4, 6, 3), **options)


def resnet(
    block: Callable[..., "_Residual"],
    depths: Sequence[int],
    *,
    levels: Sequence[Level] = (1, 2, 4),
    outputs: int = 1,
    hidden: Sequence[int] = (),
    reduce: Sequence[Reduction] = ("mean",),
    maps: Sequence[Pyramid] | None = None,
    dtype: Dtype | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> SPPNet:
    """A residual network whose global mean is a pyramid of means; with the one level 1 it is the original.

    Batch normalisation is over the batch's true cells, so a picture's neighbours in its batch matter in
    training, as they do everywhere; its padding does not.

    Args:
        block: the kind of its blocks.
        depths: blocks in each of the four groups.
        levels: the pyramid.
        outputs: how many logits.
        hidden: widths of the head's hidden layers.
        reduce: the reductions of the pyramid.
        maps: as :class:`~spp_jax.models.sppnet.SPPNet` takes it, instead of the two.
        dtype: to compute in; None: what parameters and input promote to.
        remat: as :class:`~spp_jax.models.sppnet.Stages` takes it; a stage is a block.
        rngs: for the initial parameters.
    """
    stages: list = [_Stem(dtype=dtype, rngs=rngs)]
    channels = 64
    for group, depth in enumerate(depths):
        for number in range(depth):
            strides = 2 if group and not number else 1
            stages.append(block(channels, 64 * 2**group, strides, dtype=dtype, rngs=rngs))
            channels = stages[-1].width
    return SPPNet.of_imagenet(
        Stages(stages, remat=remat, traced_once=True),
        features=channels,
        levels=levels,
        reduce=reduce,
        maps=maps,
        hidden=hidden,
        outputs=outputs,
        dtype=dtype,
        rngs=rngs,
    )


def _conv(before: int, width: int, kernel: int, strides: int = 1, **options) -> Conv:
    init = nnx.initializers.variance_scaling(2, "fan_out", "normal")
    return Conv(before, width, kernel, strides=strides, use_bias=False, kernel_init=init, **options)


class _Stem(nnx.Module):
    def __init__(self, **options):
        self.conv, self.norm = _conv(3, 64, 7, 2, **options), BatchNorm(64, **options)
        self.pool = MaxPool(3, strides=2, padding=1)
        self.chain, self.width = (self.conv.geometry, self.pool.geometry), self.conv.out_features

    def __call__(self, x: Padded) -> Padded:
        return self.pool(self.norm(self.conv(x)).map(nnx.relu))


class _Residual(nnx.Module):
    """Convolutions, each with its normalisation, beside a shortcut."""

    def __init__(self, before: int, convs: Sequence[Conv], strides: int, **options):
        self.convs = nnx.List(convs)
        self.norms = nnx.List(BatchNorm(conv.out_features, **options) for conv in convs)
        self.width = convs[-1].out_features
        changes = strides > 1 or before != self.width
        self.shortcut = _conv(before, self.width, 1, strides, **options) if changes else None
        self.shortcut_norm = BatchNorm(self.width, **options) if changes else None
        self.chain: tuple[Geometry, ...] = tuple(conv.geometry for conv in convs)

    def __call__(self, x: Padded) -> Padded:
        branch = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            branch = norm(conv(branch.map(nnx.relu) if number else branch))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return branch.map(lambda values: nnx.relu(values + x.values))


class _Basic(_Residual):
    def __init__(self, before: int, width: int, strides: int, **options):
        convs = [_conv(before, width, 3, strides, **options), _conv(width, width, 3, **options)]
        super().__init__(before, convs, strides, **options)


class _Bottleneck(_Residual):
    def __init__(self, before: int, width: int, strides: int, **options):
        convs = [
            _conv(before, width, 1, **options),
            _conv(width, width, 3, strides, **options),
            _conv(width, 4 * width, 1, **options),
        ]
        super().__init__(before, convs, strides, **options)
