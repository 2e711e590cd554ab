"""Flax layers that give, on a `Padded` batch, exactly what they give on each image alone.

One rule makes it so: a layer that reads a cell's neighbours, or takes statistics over cells, first
replaces what is not real by what it would have found around the lone image: zeros for a convolution,
minus infinity for a max-pool, nothing for statistics. So no layer depends on what another left in the
padding, and elementwise functions (`Padded.map`) need no mask at all. Padding is always explicit: the
split of 'SAME' depends on the padded length.

Under ``jit`` the masks fuse with the elementwise operations around them.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from spp_jax.depthwise import depthwise_conv
from spp_jax.padded import Padded
from spp_jax.pooling import pool_windows, spatial_pyramid_pool
from spp_jax.pooling.bins import Level, normalize_levels, num_bins, rule_named, turned_bins
from spp_jax.pooling.reductions import Reduction, reduction_named

__all__ = [
    "BatchNorm",
    "Conv",
    "DepthwiseConv",
    "Dropout",
    "Geometry",
    "GroupNorm",
    "MaxPool",
    "RandomState",
    "SpatialPyramidPool",
]

Padding: TypeAlias = int | Sequence[int | tuple[int, int]]
"""Per spatial axis as much on both sides, or a pair (before, behind); an int means all axes."""


class Conv(nnx.Conv):
    """A convolution over the true cells: `flax.nnx.Conv` with zeros around each image's own edge.

    Sizes follow ``floor((size + before + behind - extent) / stride) + 1``; a filler row stays one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Padding | None = None,
        kernel_dilation: int | Sequence[int] = 1,
        rngs: nnx.Rngs,
        **options,
    ):
        """Make the layer.

        Args:
            in_features: channels in.
            out_features: channels out.
            kernel_size: cells per spatial axis; an int means two equal axes.
            strides: step per spatial axis.
            padding: zeros on both sides of each spatial axis, or pairs (before, behind); None:
                ``(extent - 1) // 2``, where ``extent = kernel_dilation * (kernel_size - 1) + 1``.
            kernel_dilation: step between the cells that a kernel reads, per spatial axis.
            rngs: for the initial parameters.
            options: further options of `flax.nnx.Conv` (``use_bias``, ``dtype``, ...).

        Raises:
            TypeError: ``input_dilation``, for which the true sizes are not worked out.
        """
        if "input_dilation" in options:
            raise TypeError("Conv: input_dilation is not supported on padded batches")
        kernel = _per_axis(kernel_size, 2)
        dilation = _per_axis(kernel_dilation, len(kernel))
        extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        self.geometry = Geometry(extent, _per_axis(strides, len(kernel)), _padding(padding, extent))
        apart = all(e <= s for e, s in zip(extent, self.geometry.strides, strict=True))
        dense = extent == kernel and options.get("feature_group_count", 1) == 1
        if apart and dense and extent != self.geometry.strides:
            options.setdefault("conv_general_dilated", _of_windows_apart)
        super().__init__(
            in_features,
            out_features,
            kernel,
            self.geometry.strides,
            padding=self.geometry.padding,
            kernel_dilation=dilation,
            rngs=rngs,
            **options,
        )

    def __call__(self, x: Padded) -> Padded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``[batch, *spatial, in_features]`` -> ``[batch, *spatial_out, out_features]``.

        Raises:
            ValueError: the batch may be turned, and the geometry differs by axis.
        """
        self.geometry.check_turnable(x, self)
        layer = self if x.turned is None else self._turned(x.turned)
        values = super(Conv, layer).__call__(x.filled(0))
        return dataclasses.replace(x, values=values, sizes=self.geometry.output_sizes(x.sizes))

    def _turned(self, turned: jax.Array) -> "Conv":
        """The layer whose kernel lies as the images do."""

        def turn(array: jax.Array) -> jax.Array:
            return jnp.where(turned, array.swapaxes(0, 1), array) if array.ndim == 4 else array

        graph, state = nnx.split(self)
        return nnx.merge(graph, jax.tree.map(turn, state))


def _of_windows_apart(images: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated` where cells lie between the windows: on a CPU one product of matrices.

    XLA's convolution takes three times as long there, of 3x3 windows at stride 4 and three channels.
    """

    def product(images: jax.Array, kernel: jax.Array) -> jax.Array:
        window, batch, channels = kernel.shape[:-2], images.shape[0], images.shape[-1]
        config, grid, spans = [(0, 0, 0)], [], []
        for size, w, s, (low, high) in zip(images.shape[1:-1], window, strides, padding, strict=True):
            count = max((size + low + high - w) // s + 1, 0)
            config.append((low, count * s - size - low, 0))
            grid.append(count)
            spans += [count, s]
        zero = jnp.zeros((), images.dtype)
        cells = lax.pad(images, zero, [*config, (0, 0, 0)]).reshape(batch, *spans, channels)
        within = tuple(range(2, 2 * len(window) + 1, 2))
        for axis, w in zip(within, window, strict=True):
            cells = lax.slice_in_dim(cells, 0, w, axis=axis)
        cells = cells.transpose(0, *range(1, 2 * len(window), 2), *within, cells.ndim - 1)
        rows = cells.reshape(batch * math.prod(grid), math.prod(window) * channels)
        columns = kernel.reshape(-1, kernel.shape[-1])
        kind = {name: options[name] for name in ("precision", "preferred_element_type") if name in options}
        return jnp.dot(rows, columns, **kind).reshape(batch, *grid, kernel.shape[-1])

    def convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)

    # Of the two forms' residuals, those of both would be kept: only what they are given is.
    either = functools.partial(lax.platform_dependent, cpu=product, default=convolution)
    return jax.checkpoint(either, prevent_cse=False)(images, kernel)


