"""`Scorer`: a trained model applied to photographs."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spp_jax.addresses import path_at
from spp_jax.buckets import Bucket, BucketPlan
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.compilation import abstract, data_mesh, over_rows, replicated
from spp_jax.config import RunConfig
from spp_jax.data.decoding import Photo, UnreadableError, listed, one_photo, photo_size
from spp_jax.data.loading import load_batches, put
from spp_jax.data.records import Records
from spp_jax.data.schedule import in_order
from spp_jax.errors import UsageError
from spp_jax.models import SPPNet
from spp_jax.models.configured import abstract_model
from spp_jax.models.sppnet import head_of_all, some_outputs
from spp_jax.padded import Padded
from spp_jax.scoring.crops import Crop, best_crops, candidates, smallest_crop, wanted
from spp_jax.scoring.explanation import Explanation, explain
from spp_jax.scoring.ladder import Ladder, Shape, lies_turned
from spp_jax.scoring.programs import Programs, make_all
from spp_jax.scoring.regions import Regions, Seen, checked_boxes
from spp_jax.scoring.shipped import DEFAULT, JUDGES, shipped
from spp_jax.scoring.stream import Ready, Scored, Watch, batches_of, read_photo, read_photos
from spp_jax.training.losses import Loss, create_loss

__all__ = ["Scorer", "judge_of"]

_log = logging.getLogger(__name__)
_FEW = 8  # photographs that are not worth a plan of their own
_SAMPLE = 512  # headers read to plan for more
_NO_PROGRAM = ("data", "init_from")  # of a configuration: no program follows from these
_SERVICE = 100_000  # photographs that are worth a warm-up: of few, a rung that saves little is not taken


class Scorer:
    """Scores photographs of any size, each at its own shape, with few programs.

    The model is exact on padded batches, so scores do not depend on the shapes that are compiled for. There
    are at most ``programs`` at any time; the shapes lie on a grid that follows from the policy alone, and
    programs are kept in the compilation cache's folder, ready to run: a second process compiles nothing that
    the first one has. Threads may share a Scorer.

    Attributes:
        config: of the run that trained the model, as :meth:`~spp_jax.config.RunConfig.for_scoring` has it.
        attributes: what is judged, a name for each column of the scores.
        min_size: the smallest (height, width) that can be scored.
        both_orientations: programs take landscapes, and portraits turned.
        leaves: the model's variables, on the devices.
        forward: the function that is compiled, ``(leaves, images) -> scores``.

    Example::

        scorer = Scorer.from_pretrained("quality")
        scores = scorer.score(["a.jpg", "b.jpg"])
        for place, score, reason in scorer.stream(Path("photos").rglob("*.jpg")):
            ...
    """

    def __init__(
        self,
        model: SPPNet,
        config: RunConfig | None = None,
        loss: Loss | None = None,
        *,
        programs: int = 16,
    ):
        """Take a trained model.

        Args:
            model: to judge with.
            config: of its run: how photographs become pixels, and the pixels of a batch; None: the default.
            loss: how its logits are read; None: the configuration's, as without votes.
            programs: at most so many are held in memory.

        Raises:
            ValueError: ``programs`` is below 1.
        """
        config = RunConfig() if config is None else config
        model.eval()
        graph, variables = nnx.split(model)
        smallest = (max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side))
        self._set(graph, variables, smallest, config, loss, programs, None)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, programs: int = 16, attributes: Sequence[str] = ()
    ) -> "Scorer":
        """Load the latest checkpoint of a run's folder.

        Args:
            path: the folder, also an address such as ``gs://bucket/run``.
            programs: as for the constructor.
            attributes: to judge, of those that the run learned, an output of the head each; empty: all.

        Raises:
            UsageError: there is no checkpoint, or it is not one of a run of this version, or it judges no
                such attribute.
        """
        with Checkpoints(path_at(path)) as checkpoints:
            about = checkpoints.about()
            about.check_parts()
            saved = about.config
            if attributes:
                about = about._replace(config=_judging(path, saved, tuple(attributes)))
            config = about.config
            try:
                loss = create_loss(
                    config.loss,
                    marks=about.marks,
                    huber_delta=config.huber_delta,
                    attributes=config.labels,
                )
                model = abstract_model(config, loss.outputs)
            except UsageError as error:
                raise UsageError(f"{path} is no checkpoint of this version of spp_jax: {error}") from None
            model.eval()
            graph, variables = nnx.split(model)
            if attributes:
                variables = _restored_columns(checkpoints, variables, saved.labels, config.labels)
            else:
                variables = checkpoints.restore_model(variables)
        smallest = (max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side))
        scorer = cls.__new__(cls)
        scorer._set(graph, variables, smallest, config, loss, programs, _key(about, variables))
        return scorer

    @classmethod
    def from_pretrained(cls, name: str = DEFAULT, *, programs: int = 16) -> "Scorer":
        """Load a judge that ships.

        Args:
            name: ``quality``, ``beauty``, ``all`` (both, in one pass), or ``compact``, a small one.
            programs: as for the constructor.

        Raises:
            UsageError: none of this name is here; lists those that are.
        """
        folder = shipped(name)
        return cls.from_checkpoint(folder, programs=programs, attributes=JUDGES[name].attributes)

    def _set(
        self,
        graph: nnx.GraphDef,
        variables: nnx.State,
        smallest: tuple[int, int],
        config: RunConfig,
        loss: Loss | None,
        programs: int,
        key: str | None,
    ) -> None:
        self._process = os.getpid()
        self.config, self.min_size = config.for_scoring(), smallest
        self.attributes = config.labels or ("score",)
        self._mesh = data_mesh()
        self.both_orientations = config.both_orientations and config.input == "full"
        self.leaves, tree = jax.tree.flatten(jax.device_put(variables, replicated(self._mesh)))
        loss = loss or create_loss(config.loss, huber_delta=config.huber_delta, attributes=config.labels)
        self.forward = forward_function(graph, tree, loss)
        self._ladder = Ladder(
            config.decoding, multiple=config.shape_multiple, either=self.both_orientations, most=programs
        )
        self._lock = threading.Lock()
        several = 1 if self._mesh.devices.flat[0].platform == "cpu" else 2
        self._key = key
        self._programs = Programs(self.forward, self._arguments, most=programs * several, key=key)
        self._parts = graph, tree, loss
        self._most = programs

    @property
    def programs(self) -> Programs:
        """The executables that there are by now."""
        return self._programs

    def named(self, scored: Scored) -> float | dict[str, float]:
        """The score as plain numbers: one, or of a judge of several attributes one by each name."""
        if len(self.attributes) == 1:
            return float(scored.score)
        return dict(zip(self.attributes, np.asarray(scored.score).tolist(), strict=True))

    def score(
        self, photos: Iterable[Photo], *, progress: Callable[[int], Any] = lambda count: None
    ) -> np.ndarray:
        """How good each photograph is: float32 ``[n]`` in [0, 1], NaN where it could not be read.

        ``[n, k]`` of a judge of k :attr:`attributes`. The photographs are known beforehand, so programs are
        chosen with which they are done soonest. What is wrong with those that have no score, :meth:`stream`
        says.

        Args:
            photos: paths, bytes of files, files opened for reading bytes, PIL images, or uint8 arrays
                ``[height, width, 3]``.
            progress: called with the number of photographs done since the last call.

        Raises:
            TypeError: ``photos`` is one photograph: give ``[photo]``.
            DoesNotFitError: a photograph needs more memory than the device has.
            FloatingPointError: the score of a photograph that was read is no number.
        """
        photos = listed(photos)
        several = (len(self.attributes),) if len(self.attributes) > 1 else ()
        scores = np.full((len(photos), *several), np.nan, np.float32)
        for place, score, _ in self.stream(photos):
            scores[place] = score
            progress(1)
        return scores

    def stream(self, photos: Iterable[Photo], *, watch: Watch | None = None) -> Iterator[Scored]:
        """Score photographs one after another as they come, in bounded memory.

        Files are opened a few ahead, and read by threads. What takes long to read does not delay those after
        it, so results come in about the order given.

        Args:
            photos: as for :meth:`score`; any iterable, also an endless one. For a list or tuple, programs are
                chosen with which all of it is done soonest.
            watch: called by the threads that read, for each photograph that was decoded, with its place, its
                pixels as the model is given them, uint8 ``[height, width, 3]``, and whether these lie with
                their axes swapped. So what else is made of a photograph, such as a thumbnail, costs no
                second decoding. What it raises ends the stream.

        Yields:
            ``(place, score, reason)``: the place in ``photos`` counted from 0, a float in [0, 1] (of a judge
            of k :attr:`attributes` float32 ``[k]``), and an empty text; or NaN, and why the photograph has no
            score.

        Raises:
            DoesNotFitError: a photograph needs more memory than the device has.
            FloatingPointError: the score of a photograph that was read is no number.
        """
        self._check_process()
        expected = isinstance(photos, list | tuple) and bool(self.expect(list(photos)))
        home = functools.partial(self._home, expected=expected)
        if isinstance(photos, list | tuple) and len(photos) == 1:  # a thread would take longer to start
            seen = None if watch is None else functools.partial(watch, 0)
            ready = iter([(0, read_photo(photos[0], self.config.decoding, self.min_size, home, seen))])
        else:
            ready = read_photos(photos, self.config.decoding, self.min_size, home, watch)
        for group in batches_of(ready, self._full):
            good = [(place, found) for place, found in group if isinstance(found, Ready)]
            yield from (Scored(place, np.nan, found) for place, found in group if isinstance(found, str))
            if good:
                scores = self._run([found for _, found in good])
                yield from (
                    Scored(place, s if s.ndim else float(s), "")
                    for (place, _), s in zip(good, scores, strict=True)
                )

    def explain(self, photo: Photo, *, attribute: str | None = None) -> Explanation:
        """Why a photograph has its score: where it is good, which cells won, how its parts add up.

        Args:
            photo: as for :meth:`score`, one.
            attribute: of :attr:`attributes`, the one to explain; None: the first.

        Raises:
            UnreadableError: it cannot be read, or is smaller than the model takes.
            UsageError: there is no such attribute.
            TypeError: the model is no :class:`~spp_jax.models.SPPNet`.
        """
        attribute = self._attribute(attribute)
        return explain(self._regions, self._seen(photo), self.attributes, attribute)

    def score_boxes(self, photo: Photo, boxes: Any) -> np.ndarray:
        """How good parts of one photograph are: float32 ``[n]``, or ``[n, k]`` of k :attr:`attributes`.

        The convolutions run once; each box is a window of their maps. So it is judged as seen within the
        photograph: cells near its edge see a little beyond it, where a cut-out would have its border.

        Args:
            photo: as for :meth:`score`, one.
            boxes: ``[n, 4]``: left, top, right, bottom, in pixels of the upright photograph, whatever
                size it is judged at.

        Raises:
            ValueError: a box reaches outside the photograph or has no area, or there are not four numbers.
            UnreadableError: the photograph cannot be read, or is smaller than the model takes.
            UsageError: the judge does not see whole photographs (``input`` is ``crop`` or ``pad``).
            TypeError: the model is no :class:`~spp_jax.models.SPPNet`.
        """
        photo = one_photo(photo)
        size = self._upright_size(photo)
        found = checked_boxes(boxes, size)
        return self._scores_of(self._seen(photo), size, found)

    def crops(
        self,
        photo: Photo,
        aspects: Sequence[str | None] = (None, "1:1", "4:5", "16:9"),
        count: int = 5,
        *,
        attribute: str | None = None,
    ) -> list[Crop]:
        """Parts of a photograph that would be better photographs: the best of each neighbourhood.

        Args:
            photo: as for :meth:`score`, one.
            aspects: width:height of each shape wanted; None: the photograph's own.
            count: of crops, over all shapes; of each shape the best comes first into it.
            attribute: of :attr:`attributes`, the one to judge by; None: the first.

        Returns:
            Crops, best first, each with its score and the original's; none where the photograph is too small.

        Raises:
            UnreadableError: it cannot be read, or is smaller than the model takes.
            UsageError: an aspect is malformed, ``count`` is below 1, or as :meth:`score_boxes`.
        """
        aspects, column = wanted(aspects, count), self.attributes.index(self._attribute(attribute))
        photo = one_photo(photo)
        size, seen = self._upright_size(photo), self._seen(photo)
        smallest = smallest_crop(size, seen.size, self.min_size)
        boxes = {aspect: candidates(size, aspect, smallest) for aspect in aspects}
        together = np.concatenate([[[0, 0, size[1], size[0]]], *boxes.values()])
        found = self._scores_of(seen, size, together.astype(np.float64)).reshape(len(together), -1)
        stops = np.cumsum([1, *(len(each) for each in boxes.values())])
        scores = dict(zip(boxes, np.split(found[:, column], stops)[1:], strict=False))
        return best_crops(boxes, scores, float(found[0, column]), count)

    @functools.cached_property
    def _regions(self) -> Regions:
        return Regions(
            *self._parts,
            self.leaves,
            self._mesh,
            self._arguments,
            either=self.both_orientations,
            most=self._most,
            key=self._key,
        )

    def _attribute(self, attribute: str | None) -> str:
        if attribute is not None and attribute not in self.attributes:
            raise UsageError(
                f"attribute {attribute!r} is not judged; these are: {', '.join(self.attributes)}", "attribute"
            )
        return attribute or self.attributes[0]

    def _seen(self, photo: Photo) -> Seen:
        self._check_process()
        regions = self._regions

        def home(size: tuple[int, int]) -> tuple[Shape, bool]:
            return regions.home(size) or self._home(size)

        found = read_photo(one_photo(photo), self.config.decoding, self.min_size, home)
        if isinstance(found, str):
            raise UnreadableError(found)
        return regions.see(found)

    def _upright_size(self, photo: Photo) -> tuple[int, int]:
        if self.config.input in ("crop", "pad"):
            raise UsageError(
                f"this judge sees no whole photographs (input={self.config.input}): "
                "boxes of them have no score"
            )
        return photo_size(photo, dataclasses.replace(self.config.decoding, max_pixels=None, input="full"))

    def _scores_of(self, seen: Seen, size: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
        height, width = size
        scale = np.array([seen.size[1] / width, seen.size[0] / height] * 2)
        return self._regions.judge(seen, boxes * scale).scores

    @functools.cached_property
    def digest(self) -> str:
        """A name for what decides a score besides the photograph: variables and configuration."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for leaf in self.leaves:
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def expect(self, photos: list[Photo], *, times: float = 1) -> list[Shape]:
        """Choose and begin to compile what these photographs are scored with soonest; the shapes.

        Few are not worth it, and give no shapes.

        Args:
            photos: as for :meth:`score`; of many, only some headers are read.
            times: for how many photographs each of them stands.
        """
        if len(photos) < _FEW and times == 1:
            return []
        sample = self._sample(photos)
        sizes = self._sizes(photos)
        if not len(sizes):
            return []
        chosen = self._plan(sizes, times * len(photos) / len(sample))
        self._in_background([self._bucket(shape) for shape in chosen])
        return chosen

    def forecast(self, photos: list[Photo]) -> str:
        """In some lines, what would be compiled for these photographs, and what that costs; nothing is."""
        sizes = self._sizes(photos)
        if not len(sizes):
            return "none of these photographs can be read"
        chosen = self._plan(sizes, len(photos) / len(self._sample(photos)))
        plan = BucketPlan(tuple(self._bucket(shape) for shape in _by_area(chosen)))
        kept = self._prices()
        lines = [
            f"  {bucket.shape[0]:5d} x {bucket.shape[1]:<5d} {count:6d}   "
            + ("on the disk" if bucket.shape in kept else "to be compiled")
            for bucket, count in zip(
                plan.buckets, np.bincount(plan.assign(sizes), minlength=len(plan.buckets)), strict=True
            )
        ]
        return "\n".join(
            [
                f"{len(photos)} photographs, {plan.waste(sizes):.1%} of the pixels are padding",
                str(self._programs.measured or "what a compilation takes was not measured here yet"),
                f"the plan counts {self._programs.price():,.0f} pixels for it",
                "  rung (h x w)   photographs"
                + (" (of those looked at)" if len(sizes) < len(photos) else ""),
                *lines,
            ]
        )

    def warm_up(self, photos: Iterable[Photo] = (), *, background: bool = False) -> None:
        """Compile ahead what many photographs are scored with, whatever it costs now.

        Args:
            photos: some of those that will come; none: what real photographs look like is assumed.
            background: return at once, and compile in a thread meanwhile.
        """
        self._check_process()
        photos = list(photos)
        shapes = self.expect(photos, times=_SERVICE / len(photos)) if photos else self.usual_shapes()
        buckets = [self._bucket(shape) for shape in shapes]
        if background:
            self._in_background(buckets)
        else:
            make_all(self._programs, buckets)

    def usual_shapes(self) -> list[Shape]:
        """Those with which many photographs as they usually are will be scored from now on."""
        prices = self._prices()
        with self._lock:
            return self._ladder.expect_usual(prices, self._programs.price())

    def score_records(
        self, records: Records, *, progress: Callable[[int], Any] = lambda count: None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Score records, each at the size that is recorded.

        Args:
            records: pictures, at least one.
            progress: called with the number of pictures done since the last call.

        Returns:
            Scores, float32 ``[n]``, NaN where unreadable; and the reasons, by index.

        Raises:
            DoesNotFitError: a picture needs more memory than the device has.
            FloatingPointError: the score of a picture that was read is no number.
        """
        self._check_process()
        chosen = self._plan(np.asarray(records.sizes), 1)
        plan = BucketPlan(tuple(self._bucket(shape) for shape in _by_area(chosen)))
        several = (len(self.attributes),) if len(self.attributes) > 1 else ()
        scores, skipped = np.full((len(records), *several), np.nan, np.float32), {}
        specs = in_order(records.sizes, plan)
        make_all(self._programs, (spec.bucket for spec in specs))
        for loaded in load_batches(records, specs, devices=self._mesh.size):
            images = put(loaded.batch.images, self._mesh)
            found = self._scores(self._programs[loaded.spec.bucket].call(self.leaves, images))
            rows, members = loaded.read(loaded.batch.weights)
            scores[members] = _sound(found[rows])
            skipped |= loaded.failed
            progress(len(loaded.spec.rows))
        return scores, skipped

    def _sample(self, photos: list[Photo]) -> list[Photo]:
        return photos[:: max(1, -(-len(photos) // _SAMPLE))]

    def _sizes(self, photos: list[Photo]) -> np.ndarray:
        """Of those that can be read and are large enough; of many, of some: int64 ``[n, 2]``."""
        with ThreadPoolExecutor(thread_name_prefix="scan") as pool:
            found = list(pool.map(self._size, self._sample(photos)))
        return np.array([size for size in found if size is not None], np.int64).reshape(-1, 2)

    def _plan(self, sizes: np.ndarray, times: float) -> list[Shape]:
        prices = self._prices()
        with self._lock:
            return self._ladder.expect(sizes, prices, self._programs.price(), times=times)

    def _size(self, photo: Photo) -> tuple[int, int] | None:
        try:
            height, width = photo_size(photo, self.config.decoding)
        except UnreadableError:
            return None
        return (height, width) if height >= self.min_size[0] and width >= self.min_size[1] else None

    def _home(self, size: tuple[int, int], *, expected: bool = False) -> tuple[Shape, bool]:
        """The rung for a photograph of this size, and whether it lies turned there."""
        with self._lock:
            shape = self._ladder.held(size, expected=expected)
            if shape is None:
                shape = self._ladder.rung(size, self._prices(), self._programs.price())
        return shape, lies_turned(size, shape)

    def _prices(self) -> dict[Shape, float]:
        return {
            bucket.shape: price  # pyright: ignore[reportReturnType]
            for bucket, price in self._programs.prices().items()
            if bucket.both_orientations == self.both_orientations
        }

    def _full(self, shape: Shape) -> int:
        """Rows of a full batch: one where the device is a CPU, which is as fast so."""
        devices = self._mesh.size
        if self._mesh.devices.flat[0].platform == "cpu":
            return devices
        rows = max(self.config.pixels_per_step // (shape[0] * shape[1]), 1)
        return -(-rows // devices) * devices

    def _bucket(self, shape: Shape, rows: int | None = None) -> Bucket:
        return Bucket(shape, self._full(shape) if rows is None else rows, self.both_orientations)

    def _arguments(self, bucket: Bucket) -> tuple[Any, Padded]:
        def array(dtype, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((bucket.batch_size, *shape), dtype)

        turned: Any = jax.ShapeDtypeStruct((), np.bool) if bucket.both_orientations else None
        images = Padded(array(np.uint8, *bucket.shape, 3), array(np.int32, 2), turned)
        leaves = abstract(self.leaves, [replicated(self._mesh)] * len(self.leaves))
        return leaves, abstract(images, over_rows(images, self._mesh))

    def _run(self, ready: list[Ready]) -> np.ndarray:
        """The scores of photographs of one rung that lie alike: in full batches, or few, one by one."""
        shape, devices = ready[0].shape, self._mesh.size
        full = self._full(shape)
        rows = full if len(ready) * 4 > full else devices
        found = []
        for first in range(0, len(ready), rows):
            some = ready[first : first + rows]
            values = np.zeros((rows, *shape, 3), np.uint8) if rows > 1 else some[0].values[None]
            sizes = np.zeros((rows, 2), np.int32)
            for row, one in enumerate(some):
                if rows > 1:
                    values[row] = one.values
                sizes[row] = one.size
            turned = np.asarray(some[0].turned) if self.both_orientations else None
            images: Any = Padded(values, sizes, turned)  # pyright: ignore[reportArgumentType]
            program = self._programs[self._bucket(shape, rows)]
            start = time.perf_counter()
            scores = self._scores(program.call(self.leaves, put(images, self._mesh)))
            if program.compiled:
                self._programs.note_speed(rows * shape[0] * shape[1], time.perf_counter() - start)
            found.append(_sound(scores[: len(some)]))
        return np.concatenate(found)

    def _scores(self, found: Any) -> np.ndarray:
        return np.asarray(jax.device_get(found))

    def _in_background(self, buckets: list[Bucket]) -> None:
        def make() -> None:
            try:
                make_all(self._programs, buckets)
            except Exception as error:  # who needs the program meets the error, and is told
                _log.warning("not compiled ahead: %s", " ".join(str(error).split())[:300])

        if buckets:
            threading.Thread(target=make, name="compile ahead", daemon=True).start()

    def _check_process(self) -> None:
        """Raise RuntimeError in a forked child, where JAX's threads are gone and any call would hang."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "a Scorer does not work in a forked child: start processes by multiprocessing's 'spawn' or "
                "'forkserver', and make the Scorer in each; threads may share one"
            )

    def __reduce__(self):
        raise TypeError(
            "a Scorer cannot be pickled, as its programs belong to this process: send the checkpoint's path "
            "and call Scorer.from_checkpoint there"
        )


