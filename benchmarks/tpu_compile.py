"""Compile the training step of every bucket for a TPU that is not there, or for the attached device.

    python benchmarks/tpu_compile.py [--topology v5e:2x2] [--sizes FILE] [--pixels-per-step N] [--out FOLDER]

With libtpu installed (`pip install libtpu`, no TPU needed) XLA's own compiler says whether each bucket fits,
how much memory it takes on each chip, how many operations it does and how many bytes it moves; with
`--topology attached` the GPU or TPU of this machine is asked. Each bucket is compiled twice: as it is, and
without any care for padding (no masks, one plain reduction in place of the pyramid), which gives the share of
bytes that masks and pyramid add. Bytes and operations are of one chip.

Prints a table; saves JSON. Exit status 0: everything fits; 1: something does not, or does not compile;
2: the topology is unknown.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if importlib.util.find_spec("libtpu") and not any("attached" in argument for argument in sys.argv):
    # libtpu is there to compile for a TPU, not to run on one: keep jax from looking for it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh
from photo_sizes import read_sizes, scaled

import spp_jax.layers
from spp_jax import Padded, num_bins, plan_buckets
from spp_jax.buckets import Bucket, BucketPlan
from spp_jax.compilation import BucketExecutables, DoesNotFitError, data_mesh, device_memory
from spp_jax.config import RunConfig
from spp_jax.data.schedule import Schedule
from spp_jax.errors import UsageError
from spp_jax.pooling.reductions import Max
from spp_jax.training import configured_training, step_executables

GIB = 2**30
MEMORY = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
"""Of one chip, as Google's documentation of each generation gives it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile the training step of every bucket for a TPU that is not there."""

    topology: str = "v5e:2x2"
    """Slice to compile for, such as v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:2x2; or attached."""
    model: str = "compact"
    """Network whose step is compiled."""
    sizes: Path | None = None
    """Sizes of the collection, lines of height,width,count after a heading. Default: those of the default
    data set."""
    plan: Path | None = None
    """A saved plan, the buckets.json of a run, instead of one for the sizes."""
    max_side: int = 1024
    """Larger pictures are scaled down to this longest side."""
    buckets: int = 6
    """At most this many."""
    pixels_per_step: int = 25_000_000
    """Padded pixels of a global batch."""
    remat: bool = False
    """Rematerialise, stage by stage."""
    out: Path | None = None
    """Folder for tpu_compile.json."""


def devices(topology: str) -> Mesh:
    """The chips of a slice in a line, or the attached devices."""
    if topology == "attached":
        return data_mesh()
    if topology.partition(":")[0] not in MEMORY:
        raise UsageError(f"--topology {topology}: known are {', '.join(MEMORY)} with a shape, and attached")
    if not importlib.util.find_spec("libtpu"):
        raise UsageError("libtpu is not installed: pip install libtpu")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # whatever libtpu says of a name it does not know
        raise UsageError(f"--topology {topology}: {' '.join(str(error).split())[:300]}") from None
    return data_mesh(found.devices)


def make_plan(options: Options) -> tuple[BucketPlan, np.ndarray]:
    sizes, counts = read_sizes(options.sizes)
    sizes = np.repeat(scaled(sizes, options.max_side), counts, axis=0)
    if options.plan:
        return BucketPlan.from_json(options.plan.read_text()), sizes
    bucketing = RunConfig(buckets=options.buckets, pixels_per_step=options.pixels_per_step).bucketing
    return plan_buckets(sizes, **bucketing), sizes


@contextlib.contextmanager
def without_care() -> Iterator[None]:
    """Within it, nothing is masked, and one plain reduction stands for the pyramid."""

    def plain(features, sizes, *, levels, reduce, rule):
        axes = tuple(range(1, features.ndim - 1))
        pooled = features.max(axes) if isinstance(reduce, Max) else features.mean(axes)
        bins = num_bins(levels, len(axes))
        return jnp.broadcast_to(pooled[:, None], (len(pooled), bins, pooled.shape[-1]))

    with (
        mock.patch.object(Padded, "filled", lambda self, value=0: self.values),
        mock.patch.object(Padded, "mask", lambda self: jnp.ones((*self.values.shape[:-1], 1), bool)),
        mock.patch.object(spp_jax.layers, "spatial_pyramid_pool", plain),
    ):
        yield


def compile_step(executables: BucketExecutables, bucket: Bucket) -> dict[str, Any]:
    """What the compiler says of a bucket's step; or why it refuses it."""
    start = time.perf_counter()
    try:
        compiled = executables[bucket]
    except (DoesNotFitError, jax.errors.JaxRuntimeError) as error:
        return {"refused": " ".join(str(error).split())}
    costs = compiled.call.cost_analysis()  # pyright: ignore[reportFunctionMemberAccess]
    return {
        "seconds": time.perf_counter() - start,
        "memory": compiled.bytes,
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
    }


def run() -> int:
    options = tyro.cli(Options)
    mesh = devices(options.topology)
    chip = mesh.devices.flat[0]
    limit = MEMORY.get(options.topology.partition(":")[0]) or device_memory(chip)
    plan, sizes = make_plan(options)
    schedule = Schedule(sizes, plan, seed=0, flip=False)
    known = f"{limit / GIB:.0f} GiB each" if limit else "memory not told"
    print(
        f"{options.model}, {options.topology}: {mesh.size} x {chip.device_kind}, {known}; "
        f"{len(plan.buckets)} buckets, {plan.waste(sizes):.1%} padding\n\n"
        f"{'bucket':>20s}{'compile s':>11s}{'MiB/chip':>10s}{'Gflop':>9s}{'GB moved':>10s}"
        f"{'masks, pyramid':>16s}"
    )
    config = RunConfig(model=options.model, remat=options.remat)
    recipe, state = configured_training(config, 1000, schedule.mean_batch)
    step, bare_step = (step_executables(recipe, state, mesh) for _ in ("with care", "without"))
    results = []
    for bucket in plan.buckets:
        with_care = compile_step(step, bucket)
        with without_care():
            bare = compile_step(bare_step, bucket)
        fits = "refused" not in with_care and (not limit or (with_care["memory"] or 0) <= limit)
        results.append({"bucket": bucket._asdict(), "fits": fits, "step": with_care, "without_care": bare})
        if "refused" in with_care:
            print(f"{bucket!s:>20s}  does not fit: {with_care['refused'][:200]}")
            continue
        added = with_care["bytes"] / bare["bytes"] - 1 if bare.get("bytes") else float("nan")
        results[-1]["bytes_added"] = added
        print(
            f"{bucket!s:>20s}{with_care['seconds']:11.1f}{(with_care['memory'] or 0) / 2**20:10.0f}"
            f"{with_care['flops'] / 1e9:9.1f}{with_care['bytes'] / 1e9:10.3f}{added:+16.1%}"
            f"{'' if fits else '  does not fit'}",
            flush=True,
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        described = {
            "version": 1,
            "jax": jax.__version__,
            "options": dataclasses.asdict(options),
            "memory_of_a_chip": limit,
            "buckets": results,
        }
        (options.out / "tpu_compile.json").write_text(json.dumps(described, indent=2, default=str) + "\n")
    return 0 if all(result["fits"] for result in results) else 1


def main() -> int:
    try:
        return run()
    except (UsageError, OSError, ValueError) as error:
        print(f"tpu_compile.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