class DepthwiseConv(Conv):
    """A convolution of each channel by itself over the true cells, fast on each backend.

    Chollet 2017 (arXiv:1610.02357), section 2. Parameters and their paths are those of :class:`Conv` with as
    many groups as channels, of two spatial axes.
    """

    def __init__(self, features: int, kernel_size: int | Sequence[int], *, rngs: nnx.Rngs, **options):
        """Make the layer.

        Args:
            features: channels in, and out.
            kernel_size: as :class:`Conv` takes it.
            rngs: for the initial parameters.
            options: further options of :class:`Conv`, but for dilations and groups.

        Raises:
            TypeError: one of those, or another number of spatial axes.
        """
        refused = options.keys() & {"kernel_dilation", "feature_group_count", "precision", "mask"}
        if refused:
            raise TypeError(f"DepthwiseConv: {min(refused)} is not an option of it")
        if len(_per_axis(kernel_size, 2)) != 2:
            raise TypeError(f"DepthwiseConv: kernel_size={kernel_size} is not of two spatial axes")
        super().__init__(
            features,
            features,
            kernel_size,
            feature_group_count=features,
            conv_general_dilated=_by_channel,
            rngs=rngs,
            **options,
        )


def _by_channel(images: jax.Array, kernel: jax.Array, strides, padding, **_) -> jax.Array:
    return depthwise_conv(images, kernel[:, :, 0], strides=strides, padding=padding)


