"""One photograph's feature maps, kept, and the head over any windows of them.

The convolutions run once a photograph; a region then costs its pooling and the head. Programs are compiled
for the shapes of the Scorer's rungs, two to a rung, and one for the head: never one for a photograph. One
that fits into a rung there are programs of goes there, though another would hold it more closely.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spp_jax.buckets import Bucket
from spp_jax.compilation import abstract, replicated
from spp_jax.data.loading import put
from spp_jax.layers import Geometry
from spp_jax.models import SPPNet
from spp_jax.models.sppnet import Classifier, LinearHead, QuadraticHead
from spp_jax.padded import Padded
from spp_jax.pooling import boxes_to_windows
from spp_jax.scoring.ladder import least_holding, lies_turned
from spp_jax.scoring.programs import Programs
from spp_jax.scoring.stream import Ready
from spp_jax.training.losses import Loss

__all__ = ["Judged", "Regions", "Seen", "checked_boxes"]

_NUMBERS = 2**23  # pooled at once, over all windows of a chunk
_CHUNKS = (16, 512)  # windows at least and at most
_VECTORS = 64  # that the head judges in one call
_ROOMY = 4  # times a photograph's pixels: what is computed sooner than a rung of its own is compiled


class Seen(NamedTuple):
    """A photograph as the network saw it.

    Attributes:
        maps: the feature maps, one row each, on the device.
        vector: what the head is given of the whole: float32 ``[num_features]``.
        size: (height, width) of the upright picture, in pixels as decoded.
        shape: of the rung.
        turned: it lies there with its axes swapped.
    """

    maps: tuple[Padded, ...]
    vector: np.ndarray
    size: tuple[int, int]
    shape: tuple[int, int]
    turned: bool


class Judged(NamedTuple):
    """What the head says of n regions or vectors.

    Attributes:
        logits: float32 ``[n, outputs]``.
        scores: float32 ``[n]``, or ``[n, k]`` of k attributes.
    """

    logits: np.ndarray
    scores: np.ndarray


class Regions:
    """Judges regions of photographs by windows of their feature maps. Threads may share it."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        tree: Any,
        loss: Loss,
        leaves: list[jax.Array],
        mesh: Mesh,
        arguments: Callable[[Bucket], tuple],
        *,
        either: bool,
        most: int,
        key: str | None,
    ):
        """Take a model in parts.

        Args:
            graph: its static part.
            tree: of its variables.
            loss: how its logits are read.
            leaves: of its variables, on the devices.
            mesh: of the devices.
            arguments: from a bucket to the abstract (leaves, images).
            either: rungs hold photographs turned as well.
            most: programs of each kind, at most.
            key: says what the model's programs follow from, besides code, so that they are kept; None: it is
                not known.

        Raises:
            TypeError: the model is no :class:`SPPNet`, whose maps and head are known.
        """
        self._merge = functools.partial(_merged, graph, tree)
        network = self._merge(leaves)
        if not isinstance(network, SPPNet):
            raise TypeError(f"a {type(network).__name__} is no SPPNet: its maps and its head are not known")
        self.network = network
        self.leaves, self.loss, self._mesh = leaves, loss, mesh
        self.geometries: tuple[Geometry, ...] = network.body.geometries
        self.chunk = int(2 ** np.log2(np.clip(_NUMBERS / network.num_features, *_CHUNKS)).round())
        self._arguments, self._either = arguments, either
        self.reductions: tuple[tuple[Any, ...], ...] = tuple(
            tuple(jax.tree.unflatten(pool.reduction, [p[...] for p in pool.learnt]) for pool in pools)
            for pools in network.map_pools
        )
        self._maps: dict[Bucket, Any] = {}
        *_, images = arguments(self._bucket(network.min_size))
        maps = (images,) * len(self.geometries)
        self._see = Programs(
            _see_function(self._merge), arguments, most=most, key=key and f"{key} see", output=(maps, 0)
        )
        self._windows = Programs(
            _windows_function(self._merge, loss),
            self._window_arguments,
            most=most,
            key=key and f"{key} windows",
            output=(0, 0),
        )
        self._head = jax.jit(_head_function(self._merge, loss))
        self._slope = jax.jit(_slope_function(self._merge, loss), static_argnames=("column", "by_score"))

    @property
    def linear(self) -> bool:
        """Whether the head is one linear layer."""
        head = self.network.head
        return isinstance(head, LinearHead) or (isinstance(head, Classifier) and not len(head.hidden))

    @property
    def base(self) -> np.ndarray:
        """The vector from which parts are counted: the mean of training where the head knows it, else 0."""
        if isinstance(self.network.head, LinearHead | QuadraticHead):
            return np.asarray(self.network.head.mean[...], np.float32)
        return np.zeros(self.network.num_features, np.float32)

    def home(self, size: tuple[int, int]) -> tuple[tuple[int, int], bool] | None:
        """The rung that there are programs of and that holds a photograph, and whether it lies turned there.

        The least such; None where it would be mostly empty, or there is none. Compiling for a rung takes as
        long as many photographs do.

        Args:
            size: (height, width) of the photograph.
        """
        most, had = _ROOMY * size[0] * size[1], self._windows.had()
        rungs = [
            (height, width) for height, width in (bucket.shape for bucket in had) if height * width <= most
        ]
        rung = least_holding(
            size, [shape for shape in rungs if self._bucket(shape) in had], either=self._either
        )
        return None if rung is None else (rung, lies_turned(size, rung))

    def see(self, ready: Ready) -> Seen:
        """Run the convolutions over one photograph."""
        rows = self._mesh.size
        values = np.zeros((rows, *ready.shape, 3), np.uint8)
        sizes = np.zeros((rows, 2), np.int32)
        values[0], sizes[0] = ready.values, ready.size
        bucket = self._bucket(ready.shape)
        *_, like = self._arguments(bucket)
        turned = None if like.turned is None else np.asarray(ready.turned)
        images: Any = Padded(values, sizes, turned)  # pyright: ignore[reportArgumentType]
        maps, vector = self._see[bucket].call(self.leaves, put(images, self._mesh))
        height, width = ready.size
        size = (width, height) if ready.turned else (height, width)
        maps = jax.device_put(maps, replicated(self._mesh))
        if bucket not in self._maps:
            self._maps[bucket] = abstract(maps, jax.tree.map(lambda _: replicated(self._mesh), maps))
        return Seen(maps, np.asarray(vector, np.float32), size, ready.shape, ready.turned)

    def windows_of(self, seen: Seen, boxes: np.ndarray) -> list[np.ndarray]:
        """The cells that boxes cover, of each map: int32 ``[n, 2, 2]``, starts and stops, upright.

        Those whose receptive field's centre lies inside (:func:`spp_jax.boxes_to_windows`). A box that
        reaches the picture's edge reaches the map's, so the whole picture is the whole map.

        Args:
            seen: the photograph.
            boxes: floating ``[n, 4]``: left, top, right, bottom, in pixels as decoded.
        """
        edges = boxes.reshape(-1, 2, 2)[:, :, ::-1]  # starts and stops, of height and width
        found = []
        for size, geometry in zip(self.map_sizes(seen), self.geometries, strict=True):
            windows = boxes_to_windows(edges, geometry.strides, geometry.offsets, size)
            starts = np.where(edges[:, 0] <= 0, 0, windows[:, 0])
            stops = np.where(edges[:, 1] >= seen.size, size, windows[:, 1])
            found.append(np.stack([starts, stops], axis=1).astype(np.int32))
        return found

    def map_sizes(self, seen: Seen) -> list[np.ndarray]:
        """(height, width) of each map's true cells, upright: int32 ``[2]``."""
        sizes = [np.asarray(each.sizes)[0] for each in seen.maps]
        return [size[::-1] if seen.turned else size for size in sizes]

    def judge(self, seen: Seen, boxes: np.ndarray) -> Judged:
        """Judge regions, in chunks that bound the memory.

        Args:
            seen: the photograph.
            boxes: floating ``[n, 4]``, as for :meth:`windows_of`.
        """
        windows = self.windows_of(seen, boxes)
        lying = [each[..., ::-1] if seen.turned else each for each in windows]
        # Cells are few: many boxes cover the same ones. Those with the same rows come one after the other, as
        # the rows are read once then.
        keys = np.stack(lying, axis=1).transpose(0, 3, 1, 2).reshape(len(boxes), 4 * len(windows))
        different, places = np.unique(keys, axis=0, return_inverse=True)
        program = self._windows[self._bucket(seen.shape)].call if len(boxes) else None
        found = []
        for first in range(0, len(different), self.chunk):
            some = different[first : first + self.chunk]
            filled = np.zeros((self.chunk, different.shape[1]), np.int32)  # empty windows take no time
            filled[: len(some)] = some
            parts = filled.reshape(1, -1, 2, len(windows), 2).transpose(3, 0, 1, 4, 2)
            given = jax.device_put([np.ascontiguousarray(part) for part in parts], replicated(self._mesh))
            assert program is not None
            logits, scores = jax.device_get(program(self.leaves, (seen.maps, given)))
            found.append((logits[: len(some)], scores[: len(some)]))
        return _together(found, places.reshape(-1), self.loss)

    def judge_vectors(self, vectors: np.ndarray) -> Judged:
        """Judge what a head may be given: float32 ``[n, num_features]``."""
        found = []
        for first in range(0, len(vectors), _VECTORS):
            some = vectors[first : first + _VECTORS]
            filled = np.concatenate([some, np.zeros((_VECTORS - len(some), some.shape[1]), some.dtype)])
            logits, scores = jax.device_get(self._head(self.leaves, filled))
            found.append((logits[: len(some)], scores[: len(some)]))
        return _together(found, np.arange(len(vectors)), self.loss)

    def slope(self, vector: np.ndarray, column: int, *, by_score: bool = False) -> np.ndarray:
        """The gradient by the vector: float32 ``[num_features]``.

        Args:
            vector: float32 ``[num_features]``.
            column: of the logits, or of the scores.
            by_score: of the log odds of the score, not of a logit of the head.
        """
        found = self._slope(self.leaves, vector, column=column, by_score=by_score)
        return np.asarray(found, np.float32)

    def _bucket(self, shape: tuple[int, int]) -> Bucket:
        return Bucket(shape, self._mesh.size, self._either)

    def _window_arguments(self, bucket: Bucket) -> tuple:
        leaves, _ = self._arguments(bucket)
        window = jax.ShapeDtypeStruct((1, self.chunk, 2, 2), np.int32, sharding=replicated(self._mesh))
        return leaves, (self._maps[bucket], [window] * len(self.geometries))


