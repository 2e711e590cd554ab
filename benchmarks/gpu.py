"""What only a GPU can say: the fast suite there, the op beside its limit and torch, and training.

    python benchmarks/gpu.py [--out FOLDER] [--only suite op throughput]

One command for a machine with an NVIDIA GPU that JAX sees (`pip install 'jax[cuda12]'`), torch with CUDA to
compare with. In order: the fast suite, whose failures are named with their first line; the op and its
gradient beside a plain maximum, a copy and torch's adaptive pools; the epoch of a training. FOLDER gets the
suite's JUnit file, the logs, pooling.json, throughput.json, and `gpu.md`: versions, revision, and all of it.

The op's verdict is of its forward pass: the share of the copy's bandwidth at which it reads its map (the bar
is 80 %), and whether it is faster than torch in the better of its two orders of memory.

Exit status 0: the suite passed and both bars are met; 1: not so, or something failed; 2: JAX sees no GPU.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import tyro
from all import Job, environment, installed, run

BAR = 0.8


@dataclasses.dataclass(frozen=True)
class Options:
    """What only a GPU can say."""

    out: Path = Path("measured-gpu")
    """Folder for logs, JSON and gpu.md."""
    only: tuple[str, ...] = ("suite", "op", "throughput")
    """Which parts."""
    minutes: float = 20
    """After which a part is stopped."""


def jobs(minutes: float) -> dict[str, Job]:
    """The parts by name."""
    torch = ("--torch",) if installed("torch") else ()
    suite = "-m pytest -q -p no:cacheprovider --junitxml={out}/suite.xml tests"
    training = "benchmarks/throughput.py --count 600 --out {out}"
    return {
        "suite": Job("suite", tuple(suite.split()), minutes),
        "op": Job("op", ("benchmarks/pooling.py", "--rounds", "50", "--out", "{out}"), minutes),
        "throughput": Job("throughput", (*training.split(), *torch), minutes),
    }


def failures(report: Path) -> tuple[int, int, list[str]]:
    """Of a JUnit file: how many tests ran, how many were left out, and each failure with its first line."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = []
    for case in cases:
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                why = (found.get("message") or found.text or "").strip().splitlines()
                failed.append(f"{case.get('classname')}::{case.get('name')}: {why[0] if why else kind}")
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - skipped, skipped, failed


def verdict(seconds: dict[str, dict[str, dict[str, float]]]) -> tuple[list[str], bool]:
    """A line for each shape of pooling.json's forward times, and whether every bar is met."""
    lines, met = [], True
    for shape, kinds in seconds.items():
        row = kinds["forward"]
        share = row["copy"] / 2 / row["op"]  # a copy reads the map and writes as much
        others = [taken for name, taken in row.items() if name.startswith("torch")]
        beside = f"torch takes {min(others) / row['op']:.2f} of its time" if others else "torch is absent"
        lines.append(f"{shape}: reads at {share:.0%} of a copy's bandwidth, {beside}")
        met &= share >= BAR and all(taken >= row["op"] for taken in others)
    return lines, met


def has_gpu() -> bool:
    """Asked in a process of its own: JAX would hold the GPU's memory while the others run."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()[-1:] == ["gpu"]


def main() -> int:
    options = tyro.cli(Options)
    parts = jobs(options.minutes)
    if unknown := set(options.only) - set(parts):
        sys.exit(f"--only {' '.join(sorted(unknown))}: there are {', '.join(parts)}")
    if not has_gpu():
        print("benchmarks/gpu.py: JAX sees no GPU here", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    page, good = [f"# On a GPU\n\n{environment()}\n"], True
    for name in options.only:
        ended, seconds, text = run(parts[name], out)
        lines = [f"{name}: {ended}, {seconds:.0f} s"]
        good &= ended == "done"
        report, times = out / name / "suite.xml", out / name / "pooling.json"
        if name == "suite" and report.exists():
            ran, skipped, failed = failures(report)
            lines += [f"{ran} tests ran, {skipped} were left out, {len(failed)} failed", *failed]
        if name == "op" and times.exists():
            said, met = verdict(json.loads(times.read_text())["seconds"])
            lines += said
            good &= met
        print("\n".join(lines), flush=True)
        page.append(f"## {name}\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n```\n{text}\n```\n")
        (out / "gpu.md").write_text("\n".join(page))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
