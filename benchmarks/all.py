"""Every figure of docs/measurements.md anew, at a small scale, in under an hour on two cores.

    python benchmarks/all.py [--out FOLDER] [--only pooling throughput ...] [--dry-run]

Each benchmark runs in a process of its own, one after the other, and is stopped at its share of the hour.
What needs something that is not here (torch, libtpu, photographs) is named and left out. FOLDER gets the
output and the JSON of each, and `all.md`: versions, revision, and for each its command, seconds and output.
A figure of docs/measurements.md that is measured again takes versions and revision from there. What networks
learn (docs/results.md) takes hours, and commands of its own.

Exit status 0: all that could run did; 1: some failed or ran out of time, each named.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "photos"


@dataclasses.dataclass(frozen=True)
class Job:
    """One benchmark.

    Attributes:
        name: what `--only` calls it, and its folder.
        command: after ``python``; ``{out}`` is its folder.
        minutes: after which it is stopped.
        needs: modules without which it is left out.
        photos: a folder of photographs without which it is left out.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    needs: tuple[str, ...] = ()
    photos: Path | None = None


def _job(name: str, command: str, minutes: float, **needs) -> Job:
    return Job(name, tuple(command.split()), minutes, **needs)


JOBS = (
    _job("exactness", "benchmarks/exactness.py --images 5 --out {out}", 3),
    _job("pooling", "benchmarks/pooling.py --rounds 10 --windows 256 --out {out}", 5),
    _job("mean", "benchmarks/pooling.py --rounds 5 --reduce mean --windows 256 --out {out}", 4),
    _job("gradient_of_max", "benchmarks/gradient_of_max.py", 2),
    _job("depthwise", "benchmarks/depthwise.py --rounds 5 --out {out}/depthwise.json", 2),
    _job("planning", "benchmarks/planning.py --buckets 4 12 --anneal-seconds 3 --out {out}", 2),
    _job(
        "recompilation",
        "benchmarks/recompilation.py --shapes 12 --images 60 --max-side 256 --buckets 4 --out {out}",
        6,
    ),
    _job(
        "tpu_compile",
        "benchmarks/tpu_compile.py --buckets 1 --max-side 512 --out {out}",
        4,
        needs=("libtpu",),
    ),
    _job("input", "benchmarks/input.py --count 60 --rounds 3 --out {out}", 3),
    _job("throughput", "benchmarks/throughput.py --count 48 --epochs 2 --devices 1 2 --out {out}", 5),
    _job(
        "throughput_torch",
        "benchmarks/throughput.py --count 48 --epochs 2 --torch --out {out}",
        4,
        needs=("torch",),
    ),
    _job("convolutions", "benchmarks/convolutions.py --rounds 3 --score compact --step compact", 2),
    _job("stem", "benchmarks/stem.py --rounds 10 --out {out}/stem.json", 2),
    _job("tracing", "benchmarks/tracing.py --models resnet18 --out {out}/tracing.json", 3),
    _job("rematerialization", "benchmarks/rematerialization.py --size 192 256", 2),
    _job("scoring", "benchmarks/scoring.py --starts 1 --calls 60 --count 24 --rounds 2 --out {out}", 5),
    _job("text", "examples/text.py", 2),
    _job(
        "crops",
        "benchmarks/crops.py --part time --windows 100 --cut 20 --turns 1",
        2,
        photos=PHOTOS / "crops",
    ),
    _job(
        "explanations",
        "benchmarks/explanations.py --judge compact --count 2 --out {out}/explanations.json",
        2,
        photos=PHOTOS / "crops",
    ),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Every figure of docs/measurements.md anew, at a small scale."""

    out: Path = Path("measured")
    """Folder for what each benchmark says and saves, and for all.md."""
    only: tuple[str, ...] = ()
    """Names of benchmarks; none: all."""
    dry_run: bool = False
    """Print the commands and the most minutes they take, and run nothing."""


def environment() -> str:
    """Versions, revision and processor, one line."""
    names = ("jax", "jaxlib", "flax", "numpy", "torch", "keras", "libtpu")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names if installed(name)]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (
        f"revision {git.stdout.strip() or 'unknown'}, Python {platform.python_version()}, "
        f"{', '.join(versions)}, {os.cpu_count()} cores, {platform.machine()}"
    )


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def missing(job: Job) -> str | None:
    """What a job lacks here."""
    for name in job.needs:
        if not installed(name):
            return f"{name} is not installed"
    if job.photos is not None and not job.photos.is_dir():
        return f"there is no folder {job.photos}"
    return None


def run(job: Job, out: Path) -> tuple[str, float, str]:
    """How it ended, seconds, and what it printed; nothing that it started goes on."""
    folder = out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *(part.replace("{out}", str(folder)) for part in job.command)]
    start = time.perf_counter()
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(job.minutes * 60)
            ended = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {job.minutes:g} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
    return ended, seconds, (folder / "output.txt").read_text(errors="replace")


def main() -> int:
    options = tyro.cli(Options)
    names = [job.name for job in JOBS]
    if unknown := set(options.only) - set(names):
        sys.exit(f"--only {' '.join(sorted(unknown))}: there are {', '.join(names)}")
    jobs = [job for job in JOBS if job.name in (options.only or names)]
    if options.dry_run:
        for job in jobs:
            print(f"{job.minutes:4g} min  python {' '.join(job.command)}  {missing(job) or ''}".rstrip())
        print(f"{sum(job.minutes for job in jobs):4g} min  at most")
        return 0
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    page, failed = [f"# Measured anew, at a small scale\n\n{environment()}\n"], []
    print(page[0], flush=True)
    for job in jobs:
        command = f"python {' '.join(job.command).replace('{out}', 'FOLDER')}"
        if lacking := missing(job):
            ended, seconds, text = f"left out: {lacking}", 0.0, ""
        else:
            ended, seconds, text = run(job, out)
            if ended != "done":
                failed.append(job.name)
        print(f"{job.name:20s}{seconds:7.0f} s  {ended}", flush=True)
        page.append(f"## {job.name}\n\n`{command}`: {ended}, {seconds:.0f} s\n\n```\n{text.strip()}\n```\n")
        (out / "all.md").write_text("\n".join(page))
    if failed:
        print(f"not done: {', '.join(failed)}; see {out}/NAME/output.txt")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
