"""One executable a bucket: compiled ahead of time, kept, looked up; and a watch over every other compilation.

A step is compiled for each bucket in use before the first one runs, so training never waits for XLA.
What is compiled after that is a mistake (a shape that was not planned, a new function object, a weak
type), and :func:`warn_of_compilations` says which.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import logging
import os
import re
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import platformdirs
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spp_jax.buckets import Bucket
from spp_jax.whole_files import write_whole

__all__ = [
    "BucketExecutables",
    "Compilation",
    "CompilationWarning",
    "Compiled",
    "DoesNotFitError",
    "Price",
    "abstract",
    "compile_lowered",
    "compiler_options",
    "compiles_still",
    "data_mesh",
    "default_cache_dir",
    "device_memory",
    "others_may_write",
    "over_rows",
    "placed",
    "placements",
    "price_file",
    "quick_flags",
    "replicated",
    "use_compilation_cache",
    "user_folder",
    "warn_of_compilations",
    "watch_compilations",
]


_log = logging.getLogger(__name__)


def quick_flags(level: int, environment: Mapping[str, str] = os.environ) -> str:
    """``XLA_FLAGS`` for a CPU whose programs compile in half the time and run longer, rounding differently.

    Flags of the CPU alone are left out where a plugin of another device is installed and ``JAX_PLATFORMS`` is
    not ``cpu``: XLA ends the process at a flag that it does not know. The older code for fused loops is such
    a flag, and XLA in jax 0.11 has it no longer.

    Args:
        level: how much LLVM optimises, 0 to 3. At 0 it does nothing that takes long, and compiles a program
            in one piece: for programs that run once.
        environment: of the process that is to have them; its own flags stand first.

    Example::

        os.environ["XLA_FLAGS"] = quick_flags(0)  # before the first program is compiled
    """
    flags = [environment.get("XLA_FLAGS", ""), f"--xla_backend_optimization_level={level}"]
    plugins = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if not plugins or environment.get("JAX_PLATFORMS") == "cpu":
        if level == 0:
            flags += ["--xla_llvm_disable_expensive_passes=true", "--xla_cpu_parallel_codegen_split_count=1"]
        if jax.__version_info__ < (0, 11):
            flags += ["--xla_cpu_use_fusion_emitters=false"]
    return " ".join(flags).strip()


def compiler_options(platform: str, environment: Mapping[str, str] = os.environ) -> dict[str, str | bool]:
    """What XLA is told besides its flags, for programs that run many times.

    On a CPU: to leave convolutions to Eigen. By itself it hands them to YNNPACK, which takes up to 1.8
    times as long with jax 0.10.2, and whose programs fuse no masks (`benchmarks/convolutions.py`).

    Args:
        platform: ``cpu``, ``gpu`` or ``tpu``.
        environment: where its ``XLA_FLAGS`` say what YNNPACK is for, nothing is added.

    Example:
        >>> compiler_options("tpu")
        {}
        >>> step = jax.jit(lambda x: x, compiler_options=compiler_options(jax.default_backend()))
    """
    if platform != "cpu" or _YNNPACK in environment.get("XLA_FLAGS", ""):
        return {}
    return {_YNNPACK: ""}


_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"


class DoesNotFitError(Exception):
    """A bucket's program needs more memory than the device has; the message is one line, with figures."""


class Compiled(NamedTuple):
    """One bucket's executable.

    Attributes:
        bucket: that it was compiled for.
        call: runs it.
        seconds: that tracing, lowering and compiling (or reading the cache) took.
        bytes: of arguments, results and temporaries together on one device, as XLA plans them; None
            where the backend does not say.
    """

    bucket: Bucket
    call: Callable[..., Any]
    seconds: float
    bytes: int | None