def checked_boxes(boxes: Any, size: tuple[int, int]) -> np.ndarray:
    """Boxes as floating ``[n, 4]``.

    Args:
        boxes: left, top, right, bottom of each.
        size: (height, width) of the photograph they lie in.

    Raises:
        ValueError: the shape is another, or a box is no number, has no area, or reaches outside; names the
            first such.
    """
    found = np.asarray(boxes, np.float64)
    if found.size == 0 and found.ndim <= 2:
        return np.zeros((0, 4))
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"boxes must be [n, 4] (left, top, right, bottom), not of shape {found.shape}")
    height, width = size
    left, top, right, bottom = found.T
    for wrong, why in (
        (~np.isfinite(found).all(axis=1), "is not of four numbers"),
        ((left >= right) | (top >= bottom), "has no area: left must be below right, and top below bottom"),
        (
            (left < 0) | (top < 0) | (right > width) | (bottom > height),
            f"reaches outside the photograph, which is {width} pixels wide and {height} high",
        ),
    ):
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"boxes[{place}] = {found[place].tolist()} {why}")
    return found


def _merged(graph: nnx.GraphDef, tree: Any, leaves: list[jax.Array]) -> Any:
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), copy=True)


def _see_function(merge: Callable) -> Callable:
    def see(leaves: list[jax.Array], images: Padded) -> tuple[tuple[Padded, ...], jax.Array]:
        model = merge(leaves)
        maps = model.maps(images)
        first = tuple(Padded(x.values[:1], x.sizes[:1], x.turned) for x in maps)
        return first, model.pooled(first).reshape(-1).astype(jnp.float32)

    return see


