"""How fast scoring is: from the first start to a service, beside torch.

    python benchmarks/scoring.py [--photos FOLDER] [--out FOLDER] [--only starts calls stream folder]

Over photographs that are made here, of the shapes that real ones have, unless a folder is given.

- **starts**: `spp-jax score` in a process of its own, over 1, 60 and 1,000 files: cold, and started again
  with the programs on the disk. Seconds until the first score and until the end, seconds of processor time,
  the largest memory. In turns with it, what importing jax, flax.nnx and orbax.checkpoint takes, and what
  scoring the same files takes in a process that has done so before: `beyond` is what a second start takes
  besides these two, `times_imports` the whole of it over the imports.
- **calls**: one `Scorer`, asked for one photograph at a time, 200 of new shapes, then 1,000: programs,
  milliseconds, growth of memory. What `from_checkpoint` takes, each time anew.
- **stream**: 1,000 and 10,000 photographs out of a generator: largest memory of a process of its own each,
  and how many files had been opened when the first score came.
- **folder**: the same network in torch, one picture at a time at its own size, and in batches warped to
  squares; `Scorer.score([photo])`, and `Scorer.score(photos)`. Warm, in turns, medians of rounds; ratios are
  medians of the rounds' ratios. Both have as many threads as there are cores. Padding counts filler rows.

A table, a JSON file and a picture. Rows without torch where it is not installed. Where the machine has other
work, read ratios and processor time alone.
"""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Options:
    """How fast scoring is."""

    photos: Path | None = None
    """A folder of photographs; None: some are made."""
    starts: tuple[int, ...] = (1, 60, 1000)
    """Files that a process scores."""
    calls: int = 1200
    """Single calls of new shapes."""
    count: int = 200
    """Photographs of the folder."""
    stream: tuple[int, ...] = (1000, 10_000)
    """Photographs out of a generator."""
    models: tuple[str, ...] = ("compact", "resnet18")
    """Networks of calls and stream (the first) and folder."""
    judge: str = "quality"
    """The judge of starts, and of a row of folder."""
    max_pixels: int = 250_000
    """Of a photograph, in calls and folder."""
    rounds: int = 3
    """Times that each way is measured in turn."""
    only: tuple[str, ...] = ("starts", "calls", "stream", "folder")
    """Parts to run."""
    out: Path | None = None
    """Folder for scoring.json and scoring.png."""