class Price(NamedTuple):
    """What a compilation costs, as measured on this machine.

    Attributes:
        seconds: that it takes.
        pixels_per_second: that go through a program meanwhile, padding included.
    """

    seconds: float
    pixels_per_second: float

    @property
    def pixels(self) -> float:
        """The unit in which plans count: see :data:`spp_jax.buckets.COMPILATION_PRICE`."""
        return self.seconds * self.pixels_per_second

    def __str__(self) -> str:
        return (
            f"a compilation takes {self.seconds:.1f} s here, in which {self.pixels:,.0f} pixels go through a "
            f"program ({self.pixels_per_second:,.0f} a second)"
        )

    @classmethod
    def read(cls, path: Path | None) -> "Price | None":
        """As kept before; None where none is, or it cannot be read."""
        try:
            told = json.loads(path.read_text()) if path else {}
            return cls(float(told["seconds"]), float(told["pixels_per_second"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, path: Path | None) -> None:
        """Keep it, whole or not at all; where it cannot be, it is measured anew."""
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, json.dumps(self._asdict()).encode())


def price_file(*program: str) -> Path | None:
    """Where the price of a kind of program is kept, by names and this device; None: there is no folder."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder or "://" in folder:
        return None
    named = "-".join((*program, jax.devices()[0].device_kind))
    return Path(folder) / "prices" / f"{re.sub(r'[^A-Za-z0-9]+', '-', named)}.json"


class BucketExecutables:
    """A pure function, compiled once for each bucket that is used.

    Ahead of time, so that a shape that was not planned is an error and not a compilation.

    Attributes:
        arguments: from a bucket to the function's arguments, as it was given.
    """

    def __init__(self, function: Callable[..., Any], arguments: Callable[[Bucket], tuple], **jit_options):
        """Say what is to be compiled; nothing is yet.

        Args:
            function: maps pytrees of arrays to pytrees of arrays.
            arguments: from a bucket to the function's arguments, as arrays or `jax.ShapeDtypeStruct`
                (whose shardings, where they have them, are those of the program).
            jit_options: of `jax.jit`: ``donate_argnums``, ``out_shardings``.
        """
        self._jitted = jax.jit(function, **jit_options)
        self.arguments = arguments
        self._compiled: dict[Bucket, Compiled] = {}

    def __getitem__(self, bucket: Bucket) -> Compiled:
        """The bucket's executable, compiled now if it was not yet.

        Raises:
            DoesNotFitError: the compiler found that the program does not fit the device's memory.
        """
        if bucket not in self._compiled:
            self._compile(bucket, *self._lower(bucket))
        return self._compiled[bucket]

    def __len__(self) -> int:
        """How many executables there are by now."""
        return len(self._compiled)

    def compile_all(
        self, buckets: Iterable[Bucket], check: Callable[[], Any] = lambda: None
    ) -> Iterator[Compiled]:
        """Compile for these buckets, yielding each when it is ready, so that progress can be shown.

        Python traces one while XLA compiles others in threads. Left early, it does not wait for them.

        Args:
            buckets: each is compiled once.
            check: called again and again meanwhile; it may raise.

        Raises:
            DoesNotFitError: at the end, and names every bucket that the compiler refused.
        """
        cores = threading.Semaphore(len(os.sched_getaffinity(0)))
        waiting: set[concurrent.futures.Future] = set()
        refused = []

        def ready(futures: Iterable[concurrent.futures.Future]) -> Iterator[Compiled]:
            for future in futures:
                try:
                    yield future.result()
                except DoesNotFitError as error:
                    refused.append(str(error))

        try:
            for bucket in dict.fromkeys(buckets):
                check()
                if bucket in self._compiled:
                    yield self._compiled[bucket]
                    continue
                waiting.add(_in_thread(cores, self._compile, bucket, *self._lower(bucket)))
                done = {future for future in waiting if future.done()}
                waiting -= done
                yield from ready(done)
            while waiting:
                check()
                done, waiting = concurrent.futures.wait(
                    waiting, _LOOKED_AFTER, concurrent.futures.FIRST_COMPLETED
                )
                yield from ready(done)
        finally:
            for future in waiting:
                future.cancel()
        if refused:
            raise DoesNotFitError("; ".join(refused))

    def _lower(self, bucket: Bucket) -> tuple[Any, tuple, float]:
        """The program, its arguments, and the seconds it took."""
        start = time.perf_counter()
        arguments = self.arguments(bucket)
        lowered = self._jitted.lower(*arguments)
        return lowered, arguments, time.perf_counter() - start

    def _compile(self, bucket: Bucket, lowered: Any, arguments: tuple, seconds: float) -> Compiled:
        start = time.perf_counter()
        call = compile_lowered(lowered, bucket, arguments)
        seconds += time.perf_counter() - start
        self._compiled[bucket] = Compiled(bucket, call, seconds, _planned_bytes(call))
        return self._compiled[bucket]


def compile_lowered(lowered: Any, bucket: Bucket, arguments: Any) -> Any:
    """The executable of a lowered program, compiled with :func:`compiler_options`.

    Args:
        lowered: the program.
        bucket: that it is for.
        arguments: of the program, as arrays or `jax.ShapeDtypeStruct`; their shardings say the device.

    Raises:
        DoesNotFitError: the compiler found that it does not fit the device's memory.
    """
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arguments)]
    devices = [device for sharding in shardings if sharding for device in sharding.device_set]
    platform = devices[0].platform if devices else jax.default_backend()
    try:
        return lowered.compile(compiler_options=compiler_options(platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(f"bucket {bucket}: {' '.join(str(error).split())[:300]}") from None


_COMPILES = "compile"
_LOOKED_AFTER = 0.3  # seconds that a compilation is waited for at a time


def _in_thread(
    cores: threading.Semaphore, work: Callable[..., Any], *arguments: Any
) -> concurrent.futures.Future:
    """What the work gives, once a core was free for it. No pool: at its end Python waits for those."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        with cores:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*arguments))
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name=_COMPILES, daemon=True).start()
    return future


