"""A run's programs: all are compiled before the first step, and refused where one would not fit."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spp_jax.buckets import Bucket
from spp_jax.compilation import BucketExecutables, Compiled, DoesNotFitError, Price, device_memory
from spp_jax.errors import UsageError

__all__ = ["compile_programs", "measured_price", "memory"]


def compile_programs(
    programs: Mapping[str, tuple[BucketExecutables, tuple[Bucket, ...]]],
    mesh: Mesh,
    compiled: Callable[[str, Compiled], None],
    check: Callable[[], Any] = lambda: None,
) -> None:
    """Compile ahead of time, with a progress bar.

    Args:
        programs: by name, and the buckets to compile each for.
        mesh: of the programs.
        compiled: told of each that is ready, with the program's name.
        check: called again and again meanwhile; what it raises leaves the rest.

    Raises:
        UsageError: some do not fit the device; names every such bucket.
    """
    available = device_memory(mesh.devices.flat[0])
    too_large = []
    total = sum(len(buckets) for _, buckets in programs.values())
    with tqdm(total=total, unit="program", desc="compile") as bar:
        for name, (executables, buckets) in programs.items():
            try:
                for ready in executables.compile_all(buckets, check):
                    if available and ready.bytes and ready.bytes > available:
                        too_large.append(f"{name}, bucket {ready.bucket}: {memory(ready)}")
                    compiled(name, ready)
                    bar.update()
            except DoesNotFitError as error:
                too_large.append(f"{name}, {error}")
    if too_large:
        limit = f" of {available / 2**20:.0f} MiB" if available else ""
        raise UsageError(
            f"these do not fit the memory{limit} of {mesh.devices.flat[0].device_kind}: "
            f"{'; '.join(too_large)}. Lower pixels_per_step",
            "pixels_per_step",
        )


def measured_price(
    executables: BucketExecutables, compiled: Sequence[Compiled], seconds: float | None, path: Path | None
) -> Price | None:
    """What a compilation costs here, where that is known: measured now and kept, or kept before.

    Two steps of the program of fewest pixels are run, on zeros.

    Args:
        executables: of the programs.
        compiled: what :func:`compile_programs` told of.
        seconds: that all took to compile, beside each other; None where some were read from the cache.
        path: of the file where it is kept.
    """
    if seconds is None:
        return Price.read(path)
    least = min(compiled, key=lambda ready: ready.bucket.pixels)
    step = [_seconds(executables, least) for _ in range(2)][-1]  # the first one also warms up
    price = Price(seconds / len(compiled), least.bucket.pixels / step)
    price.write(path)
    return price


def _seconds(executables: BucketExecutables, ready: Compiled) -> float:
    """Of one run, on zeros."""
    arguments = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), executables.arguments(ready.bucket)
    )
    jax.block_until_ready(arguments)
    start = time.perf_counter()
    jax.block_until_ready(ready.call(*arguments))
    return time.perf_counter() - start


def memory(compiled: Compiled) -> str:
    """What a program takes on one device, for people."""
    return "not told" if compiled.bytes is None else f"{compiled.bytes / 2**20:.0f} MiB"
