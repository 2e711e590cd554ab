"""The forward programs of one Scorer: compiled once each, kept on the disk ready to run, bounded in number.

JAX's own cache saves a second start the compilation, but not tracing, which takes longer than reading. Here
the executable itself is kept, under a name that says all that it follows from: the run's configuration,
this package's code, versions, device, processor and flags. It is read without tracing anything.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import serialize_executable

from spp_jax.buckets import COMPILATION_PRICE, Bucket
from spp_jax.compilation import Price, compile_lowered, others_may_write
from spp_jax.whole_files import write_whole

__all__ = ["Program", "Programs", "code_digest", "executables_folder"]

_log = logging.getLogger(__name__)
_READ = 12  # reading an executable takes so many times less than compiling it


class Program(NamedTuple):
    """One executable.

    Attributes:
        call: ``(leaves, images) -> scores``.
        seconds: that it took to get it.
        compiled: it was not on the disk.
    """

    call: Callable[..., Any]
    seconds: float
    compiled: bool


class Programs:
    """Executables by bucket. Threads may share it: each is made once, and only who needs it waits."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Callable[[Bucket], tuple],
        *,
        most: int,
        key: str | None,
        output: Any = 0,
    ):
        """Say what is to be compiled; nothing is yet.

        Args:
            function: what is jitted, by its name.
            arguments: from a bucket to the abstract arguments, with shardings.
            most: executables in memory; beyond that the one used least recently goes.
            key: says all that the function follows from, besides this package's code; None: it is not known,
                and nothing is kept but what JAX's own cache keeps.
            output: a pytree of the structure of what the function gives.
        """
        self._output = jax.tree.structure(output)
        self._function, self._arguments, self._most = function, arguments, most
        self._made: collections.OrderedDict[Bucket, concurrent.futures.Future] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._tracing = threading.Lock()
        self._key = key
        self._known: set[Bucket] = set()
        self.compiled = 0
        """How many were compiled, not read."""

    def __len__(self) -> int:
        """How many there are in memory."""
        return len(self._made)

    def __getitem__(self, bucket: Bucket) -> Program:
        """The bucket's executable, made now if it is not there.

        Raises:
            DoesNotFitError: the compiler found that the program does not fit the device's memory.
        """
        with self._lock:
            future = self._made.get(bucket)
            mine = future is None
            if future is None:
                future = self._made[bucket] = concurrent.futures.Future()
                while len(self._made) > self._most:
                    self._made.popitem(last=False)
            self._made.move_to_end(bucket)
        if mine:
            try:
                future.set_result(self._make(bucket))
            except BaseException as error:
                with self._lock:
                    self._made.pop(bucket, None)
                future.set_exception(error)
        return future.result()

    def had(self) -> set[Bucket]:
        """The buckets whose executables are in memory or on the disk."""
        with self._lock:
            return {*self._made, *self.prices()}

    def prices(self) -> dict[Bucket, float]:
        """What reading costs, in pixels, of each executable that is on the disk."""
        folder = self._folder
        if folder is None:
            return {}
        if not self._known:
            for path in folder.glob("*.bucket"):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    height, width, rows, either = json.loads(path.read_text())
                    self._known.add(Bucket((height, width), rows, either))
        return dict.fromkeys(self._known, self.price() / _READ)

    def price(self) -> float:
        """What compiling costs, in pixels: as measured here before this process, and at least the usual."""
        measured = self.measured
        return max(measured.pixels if measured else 0.0, COMPILATION_PRICE)

    @functools.cached_property
    def measured(self) -> Price | None:
        """What compiling costs, as measured here before this process; None where it was not."""
        return Price.read(self._price_path)

    @property
    def _price_path(self) -> Path | None:
        return None if self._folder is None else self._folder / "price.json"

    def note_speed(self, pixels: int, seconds: float) -> None:
        """Keep what a compilation costs on this machine, once: after a run of a program that was compiled."""
        path = self._price_path
        took = [made.seconds for made in self._ready() if made.compiled]
        if path is not None and took and not path.exists():
            Price(float(np.median(took)), pixels / seconds).write(path)

    def _ready(self) -> list[Program]:
        with self._lock:
            return [f.result() for f in self._made.values() if f.done() and f.exception() is None]

    @functools.cached_property
    def _folder(self) -> Path | None:
        base = executables_folder()
        if base is None or self._key is None:
            return None
        return base / _digest(self._key, code_digest(), _surroundings())

    def _make(self, bucket: Bucket) -> Program:
        start = time.perf_counter()
        arguments = self._arguments(bucket)
        call = self._read(bucket, arguments)
        compiled = call is None
        if call is None:
            call, known = self._compile(
                bucket, arguments, "" if self._folder is None else self._folder.name[:12]
            )
            if known and self._folder is not None:  # the executable was deleted or damaged
                call, _ = self._compile(bucket, arguments, uuid.uuid4().hex[:12])
            self.compiled += 1
            self._keep(bucket, call)
        return Program(call, time.perf_counter() - start, compiled)

    def _compile(self, bucket: Bucket, arguments: tuple, mark: str) -> tuple[Any, bool]:
        """The executable, and whether JAX's cache knew it.

        XLA cannot write again so that it runs what that cache gave. With a mark of its own in the program's
        name it does not answer with what another judge of the same network, or an earlier version of this
        code, left there: else nothing would be kept, and every start would trace.
        """
        function = self._function
        if mark:
            function = functools.wraps(function)(lambda *arguments: self._function(*arguments))
            function.__name__ += f"_{mark}"
        with self._tracing:
            lowered = jax.jit(function).lower(*arguments)
        _listen()
        _thread.hit = False
        return compile_lowered(lowered, bucket, arguments), _thread.hit

    def _path(self, bucket: Bucket) -> Path | None:
        if self._folder is None:
            return None
        name = "x".join(map(str, (*bucket.shape, bucket.batch_size, int(bucket.both_orientations))))
        return self._folder / f"{name}.executable"

    def _read(self, bucket: Bucket, arguments: tuple) -> Callable[..., Any] | None:
        path = self._path(bucket)
        if path is None or not path.exists():
            return None
        try:
            payload = path.read_bytes()
            inputs = jax.tree.structure((arguments, {}))
            devices = list(jax.tree.leaves(arguments)[0].sharding.device_set)
            devices.sort(key=lambda device: device.id)
            return serialize_executable.deserialize_and_load(
                payload, inputs, self._output, execution_devices=devices
            )
        except (OSError, ValueError, TypeError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
            _log.warning(
                "%s cannot be read and is compiled anew: %s", path, " ".join(str(error).split())[:200]
            )
            return None

    def _keep(self, bucket: Bucket, call: Any) -> None:
        """Write an executable that XLA compiled in this process."""
        path = self._path(bucket)
        if path is None:
            return
        try:
            payload, _, _ = serialize_executable.serialize(call)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, payload)
            write_whole(path.with_suffix(".bucket"), json.dumps([*bucket.shape, *bucket[1:]]).encode())
            self._known.add(bucket)
        except (OSError, ValueError, NotImplementedError, RuntimeError) as error:  # not every backend can
            _log.info("%s is not kept: %s", path, " ".join(str(error).split())[:200])


