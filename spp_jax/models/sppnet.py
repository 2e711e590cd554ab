"""`SPPNet`: a convolutional body, the pyramid in place of its last pool, a fully connected head."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from spp_jax.layers import Conv, Dropout, Geometry, MaxPool, SpatialPyramidPool
from spp_jax.padded import Padded
from spp_jax.pooling.bins import Level
from spp_jax.pooling.reductions import Reduction

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Classifier",
    "ConvStage",
    "LinearHead",
    "Pyramid",
    "QuadraticHead",
    "SPPNet",
    "Stage",
    "Stages",
    "Statistic",
    "head_of_all",
    "some_outputs",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pictures, RGB of 0 to 1: what torchvision's weights were trained with."""


class Stage(Protocol):
    """A part of a body: `Padded` to `Padded`.

    Attributes:
        chain: its sliding operations, one after another, along its longest path.
        width: the channels of its map.
    """

    chain: tuple[Geometry, ...]
    width: int

    def __call__(self, x: Padded) -> Padded:
        """The part's map."""
        ...


class Pyramid(NamedTuple):
    """How the map of one stage goes to the head.

    Attributes:
        stage: of the body, by number; -1: the last.
        levels: the pyramid over its map.
        reduce: the reductions; each gives its own features.
        power: of the pooled features, their sign kept: below 1 it evens out features that are zero here and
            large there. 1: as they are.
    """

    stage: int = -1
    levels: tuple[Level, ...] = (1, 2, 4)
    reduce: tuple[Reduction, ...] = ("max",)
    power: float = 1.0


class Stages(nnx.Module):
    """A body: stages one after another, some of whose maps go to the pyramid."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        maps: Sequence[int] = (-1,),
        remat: bool = False,
        traced_once: bool = False,
    ):
        """Make the body.

        Args:
            stages: modules, each of which has a ``chain``.
            maps: the stages whose maps are given, by number; -1: the last one's.
            remat: keep only what goes from stage to stage for the backward pass, and work out anew what is
                inside one when its turn comes: memory for time (Chen et al. 2016, arXiv:1604.06174).
            traced_once: stages that are alike, on maps of one shape, are traced once, each under a `jax.jit`
                of its own. For bodies that repeat a block. XLA inlines them, so what it compiles is the same.
        """
        self.stages = nnx.List(stages)
        self.remat = remat
        self.traced_once = traced_once
        self.give(maps)

    def give(self, maps: Sequence[int]) -> None:
        """Let these stages' maps be given.

        Raises:
            ValueError: there are none, or there is no such stage.
        """
        known = range(len(self.stages))
        if not maps or not all(-len(known) <= number < len(known) for number in maps):
            raise ValueError(f"maps {list(maps)}: the body has the stages 0 to {len(known) - 1}")
        self.maps = tuple(known[number] for number in maps)

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """From the picture's pixels to the cells of each map."""
        chains = [sum((stage.chain for stage in self.stages[: n + 1]), ()) for n in self.maps]
        return tuple(functools.reduce(Geometry.then, chain) for chain in chains)

    @property
    def min_size(self) -> tuple[int, int]:
        """The smallest height and width: each stage gives a cell, and the last cell's stride lies inside."""
        size, strides = [1, 1], [1, 1]
        for geometry in reversed(sum((stage.chain for stage in self.stages), ())):
            for axis, (window, stride, padding) in enumerate(
                zip(geometry.window, geometry.strides, geometry.padding, strict=True)
            ):
                size[axis] = max(1, (size[axis] - 1) * stride + window - sum(padding))
                strides[axis] *= stride
        height, width = map(max, size, strides)
        return height, width

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each map."""
        return tuple(self.stages[number].width for number in self.maps)

    def __call__(self, x: Padded) -> tuple[Padded, ...]:
        """The maps asked for, in the order in which they were."""
        found = {}
        for number, stage in enumerate(self.stages[: max(self.maps) + 1]):
            x = _RUNS[self.remat, self.traced_once](stage, x)
            if number in self.maps:
                found[number] = x
        return tuple(found[number] for number in self.maps)


def _run(stage: Stage, x: Padded) -> Padded:
    return stage(x)


_RUNS: dict[tuple[bool, bool], Callable[[Stage, Padded], Padded]] = {
    (False, False): _run,
    (True, False): nnx.remat(_run),
    (False, True): nnx.jit(_run),
    (True, True): nnx.jit(nnx.remat(_run)),
}
"""By whether it is rematerialised, and traced once."""


class ConvStage(nnx.Module):
    """A max-pool, if any, then convolutions with ReLU: a stage of the networks without shortcuts.

    The pool stands first, so that a body ends with its last convolution, where the pyramid takes over.
    """

    def __init__(
        self,
        convs: Sequence[Conv],
        *,
        pool: MaxPool | None = None,
        normalize: Callable[[jax.Array], jax.Array] | None = None,
    ):
        """Make the stage; ``normalize`` acts on each cell's channels, after the pool."""
        self.pool, self.convs, self.normalize = pool, nnx.List(convs), normalize
        pools = () if pool is None else (pool.geometry,)
        self.chain = (*pools, *(conv.geometry for conv in convs))
        self.width = convs[-1].out_features

    def __call__(self, x: Padded) -> Padded:
        """``[batch, height, width, channels]`` to the map of the last convolution."""
        if self.pool is not None:
            x = self.pool(x)
        if self.normalize is not None:
            x = Padded(self.normalize(x.filled(0)), x.sizes, x.turned)
        for conv in self.convs:
            x = conv(x).map(nnx.relu)
        return x


