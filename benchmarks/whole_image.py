"""Whole pictures against squares: the same network, the same pictures, as many steps, another input.

    python benchmarks/whole_image.py [--out FOLDER] [--photos FOLDER] [--full]

Trains every system of docs/results.md on every data set with every seed; seed s holds out fold s, so each
seed has other parameters, another order and other test photographs. Each run has a core of its own; what is
in FOLDER already is not trained again, and what was broken off goes on. Then, for each system, on its
held-out pictures: how far scores move when a picture is scored at other sizes and aspect ratios, and how
often a complete picture is scored above its blurred crop. Prints tables; saves results.json, results.md and
results.png.

Needs spp_jax[demo]. Data sets of people's judgements take part where --photos has them: savoias/, whose
scores compare pictures of one category, so that they are standardised within it, and its figures are means
over what each category gives by itself; and biq2021/, with --full.
"""

import concurrent.futures
import csv
import dataclasses
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import platformdirs
import tyro
from complete_and_crop import blurred_crop
from flax import nnx
from hand_features import judge
from PIL import Image
from tqdm import tqdm

import spp_jax.models
from spp_jax import Padded, Scorer
from spp_jax.cli import program, train
from spp_jax.compilation import quick_flags
from spp_jax.config import RunConfig
from spp_jax.data import load_dataset
from spp_jax.data.decoding import Decoding, decode
from spp_jax.data.records import SPLITS, Records, split_records
from spp_jax.errors import UsageError
from spp_jax.metrics import agreement
from spp_jax.whole_files import write_whole

SYSTEMS = {  # what each changes; the first is what the others are compared with
    "whole": [],
    "global pooling": ["--levels", "1"],
    "warp": ["--input", "warp"],
    "crop": ["--input", "crop"],
    "pad": ["--input", "pad", "--background", "128", "128", "128"],
    "no masks": ["--model", "unmasked"],
}
SQUARES = ("warp", "crop", "pad")
FIGURES = ("accuracy", "auc", "srcc", "plcc", "krcc")
SCALES = (0.5, 0.71, 1.41)
ASPECTS = (0.67, 1.5)


@dataclasses.dataclass(frozen=True)
class Options:
    """Whole pictures against squares."""

    out: Path = Path("checkpoints/whole_image")
    """Folder for the runs and the results."""
    photos: Path | None = None
    """Folder with savoias/ and biq2021/; None: distorted_photos alone."""
    epochs: int = RunConfig().epochs
    """Of each run on distorted_photos; of those on --photos, a third of it."""
    seeds: int = 3
    """Runs of each system on each data set."""
    systems: tuple[str, ...] = tuple(SYSTEMS)
    """Which to train."""
    max_pixels: int = 224**2
    """Of the pictures of --photos, whole: as many as a square has. distorted_photos is as it is."""
    full: bool = False
    """Five seeds, all epochs everywhere, 150,000 pixels and BIQ2021, as a paper would want them."""
    alone: str | None = None
    """One run and nothing else, DATA/SYSTEM/SEED: so this program calls itself, with a --core for each."""
    core: int | None = None
    """Where."""


def unmasked(**options) -> nnx.Module:
    """`compact` that takes the padding of its batch for a part of the picture, as nets do without masks."""

    class Unmasked(nnx.Module):
        def __init__(self, inner: spp_jax.models.SPPNet):
            self.inner = inner
            self.min_size = inner.min_size

        def __call__(self, images: Padded) -> jax.Array:
            everything = Padded.whole(images.filled(0))
            return self.inner(dataclasses.replace(everything, turned=images.turned))

    return Unmasked(spp_jax.models.create_model("compact", **options))