_thread = threading.local()


@functools.cache
def _listen() -> None:
    """From now on ``_thread.hit`` is set where JAX's cache answers a compilation, in its own thread."""

    def note(event: str, **_) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _thread.hit = True

    jax.monitoring.register_event_listener(note)


def executables_folder() -> Path | None:
    """In JAX's cache folder, where that is on a disk and nobody else may write to it: its content is run."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder or "://" in folder or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = path.stat()
    except OSError:
        return None
    if others_may_write(about):
        return None
    return path / "executables"


@functools.cache
def code_digest() -> str:
    """Of this package's code: every file of it."""
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _surroundings() -> str:
    """What else a program follows from: versions, devices, processor, and what JAX and XLA were told."""
    device = jax.devices()[0]
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")]
    told = {
        name: value
        for name, value in jax.config.values.items()
        if name.startswith(("jax_enable_x64", "jax_default", "jax_numpy", "jax_cpu", "jax_num_cpu"))
    }
    flags = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    kinds = [device.platform, device.device_kind, device.client.platform_version, len(jax.devices())]
    return json.dumps([versions, kinds, told, flags, _processor()], default=str, sort_keys=True)


def _processor() -> str:
    """What this machine's processor can do: code is compiled for just that."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def make_all(programs: Programs, buckets: Iterable[Bucket]) -> list[Program]:
    """Several at a time: XLA compiles in as many threads as there are cores."""
    buckets = list(dict.fromkeys(buckets))
    workers = min(len(os.sched_getaffinity(0)), max(len(buckets), 1))
    with concurrent.futures.ThreadPoolExecutor(workers, "compile") as pool:
        return list(pool.map(programs.__getitem__, buckets))