def _windows_function(merge: Callable, loss: Loss) -> Callable:
    def judge_windows(leaves: list[jax.Array], given: tuple) -> tuple[jax.Array, jax.Array]:
        maps, windows = given
        model = merge(leaves)
        logits = model.head(model.pooled_windows(maps, windows)[0])
        return logits, loss.score(logits)

    return judge_windows


def _head_function(merge: Callable, loss: Loss) -> Callable:
    def judge_vectors(leaves: list[jax.Array], vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = merge(leaves).head(vectors[:, None])  # as of one bin: heads flatten
        return logits, loss.score(logits)

    return judge_vectors


def _slope_function(merge: Callable, loss: Loss) -> Callable:
    def slope(leaves: list[jax.Array], vector: jax.Array, column: int, by_score: bool) -> jax.Array:
        head = merge(leaves).head

        def logit(v: jax.Array) -> jax.Array:
            logits = head(v[None, None])
            if not by_score:
                return logits[0, column].astype(jnp.float32)
            score = loss.score(logits).reshape(-1)[column]
            return jnp.log(score) - jnp.log1p(-score)

        return jax.grad(logit)(vector)

    return slope


def _together(found: list[tuple], places: np.ndarray, loss: Loss) -> Judged:
    if not found:
        several = jax.eval_shape(loss.score, jax.ShapeDtypeStruct((0, loss.outputs), np.float32)).shape
        return Judged(np.zeros((0, loss.outputs), np.float32), np.zeros(several, np.float32))
    logits, scores = (np.concatenate(parts).astype(np.float32) for parts in zip(*found, strict=True))
    if not (np.isfinite(logits).all() and np.isfinite(scores).all()):
        raise FloatingPointError("the model gives scores that are no numbers: its training diverged")
    return Judged(logits[places], scores[places])