def compiles_still() -> bool:
    """Whether a compilation that nobody waits for is under way."""
    return any(thread.name == _COMPILES for thread in threading.enumerate())


def _planned_bytes(compiled) -> int | None:
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )


def device_memory(device: Any) -> int | None:
    """Bytes that programs on this device can have together; None where neither it nor the system says."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def data_mesh(devices: Iterable[Any] | None = None) -> Mesh:
    """All devices (or these) in a line: each takes its share of the rows of every batch."""
    return Mesh(np.array(list(jax.devices() if devices is None else devices)), ("rows",))


def over_rows(batch: Any, mesh: Mesh) -> Any:
    """For each array of a batch: its first axis is split over the mesh's devices, a scalar is on all."""
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    return jax.tree.map(lambda x: rows if x.ndim else replicated(mesh), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device of the mesh has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def placements(tree: Any, mesh: Mesh, fsdp: int | None = None) -> Any:
    """Where each array of a state lies: whole on every device, or divided among them.

    Args:
        tree: parameters, or what an optimiser keeps of each, or their shapes.
        mesh: as :func:`data_mesh` makes it.
        fsdp: arrays of at least so many elements are divided along the longest axis that the devices
            divide: fully sharded data parallelism (Rajbhandari et al. 2019, ZeRO, arXiv:1910.02054). XLA
            gathers them where they are needed. None: none is divided.
    """

    def place(x: Any) -> NamedSharding:
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % mesh.size == 0]
        if fsdp is None or x.size < fsdp or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "rows"))

    return jax.tree.map(place, tree)