def make_photos(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """JPEGs of usual aspect ratios, a third upright, most of them large and some small."""
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        ratio = rng.choice([1, 1.25, 4 / 3, 1.5, 1.5, 16 / 9, rng.uniform(1, 2.4)])
        pixels = rng.choice([800_000, 480_000, np.exp(rng.uniform(np.log(30_000), np.log(600_000)))])
        width = round((pixels * ratio) ** 0.5)
        size = (width, max(round(width / ratio), 16))
        noise = rng.integers(0, 256, (size[1] // 12 + 2, size[0] // 12 + 2, 3), np.uint8)
        picture = Image.fromarray(noise).resize(size[:: -1 if rng.random() < 1 / 3 else 1])
        paths.append(folder / f"{number:05d}.jpg")
        picture.save(paths[-1], quality=88)
    return paths


def run(command: list[str], given: str = "") -> dict[str, float]:
    """Of one process: seconds to its first line and in all, of processor time, and MiB at most."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(given)
        process.stdin.close()
        lines = [process.stdout.readline()]
        first = time.perf_counter() - began
        lines += process.stdout.readlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {process.returncode}")
    found = {"first": first, "all": time.perf_counter() - began}
    found |= {"processor": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}
    return found | {"lines": sum(map(bool, lines))} | _told(lines[-1])


def _told(line: str) -> dict[str, float]:
    """Figures that a process says in its last line."""
    return json.loads(line) if line.startswith("{") else {}


IMPORTS = ["-c", "import jax, flax.nnx, orbax.checkpoint"]
AGAIN = """
import json, sys, time
from spp_jax import Scorer
from spp_jax.compilation import use_compilation_cache
cache, judge, *files = sys.stdin.read().split("\\n")
use_compilation_cache(cache)
began = time.perf_counter(), time.process_time()
scorer = Scorer.from_pretrained(judge)
loaded = time.perf_counter() - began[0]
scorer.score(files)
began = time.perf_counter(), time.process_time()
scorer.score(files)
took = {"wall": time.perf_counter() - began[0], "busy": time.process_time() - began[1], "loaded": loaded}
print(json.dumps(took))
"""


def starts(files: list[Path], options: Options) -> list[dict[str, Any]]:
    """Cold and second starts, beside imports alone and scoring alone."""
    rows = []
    for count in options.starts:
        names = [str(path) for path in files[:count]]
        with tempfile.TemporaryDirectory() as cache:
            score = ["-m", "spp_jax", "score", *names, "--judge", options.judge, "--cache-dir", cache]
            rows.append({"what": f"{count} files, cold", **run(score)})
            rounds = []
            for _ in range(options.rounds):
                alone = run(IMPORTS)
                second = run(score)
                warm = run(["-c", AGAIN], "\n".join([cache, options.judge, *names]))
                beyond = second["all"] - alone["all"] - warm["wall"]
                busy = second["processor"] - alone["processor"] - warm["busy"]
                second |= {"beyond": beyond, "beyond_processor": busy, "from_checkpoint": warm["loaded"]}
                second |= {"times_imports": second["all"] / alone["all"]}
                rounds.append(second | {"times_imports_processor": second["processor"] / alone["processor"]})
            kept = len(list(Path(cache).rglob("*.executable")))
        medians = {name: float(np.median([found[name] for found in rounds])) for name in rounds[0]}
        rows.append({"what": f"{count} files, second start", **medians, "programs": kept})
    return rows


def scorer_of(model: str, options: Options) -> Any:
    """A judge with random variables."""
    from flax import nnx

    from spp_jax import Scorer, create_model
    from spp_jax.config import RunConfig

    if model == options.judge:
        return Scorer.from_pretrained(model)
    config = RunConfig(model=model, max_pixels=options.max_pixels)
    return Scorer(create_model(model, rngs=nnx.Rngs(0)), config)


def calls(options: Options) -> list[dict[str, Any]]:
    """One photograph at a time, each of a new shape."""
    from spp_jax.testing import count_compilations

    scorer = scorer_of(options.models[0], options)
    rng = np.random.default_rng(0)
    sizes = list({tuple(size): None for size in rng.integers(100, 700, (2 * options.calls, 2)).tolist()})
    rows, first = [], min(200, options.calls)
    parts = {"first calls": sizes[:first], "calls after them": sizes[first : options.calls]}
    for name, part in parts.items():
        before, seconds = resident(), []
        with count_compilations() as count:
            for size in part:
                pixels = rng.integers(0, 256, (*size, 3), np.uint8)
                began = time.perf_counter()
                scorer.score([pixels])
                seconds.append(time.perf_counter() - began)
        if seconds:
            rows.append(
                {
                    "what": f"{len(part)} {name}",
                    "median_ms": 1e3 * float(np.median(seconds)),
                    "total_s": sum(seconds),
                    "compiled": count.compiled["forward"] + count.cached["forward"],
                    "programs": len(scorer.programs),
                    "mib": resident(),
                    "grown": resident() / before - 1,
                }
            )
    return rows


STREAM = """
import json, resource, sys
from scoring import Options, scorer_of
model, max_pixels, count, *files = sys.stdin.read().split("\\n")
scorer, opened, first = scorer_of(model, Options(max_pixels=int(max_pixels))), 0, 0
def photos():
    global opened
    for opened in range(1, int(count) + 1):
        yield files[opened % len(files)]
for done, _ in enumerate(scorer.stream(photos())):
    first = first or opened
print(json.dumps({"photos": done + 1, "opened_at_first": first}))
"""


def stream(files: list[Path], options: Options) -> list[dict[str, Any]]:
    """Out of a generator, which goes through the files again and again."""
    rows = []
    for count in options.stream:
        given = [options.models[0], str(options.max_pixels), str(count), *map(str, files)]
        command = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{STREAM}"
        found = run(["-c", command], "\n".join(given))
        rows.append({"what": f"{count} photographs", **found})
        rows[-1] |= {"times_memory": found["mib"] / rows[0]["mib"], "photos_per_s": count / found["all"]}
    return rows


def resident() -> float:
    """MiB that this process holds now."""
    try:
        text = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def torch_resnet18(scorer: Any) -> Callable[[np.ndarray], Any]:
    """The same network (other weights) in torch: ``uint8 [batch, height, width, 3] -> logits``."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int):
            super().__init__()
            self.a, self.b = (
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
            )
            self.na, self.nb = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            changes = stride > 1 or before != width
            self.short: Any = (
                nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                if changes
                else nn.Identity()
            )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.nb(self.b(torch.relu(self.na(self.a(x))))) + self.short(x))

    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    widths += ((128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
    body = nn.Sequential(*stem, *(Block(*width) for width in widths)).eval()
    head = nn.Linear(21 * 512, 1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def run(pixels: np.ndarray) -> Any:
        with torch.inference_mode():
            x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
            x = body(((x - 0.45) / 0.25).contiguous(memory_format=torch.channels_last))
            pools = [nn.functional.adaptive_max_pool2d(x, level).flatten(2) for level in (1, 2, 4)]
            return head(torch.cat(pools, 2).flatten(1))

    return run


def folder(files: list[Path], model: str, options: Options) -> list[dict[str, Any]]:
    """Warm, in turns."""
    from spp_jax.data.decoding import decode

    scorer = scorer_of(model, options)
    policy = scorer.config.decoding
    square = dataclasses.replace(policy, input="warp")
    scorer.warm_up(files)
    ways: dict[str, Callable[[], Any]] = {
        "Scorer.score([photo])": lambda: [scorer.score([path]) for path in files],
        "Scorer.score(photos)": lambda: scorer.score(files),
    }
    try:
        net = torch_resnet18(scorer) if model == "resnet18" else None
    except ModuleNotFoundError:
        net = None
    if net is not None:
        ways["torch, one at a time, whole"] = lambda: [net(decode(path, policy)[None]) for path in files]
        ways["torch, batches of 8, warped to 224"] = lambda: [
            net(np.stack([decode(path, square) for path in files[i : i + 8]]))
            for i in range(0, len(files), 8)
        ]
    true = sum(int(np.prod(decode(path, scorer.config.decoding).shape[:2])) for path in files)
    ways["Scorer.score([photo])"]()  # what single calls compile besides
    computed = counted_pixels(scorer, lambda: scorer.score(files))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    reference = seconds.get("torch, one at a time, whole")
    rows = []
    for name, times in seconds.items():
        row = {"what": f"{model}: {name}", "photos_per_s": len(files) / float(np.median(times))}
        row |= {"times_torch": float(np.median(np.divide(times, reference)))} if reference else {}
        if name.startswith("Scorer"):
            row |= {"padding": 1 - true / computed, "programs": len(scorer.programs)}
        rows.append(row)
    return rows


class Counted:
    """Programs that count what is computed, fillers included."""

    def __init__(self, programs: Any):
        self._programs, self.pixels = programs, 0

    def __getitem__(self, bucket: Any) -> Any:
        self.pixels += bucket.pixels
        return self._programs[bucket]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._programs, name)


def counted_pixels(scorer: Any, work: Callable[[], Any]) -> int:
    """Padded pixels that programs go through meanwhile; all are compiled before."""
    work()
    before, scorer._programs = scorer._programs, Counted(scorer._programs)
    scorer.expect = lambda *_, **__: True  # which asks for programs without running them
    work()
    pixels, scorer._programs = scorer._programs.pixels, before
    del scorer.expect
    return pixels


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of figures as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [f"{row[n]:.3g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds of the starts; photographs a second of the folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    rows = found.get("starts", [])
    left.barh([row["what"] for row in rows], [row["all"] for row in rows], color="C0")
    left.barh([row["what"] for row in rows], [row.get("first", 0) for row in rows], color="C1")
    left.set(xlabel="seconds (orange: until the first score)", xscale="log")
    rows = found.get("folder", [])
    right.barh([row["what"] for row in rows], [row["photos_per_s"] for row in rows])
    right.set(xlabel="photographs a second, warm")
    for axes in (left, right):
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> None:
    options = tyro.cli(Options)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as made:
        most = max(options.count, *options.starts) if "starts" in options.only else options.count
        files = sorted(options.photos.iterdir()) if options.photos else make_photos(Path(made), most)
        if "starts" in options.only:
            found["starts"] = starts(files, options)
        if "calls" in options.only:
            found["calls"] = calls(options)
        if "stream" in options.only:
            found["stream"] = stream(files[: options.count], options)
        if "folder" in options.only:
            models = (*options.models, options.judge)
            found["folder"] = [
                row for model in models for row in folder(files[: options.count], model, options)
            ]
    for part, rows in found.items():
        print(f"\n{part}\n\n{table(rows)}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scoring.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, options.out / "scoring.png")


if __name__ == "__main__":
    main()