class MaxPool(nnx.Module):
    """Sliding-window maximum over the true cells; the padding around an image never wins."""

    def __init__(
        self,
        window: int | Sequence[int],
        *,
        strides: int | Sequence[int] | None = None,
        padding: Padding = 0,
    ):
        """Make the layer.

        Args:
            window: cells per spatial axis; an int means two equal axes.
            strides: step per spatial axis; None: the window.
            padding: cells of minus infinity on both sides, or pairs (before, behind); at most half the
                window.

        Raises:
            ValueError: a padding larger than half its window: a window could hold no cell.
        """
        axes = _per_axis(window, 2)
        self.geometry = Geometry(
            axes, axes if strides is None else _per_axis(strides, len(axes)), _padding(padding, axes)
        )
        if any(2 * max(p) > w for p, w in zip(self.geometry.padding, axes, strict=True)):
            raise ValueError(f"MaxPool: padding {padding} is more than half the window {window}")

    def __call__(self, x: Padded) -> Padded:
        """``[batch, *spatial, channels]`` -> ``[batch, *spatial_out, channels]``.

        Raises:
            ValueError: the batch may be turned, and the geometry differs by axis.
        """
        g = self.geometry
        g.check_turnable(x, self)
        pooled = lax.reduce_window(
            x.filled(-jnp.inf),
            -jnp.inf,
            lax.max,
            (1, *g.window, 1),
            (1, *g.strides, 1),
            ((0, 0), *g.padding, (0, 0)),
        )
        return dataclasses.replace(x, values=pooled, sizes=g.output_sizes(x.sizes))


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation whose statistics are taken over the batch's true cells.

    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.2, with the mean over the positions that are
    real. A batch without any real cell leaves the running statistics as they were.
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        frozen: bool = False,
        rngs: nnx.Rngs,
        **options,
    ):
        """Make the layer.

        Args:
            num_features: channels.
            momentum: decay of the running statistics.
            frozen: normalise by the running statistics in training too, and leave them as they are.
            rngs: for the initial parameters.
            options: further options of `flax.nnx.BatchNorm`.
        """
        super().__init__(num_features, momentum=momentum, use_fast_variance=False, rngs=rngs, **options)
        self.frozen = frozen

    def __call__(self, x: Padded) -> Padded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``[batch, *spatial, num_features]``, the shape kept."""
        # Filled as well as masked: the gradient of the scale is a product with the values, and
        # 0 * NaN is NaN.
        if self.use_running_average or self.frozen:
            values = super().__call__(x.filled(0), use_running_average=True)
            return dataclasses.replace(x, values=values)
        mask = x.mask()
        any_real = mask.any()
        mean, var = self.mean[...], self.var[...]
        # In a batch without real cells every cell counts, lest a mean be 0 / 0; nothing is learnt.
        values = super().__call__(x.filled(0), mask=mask | ~any_real)
        self.mean[...] = jnp.where(any_real, self.mean[...], mean)
        self.var[...] = jnp.where(any_real, self.var[...], var)
        return dataclasses.replace(x, values=values)


class GroupNorm(nnx.GroupNorm):
    """Group normalisation whose statistics are taken over each image's true cells.

    Wu and He 2018 (arXiv:1803.08494), section 3.1. It looks at one image at a time, so an image is
    treated alike whatever stands beside it in its batch, and whatever the batch size of its bucket.
    """

    def __init__(self, num_features: int, *, group_size: int = 16, rngs: nnx.Rngs, **options):
        """Make the layer; ``options`` are further ones of `flax.nnx.GroupNorm`."""
        super().__init__(
            num_features,
            num_groups=None,
            group_size=group_size,
            use_fast_variance=False,
            rngs=rngs,
            **options,
        )

    def __call__(self, x: Padded) -> Padded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``[batch, *spatial, num_features]``, the shape kept."""
        # In a filler row every cell counts, lest its mean be 0 / 0.
        filler = (x.sizes == 0).any(axis=-1).reshape((-1,) + (1,) * (x.values.ndim - 1))
        mask = jnp.broadcast_to(x.mask() | filler, x.values.shape)
        return dataclasses.replace(x, values=super().__call__(x.filled(0), mask=mask))


class RandomState(nnx.Variable):
    """What a run draws its random numbers from: its own, whatever its parameters begin with."""


class Dropout(nnx.Dropout):
    """Dropout (Srivastava et al. 2014) whose state is plain numbers: a key, and how often it was used.

    `flax.nnx.Dropout` keeps typed keys, which Orbax does not save within a tree. What is dropped in a row
    does not depend on how many rows there are, nor on how many devices share them.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        """Make the layer.

        Args:
            rate: the share of the input that is dropped in training.
            rngs: for the key.
        """
        super().__init__(rate)
        self.key = RandomState(jax.random.key_data(rngs.dropout()))
        self.count = RandomState(jnp.zeros((), jnp.uint32))

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``[batch, features]``, the shape kept; the others are scaled up."""
        if self.deterministic:
            return x
        key = jax.random.fold_in(jax.random.wrap_key_data(self.key[...]), self.count[...])
        self.count[...] += 1
        return super().__call__(x, rngs=key)


