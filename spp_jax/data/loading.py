"""Batches of a schedule, decoded by threads ahead of the device, in order, in bounded memory."""

import dataclasses
import os
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spp_jax.buckets import Bucket
from spp_jax.compilation import abstract, over_rows
from spp_jax.data.decoding import UnreadableError, decoded
from spp_jax.data.records import Records
from spp_jax.data.schedule import BatchSpec
from spp_jax.padded import Padded, pad_batch

__all__ = ["OF_ANOTHER_HOST", "Batch", "Loaded", "abstract_batch", "load_batches", "put"]

OF_ANOTHER_HOST = "the host that was to read it could not; its standard error says why"
"""The reason, on all other hosts, for a picture that could not be read."""

_AHEAD = 2  # batches decoded before they are asked for;
_AHEAD_PIXELS = 16_000_000  # and more, up to so many padded pixels, where these are too few for the workers


class Batch(NamedTuple):
    """What goes to the device, as a pytree.

    Attributes:
        images: uint8, values ``[batch, height, width, 3]``; the batch may be turned where its bucket is
            for both orientations.
        scores: float32 ``[batch]``, or ``[batch, k]`` of k attributes; NaN where people did not say, 0 in
            rows of weight 0.
        good: bool, shaped like the scores, False in rows of weight 0.
        weights: float32 ``[batch]``: 1, or 0 for filler rows and pictures that could not be read.
        labels: by name, each ``[batch, ...]``: those of the records, 0 in rows of weight 0. Where the
            records have pairs, ``partner`` is each row's other of its pair (int32; itself where it is in
            none), and ``preferred`` the share of votes for this row over that (float32; NaN where none).
    """

    images: Padded
    scores: jax.Array
    good: jax.Array
    weights: jax.Array
    labels: Mapping[str, jax.Array] = {}


