"""A collection of photographs scored by several machines: Ray Data, and a Scorer in each of its workers.

Ray (Moritz et al. 2018, arXiv:1712.05889) starts the workers, hands out the work, and does again what a lost
worker had in hand. It needs ``pip install 'spp_jax[ray]'``, where the collection is given out and on every
machine that works.
"""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from spp_jax.addresses import is_address
from spp_jax.compilation import use_compilation_cache
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.scoring.scorer import Scorer, judge_of
from spp_jax.scoring.stream import Scored

__all__ = ["Judge", "RayScorer"]

_AT_ONCE = 64  # photographs handed to a worker together, at most: what a lost worker costs
_TURNS = 8  # times that each worker is handed some, at least, where there are enough
_SAMPLE = 512  # photographs by which every worker chooses its programs
_RETRIES = 3  # times that photographs are handed out again which were lost with their worker
_ENDED = f"each of the {_RETRIES + 2} workers that read it ended without a word, as for want of memory"


class Judge(NamedTuple):
    """What a worker makes its Scorer of.

    Attributes:
        checkpoint: folder of a run, where every worker finds it; None: the judge that ships under ``name``.
        name: of that judge.
        programs: as for :class:`~spp_jax.scoring.scorer.Scorer`.
        limits: fields of the configuration in place of the judge's own, such as ``refuse_pixels``.
        cache_dir: where each worker keeps compiled programs; None: nowhere.
    """

    checkpoint: str | None = None
    name: str = "quality"
    programs: int = 16
    limits: Mapping[str, Any] = {}
    cache_dir: str | None = None

    def scorer(self) -> Scorer:
        """Make it."""
        scorer = judge_of(self.name, self.checkpoint, programs=self.programs)
        scorer.config = dataclasses.replace(scorer.config, **self.limits)
        return scorer


