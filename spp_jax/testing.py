"""For researchers: hold a reduction, a layer or a run to what this package promises.

The op against a plain NumPy loop, a module against itself on each image alone, and a run against the
number of compilations that it should need.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spp_jax.compilation import Compilation, watch_compilations
from spp_jax.padded import Padded, pad_batch
from spp_jax.pooling.bins import Level, normalize_levels

__all__ = [
    "Compilations",
    "assert_no_compilations",
    "assert_padding_exact",
    "count_compilations",
    "lone_tensors",
    "padded_tensors",
    "pyramid_pool_reference",
    "relative_errors",
]


_OUTSIDE = "input gradient outside the images"


def _part(i: int, n: int, length: int) -> tuple[int, int]:
    parts = [part.tolist() for part in np.array_split(np.arange(length), n)]
    return sum(map(len, parts[:i])), sum(map(len, parts[: i + 1]))


_REFERENCE_RULES: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "adaptive": lambda i, n, length: (math.floor(i * length / n), math.ceil((i + 1) * length / n)),
    "partition": _part,
    "rounded": lambda i, n, length: (round(Fraction(i * length, n)), round(Fraction((i + 1) * length, n))),
    "sliding": lambda i, n, length: (i * (length // n), i * (length // n) + math.ceil(length / n)),
}


def pyramid_pool_reference(
    features: np.ndarray,
    sizes: Sequence[Sequence[int]] | np.ndarray | None = None,
    *,
    levels: Sequence[Level] = (1, 2, 4),
    reduce: Callable[[np.ndarray], Any] = np.max,
    rule: str = "adaptive",
) -> np.ndarray:
    """The op as a loop over images, levels, bins and channels; slow, and plain to see right.

    Args:
        features: ``[batch, *spatial, channels]``.
        sizes: integers ``[batch, spatial_rank]``, true cells; None: all.
        levels: the pyramid.
        reduce: from the cells of one bin and channel, an array of ``spatial_rank`` axes, to a number.
        rule: where bins lie, as :mod:`spp_jax.pooling.bins` describes; worked out anew here.

    Returns:
        ``[batch, num_bins, channels]``; zeros for an image of size 0 and for empty bins.

    Source: SPP-net, section 2.2 and appendix A.
    """
    batch, *spatial, channels = features.shape
    true_sizes = [spatial] * batch if sizes is None else sizes
    bins = _REFERENCE_RULES[rule]
    rows = []
    for image, size in zip(features, true_sizes, strict=True):
        for level in normalize_levels(levels, len(spatial)):
            for place in itertools.product(*map(range, level)):
                inside = tuple(
                    slice(*bins(i, n, length))
                    for i, n, length in zip(place, level, map(int, size), strict=True)
                )
                cells = image[inside]
                rows.append([reduce(cells[..., c]) if cells.size else 0 for c in range(channels)])
    return np.array(rows, features.dtype).reshape(batch, -1, channels)


def lone_tensors(
    module: Callable[[Padded], Any],
    images: Sequence[np.ndarray],
    *,
    dtype: Any = np.float64,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What a module gives on each image alone, in an array of the image's very size.

    Args:
        module: a Flax NNX module, or a function without variables, from `Padded` to `Padded` or to an
            array ``[batch, ...]``. It is not changed: copies of its variables are used. One that takes
            statistics over the batch is to be in evaluation mode (``module.eval()``): an image alone has
            other statistics.
        images: arrays ``[*spatial, channels]``.
        dtype: of images and variables, float64 or float32.
        seed: of the weights with which the outputs are summed to the scalar that is differentiated.

    Returns:
        By name: the output of each image; the gradient with respect to each image, and its largest
        magnitude outside (here 0); the gradient with respect to every parameter, summed over the
        images.
    """
    return _lone(_Differentiable.of(module, dtype), images, dtype, seed)


def _lone(
    run: "_Differentiable", images: Sequence[np.ndarray], dtype: Any, seed: int
) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    params = run.params
    with jax.enable_x64(True):
        for number, image in enumerate(images):
            x = Padded.whole(jnp.asarray(image[None], dtype))
            output, _ = run.forward.eval_shape(params, x)
            weights = _weights(seed, number, output.shape[1:])[None].astype(dtype)
            output, _, for_params, for_image = jax.device_get(run.run(params, x, weights))
            tensors[f"output of image {number}"] = np.asarray(output[0])
            tensors[f"input gradient of image {number}"] = np.asarray(for_image[0])
            for path, gradient in jax.tree_util.tree_leaves_with_path(for_params):
                name = f"gradient of {jax.tree_util.keystr(path)}"
                tensors[name] = tensors.get(name, 0) + np.asarray(gradient)
    tensors[_OUTSIDE] = np.zeros((), dtype)
    return tensors