def placed(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree, so placed.

    As `jax.device_put`; on several hosts by way of NumPy: of an array on the only device of a host, JAX 0.10
    makes one whose shards cannot be asked for, as saving it does.
    """

    def local(x: Any) -> Any:
        return np.asarray(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x

    return jax.device_put(jax.tree.map(local, tree) if jax.process_count() > 1 else tree, shardings)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a tree's arrays, each placed so: what a program is compiled for."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def default_cache_dir() -> str:
    """``$JAX_COMPILATION_CACHE_DIR`` where it is set, else a folder of the user's own."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(user_folder() / "xla")


def others_may_write(about: os.stat_result) -> bool:
    """Whether somebody else, but root, may write to a folder: what it holds is then not to be run."""
    return bool(about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or about.st_uid not in (0, os.getuid())


def user_folder() -> Path:
    """Where this user's caches of this package are; of an account without a home, in the temporary folder."""
    try:
        folder = Path(platformdirs.user_cache_dir("spp_jax"))
        if folder.is_absolute():
            return folder
    except (RuntimeError, KeyError, OSError):  # no home is known
        pass
    return Path(tempfile.gettempdir()) / f"spp_jax-{os.getuid()}"


def use_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keep every compiled program on disk, so that a second start compiles nothing.

    Programs that compile fast are kept as well: they are many. JAX runs what it finds there, so a folder
    that is made here is private to the user; one that is shared by several hosts, or an address such as
    ``gs://...``, is taken as it is, with a warning where others may write to it. Where none can be written,
    that is said, and nothing is kept.
    """
    if "://" not in str(folder):
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            about = folder.stat()
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, ValueError) as error:  # or a name that no folder can have
            _log.warning(f"compiled programs are not kept for the next start (cache_dir): {error}")
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()
            return
        if others_may_write(about):
            warnings.warn(f"others may write programs to {folder}, and they will be run", stacklevel=2)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # else a folder that was in use before stays so
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class Compilation(NamedTuple):
    """A program that XLA compiled, or that was read from the persistent cache.

    Attributes:
        name: of the function that was jitted.
        types: of its arguments, as JAX writes them.
        cause: why it was traced, as JAX explains it; empty where it does not.
        cached: it was read from the cache.
    """

    name: str
    types: str
    cause: str
    cached: bool

    def __str__(self) -> str:
        done = "was read from the cache" if self.cached else "was compiled"
        return f"{self.name} {done} for {self.types or 'unknown types'}. {self.cause}".rstrip()


class CompilationWarning(UserWarning):
    """Something was compiled at a time when everything should have been."""


@contextlib.contextmanager
def warn_of_compilations() -> Iterator[None]:
    """Within it, each compilation is a :class:`CompilationWarning` that names function, shapes and cause.

    Where warnings are errors, as in this project's tests, it is raised where the compilation happens.
    """

    def warn(compilation: Compilation) -> None:
        warnings.warn(f"after precompilation, {compilation}", CompilationWarning, stacklevel=2)

    with watch_compilations(warn):
        yield


@contextlib.contextmanager
def watch_compilations(report: Callable[[Compilation], None], *, explain: bool = True) -> Iterator[None]:
    """Within it, ``report`` is called for each compilation, in the thread that asked XLA for it.

    JAX's events name the function; its log, which is read and not shown, says shapes and cause. Watches
    may be nested: each is told.

    Args:
        report: what to do.
        explain: ask JAX for the causes, for which it compares each program with all before: after
            hundreds, seconds for each.
    """
    explained = jax.config.values["jax_explain_cache_misses"]
    if not _watch.reports:
        _watch.begin()
    _watch.reports.append(report)
    jax.config.update("jax_explain_cache_misses", explained or explain)
    try:
        yield
    finally:
        jax.config.update("jax_explain_cache_misses", explained)
        _watch.reports.remove(report)
        if not _watch.reports:
            _watch.end()


class _Watch(logging.Filter):
    """Listens to JAX's events and, as a filter of its loggers, to what they say."""

    _NAMES = ("interpreters.pxla", "interpreters.partial_eval", "compiler", "compilation_cache")
    _EXPLANATIONS = ("TRACING CACHE MISS", "PERSISTENT COMPILATION CACHE MISS", "Writing ", "Not writing ")

    def __init__(self):
        super().__init__()
        self.reports: list[Callable[[Compilation], None]] = []
        self._types: dict[str, str] = {}  # by name; lowered in one thread, compiled in another perhaps
        self._thread = threading.local()

    def begin(self) -> None:
        self._loggers = [logging.getLogger(f"jax._src.{name}") for name in self._NAMES]
        self._levels = [logger.level for logger in self._loggers]
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        for logger in self._loggers:
            logger.addFilter(self)
        self._loggers[0].setLevel(logging.DEBUG)  # where shapes and types are told

    def end(self) -> None:
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.removeFilter(self)
            logger.setLevel(level)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith("Compiling ") and " with global shapes and types " in text:
            name, _, rest = text.removeprefix("Compiling ").partition(" with global shapes and types ")
            self._types[_plain(name)] = rest.partition(". Argument mapping")[0]
        elif text.startswith("TRACING CACHE MISS"):
            self._thread.causes = [*getattr(self._thread, "causes", []), " ".join(text.split())]
        return record.levelno >= logging.INFO and not text.startswith(self._EXPLANATIONS)

    def _on_event(self, event: str, **details) -> None:
        # JAX names no function here; the duration that follows in the same thread does.
        if event == "/jax/compilation_cache/cache_hits":
            self._thread.cached = True

    def _on_duration(self, event: str, duration_secs: float, **details) -> None:
        if event != "/jax/core/compile/backend_compile_duration":
            return
        name, said = _plain(str(details.get("fun_name", ""))), vars(self._thread)
        cause = next((cause for cause in said.get("causes", []) if f" {name} " in f"{cause} "), "")
        found = Compilation(name, self._types.get(name, ""), cause, said.get("cached", False))
        said.clear()
        for report in self.reports:
            report(found)


_watch = _Watch()


def _plain(name: str) -> str:
    return name.removeprefix("jit(").removesuffix(")")