class RayScorer:
    """Scores files by the workers of a Ray cluster; or of this machine, where none is found.

    A cluster is found as Ray finds it: by ``RAY_ADDRESS``, or on this machine. Every worker has one Scorer,
    so scores are those of a Scorer alone. A worker that is lost is replaced, and what it had in hand is
    scored again, each photograph told once. A photograph that ends every worker is found out, by itself, and
    told with that reason.

    Attributes:
        attributes: what is judged.
        digest: as :attr:`Scorer.digest`.

    Example::

        scorer = RayScorer(Judge("gs://bucket/run"), workers=8)
        for place, score, reason in scorer.stream(["gs://bucket/a.jpg", "gs://bucket/b.jpg"]):
            ...
    """

    def __init__(self, judge: Judge, *, workers: int | None = None, scorer: Scorer | None = None):
        """Say who judges; no worker is started.

        Args:
            judge: of each worker. A folder on a disk is taken from here, so a relative one is found too.
            workers: how many; None: one for each GPU of the cluster, or where there is none, each machine.
            scorer: the judge as it is made here, if it is; it says digest and attributes.

        Raises:
            UsageError: Ray is not installed, ``workers`` is below 1, or there is no such judge.
        """
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, not {workers}", "workers")
        _ray()
        if judge.checkpoint is not None:
            judge = judge._replace(checkpoint=_absolute(judge.checkpoint))
        scorer = judge.scorer() if scorer is None else scorer
        self.attributes = scorer.attributes
        self.digest = scorer.digest
        self._judge, self._workers = judge, workers

    def stream(self, photos: Iterable[str | os.PathLike[str]], *, watch: Any = None) -> Iterator[Scored]:
        """As :meth:`Scorer.stream`, in any order.

        Args:
            photos: files, at paths or addresses that every worker reaches. All are known before the first is
                read.
            watch: is refused: pixels stay with the workers.

        Raises:
            SppJaxError: a worker cannot begin or go on; says what it said.
            UsageError: ``watch`` is given.
        """
        if watch is not None:
            raise UsageError(
                "photographs are not seen where others score them: leave out engine ray", "engine"
            )
        names = [_absolute(photo) for photo in photos]
        if not names:
            return
        ray = _ray()
        with _cluster(ray):
            try:
                yield from self._results(ray, names)
            except ray.exceptions.RayError as error:
                raise SppJaxError(f"a worker failed: {_last_line(error)}") from None

    def _results(self, ray: Any, names: list[str]) -> Iterator[Scored]:
        told = np.zeros(len(names), bool)
        for scored in self._pass(ray, names, np.arange(len(names)), at_once=_AT_ONCE, retries=_RETRIES):
            if not told[scored.place]:
                told[scored.place] = True
                yield scored
        lost = np.flatnonzero(~told)  # with their worker, each time
        for scored in self._pass(ray, names, lost, at_once=1, retries=0) if len(lost) else ():
            told[scored.place] = True
            yield scored
        for place in np.flatnonzero(~told).tolist():
            yield Scored(place, math.nan, _ENDED)

    def _pass(
        self, ray: Any, names: list[str], places: np.ndarray, *, at_once: int, retries: int
    ) -> Iterator[Scored]:
        """What workers find of these photographs; of those that they were lost with, nothing."""
        workers, resources = _placed(ray, self._workers, len(places))
        step = min(at_once, math.ceil(len(places) / (workers * _TURNS)))
        sample = names[:: max(1, -(-len(names) // _SAMPLE))]
        with warnings.catch_warnings():  # Ray below 2.64 knows no other way to bound the retries
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            found = ray.data.from_arrow(_tables(names, places, step)).map_batches(
                _Worker,
                batch_size=None,  # what is handed out together is scored together
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=workers),
                fn_constructor_args=(self._judge, self.digest, sample, len(names)),
                max_task_retries=retries,
                **resources,
            )
        for batch in found.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            scores = np.stack([batch[f"score{k}"] for k in range(len(self.attributes))], axis=-1)
            rows = zip(batch["place"].tolist(), scores, batch["reason"], batch["failed"], strict=True)
            for place, score, reason, failed in rows:
                if failed:
                    raise SppJaxError(f"a worker failed: {failed}")
                alone = float(score[0]) if len(score) == 1 or reason else score
                yield Scored(place, math.nan if reason else alone, str(reason))


class _Worker:
    """One worker: a Scorer, which is made once, and scores what it is handed."""

    def __init__(self, judge: Judge, digest: str, sample: list[str], count: int):
        if judge.cache_dir is not None:
            use_compilation_cache(judge.cache_dir)
        self._scorer = judge.scorer()
        if self._scorer.digest != digest:
            raise UsageError(f"{judge.checkpoint or judge.name} is another judge here than at the start")
        self._scorer.expect([*sample], times=count / len(sample))

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        places = np.asarray(batch["place"])
        photos = [os.fsdecode(name) for name in batch["photo"].to_pylist()]
        scores = np.full((len(photos), len(self._scorer.attributes)), np.nan, np.float32)
        reasons, failed = [""] * len(photos), ""
        try:
            for place, score, reason in self._scorer.stream(iter(photos)):  # programs are chosen already
                scores[place], reasons[place] = score, reason
        except Exception as error:  # told where it is heard: Ray passes over a batch whose worker raises
            failed = f"{type(error).__name__}: {_last_line(error)}"
        columns = {f"score{k}": column for k, column in enumerate(scores.T)}
        return pyarrow.table(
            {"place": places, "reason": reasons, "failed": [failed] * len(photos), **columns}
        )


def _absolute(path: str | os.PathLike[str]) -> str:
    """For a process that works in another folder."""
    return os.fspath(path) if is_address(path) else os.path.abspath(path)


def _tables(names: list[str], places: np.ndarray, step: int) -> list[Any]:
    """What is handed out, each at once. Names as bytes: those of files need not be text."""
    import pyarrow

    parts = [places[first : first + step] for first in range(0, len(places), step)]
    return [
        pyarrow.table({"place": part, "photo": [os.fsencode(names[place]) for place in part]})
        for part in parts
    ]


def _ray() -> Any:
    """Ray with Ray Data, which tells nobody of its use.

    Raises:
        UsageError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns a person comes as an exception
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise UsageError(f"engine ray needs Ray ({error}): pip install 'spp_jax[ray]'", "engine") from None
    return ray


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Within it there is a cluster: the one that is connected already, one that runs, or one for now."""
    mine = not ray.is_initialized()
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if mine:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SppJaxError(f"Ray does not start: {_last_line(error)}") from None
        if main and before is not None:  # Ray's own would end the process with another status
            signal.signal(signal.SIGTERM, before)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    most, context.max_errored_blocks = context.max_errored_blocks, -1  # of those lost with their worker
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        context.enable_progress_bars, context.max_errored_blocks = bars, most
        if mine:
            ray.shutdown()


def _placed(ray: Any, workers: int | None, photos: int) -> tuple[int, dict[str, float]]:
    """How many workers, and what each takes of the cluster: a GPU, or its share of the processors."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    cores = [machine["CPU"] for machine in machines if machine.get("CPU")]
    if not cores:
        raise SppJaxError("the Ray cluster has no processor to work with")
    workers = min(workers or gpus or len(cores), max(photos, 1))
    share = min(sum(cores) / workers, min(cores))
    share = float(math.floor(share)) if share >= 1 else share
    return workers, {"num_gpus": 1} if gpus >= workers else {"num_cpus": share}


def _last_line(error: BaseException) -> str:
    """What an exception of a worker says, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__