class Data(NamedTuple):
    """A data set of the experiment.

    Attributes:
        name: of the loader.
        folder: its ``--data-dir``.
        max_pixels: of a picture.
        epochs: of a run.
        buckets: of a run.
        categories: by the picture's id; empty where scores compare all pictures.
    """

    name: str
    folder: Path
    max_pixels: int | None
    epochs: int
    buckets: int
    categories: dict[str, str]

    @property
    def flags(self) -> list[str]:
        """For train.py."""
        most = [] if self.max_pixels is None else ["--max-pixels", str(self.max_pixels)]
        data = ["--data", self.name, "--data-dir", str(self.folder)]
        return [*data, "--epochs", str(self.epochs), "--buckets", str(self.buckets), *most]

    def parts(self, fold: int, decoding: Decoding | None = None) -> dict[str, Records]:
        """Train, validation and test, by default whole."""
        whole = RunConfig(max_pixels=self.max_pixels).decoding
        records, _ = load_dataset(self.name, self.folder, decoding or whole)
        return {split: split_records(records, split, "folds", fold) for split in SPLITS}

    def figures(self, scores: np.ndarray, records: Records) -> dict:
        """Means over the categories, and the SRCC of each."""
        of = np.array([self.categories.get(name, "") for name in records.ids])
        found = {
            category: agreement(
                *(of_all[of == category] for of_all in (scores, records.scores, records.good))
            )
            for category in sorted(set(of))
        }
        figures: dict = {
            name: float(np.mean([getattr(each, name) for each in found.values()])) for name in FIGURES
        }
        return figures | {"srcc by category": {category: each.srcc for category, each in found.items()}}


def data_sets(options: Options) -> dict[str, Data]:
    """By their names in the tables."""
    cache = Path(platformdirs.user_cache_dir("spp_jax")) / "data"
    found = {"distorted_photos": Data("distorted_photos", cache, None, options.epochs, 6, {})}
    if options.photos is None:
        return found
    for name in ("savoias", "biq2021")[: 1 + options.full]:
        table = options.photos / name / "scores.csv"
        if not table.is_file():
            print(f"{table} is not there: {name} is left out", file=sys.stderr)
            continue
        with table.open() as file:
            rows = list(csv.DictReader(file))
        categories = {row["file"]: row.get("category", "") for row in rows}
        folder = _standardised(table.parent.resolve(), rows, options.out / "data" / name)
        epochs = options.epochs if options.full else options.epochs // 3
        found[name] = Data("folder", folder, options.max_pixels, epochs, 3, categories)
    return found


def _standardised(source: Path, rows: list[dict[str, str]], folder: Path) -> Path:
    """Links to the pictures, with scores about .5, a standard deviation of their category being a quarter."""
    scores = np.array([float(row["score"]) for row in rows])
    of = np.array([row.get("category", "") for row in rows])
    for category in np.unique(of):
        mine = scores[of == category]
        scores[of == category] = np.clip(0.5 + (mine - mine.mean()) / mine.std() / 4, 0, 1)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("file", "score"))
    writer.writerows((row["file"], f"{score:.4f}") for row, score in zip(rows, scores, strict=True))
    text, path = table.getvalue(), folder / "scores.csv"
    if path.is_file():  # which the runs beside this one are reading
        if path.read_bytes() != text.encode():
            raise UsageError(f"{source} has changed since {path} was made of it: name another --out")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        link = folder / row["file"]
        if not link.exists():
            link.symlink_to(source / row["file"])
    write_whole(path, text.encode())
    return folder


def run(name: str, data: Data, options: Options) -> int:
    """Train, or go on, and judge, leaving figures.json and, for distorted_photos, robustness.json."""
    folder, (_, system, seed) = _folder(options, name), name.split("/")
    if not (folder / "metrics.json").is_file():
        arguments = [*data.flags, *SYSTEMS[system], "--seed", seed, "--fold", seed]
        arguments += ["--out", str(folder)]
        if system in SQUARES:  # as many pictures in a step as whole ones have, and so as many steps
            whole = _folder(options, name.replace(system, "whole")) / "run.json"
            pixels = round(json.loads(whole.read_text())["mean_batch"]) * 224**2
            arguments += ["--pixels-per-step", str(pixels)]
        if any(path.name.isdigit() for path in (folder / "checkpoints").glob("*")):
            arguments = ["--resume", "--out", str(folder), "--data-dir", str(data.folder)]
        status = train.main([*arguments, "--cache-dir", str(options.out / "programs")])
        if not (folder / "metrics.json").is_file():
            return status
    figures = json.loads((folder / "metrics.json").read_text())
    scorer = Scorer.from_checkpoint(folder)
    if system != "no masks":  # whose scores depend on its buckets; compiling takes longer than scoring here
        scorer.config = dataclasses.replace(scorer.config, buckets=2)
    if data.categories:
        held_out = data.parts(int(seed), scorer.config.decoding)["test"]
        figures = data.figures(scorer.score_records(held_out)[0], held_out)
    else:
        moved = robustness(scorer, data.parts(int(seed))["test"])
        (folder / "robustness.json").write_text(json.dumps(moved, indent=2) + "\n")
    figures = {name: figures.get(name) for name in (*FIGURES, "srcc by category")}
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return program.DONE