def forward_function(graph: nnx.GraphDef, tree: Any, loss: Loss) -> Callable[[list, Padded], jax.Array]:
    """``(leaves of the variables, images) -> scores``, ``[batch]`` or what the loss reads, to be jitted."""

    def forward(leaves: list[jax.Array], images: Padded) -> jax.Array:
        model = nnx.merge(graph, jax.tree.unflatten(tree, leaves), copy=True)
        return loss.score(model(images))

    return forward


def _judging(path: str | Path, config: RunConfig, names: tuple[str, ...]) -> RunConfig:
    """The configuration of a run that would have learned some of the attributes alone."""
    unknown = [name for name in names if name not in config.labels]
    if unknown or len(set(names)) < len(names):
        known = ", ".join(config.labels) or "its score alone"
        raise UsageError(f"{path} judges {known}, not {', '.join(unknown or names)}", "attributes")
    return dataclasses.replace(config, labels=names)


def _restored_columns(
    checkpoints: Checkpoints, like: nnx.State, saved: Sequence[str], names: Sequence[str]
) -> nnx.State:
    """A model's variables with those of its outputs that have these names, out of all that were saved."""
    pure, whole = nnx.to_pure_dict(like), nnx.clone(like)
    pure["head"] = head_of_all(pure["head"], len(names), len(saved))
    nnx.replace_by_pure_dict(whole, pure)
    pure = nnx.to_pure_dict(checkpoints.restore_model(whole))
    pure["head"] = some_outputs(pure["head"], [saved.index(name) for name in names])
    nnx.replace_by_pure_dict(whole, pure)
    return whole


def judge_of(name: str, checkpoint: str | Path | None, **options: Any) -> Scorer:
    """The judge of a run's folder, or else the one that ships under a name.

    Args:
        name: as :meth:`Scorer.from_pretrained` takes it.
        checkpoint: as :meth:`Scorer.from_checkpoint` takes it; None: the one that ships.
        options: of either, such as ``programs``.

    Raises:
        UsageError: as they do.
    """
    if checkpoint is None:
        return Scorer.from_pretrained(name, **options)
    return Scorer.from_checkpoint(checkpoint, **options)


def _key(about: About, variables: nnx.State) -> str | None:
    """What a checkpoint's program follows from, besides code; None where a part of that is not ours."""
    fields = {name: value for name, value in about.config.to_dict().items() if name not in _NO_PROGRAM}
    if about.parts:  # whose code is not this package's
        return None
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    like = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves]
    return json.dumps([fields, about.marks, like], default=str, sort_keys=True)


def _sound(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise FloatingPointError("the model gives scores that are no numbers: its training diverged")
    return scores


def _by_area(shapes: Iterable[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))
