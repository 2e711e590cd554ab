"""One executable a bucket: compiled ahead of time, kept, and looked up; never traced by surprise."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from spp_jax.buckets import BucketPlan

__all__ = ["BucketExecutables", "Compiled", "use_compilation_cache"]


class Compiled(NamedTuple):
    """One bucket's executable.

    Attributes:
        call: runs it.
        seconds: that tracing, lowering and compiling (or reading the cache) took.
        bytes: of arguments, results and temporaries together, as XLA plans them; None where the
            backend does not say.
    """

    call: Callable[..., Any]
    seconds: float
    bytes: int | None


class BucketExecutables:
    """A pure function, compiled once for each bucket of a plan.

    Ahead of time, so that a shape that was not planned is an error and not a compilation.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        plan: BucketPlan,
        arguments: Callable[[tuple[int, ...], int], tuple[Any, ...]],
        *,
        donate_argnums: tuple[int, ...] = (),
    ):
        """Say what is to be compiled; nothing is yet.

        Args:
            function: maps pytrees of arrays to pytrees of arrays.
            plan: the buckets.
            arguments: from a bucket's (shape, batch size) to the function's arguments, as arrays or
                `jax.ShapeDtypeStruct`.
            donate_argnums: arguments whose memory the results may take over.
        """
        self.plan = plan
        self._jitted = jax.jit(function, donate_argnums=donate_argnums)
        self._arguments = arguments
        self._compiled: dict[int, Compiled] = {}

    def __getitem__(self, bucket: int) -> Compiled:
        """The bucket's executable, compiled now if it was not yet."""
        if bucket not in self._compiled:
            start = time.perf_counter()
            arguments = self._arguments(self.plan.shapes[bucket], self.plan.batch_sizes[bucket])
            call = self._jitted.lower(*arguments).compile()
            seconds = time.perf_counter() - start
            self._compiled[bucket] = Compiled(call, seconds, _planned_bytes(call))
        return self._compiled[bucket]

    def __len__(self) -> int:
        """How many executables there are by now."""
        return len(self._compiled)

    def compile_all(self) -> Iterator[Compiled]:
        """Compile bucket after bucket, yielding each, so that progress can be shown."""
        return (self[bucket] for bucket in range(len(self.plan.shapes)))


def use_compilation_cache(folder: Path) -> None:
    """Keep every compiled program on disk, so that a second start compiles nothing.

    JAX runs what it finds there: the folder is made private to the user.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
