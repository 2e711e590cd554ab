"""Which of two crops people prefer, by a probe of a body that has seen the world: does native shape help?

    python benchmarks/crop_pairs.py --photos PHOTOS/crops [--systems whole square warp pad] [--work DIR]

Protocol, written before the results. The pairs are those of the Flickr Cropping Dataset (Chen et al. 2017),
of equal area (within 2 %) and decided 4:1 or 5:0: where areas differ, people prefer the larger crop. Both
crops of a pair have one shape, so shape itself decides nothing; what a warp can destroy is what is in them.
Each crop is cut out and is a picture of its own. The network is that of the judges, which stays as it is.
Systems differ in what it is given:

- `whole`: the crop at its own shape and pixels.
- `square`: the crop warped to a square of as many pixels, so that between these two shape alone differs.
- `warp`: warped to 224 x 224. `pad`: scaled to a longest side of 224, laid in a white square.

A linear head is fitted to the difference of two crops' features, each pair as two rows of opposite sign, so
that no order is preferred. Ten random cuts of the photographs into 80 % and 20 % (seeds 0 to 9), the same
for all systems; strength and balance of the maps are chosen by five folds of photographs inside the 80 %.
The figure is the share of the pairs of the 20 % that are judged as people did; a coin has .5. Differences to
`whole` are paired by cut, with 95 % intervals that allow for overlapping training parts (Nadeau and Bengio
2003).
"""

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from crops import clear
from PIL import Image
from pretrained import SPLITS, SYSTEMS, interval

from spp_jax.data.cutting import cut
from spp_jax.models.configured import abstract_model
from spp_jax.run.job import prepare
from spp_jax.run.probe import FEATURES, head_options, job_features
from spp_jax.training.probe import fit_probe

LINEAR = ("maps=judging", "head=linear")


class Pair(NamedTuple):
    """Two files of crops, the preferred one first, and the photograph that they are of."""

    better: str
    worse: str
    photo: str


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument(
        "--systems", nargs="+", choices=("whole", "square", "warp", "pad"), default=["whole", "square"]
    )
    parser.add_argument("--work", type=Path, default=Path("checkpoints/crop_pairs"), help="gets the cut-outs")
    parser.add_argument("--features-dir", type=Path, default=FEATURES)
    options = parser.parse_args()
    pairs = cut_outs(options.photos, options.work)
    print(f"{len(pairs)} pairs of {len({pair.photo for pair in pairs})} photographs", flush=True)
    found = {}
    for system in options.systems:
        values = features(system, options.work, options.features_dir)
        found[system] = agreement(values, pairs)
    print("| system | judged as people did | difference |\n|---|---|---|")
    for system, right in found.items():
        against = interval(right - found["whole"]) if system != "whole" and "whole" in found else ""
        print(f"| {system} | {right.mean():.3f} ({right.std():.3f}) | {against} |")


def cut_outs(photos: Path, work: Path) -> list[Pair]:
    """Write the crops that are needed, as they are and as squares, in the form of `--data folder`."""
    with (photos / "pairs.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = [
            {name: text if name == "file" else int(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]
    pairs, boxes = [], {}
    for row in filter(clear, rows):
        names = []
        for number in (0, 1):
            x, y, w, h = (row[f"{name}{number}"] for name in "xywh")
            names.append(f"{Path(row['file']).stem}-{x}-{y}-{w}-{h}.png")
            boxes[names[-1]] = (row["file"], (x, y, x + w, y + h))
        if row["votes0"] < row["votes1"]:
            names.reverse()
        pairs.append(Pair(*names, photo=row["file"]))
    for folder in (work / "whole", work / "square"):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name},.5,{boxes[name][0]}\n" for name in sorted(boxes)]
        (folder / "scores.csv").write_text("file,score,group\n" + "".join(lines))
    for name, (photo, box) in boxes.items():
        if not (work / "square" / name).is_file():
            write(photos / photo, box, work, name)
    return pairs


def write(photo: Path, box: tuple[int, int, int, int], work: Path, name: str) -> None:
    """One crop, as it is and as a square of as many pixels."""
    with Image.open(photo) as picture:
        width, height = picture.size
    left, top, right, bottom = box
    cut(photo, (left, top, min(right, width), min(bottom, height)), work / "whole" / name)
    with Image.open(work / "whole" / name) as crop:
        side = round((crop.width * crop.height) ** 0.5)
        crop.resize((side, side), Image.Resampling.LANCZOS).save(work / "square" / name)


def features(system: str, work: Path, features_dir: Path) -> dict[str, np.ndarray]:
    """Of each cut-out, by its file."""
    folder = work / ("square" if system == "square" else "whole")
    config = SYSTEMS["whole" if system == "square" else system]
    every, (image, *_) = job_features(prepare(config, folder, keep_mib=0), features_dir)
    return dict(zip(every.ids, image.values, strict=True))


def agreement(values: dict[str, np.ndarray], pairs: list[Pair]) -> np.ndarray:
    """Of each cut, the share of held-out pairs that are judged as people did."""
    config = dataclasses.replace(SYSTEMS["whole"], model_options=LINEAR)
    options = head_options(abstract_model(config, 1))
    ahead = np.stack([values[pair.better] - values[pair.worse] for pair in pairs])
    photos = np.array([pair.photo for pair in pairs])
    names, right = np.unique(photos), []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(names)
        test = np.isin(photos, order[: round(len(order) / 5)])
        rows = ahead[~test]
        scores = np.repeat([1.0, 0.0], len(rows))
        probe = fit_probe(
            np.concatenate([rows, -rows]), scores, np.tile(photos[~test], 2).tolist(), **options
        )
        margin = probe.logits(ahead[test])[:, 0] - probe.logits(-ahead[test])[:, 0]
        right.append((margin > 0).mean())
    return np.array(right)


if __name__ == "__main__":
    main()
