"""What photographs cost before the device sees them, and which of the two waits for the other.

    python benchmarks/input.py [--photos FOLDER] [--max-pixels N] [--out FOLDER]

Rows: reading sizes from headers; plain Pillow in one process (open, convert, to an array); our `decode` in
one thread (orientation, colour profile, background, scaling); the whole pipeline (threads, padding, batches
in order); and the training step's appetite, from the same batches already on the device. All take turns,
medians of the rounds. Then the peak memory of the pipeline over the collection, and over four times as many
pictures, each in a process of its own.

Without --photos, JPEG photographs of 0.2 to 2 megapixels are made from noise. Prints a table; saves JSON.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from PIL import Image

from spp_jax import plan_buckets
from spp_jax.compilation import data_mesh, default_cache_dir, over_rows, replicated, use_compilation_cache
from spp_jax.config import Decoding, RunConfig
from spp_jax.data.decoding import FORMATS, decode, photo_size
from spp_jax.data.loading import load_batches
from spp_jax.data.records import Records, photo_records
from spp_jax.data.schedule import BatchSpec, in_order
from spp_jax.training import configured_training, step_executables

SCAN, PILLOW, DECODE, PIPELINE, STEP = (
    "sizes from headers",
    "plain Pillow, one process",
    "decode, one thread",
    "pipeline",
    "training step",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What photographs cost before the device sees them."""

    photos: Path | None = None
    """Folder of photographs, searched to the bottom; none: they are made."""
    count: int = 200
    """How many photographs are made, or taken of the folder."""
    max_pixels: int | None = None
    """Larger photographs are scaled down."""
    buckets: int = 6
    """Padded shapes."""
    pixels_per_step: int = 4_000_000
    """Padded pixels of a batch."""
    rounds: int = 5
    """Of which the medians are told."""
    peak_only: int = 0
    """Only run the pipeline over the photographs, so many times, and print the peak of memory in bytes."""
    out: Path | None = None
    """Folder for input.json."""


def make_photos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.exp(rng.uniform(np.log(0.2e6), np.log(2e6)))
        aspect = np.exp(rng.normal(0, 0.35))
        size = (int(np.sqrt(pixels * aspect)), int(np.sqrt(pixels / aspect)))
        coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)


def find_photos(folder: Path, count: int) -> list[Path]:
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)[:count]


def records_of(paths: list[Path], decoding: Decoding) -> Records:
    records, _, skipped = photo_records(paths, (16, 16), decoding)
    for place, reason in skipped.items():
        print(f"skipped {paths[place]}: {reason}", file=sys.stderr)
    return dataclasses.replace(records, scores=np.zeros(len(records), np.float32))


def specs_of(records: Records, options: Options) -> list[BatchSpec]:
    config = RunConfig(buckets=options.buckets, pixels_per_step=options.pixels_per_step)
    return in_order(records.sizes, plan_buckets(records.sizes, **config.bucketing))


def drain(records: Records, specs: list[BatchSpec]) -> None:
    for _ in load_batches(records, specs):
        pass


class Appetite:
    """Called, it takes an epoch of training steps on batches that are on the device already."""

    def __init__(self, records: Records, specs: list[BatchSpec]):
        mesh = data_mesh()
        recipe, state = configured_training(RunConfig(), 1000, 8.0)
        self.specs, self.step = specs, step_executables(recipe, state, mesh)
        first = {spec.bucket: spec for spec in specs}
        self.batches = {
            spec.bucket: jax.device_put(batch, over_rows(batch, mesh))
            for spec, batch, _ in load_batches(records, first.values())
        }
        self.state = jax.device_put(state, replicated(mesh))
        for _ in self.step.compile_all(first):
            pass
        self()

    def __call__(self) -> None:
        """Train for an epoch, and wait until it is done."""
        for spec in self.specs:
            self.state, _ = self.step[spec.bucket].call(self.state, self.batches[spec.bucket])
        jax.block_until_ready(self.state)


def peak(options: Options, folder: Path, times: int) -> int:
    """Bytes that the pipeline needs at most, in a process of its own."""
    command = [sys.executable, __file__, "--photos", str(folder), "--peak-only", str(times)]
    for name in ("count", "max_pixels", "buckets", "pixels_per_step"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as made:
        if not options.photos:
            make_photos(Path(made), options.count)
        run(options, options.photos or Path(made))


def run(options: Options, folder: Path) -> None:
    decoding = Decoding(max_pixels=options.max_pixels)
    paths = find_photos(folder, options.count)
    records = records_of(paths * max(1, options.peak_only), decoding)
    specs = specs_of(records, options)
    if options.peak_only:
        drain(records, specs)
        # Not getrusage: its peak is that of the process that forked this one, where that was larger.
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        print(int(found[1]) * 1024)
        return
    use_compilation_cache(default_cache_dir())
    seconds = in_turns(contenders(records, specs, decoding), options.rounds)
    report(records, seconds, options, folder)


def contenders(records: Records, specs: list[BatchSpec], decoding: Decoding) -> dict[str, Callable[[], None]]:
    readable = [Path(name) for name in records.ids]

    def plain() -> None:
        for path in readable:
            with Image.open(path) as picture:
                np.asarray(picture.convert("RGB"))

    def each(function: Callable) -> Callable[[], None]:
        def run() -> None:  # keeping nothing: fresh memory for every picture would be what is measured
            for path in readable:
                function(path, decoding)

        return run

    return {
        SCAN: each(photo_size),
        PILLOW: plain,
        DECODE: each(decode),
        PIPELINE: lambda: drain(records, specs),
        STEP: Appetite(records, specs),
    }


def in_turns(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each took."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(records: Records, seconds: dict[str, list[float]], options: Options, folder: Path) -> None:
    megapixels = float(records.sizes.prod(axis=1).sum()) / 1e6
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    print(f"{len(records)} photographs, {megapixels:.0f} megapixels as used, {os.cpu_count()} cores\n")
    print(f"{'':28s}{'images/s':>10s}{'Mpx/s':>9s}{'of plain Pillow':>17s}")
    for name, median in medians.items():
        print(
            f"{name:28s}{len(records) / median:10.1f}{megapixels / median:9.1f}"
            f"{medians[PILLOW] / median:17.2f}"
        )
    waits = "the pipeline waits for the step" if medians[PIPELINE] < medians[STEP] else "the step waits"
    print(f"\n{waits}: a step eats {medians[PIPELINE] / medians[STEP]:.2f} of what the pipeline gives")
    once, fourfold = peak(options, folder, 1), peak(options, folder, 4)
    print(f"peak memory {once / 2**20:.0f} MiB, of four times as many pictures {fourfold / 2**20:.0f} MiB")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        described = {
            "version": 1,
            "options": dataclasses.asdict(options),
            "photographs": len(records),
            "megapixels": megapixels,
            "seconds": seconds,
            "peak_bytes": {"once": once, "four times": fourfold},
        }
        (options.out / "input.json").write_text(json.dumps(described, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