class Classifier(nnx.Module):
    """Fully connected layers with ReLU and dropout, and a last one that gives the logits."""

    def __init__(
        self,
        bins: int,
        features: int,
        *,
        hidden: Sequence[int],
        outputs: int,
        dropout: Sequence[float] = (),
        dtype: Dtype | None,
        rngs: nnx.Rngs,
    ):
        """Make the head.

        Args:
            bins: of the pyramid.
            features: per bin.
            hidden: widths of the layers before the last; () for none.
            outputs: how many logits.
            dropout: the share of each layer's input that is dropped in training, from the first layer on
                (Srivastava et al. 2014); where it ends, nothing is.
            dtype: to compute in; None: what parameters and input promote to.
            rngs: for the initial parameters and for what is dropped.
        """
        widths = (bins * features, *hidden)
        init = nnx.initializers.he_normal()
        self.hidden = nnx.List(
            nnx.Linear(a, b, kernel_init=init, dtype=dtype, rngs=rngs)
            for a, b in zip(widths, hidden, strict=False)
        )
        self.logits = nnx.Linear(
            widths[-1], outputs, kernel_init=nnx.initializers.lecun_normal(), dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.List(Dropout(rate, rngs=rngs) for rate in dropout[: len(widths)] if rate)
        self.drops = tuple(bool(rate) for rate in dropout[: len(widths)])

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """``[batch, bins, features]`` -> ``[batch, outputs]``."""
        x, dropout = pooled.reshape(pooled.shape[0], -1), iter(self.dropout)
        drops = (*self.drops, *(False,) * (len(self.hidden) + 1 - len(self.drops)))
        for drop, layer in zip(drops, (*self.hidden, None), strict=True):
            x = next(dropout)(x) if drop else x
            x = self.logits(x) if layer is None else nnx.relu(layer(x))
        return x


class Statistic(nnx.Variable):
    """What was worked out from data once, and no step changes."""


class LinearHead(nnx.Module):
    """One linear layer over standardised features: what a fit in closed form gives.

    ``((x - mean) * scale) @ kernel + bias``. It begins with mean 0 and scale 1, and with zeros for kernel and
    bias, so with logits of 0. ::

        head.mean[...], head.scale[...] = vectors.mean(0), 1 / vectors.std(0)
        head.logits.kernel[...], head.logits.bias[...] = weights, bias

    Attributes:
        mean: float32 ``[features]``, no parameter.
        scale: likewise: one over the deviation.
        logits: the layer, of kernel ``[features, outputs]`` and bias ``[outputs]``.
    """

    def __init__(self, features: int, outputs: int, *, dtype: Dtype | None = None, rngs: nnx.Rngs):
        """Make the head; ``dtype``: to compute in; None: what parameters and input promote to."""
        self.mean, self.scale = Statistic(jnp.zeros(features)), Statistic(jnp.ones(features))
        zeros = nnx.initializers.zeros_init()
        self.logits = nnx.Linear(features, outputs, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """``[batch, bins, features]`` -> ``[batch, outputs]``."""
        vector = pooled.reshape(pooled.shape[0], -1)
        return self.logits((vector - self.mean[...]) * self.scale[...])


class QuadraticHead(nnx.Module):
    """A linear layer over standardised features, and squares of a few directions of them.

    ``z @ kernel + bias + (z @ directions)**2 @ curvature`` where ``z = (x - mean) * scale``: what ridge
    regression with a kernel of degree two gives, its quadratic form cut to the directions that bend most. It
    begins with logits of 0, the directions at random.

    Attributes:
        mean: float32 ``[features]``, no parameter.
        scale: likewise: one over the deviation.
        logits: the layer, of kernel ``[features, outputs]`` and bias ``[outputs]``.
        directions: a layer without bias, of kernel ``[features, rank * outputs]``.
        curvature: a layer without bias, of kernel ``[rank * outputs, outputs]``.
    """

    def __init__(self, features: int, outputs: int, *, rank: int, dtype: Dtype | None = None, rngs: nnx.Rngs):
        """Make the head.

        Args:
            features: how many it is given.
            outputs: how many logits.
            rank: directions for each of them.
            dtype: to compute in; None: what parameters and input promote to.
            rngs: for the initial directions.
        """
        self.mean, self.scale = Statistic(jnp.zeros(features)), Statistic(jnp.ones(features))
        zeros = nnx.initializers.zeros_init()
        self.logits = nnx.Linear(features, outputs, kernel_init=zeros, dtype=dtype, rngs=rngs)
        bare = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.directions = nnx.Linear(features, rank * outputs, **bare)
        self.curvature = nnx.Linear(rank * outputs, outputs, kernel_init=zeros, **bare)

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """``[batch, bins, features]`` -> ``[batch, outputs]``."""
        vector = pooled.reshape(pooled.shape[0], -1)
        standard = (vector - self.mean[...]) * self.scale[...]
        return self.logits(standard) + self.curvature(jnp.square(self.directions(standard)))


_OUTPUT_AXES = {"logits": (-1,), "directions": (-1,), "curvature": (0, -1)}  # that grow with a head's outputs


def head_of_all(head: Mapping[str, Any], outputs: int, every: int) -> dict[str, Any]:
    """The variables of a head like this one that has ``every`` output instead of ``outputs`` of them.

    Args:
        head: variables by layer and name, as :func:`flax.nnx.to_pure_dict` gives those of a head; arrays, or
            just their shapes and dtypes.
        outputs: how many logits ``head`` has.
        every: how many the other one has.

    Returns:
        The same layers; where a shape follows from the outputs, a :class:`jax.ShapeDtypeStruct` instead.
    """

    def widened(value: Any, axes: Sequence[int]) -> jax.ShapeDtypeStruct:
        shape = list(value.shape)
        for axis in axes:
            shape[axis] = shape[axis] // outputs * every
        return jax.ShapeDtypeStruct(tuple(shape), value.dtype)

    layers = {layer: axes for layer, axes in _OUTPUT_AXES.items() if layer in head}
    wide = {
        layer: {name: widened(value, axes) for name, value in head[layer].items()}
        for layer, axes in layers.items()
    }
    return {**head, **wide}


def some_outputs(head: Mapping[str, Any], columns: Sequence[int]) -> dict[str, Any]:
    """A head's variables for these of its outputs alone, in this order.

    Of a quadratic head, a direction that none of them bends along is left out.

    Args:
        head: variables by layer and name, as :func:`flax.nnx.to_pure_dict` gives those of a head.
        columns: of the logits.
    """
    chosen = np.asarray(columns)
    cut = {"logits": {name: value[..., chosen] for name, value in head["logits"].items()}}
    if "curvature" in head:
        curvature = head["curvature"]["kernel"][:, chosen]
        bent = np.flatnonzero(np.any(np.asarray(curvature) != 0, axis=1))
        cut["curvature"] = {"kernel": curvature[bent]}
        cut["directions"] = {"kernel": head["directions"]["kernel"][:, bent]}
    return {**head, **cut}


class SPPNet(nnx.Module):
    """SPP-net (He et al. 2014, figure 1): the whole image in, a vector of fixed length to the head.

    Attributes:
        min_size: the smallest (height, width) it takes, in pixels.
        num_features: how many numbers of each picture the head is given.
    """

    def __init__(
        self,
        body: Stages,
        head: Callable[[int, int], Callable[[jax.Array], jax.Array]],
        *,
        features: int,
        levels: Sequence[Level],
        reduce: Sequence[Reduction],
        maps: Sequence[Pyramid] | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
    ):
        """Put a network together.

        Args:
            body: from `Padded` images ``[batch, height, width, 3]`` to one or more `Padded` feature maps;
                each is pooled by the pyramid.
            head: makes, of the pyramid's bins and the features of each, the module from pooled features
                ``[batch, bins, features]`` to logits ``[batch, outputs]``.
            features: the channels that ``body`` gives, over all its maps.
            levels: the pyramid.
            reduce: the reductions of the pyramid; each gives its own features.
            maps: instead of ``levels``, ``reduce`` and ``features``, a pyramid for the map of each of several
                stages of ``body``. The head is then given all features as those of one bin.
            mean: RGB of 0 to 1, taken from each pixel.
            std: by which it is divided then.
        """
        self.body = body
        shared = Pyramid(-1, levels, tuple(reduce))  # pyright: ignore[reportArgumentType]  # checked by the pool
        pyramids = [shared] if maps is None else [Pyramid(*pyramid) for pyramid in maps]
        if maps is not None:
            body.give([pyramid.stage for pyramid in pyramids])
        self.pools = nnx.List(
            SpatialPyramidPool(pyramid.levels, reduce=reduction)
            for pyramid in pyramids
            for reduction in pyramid.reduce
        )
        # Of each map: which pools read it, and the power of what they give.
        stops = itertools.accumulate(len(pyramid.reduce) for pyramid in pyramids)
        self.reads = tuple(
            (tuple(range(stop - len(pyramid.reduce), stop)), pyramid.power)
            for pyramid, stop in zip(pyramids, stops, strict=True)
        )
        self.several = maps is not None
        if maps is None:
            bins, width = self.pools[0].num_bins, len(self.pools) * features
        else:
            bins = 1
            width = sum(
                channels * self.pools[number].num_bins
                for channels, (pools, _) in zip(body.widths, self.reads, strict=True)
                for number in pools
            )
        self.num_features = bins * width
        self.head: Any = head(bins, width)
        self.min_size = body.min_size
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    def of_imagenet(
        cls,
        body: Stages,
        *,
        features: int,
        levels: Sequence[Level],
        reduce: Sequence[Reduction],
        maps: Sequence[Pyramid] | None = None,
        **head,
    ) -> "SPPNet":
        """With ImageNet's mean and deviation, and a :class:`Classifier` of these options."""
        return cls(
            body,
            lambda bins, width: Classifier(bins, width, **head),
            features=features,
            levels=levels,
            reduce=reduce,
            maps=maps,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def __call__(self, images: Padded | jax.Array) -> jax.Array:
        """Images ``[batch, height, width, 3]`` to logits ``[batch, outputs]``.

        Integer images are sRGB of 0 to 255; floating ones are the same scaled to 0 to 1.

        Raises:
            ValueError: the array is no batch of RGB images, or smaller than :attr:`min_size`.
        """
        return self.head(self._pooled(images))

    def features(self, images: Padded | jax.Array) -> jax.Array:
        """Images, as for a call, to what the head is given of each: ``[batch, num_features]``.

        A probe fits its linear head on these.
        """
        pooled = self._pooled(images)
        return pooled.reshape(pooled.shape[0], -1)

    def maps(self, images: Padded | jax.Array) -> tuple[Padded, ...]:
        """Images, as for a call, to the feature maps that the pyramids read."""
        if not isinstance(images, Padded):
            images = Padded.whole(jnp.asarray(images))
        shape = images.values.shape
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"images must be [batch, height, width, 3], got shape {shape}")
        if shape[1] < self.min_size[0] or shape[2] < self.min_size[1]:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} pixels are smaller than this model takes: at least "
                f"{self.min_size[0]}x{self.min_size[1]}"
            )
        return self.body(images.map(self._normalize))

    def pooled_windows(self, maps: Sequence[Padded], windows: Sequence[jax.Array]) -> jax.Array:
        """Windows of the maps to what the head is given of each: ``[batch, windows, bins, features]``.

        Args:
            maps: as :meth:`maps` gives them.
            windows: of each map, int32 ``[batch, windows, 2, 2]``: starts, stops, in cells.
        """
        return self._joined(
            [functools.partial(_windows, x, each) for x, each in zip(maps, windows, strict=True)]
        )

    def pooled(self, maps: Sequence[Padded]) -> jax.Array:
        """The maps to what the head is given: ``[batch, bins, features]``."""
        return self._joined([functools.partial(_whole, x) for x in maps])

    @property
    def map_pools(self) -> tuple[tuple[SpatialPyramidPool, ...], ...]:
        """Of each map, the pools that read it, in the order in which the head is given what they pool."""
        if not self.several:
            return tuple(tuple(self.pools) for _ in self.body.geometries)
        return tuple(tuple(self.pools[number] for number in pools) for pools, _ in self.reads)

    def _pooled(self, images: Padded | jax.Array) -> jax.Array:
        """``[batch, bins, features]``; with pyramids of their own, all maps' in one bin."""
        return self.pooled(self.maps(images))

    def _joined(self, reads: Sequence[Callable[[SpatialPyramidPool], jax.Array]]) -> jax.Array:
        """What each pool reads from its map, ``[..., bins, channels]``, put together."""
        powers = [power for _, power in self.reads] if self.several else [1.0] * len(reads)
        pooled = [
            _power(read(pool), power)
            for read, pools, power in zip(reads, self.map_pools, powers, strict=True)
            for pool in pools
        ]
        if self.several:
            pooled = [each.reshape(*each.shape[:-2], 1, -1) for each in pooled]
        return jnp.concatenate(pooled, axis=-1)

    def _normalize(self, pixels: jax.Array) -> jax.Array:
        """Pixels to about zero mean and unit variance: (x - mean) / std."""
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            params = jax.tree.leaves(nnx.state(self, nnx.Param))
            pixels = pixels.astype(jnp.result_type(*(param.dtype for param in params))) / 255
        mean, std = (jnp.asarray(constant, pixels.dtype) for constant in (self.mean, self.std))
        return (pixels - mean) / std


def _whole(x: Padded, pool: SpatialPyramidPool) -> jax.Array:
    return pool(x)


def _windows(x: Padded, windows: jax.Array, pool: SpatialPyramidPool) -> jax.Array:
    return pool.windows(x, windows)


def _power(pooled: jax.Array, power: float) -> jax.Array:
    """Of the magnitude, the sign kept; at 0 the value and, for every power but 1, the derivative is 0."""
    if power == 1:
        return pooled
    zero = pooled == 0
    return jnp.where(zero, 0, jnp.sign(pooled) * jnp.abs(jnp.where(zero, 1, pooled)) ** power)