def padded_tensors(
    module: Callable[[Padded], Any],
    images: Sequence[np.ndarray],
    *,
    dtype: Any = np.float64,
    outside: float = math.nan,
    turned: bool | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What a module gives on the images in one padded batch, under the names of :func:`lone_tensors`.

    Cut back to each image's true size, and turned back. A filler row of size 0 is in the batch.

    Args:
        module: as for :func:`lone_tensors`.
        images: likewise.
        dtype: likewise.
        outside: what stands in the cells that are not real.
        turned: whether the images' axes are swapped in the batch, which then says so; None: they are
            not, and the batch says nothing.
        seed: as for :func:`lone_tensors`, and of how much is padded.
    """
    return _together(_Differentiable.of(module, dtype), images, dtype, outside, turned, seed)


def _together(
    run: "_Differentiable",
    images: Sequence[np.ndarray],
    dtype: Any,
    outside: float,
    turned: bool | None,
    seed: int,
) -> dict[str, np.ndarray]:
    def lie(array: np.ndarray) -> np.ndarray:
        """As images lie in the batch; and back."""
        return array.swapaxes(0, 1) if turned else array

    rank = images[0].ndim - 1
    most = np.max([lie(image).shape[:-1] for image in images], axis=0)
    extent = tuple(int(n) for n in most + np.random.default_rng(seed).integers(1, 6, rank))
    filler = np.zeros((0,) * rank + images[0].shape[-1:], images[0].dtype)
    padded = pad_batch([*map(lie, images), filler], extent)
    tensors: dict[str, np.ndarray] = {}
    params = run.params
    with jax.enable_x64(True):
        # Programs apart, all is NumPy's: else each shape would compile dozens of small ones.
        mask = np.asarray(_mask(padded))
        values = np.where(mask, padded.values, outside).astype(dtype)
        x = Padded(jnp.asarray(values), padded.sizes, None if turned is None else jnp.asarray(turned))
        output, sizes = run.forward.eval_shape(params, x)
        if sizes is None:
            weights = [_weights(seed, number, output.shape[1:]) for number in range(len(images))]
            weights = np.stack([*weights, np.zeros(output.shape[1:])])
        else:
            sizes = np.asarray(run.sizes(params, x))
            shapes = [(*size[:: -1 if turned else 1], output.shape[-1]) for size in sizes.tolist()]
            weights = [lie(_weights(seed, number, shape)) for number, shape in enumerate(shapes)]
            weights = pad_batch(weights, output.shape[1:-1]).values
        weights = np.asarray(weights, dtype)
        output, sizes, for_params, for_values = jax.device_get(run.run(params, x, weights))
        for number, image in enumerate(images):
            cells = output[number] if sizes is None else lie(output[(number, *map(slice, sizes[number]))])
            tensors[f"output of image {number}"] = np.asarray(cells)
            inside = for_values[(number, *map(slice, lie(image).shape[:-1]))]
            tensors[f"input gradient of image {number}"] = np.asarray(lie(inside))
        for path, gradient in jax.tree_util.tree_leaves_with_path(for_params):
            tensors[f"gradient of {jax.tree_util.keystr(path)}"] = np.asarray(gradient)
        tensors[_OUTSIDE] = np.abs(np.where(mask, 0, for_values)).max()
    return tensors


def relative_errors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Per tensor, the largest difference relative to the largest expected magnitude.

    Raises:
        AssertionError: names or shapes differ.
    """
    if found.keys() != expected.keys():
        raise AssertionError(f"these tensors are in one only: {sorted(found.keys() ^ expected.keys())}")
    errors = {}
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise AssertionError(f"{name}: shape {found[name].shape}, but {wanted.shape} alone")
        error = np.abs(found[name] - wanted).max(initial=0)
        scale = np.abs(wanted).max(initial=0)
        errors[name] = float(error / scale) if scale else float(error)
    return errors


def assert_padding_exact(
    module: Callable[[Padded], Any],
    sizes: Sequence[Sequence[int]] = ((9, 14), (16, 5), (7, 7)),
    *,
    channels: int = 3,
    outside: float | Sequence[float] = math.nan,
    both_orientations: bool = True,
    rtol: float = 1e-9,
    seed: int = 0,
) -> None:
    """Assert that a module gives, on a padded batch, what it gives on each image alone.

    Compared, in float64, are the output and the gradients with respect to the input (which must be
    exactly 0 outside the images) and to every parameter. A filler row of size 0 is in the batch. Images
    of two axes are tried as they are, and turned: a layer that makes a `Padded` from two arrays loses
    what the batch said of it, and fails; `dataclasses.replace` keeps it.

    Args:
        module: as for :func:`lone_tensors`.
        sizes: the images' sizes in cells, each large enough for the module.
        channels: of its input.
        outside: what stands in the cells that are not real; of several, each in its turn.
        both_orientations: also try the images turned (:attr:`spp_jax.Padded.turned`).
        rtol: the largest difference allowed, relative to the largest magnitude in the tensor.
        seed: of the images and of the weights of the outputs.

    Raises:
        AssertionError: names the tensor that differs, and says by how much.
    """
    rng = np.random.default_rng(seed)
    images = [rng.normal(size=(*size, channels)) for size in sizes]
    run = _Differentiable.of(module, np.float64)
    alone = _lone(run, images, np.float64, seed)
    orientations = (None, True) if both_orientations and len(sizes[0]) == 2 else (None,)
    for turned, fill in itertools.product(orientations, np.atleast_1d(outside).tolist()):
        found = _together(run, images, np.float64, fill, turned, seed)
        lying = ", in a turned batch," if turned else ""
        for name, error in relative_errors(found, alone).items():
            if not error <= rtol:  # so that NaN is an error
                raise AssertionError(
                    f"{name}:{lying} differs from the image alone by {error:.3g} of its largest magnitude; "
                    f"allowed is {rtol:g}"
                )
        if found[_OUTSIDE] != 0:
            raise AssertionError(f"the {_OUTSIDE}{lying} is {found[_OUTSIDE]:.3g}, not exactly 0")


class _Differentiable(NamedTuple):
    """A module as pure functions, each compiled once a shape.

    Attributes:
        params: its parameters.
        forward: from them and a batch to values and true sizes, or None for these.
        sizes: the latter alone.
        run: from them, a batch and weights to these, and the gradients of the weighted sum of the values.
    """

    params: nnx.State
    forward: Callable[..., Any]
    sizes: Callable[..., Any]
    run: Callable[..., Any]

    @classmethod
    def of(cls, module: Callable[[Padded], Any], dtype: Any) -> "_Differentiable":
        """Of copies of the module's variables, cast so."""
        module = module if isinstance(module, nnx.Module) else _Function(module)
        with jax.enable_x64(True):
            graph, params, rest = nnx.split(module, nnx.Param, ...)
            params, rest = jax.tree.map(
                lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, (params, rest)
            )

        @jax.jit
        def forward(params: nnx.State, x: Padded):
            output = nnx.merge(graph, params, rest, copy=True)(x)
            return (output.values, output.sizes) if isinstance(output, Padded) else (output, None)

        @jax.jit
        def run(params, x, weights):
            def of_values(params, values):
                return forward(params, dataclasses.replace(x, values=values))

            output, pull, sizes = jax.vjp(of_values, params, x.values, has_aux=True)
            return output, sizes, *pull(weights.astype(output.dtype))

        return cls(params, forward, jax.jit(lambda params, x: forward(params, x)[1]), run)


_mask = jax.jit(Padded.mask)


class _Function(nnx.Module):
    """A function as a module that has no variables."""

    def __init__(self, function: Callable[[Padded], Any]):
        self.function = function

    def __call__(self, x: Padded) -> Any:
        return self.function(x)


def _weights(seed: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Of the outputs of one image: the same for the image alone and in a batch."""
    return np.random.default_rng((seed, number)).normal(size=shape)


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
        assert count.compiled["step"] == len(plan.buckets)
    """
    count = Compilations()

    def add(compilation: Compilation) -> None:
        (count.cached if compilation.cached else count.compiled)[compilation.name] += 1

    with watch_compilations(add, explain=False):
        yield count


@contextlib.contextmanager
def assert_no_compilations() -> Iterator[None]:
    """Assert that nothing is compiled, nor read from the persistent cache, by any thread.

    Warm up first: run once what is to run without compiling. ::

        step(batch)
        with assert_no_compilations():
            step(another_batch)

    Raises:
        AssertionError: names function, shapes and cause of each compilation.
    """
    found: list[Compilation] = []
    with watch_compilations(found.append):
        yield
    if found:
        raise AssertionError("\n".join(map(str, found)))
