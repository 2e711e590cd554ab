"""Test accuracy over all splits of a protocol: five folds, each group tested once, or ten random splits.

    python benchmarks/folds.py [--protocol NAME] [--out FOLDER] [-- any options of train.py]

Trains once a fold (a fold whose run is already in FOLDER is read, not repeated), prints figures per
fold with mean and standard deviation, and saves folds.json and folds.png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from spp_jax.data.records import PROTOCOLS

FIGURES = ("accuracy", "srcc", "plcc")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("checkpoints/folds"), help="folder for the runs")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="folds", help="of train.py")
    parser.add_argument("train", nargs="*", help="options of train.py, after --")
    options = parser.parse_args()
    train = Path(__file__).parents[1] / "train.py"
    results = []
    for fold in range(PROTOCOLS[options.protocol]):
        folder = options.out / f"fold{fold}"
        figures = folder / "metrics.json"
        if not figures.is_file():
            command = [sys.executable, str(train), "--fold", str(fold), "--out", str(folder), *options.train]
            command += ["--protocol", options.protocol]
            status = subprocess.run(command).returncode
            if not figures.is_file():
                print(f"fold {fold} ended with status {status} and no figures", file=sys.stderr)
                return 1
        results.append(json.loads(figures.read_text()))
        if (results[-1]["split"], results[-1]["fold"]) != ("test", fold):
            print(f"{figures} is not of the test part of fold {fold}", file=sys.stderr)
            return 1
    print(f"\n{'fold':>6s}{'pictures':>10s}" + "".join(f"{name:>10s}" for name in FIGURES))
    for result in results:
        row = "".join(f"{result[name]:10.3f}" for name in FIGURES)
        print(f"{result['fold']:6d}{result['count']:10d}{row}")
    table = np.array([[result[name] for name in FIGURES] for result in results])
    for label, row in (("mean", table.mean(0)), ("sd", table.std(0, ddof=1))):
        print(f"{label:>6s}{'':10s}" + "".join(f"{value:10.3f}" for value in row))
    described = {
        "version": 1,
        "folds": results,
        "mean": dict(zip(FIGURES, table.mean(0).tolist(), strict=True)),
    }
    (options.out / "folds.json").write_text(json.dumps(described, indent=2) + "\n")
    _draw(table, options.out / "folds.png")
    return 0


def _draw(table: np.ndarray, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, name in enumerate(FIGURES):
        axes.bar(np.arange(len(table)) + 0.27 * (place - 1), table[:, place], 0.25, label=name)
    axes.set(xlabel="fold", ylim=(0, 1), title="Photographs never seen")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
