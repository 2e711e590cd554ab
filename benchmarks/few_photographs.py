"""What a probe learns from 200 judged photographs: is that a better first command than distorted_photos?

    python benchmarks/few_photographs.py --photos PHOTOS/live_wild [--count 200] [--folder FOLDER]

Ten times, `--count` photographs are drawn at random (seeds 0 to 9) and cut as `train.py --recipe probe` cuts
them by default: 70 % to learn from, a tenth for validation, and a fifth as the test part. Printed
are SRCC and accuracy on the test part, which is what a newcomer would see, and on all photographs that were
not drawn, which is how good the judge is: means, and the deviation over the ten. With `--folder`, the
photographs of seed 0 and their table are written there, to time the command itself.
"""

import argparse
import csv
import shutil
from pathlib import Path

import numpy as np
from judges import figures
from pretrained import WHOLE

from spp_jax.models.configured import abstract_model
from spp_jax.run.job import prepare
from spp_jax.run.probe import FEATURES, head_options, job_features
from spp_jax.training.probe import fit_probe


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--features-dir", type=Path, default=FEATURES)
    options = parser.parse_args()
    every, (image, *_) = job_features(prepare(WHOLE, options.photos, keep_mib=0), options.features_dir)
    if options.folder:
        write(options.photos, [every.ids[row] for row in drawn(len(every), options.count, 0)], options.folder)
    found = []
    for seed in range(10):
        rows = drawn(len(every), options.count, seed)
        train, _, test = np.split(rows, [round(options.count * 0.7), round(options.count * 0.8)])
        scores, good = np.asarray(every.scores), np.asarray(every.good)
        groups = [every.groups[row] for row in train]
        head = head_options(abstract_model(WHOLE, 1))
        probe = fit_probe(image.values[train], scores[train], groups, good=good[train], **head)
        logits = probe.logits(image.values)[:, 0]
        others = np.setdiff1d(np.arange(len(every)), rows)
        found.append([figures(logits[of], scores[of], good[of])[::2] for of in (test, others)])
    print("| judged | photographs | SRCC | accuracy |\n|---|---|---|---|")
    counts = {"test part": round(options.count * 0.2), "all that were not drawn": len(every) - options.count}
    for place, (name, count) in enumerate(counts.items()):
        of = np.array(found)[:, place]
        cells = [f"{mean:.3f} ({spread:.3f})" for mean, spread in zip(of.mean(0), of.std(0), strict=True)]
        print(f"| {name} | {count} | {' | '.join(cells)} |")


def drawn(total: int, count: int, seed: int) -> np.ndarray:
    """Rows of photographs, in random order."""
    return np.random.default_rng(seed).permutation(total)[:count]


def write(photos: Path, ids: list[str], folder: Path) -> None:
    """Copy photographs, their lines of the table, and the notice that goes with them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (photos / "scores.csv").open(newline="") as file:
        scores = {row["file"]: row["score"] for row in csv.DictReader(file)}
    lines = [f"{name},{scores[name]}\n" for name in sorted(ids)]
    (folder / "scores.csv").write_text("file,score\n" + "".join(lines))
    for name in [*ids, *(notice.name for notice in photos.glob("COPYRIGHT*"))]:
        shutil.copy(photos / name, folder / name)


if __name__ == "__main__":
    main()