def robustness(scorer: Scorer, held_out: Records, most: int = 60) -> dict[str, float]:
    """Of a run's scores on its held-out pictures: how they move, and complete against blurred crop."""
    pixels = [
        Image.fromarray(decode(held_out.photo(i)))
        for i in range(0, len(held_out), max(1, len(held_out) // most))
    ]
    clean = [decode(held_out.photo(i)) for i in np.flatnonzero(held_out.scores == 1).tolist()]
    changes: dict[str, Callable] = {"as it is": lambda p: p}
    changes |= {f"{s:g}x": lambda p, s=s: _resized(p, s, s) for s in SCALES}
    changes |= {f"aspect x {a:g}": lambda p, a=a: _resized(p, a**0.5, a**-0.5) for a in ASPECTS}
    everything = [change(picture) for change in changes.values() for picture in pixels]
    scores = scorer.score([*everything, *clean, *map(blurred_crop, clean)])
    of_changes = scores[: len(everything)].reshape(len(changes), len(pixels))
    complete, blurred = scores[len(everything) :].reshape(2, len(clean))
    found = {
        f"drift, {name}": float(np.nanmean(np.abs(row - of_changes[0])))
        for name, row in zip(changes, of_changes, strict=True)
        if name != "as it is"
    }
    found["complete above blurred crop"] = float(np.mean(complete > blurred))
    found["pairs"] = len(clean)
    return found


def _resized(picture: Image.Image, wide: float, high: float) -> Image.Image:
    size = max(8, round(picture.width * wide)), max(8, round(picture.height * high))
    return picture.resize(size, Image.Resampling.LANCZOS)


def by_hand(folder: Path, data: Data, seed: int, table: dict) -> dict:
    """The floor on the same parts: features made by hand."""
    path = folder / f"by_hand-{seed}.json"
    if not path.is_file():
        parts = data.parts(seed)
        figures = data.figures(judge(parts, table, seed), parts["test"])
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")
    return json.loads(path.read_text())


def main() -> int:
    options = tyro.cli(Options)
    if options.full:
        options = dataclasses.replace(options, seeds=5, max_pixels=150_000)
    try:
        found = data_sets(options)
        if not options.alone:
            _check(options, found)
    except UsageError as error:
        print(f"whole_image.py: {error}", file=sys.stderr)
        return program.WRONG_USE
    if options.alone:
        if options.core is not None:
            os.sched_setaffinity(0, {options.core})
        spp_jax.models.MODELS.add("unmasked", unmasked)
        return run(options.alone, found[options.alone.split("/")[0]], options)
    results: dict[str, dict[str, list[dict]]] = {}
    moved: dict[str, list[dict]] = {}
    seeds = range(options.seeds)
    systems = list(dict.fromkeys(("whole", *options.systems)))
    with tqdm(total=len(found) * len(systems) * len(seeds), unit="run", smoothing=0) as bar:
        for name, data in found.items():
            features: dict[str, np.ndarray] = {}
            floor = [by_hand(options.out / name, data, seed, features) for seed in seeds]
            # Seed by seed: few runs then compile at once what another compiles, and squares seldom wait.
            runs = [f"{name}/{system}/{seed}" for seed in seeds for system in systems]
            status = _each_on_a_core(runs, options, bar)
            if status:
                return status
            for system in systems:
                folders = [_folder(options, f"{name}/{system}/{seed}") for seed in seeds]
                results.setdefault(name, {})[system] = _read(folders, "figures.json")
                moved[system] = moved.get(system) or _read(folders, "robustness.json")
            results[name]["by hand"] = floor
            report(results, moved, options)
    return 0


def _check(options: Options, found: dict[str, Data]) -> None:
    """Refuse what is unknown, and a folder whose runs were made with other constants."""
    unknown = [system for system in options.systems if system not in SYSTEMS]
    if unknown:
        raise UsageError(f"--systems {' '.join(unknown)}: unknown; known are {', '.join(SYSTEMS)}")
    if not 1 <= options.seeds <= 5:
        raise UsageError(f"--seeds {options.seeds}: seed s holds out fold s, of which there are five")
    constants: dict = {"systems": SYSTEMS}
    constants |= {
        name: [flag for flag in data.flags if flag != str(data.folder)] for name, data in found.items()
    }
    path = options.out / "constants.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    differing = [name for name, value in constants.items() if before.get(name, value) != value]
    if differing:
        raise UsageError(
            f"{options.out} holds runs with another {', '.join(differing)} (constants.json there): name "
            "another folder with --out"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(before | constants, indent=2) + "\n")


def _read(folders: list[Path], name: str) -> list[dict]:
    return [json.loads((f / name).read_text()) for f in folders if (f / name).is_file()]


def _folder(options: Options, run: str) -> Path:
    return options.out / run.replace(" ", "_")


def _environment() -> dict[str, str]:
    """Of a run's process."""
    # With a bound to its size, processes may share the folder of compiled programs: JAX locks it then.
    environment = os.environ | {"JAX_COMPILATION_CACHE_MAX_SIZE": str(10**10)}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # of a GPU that they share
    if jax.default_backend() == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
        # A run compiles for minutes: so in half the time, for steps that take a tenth more.
        environment["XLA_FLAGS"] = quick_flags(1, environment)
    return environment


class _Cores:
    """Runs one in a thread, each in a process with a core of its own, until one fails or all are stopped."""

    def __init__(self, runs: list[str], options: Options, bar: tqdm):
        self.options, self.bar, self.environment = options, bar, _environment()
        self.free: queue.Queue[int] = queue.Queue()
        for core in os.sched_getaffinity(0):
            self.free.put(core)
        self.started: set[subprocess.Popen] = set()
        self.stops = threading.Event()
        self.ended = {name: threading.Event() for name in runs}

    def run(self, name: str) -> int:
        """Wait for a core, and for what the run needs; its status."""
        folder = _folder(self.options, name)
        if (folder / "figures.json").is_file():
            self.bar.update()
            self.ended[name].set()
            return program.DONE
        system = name.split("/")[1]
        if system in SQUARES:  # which ask how large the batches of whole ones were
            self.ended[name.replace(system, "whole")].wait()
        core = self.free.get()
        status = program.FAILED  # where no process comes to be
        try:
            if self.stops.is_set():
                return program.INTERRUPTED
            status = self._process(name, core, folder)
        finally:
            if status:
                self.stops.set()  # before those that wait for this one look
            self.free.put(core)
            self.ended[name].set()
        if status:
            tqdm.write(f"{name} ended with status {status}: see {folder / 'log.txt'}", file=sys.stderr)
        else:
            self.bar.update()
        return status

    def _process(self, name: str, core: int, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", name, "--core", str(core)]
        with (folder / "log.txt").open("a") as log:
            # In a session of its own: Ctrl-C is for this process, which passes it on once.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
            self.started.add(process)
            if self.stops.is_set():
                process.terminate()
            status = process.wait()
            self.started.discard(process)
        return status

    def stop(self, number: int, frame: Any) -> None:
        """Handle a signal: no further run begins, and those that run are told to end."""
        self.stops.set()
        for process in tuple(self.started):
            process.terminate()  # it saves


def _each_on_a_core(runs: list[str], options: Options, bar: tqdm) -> int:
    """All that are not there yet, each in a process with a core of its own; the first status that is not 0.

    On two cores a run is but 1.3 times as fast as on one, its steps being small: two at once end sooner.
    """
    cores = _Cores(runs, options, bar)
    before = {number: signal.signal(number, cores.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        statuses = list(threads.map(cores.run, runs))
    for number, handler in before.items():
        signal.signal(number, handler)
    return next(filter(None, statuses), program.DONE)


def report(results: dict, moved: dict, options: Options) -> None:
    """Print and save what there is so far."""
    lines = []
    for name, systems in results.items():
        compared = _compared(name)
        lines += ["", f"**{name}**, test part, mean ± standard deviation over seeds", ""]
        heads = ["accuracy", *map(str.upper, FIGURES[1:])]
        differing = f"{heads[FIGURES.index(compared)]}, difference to whole"
        lines += [f"| system | runs | {' | '.join(heads)} | {differing} |"]
        lines += ["|---" * (len(FIGURES) + 3) + "|"]
        whole = np.array([run[compared] for run in systems["whole"]])
        for system, runs in systems.items():
            cells = [_spread([run[figure] for run in runs], figure == "accuracy") for figure in FIGURES]
            less = np.array([run[compared] for run in runs]) - whole[: len(runs)]
            paired = "" if system == "whole" else _spread(less.tolist(), compared == "accuracy")
            lines.append(f"| {system} | {len(runs)} | " + " | ".join(cells) + f" | {paired} |")
        categories = list(systems["whole"][0].get("srcc by category") or {})
        if len(categories) < 2:
            continue
        lines += ["", f"**{name}**, SRCC by category", "", "| system | " + " | ".join(categories) + " |"]
        lines += ["|---" * (len(categories) + 1) + "|"]
        for system, runs in systems.items():
            cells = [_spread([run["srcc by category"][c] for run in runs], False) for c in categories]
            lines.append(f"| {system} | " + " | ".join(cells) + " |")
    if moved:
        names = [name for name in next(iter(moved.values()))[0] if name != "pairs"]
        lines += ["", "**Held-out pictures scored otherwise**: mean change of the score; rate of pairs", ""]
        lines += ["| system | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for system, runs in moved.items():
            lines.append(
                f"| {system} | " + " | ".join(_spread([run[n] for run in runs], False) for n in names) + " |"
            )
    text = "\n".join(lines).strip() + "\n"
    print(text)
    run = json.loads((_folder(options, f"{next(iter(results))}/whole/0") / "run.json").read_text())
    where = {name: run[name] for name in ("revision", "python", "jax", "flax", "optax", "devices")}
    described = {"version": 2, "epochs": options.epochs, **where, "results": results, "moved": moved}
    (options.out / "results.json").write_text(json.dumps(described, indent=2) + "\n")
    (options.out / "results.md").write_text(text)
    draw(results, options.out / "results.png")


def _compared(data: str) -> str:
    """The figure that systems are compared by: labels of people are marks, others yes or no."""
    return "accuracy" if data == "distorted_photos" else "srcc"


def _spread(values: list, share: bool) -> str:
    numbers = np.array([np.nan if value is None else value for value in values], float)
    spread = numbers.std(ddof=1) if len(numbers) > 1 else np.nan
    return (
        f"{100 * numbers.mean():.1f} ± {100 * spread:.1f} %"
        if share
        else f"{numbers.mean():.3f} ± {spread:.3f}"
    )


def draw(results: dict, path: Path) -> None:
    """Accuracy on distorted_photos, SRCC on people's judgements: a dot a run, a line at the mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(results), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, systems) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        kind = _compared(name)
        for place, runs in enumerate(systems.values()):
            values = [np.nan if run[kind] is None else run[kind] for run in runs]
            axes.plot(
                [place] * len(values), values, "o", color="tab:blue" if not place else "tab:gray", alpha=0.7
            )
            axes.plot([place - 0.25, place + 0.25], [np.mean(values)] * 2, color="black")
        axes.set_xticks(range(len(systems)), list(systems), rotation=30, ha="right")
        axes.set(title=name, ylabel={"accuracy": "accuracy", "srcc": "SRCC"}[kind])
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