class SpatialPyramidPool(nnx.Module):
    """The op as a layer: it stores levels, rule and reduction, whose arrays are its parameters."""

    def __init__(
        self,
        levels: Sequence[Level] = (1, 2, 4),
        *,
        reduce: Reduction = "max",
        rule: str = "adaptive",
        spatial_rank: int = 2,
    ):
        """Make the layer; arguments as :func:`spp_jax.spatial_pyramid_pool` takes them."""
        self.levels = normalize_levels(levels, spatial_rank)
        rule_named(rule)
        self.rule = rule
        self.num_bins = num_bins(self.levels, spatial_rank)
        learnt, self.reduction = jax.tree.flatten(reduction_named(reduce))
        self.learnt = nnx.List(nnx.Param(jnp.asarray(array) * 1.0) for array in learnt)  # never integers

    def __call__(self, x: Padded) -> jax.Array:
        """``[batch, *spatial, channels]`` -> ``[batch, num_bins, channels]``.

        Bins of a turned batch come in the order of the images as they are. Among equal maxima the winner
        is then the first in column-major order: a choice that only the gradient sees.

        Raises:
            ValueError: the batch may be turned, and a level differs by axis.
        """
        pooled = spatial_pyramid_pool(x.values, x.sizes, **self._options())
        if x.turned is None:
            return pooled
        return jnp.where(x.turned, pooled[:, turned_bins(self.levels)], pooled)

    def windows(self, x: Padded, windows: jax.Array) -> jax.Array:
        """Pool windows of each map, as :func:`spp_jax.pool_windows` does, instead of the whole.

        Args:
            x: ``[batch, *spatial, channels]``.
            windows: int32 ``[batch, windows, 2, spatial_rank]``, in cells, as the maps lie.

        Returns:
            ``[batch, windows, num_bins, channels]``; bins in the order of the images as they are.
        """
        pooled = pool_windows(x.values, windows, x.sizes, **self._options())
        if x.turned is None:
            return pooled
        return jnp.where(x.turned, pooled[:, :, turned_bins(self.levels)], pooled)

    def _options(self) -> dict[str, Any]:
        reduction = jax.tree.unflatten(self.reduction, [param[...] for param in self.learnt])
        return {"levels": self.levels, "reduce": reduction, "rule": self.rule}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What is static about a sliding operation, or a chain of them, per spatial axis.

    Attributes:
        window: input cells that one output cell sees: its receptive field.
        strides: input cells from one output cell's window to the next one's.
        padding: cells before and behind the input.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def offsets(self) -> tuple[float, ...]:
        """The input cell in the centre of the first window; between two cells: a half.

        With :attr:`strides`, what :func:`spp_jax.boxes_to_windows` asks for.
        """
        return tuple((w - 1) / 2 - before for w, (before, _) in zip(self.window, self.padding, strict=True))

    def check_turnable(self, x: Padded, layer: nnx.Module) -> None:
        """Refuse a batch that may be turned where this geometry differs by axis."""
        axes = set(zip(self.window, self.strides, self.padding, strict=True))
        if x.turned is not None and (len(axes) > 1 or len(self.window) != 2):
            raise ValueError(
                f"{type(layer).__name__}: a batch that may be turned needs two axes of equal window, strides "
                f"and padding, not {self}: plan buckets of one orientation (both_orientations=False)"
            )

    def then(self, other: "Geometry") -> "Geometry":
        """Of this operation followed by another."""
        mine = tuple(zip(self.window, self.strides, self.padding, strict=True))
        theirs = tuple(zip(other.window, other.strides, other.padding, strict=True))
        both = list(zip(mine, theirs, strict=True))
        return Geometry(
            tuple(w + (v - 1) * s for (w, s, _), (v, _, _) in both),
            tuple(s * t for (_, s, _), (_, t, _) in both),
            tuple((p[0] + q[0] * s, p[1] + q[1] * s) for (_, s, p), (_, _, q) in both),
        )

    def output_sizes(self, sizes: jax.Array) -> jax.Array:
        """True sizes after the operation; 0 where the input had none or the window does not fit.

        Every layer's mask follows from them, and XLA copies this arithmetic into each of its users. So it has
        no more operations than it needs: none where an operation keeps the sizes, and a division of what
        is not negative.
        """
        padding = map(sum, self.padding)
        window, strides, padding = np.asarray((self.window, self.strides, (*padding,)), np.int32)
        if (strides == 1).all() and (padding == window - 1).all():
            return sizes
        sizes = jnp.asarray(sizes)
        reach = jnp.maximum(sizes + (padding - window + strides), 0)
        strides = jnp.broadcast_to(strides.astype(reach.dtype), reach.shape)
        return jnp.where(sizes > 0, lax.div(reach, strides), 0)


def _per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _padding(padding: Padding | None, window: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if padding is None:
        padding = [(w - 1) // 2 for w in window]
    axes = (padding,) * len(window) if isinstance(padding, int) else padding
    return tuple((axis, axis) if isinstance(axis, int) else (axis[0], axis[1]) for axis in axes)