class Loaded(NamedTuple):
    """A batch, what it was made from, and the pictures that failed: reason by index of the record."""

    spec: BatchSpec
    batch: Batch
    failed: dict[int, str]

    def read(self, weights: jax.Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batch's rows that hold a picture, and the records that these are of, int ``[read]`` each.

        Args:
            weights: of the whole batch, ``[batch]``, so of all hosts' shares.
        """
        rows = np.flatnonzero(np.asarray(weights))
        return rows, np.asarray(self.spec.rows)[rows]

    def unread(self, weights: jax.Array | np.ndarray) -> dict[int, str]:
        """Why each of the other records has no row, by its index; ``weights``: as for :meth:`read`."""
        missing = sorted(set(self.spec.rows) - set(self.read(weights)[1].tolist()))
        return {index: self.failed.get(index, OF_ANOTHER_HOST) for index in missing}


def abstract_batch(bucket: Bucket, mesh: Mesh, records: Records | None = None) -> Batch:
    """Shapes, dtypes and shardings of a bucket's batches, to compile for.

    Args:
        bucket: its global batches.
        mesh: their rows are filled up so that its devices divide them.
        records: whose labels they carry; None: a score each.
    """

    def array(dtype, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    def like(values: np.ndarray) -> Any:
        return jax.ShapeDtypeStruct(values.shape, values.dtype)

    rows = _rows(bucket, mesh.size)
    turned: Any = jax.ShapeDtypeStruct((), np.bool) if bucket.both_orientations else None
    images = Padded(array(np.uint8, *bucket.shape, 3), array(np.int32, len(bucket.shape)), turned)
    scores, good, labels = (jax.tree.map(like, part) for part in _no_labels(records, rows))
    batch = Batch(images, scores, good, array(np.float32), labels)
    return jax.tree.map(abstract, batch, over_rows(batch, mesh))


def put(batch: Any, mesh: Mesh) -> Any:
    """A batch's arrays on the devices of the mesh; on several hosts each gives its share of the rows."""
    shardings = over_rows(batch, mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    return jax.tree.map(lambda x, to: jax.make_array_from_process_local_data(to, x), batch, shardings)


def load_batches(
    records: Records,
    specs: Iterable[BatchSpec],
    *,
    devices: int = 1,
    host: int | None = None,
    hosts: int | None = None,
    workers: int | None = None,
) -> Generator[Loaded, None, None]:
    """Decode and pad the batches that ``specs`` names, in that order.

    A picture that cannot be read, or that turns out to be of another size than its record says,
    leaves a row of size and weight 0 in its place: the schedule stays as it is.

    Args:
        records: the pictures.
        specs: which batches; consumed a few ahead.
        devices: rows of weight 0 fill a batch up to a multiple of this.
        host: which share of each batch's rows is read and given; all hosts' shares, one after the other,
            are the batch. None: this process's.
        hosts: how many share; it divides ``devices``. None: all of this run.
        workers: decoding threads (Pillow releases the interpreter lock); None: one per core that is ours.

    Yields:
        One :class:`Loaded` per spec, its arrays NumPy.

    Raises:
        ValueError: the hosts do not divide the devices.
    """
    host = jax.process_index() if host is None else host
    hosts = jax.process_count() if hosts is None else hosts
    if not 0 <= host < hosts or devices % hosts:
        raise ValueError(f"host {host} of {hosts} cannot have its share of the rows of {devices} devices")
    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, "decode") as pool:
        waiting: deque[_Loading] = deque()
        try:
            for spec in specs:
                waiting.append(_Loading(records, spec, devices, host, hosts, pool))
                # By the whole batch: a host whose share is filler alone would else run away from the others.
                ahead = [loading.spec for loading in waiting][1:]
                enough = sum(len(spec.rows) for spec in ahead) >= 2 * workers
                full = sum(spec.bucket.pixels for spec in ahead) > _AHEAD_PIXELS
                if len(ahead) >= _AHEAD and (enough or full):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for loading in waiting:
                loading.cancel()


def _rows(bucket: Bucket, devices: int) -> int:
    return -(-bucket.batch_size // devices) * devices


def _no_labels(records: Records | None, rows: int, first: int = 0) -> tuple[Any, Any, dict[str, Any]]:
    """Scores, good and further labels of rows that hold no picture yet, from this row of the batch on."""
    if records is None:
        return np.zeros(rows, np.float32), np.zeros(rows, bool), {}
    shape = (rows, *records.scores.shape[1:])
    labels = {name: np.zeros((rows, *of.shape[1:]), of.dtype) for name, of in records.labels.items()}
    if records.pairs is not None:
        labels |= {"partner": np.arange(first, first + rows, dtype=np.int32)}
        labels |= {"preferred": np.full(rows, np.nan, np.float32)}
    return np.zeros(shape, np.float32), np.zeros(shape, bool), labels


class _Loading:
    """A batch whose rows are being filled, each by itself.

    Row by row, as each picture then goes from the decoder's memory straight into the batch and that memory
    to the next one: a whole batch of them at a time is fresh memory each time, and takes a fifth longer.
    """

    def __init__(
        self,
        records: Records,
        spec: BatchSpec,
        devices: int,
        host: int,
        hosts: int,
        pool: ThreadPoolExecutor,
    ):
        rows = _rows(spec.bucket, devices) // hosts
        filler = np.zeros((0, 0, 3), np.uint8)
        images: Any = pad_batch([filler] * rows, spec.bucket.shape)
        if spec.bucket.both_orientations:
            images = dataclasses.replace(images, turned=np.asarray(spec.turned))
        self._records, self.spec = records, spec
        scores, good, labels = _no_labels(records, rows, host * rows)
        weights: Any = np.zeros(rows, np.float32)
        self._batch: Any = Batch(images, scores, good, weights, labels)
        self._first = host * rows
        members = list(zip(spec.rows, spec.mirrored, spec.sizes, strict=True))
        mine = members[host * rows : (host + 1) * rows]
        self.rows = [pool.submit(self._fill, row, *member) for row, member in enumerate(mine)]

    def result(self) -> Loaded:
        failed = dict(failure for row in self.rows if (failure := row.result()) is not None)
        return Loaded(self.spec, self._batch, failed)

    def cancel(self) -> None:
        for row in self.rows:
            row.cancel()

    def _fill(self, row: int, index: int, mirrored: bool, size: tuple[int, int]) -> tuple[int, str] | None:
        """The picture's index and what is wrong with it, where something is."""
        records, batch = self._records, self._batch
        try:
            lent = decoded(
                records.photo(index),
                records.decoding,
                recorded=tuple(records.sizes[index].tolist()),
                size=size,
                mirrored=mirrored,
                turned=self.spec.turned,
            )
            with lent as pixels:
                height, width = pixels.shape[:2]
                batch.images.values[row, :height, :width] = pixels
        except UnreadableError as error:
            return index, str(error)
        batch.images.sizes[row] = height, width
        batch.scores[row], batch.good[row], batch.weights[row] = records.scores[index], records.good[index], 1
        for name, values in records.labels.items():
            batch.labels[name][row] = values[index]
        if self.spec.pairs:
            assert records.pairs is not None
            place = self._first + row  # pairs lie in twos
            share = records.pairs.shares[self.spec.pairs[place // 2]]
            batch.labels["partner"][row] = place ^ 1
            batch.labels["preferred"][row] = 1 - share if place % 2 else share
        return None
