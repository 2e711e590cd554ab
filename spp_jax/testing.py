"""For researchers: hold a reduction, a layer or a run to what this package promises.

The op against a plain NumPy loop, a module against itself on each image alone, and a run against the
number of compilations that it should need.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spp_jax.padded import Padded, pad_batch
from spp_jax.pooling import Level, normalize_levels

__all__ = ["Compilations", "assert_padding_exact", "count_compilations", "pyramid_pool_reference"]


def pyramid_pool_reference(
    features: np.ndarray,
    sizes: Sequence[Sequence[int]] | np.ndarray | None = None,
    *,
    levels: Sequence[Level] = (1, 2, 4),
    reduce: Callable[[np.ndarray], Any] = np.max,
) -> np.ndarray:
    """The op as a loop over images, levels, bins and channels; slow, and plain to see right.

    Args:
        features: ``[batch, *spatial, channels]``.
        sizes: integers ``[batch, spatial_rank]``, true cells; None: all.
        levels: the pyramid.
        reduce: from the cells of one bin and channel, an array of ``spatial_rank`` axes, to a number.

    Returns:
        ``[batch, num_bins, channels]``; zeros for an image of size 0.

    Source: SPP-net, section 2.2 and appendix A.
    """
    batch, *spatial, channels = features.shape
    true_sizes = [spatial] * batch if sizes is None else sizes
    rows = []
    for image, size in zip(features, true_sizes, strict=True):
        for level in normalize_levels(levels, len(spatial)):
            for place in itertools.product(*map(range, level)):
                inside = tuple(
                    slice(i * length // n, -(-(i + 1) * length // n))
                    for i, n, length in zip(place, level, map(int, size), strict=True)
                )
                cells = image[inside]
                rows.append([reduce(cells[..., c]) if cells.size else 0 for c in range(channels)])
    return np.array(rows, features.dtype).reshape(batch, -1, channels)


def assert_padding_exact(
    module: Callable[[Padded], Any],
    sizes: Sequence[Sequence[int]] = ((9, 14), (16, 5), (7, 7)),
    *,
    channels: int = 3,
    outside: float = math.nan,
    rtol: float = 1e-9,
    seed: int = 0,
) -> None:
    """Assert that a module gives, on a padded batch, what it gives on each image alone.

    Compared, in float64, are the output and the gradients with respect to the input (which must be
    exactly 0 outside the images) and to every parameter. A filler row of size 0 is in the batch. A
    module that takes statistics over the batch is to be in evaluation mode (``module.eval()``): an
    image alone has other statistics.

    Args:
        module: a Flax NNX module from `Padded` to `Padded` or to an array ``[batch, ...]``. It is not
            changed: float64 copies of its variables are used.
        sizes: the images' sizes in cells, each large enough for the module.
        channels: of its input.
        outside: what stands in the cells that are not real.
        rtol: the largest difference allowed, relative to the largest magnitude in the tensor.
        seed: of the images and of the weights with which the outputs are summed to a loss.

    Raises:
        AssertionError: names the tensor that differs, and says by how much.
    """
    rng = np.random.default_rng(seed)
    images = [rng.normal(size=(*size, channels)) for size in sizes]
    extent = tuple(int(n) for n in np.max([*sizes], axis=0) + rng.integers(1, 6, len(sizes[0])))
    padded = pad_batch([*images, np.zeros((0,) * len(extent) + (channels,))], extent)

    with jax.enable_x64(True):
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        params, rest = jax.tree.map(_to_float64, (params, rest))

        def forward(params: nnx.State, values: jax.Array, sizes: Any):
            output = nnx.merge(graph, params, rest, copy=True)(Padded(values, sizes))
            return (output.values, output.sizes) if isinstance(output, Padded) else (output, None)

        @jax.jit
        def run(params, values, sizes, weights):
            output, pull, sizes = jax.vjp(lambda p, x: forward(p, x, sizes), params, values, has_aux=True)
            return output, sizes, *pull(weights)

        outputs, for_images, weights, summed = [], [], [], None
        for image in images:
            lone = Padded.whole(jnp.asarray(image[None]))
            output, _ = jax.eval_shape(forward, params, lone.values, lone.sizes)
            weights.append(rng.normal(size=output.shape[1:]))
            output, _, for_params, for_image = run(params, lone.values, lone.sizes, weights[-1][None])
            outputs.append(output[0])
            for_images.append(for_image[0])
            summed = for_params if summed is None else jax.tree.map(jnp.add, summed, for_params)

        values = jnp.where(padded.mask(), padded.values, outside)
        output, sizes_out = jax.eval_shape(forward, params, values, padded.sizes)
        if sizes_out is None:
            placed = np.stack([*weights, np.zeros(output.shape[1:])])
        else:
            placed = pad_batch(
                [*weights, np.zeros((0,) * len(extent) + output.shape[-1:])], output.shape[1:-1]
            ).values
        output, sizes_out, for_params, for_values = run(params, values, padded.sizes, placed)

        for row, image in enumerate(images):
            cells = output[row] if sizes_out is None else output[(row, *map(slice, sizes_out[row]))]
            _assert_close(f"output of image {row}", cells, outputs[row], rtol)
            inside = for_values[(row, *map(slice, image.shape[:-1]))]
            _assert_close(f"input gradient of image {row}", inside, for_images[row], rtol)
        if not (jnp.where(padded.mask(), 0, for_values) == 0).all():
            raise AssertionError("the input gradient is not exactly 0 outside the images")
        for (path, found), expected in zip(
            jax.tree_util.tree_leaves_with_path(for_params), jax.tree.leaves(summed), strict=True
        ):
            _assert_close(f"gradient of {jax.tree_util.keystr(path)}", found, expected, rtol)


def _to_float64(array):
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _assert_close(name: str, found, expected, rtol: float) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise AssertionError(f"{name}: shape {found.shape}, but {expected.shape} for the image alone")
    error = np.abs(found - expected).max(initial=0)
    if not error <= rtol * np.abs(expected).max(initial=0):  # so that NaN is an error
        raise AssertionError(
            f"{name}: differs by {error:.3g} where the image alone reaches "
            f"{np.abs(expected).max():.3g}; allowed is {rtol:g} of that"
        )


@dataclasses.dataclass
class Compilations:
    """What was compiled while it was watched.

    Attributes:
        compiled: how many programs XLA compiled, by the name of the jitted function.
        cached: how many were read from the persistent cache instead.
    """

    compiled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    cached: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@contextlib.contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count compilations, in all threads, by the name of the function that was jitted.

    Ask for the function you mean: setting up a model or an optimiser compiles small programs of its
    own. ::

        with count_compilations() as count:
            run()
        assert count.compiled["step"] == len(plan.shapes)
    """
    count = Compilations()
    thread = threading.local()

    def on_event(event: str, **details) -> None:
        # JAX names no function here; the duration that follows in the same thread does.
        if event == "/jax/compilation_cache/cache_hits":
            thread.hit = True

    def on_duration(event: str, duration_secs: float, **details) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            name = details.get("fun_name", "")
            name = name.removeprefix("jit(").removesuffix(")")
            (count.cached if getattr(thread, "hit", False) else count.compiled)[name] += 1
            thread.hit = False

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)
