"""Windows of one map against cut-outs scored alone, and against people.

    python benchmarks/crops.py [--judge NAME] [--checkpoint FOLDER] [--photos FOLDER] [--windows N] [--part P]

Prints three tables. Time: for one photograph of 1,024 pixels, that many windows in one call, against as many
cut-outs, in turn, three times, all programs compiled: medians, and the median of the ratios. Agreement:
Spearman's correlation between the two, over windows of each of 20 photographs. Reach, where it is asked for:
the same correlations of windows of larger cut-outs, by how many pixels these reach beyond them. People: of
the pairs of equal area (within 2 %) that were decided 4:1 or 5:0, the share judged as people did; and how
well the best crop overlaps the one that a person drew, beside the whole photograph and its middle.

The photographs are those of the Flickr Cropping Dataset (Chen et al. 2017) with its tables pairs.csv and
best.csv; they are only read.
"""

import csv
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image
from scipy.stats import binomtest, spearmanr

from spp_jax import Scorer
from spp_jax.data.decoding import decode


@dataclasses.dataclass(frozen=True)
class Options:
    """Windows of one map against cut-outs scored alone, and against people."""

    photos: Path = Path("../shared/photos/crops")
    """Folder of the photographs, with pairs.csv and best.csv."""
    judge: str = "compact"
    """One that ships."""
    checkpoint: Path | None = None
    """Folder of a run, instead."""
    windows: int = 1000
    """Of the photograph that is timed."""
    each: int = 100
    """Windows of each of the photographs whose scores are compared."""
    part: Literal["all", "time", "agreement", "reach", "people"] = "all"
    """What to measure; reach is no part of all."""
    compared: int = 20
    """Photographs whose windows are compared with cut-outs."""
    margins: tuple[int, ...] = (16, 32, 96)
    """Pixels around a window, for reach."""
    first: int = 300
    """Photographs of the data set that are used for people."""
    cut: int = 1000
    """Cut-outs that are timed, at most; the time of all windows' cut-outs is worked out from these."""
    turns: int = 3
    """Times that windows and cut-outs are timed in turn."""


def random_boxes(size: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """Boxes of 0.3 to 0.95 of each side, anywhere, whole pixels: int64 ``[count, 4]``."""
    rng = np.random.default_rng(seed)
    sides = np.array(size[::-1])
    extents = (rng.uniform(0.3, 0.95, (count, 2)) * sides).astype(np.int64)
    starts = (rng.uniform(0, 1, (count, 2)) * (sides - extents)).astype(np.int64)
    return np.concatenate([starts, starts + extents], axis=1)


def cut_outs(pixels: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    return [pixels[top:bottom, left:right] for left, top, right, bottom in boxes.tolist()]


def measure_time(scorer: Scorer, file: Path, options: Options) -> None:
    count, fewer = options.windows, min(options.cut, options.windows)
    picture = Image.open(file).convert("RGB")
    side = 1024 / max(picture.size)
    pixels = np.asarray(picture.resize([round(length * side) for length in picture.size]))
    boxes = random_boxes(pixels.shape[:2], count, 0)
    cut = cut_outs(pixels, boxes)[:fewer]
    scorer.score_boxes(pixels, boxes)  # compiles
    scorer.score(cut)
    took, by_window, alone = [], np.zeros(count), np.zeros(fewer)
    for _ in range(options.turns):
        start = time.perf_counter()
        by_window = scorer.score_boxes(pixels, boxes)
        middle = time.perf_counter()
        alone = scorer.score(cut)
        took.append((middle - start, (time.perf_counter() - middle) * count / fewer))
    windows, alone_seconds = np.median(took, axis=0)
    ratio = np.median([b / a for a, b in took])
    print(
        f"{count} windows of {pixels.shape[1]} x {pixels.shape[0]}: {windows:.2f} s; "
        f"cut-outs {alone_seconds:.2f} s" + (f", worked out from {fewer}" if fewer < count else "")
    )
    print(f"times less: {ratio:.1f}; Spearman {_rank(_first(by_window)[:fewer], _first(alone)):.3f}")


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def measure_agreement(scorer: Scorer, files: list[Path], count: int) -> None:
    found, pairs, apart = [], [], []
    for number, file in enumerate(files):
        pixels = decode(file, scorer.config.decoding)
        boxes = random_boxes(pixels.shape[:2], count, number)
        windows, alone = (
            _first(scorer.score_boxes(pixels, boxes)),
            _first(scorer.score(cut_outs(pixels, boxes))),
        )
        found.append(_rank(windows, alone))
        pairs.append((windows, alone))
        apart.append(np.abs(windows - alone).mean())
    print(f"Spearman over {count} windows of each of {len(files)} photographs, at the scale judged at:")
    low, middle, high = np.quantile(found, (0, 0.5, 1))
    print(
        f"  median {middle:.3f}, least {low:.3f}, greatest {high:.3f}; "
        f"at least .8: {np.mean(np.array(found) >= 0.8):.0%}"
    )
    together = _rank(*(np.concatenate(column) for column in zip(*pairs, strict=True)))
    print(f"  of all windows together {together:.3f}; mean absolute difference {np.mean(apart):.4f}")


def surrounded(scorer: Scorer, pixels: np.ndarray, box: np.ndarray, margin: int) -> float:
    """The score of a box as a window of a cut-out that reaches so many pixels beyond it."""
    height, width = pixels.shape[:2]
    left, top = np.maximum(box[:2] - margin, 0).tolist()
    right, bottom = np.minimum(box[2:] + margin, [width, height]).tolist()
    window = box - [left, top, left, top]
    return float(_first(scorer.score_boxes(pixels[top:bottom, left:right], window[None]))[0])


def measure_reach(scorer: Scorer, files: list[Path], count: int, margins: tuple[int, ...]) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    for number, file in enumerate(files):
        pixels = decode(file, scorer.config.decoding)
        boxes = random_boxes(pixels.shape[:2], count, number)
        alone = _first(scorer.score(cut_outs(pixels, boxes)))
        whole = _first(scorer.score_boxes(pixels, boxes))
        for margin in margins:
            some = np.array([surrounded(scorer, pixels, box, margin) for box in boxes])
            rows.setdefault(f"{margin} pixels", []).append((_rank(some, alone), _rank(some, whole)))
        rows.setdefault("the photograph", []).append((_rank(whole, alone), 1.0))
        print(f"  {number + 1} of {len(files)}", file=sys.stderr, flush=True)
    print(f"Spearman, {count} windows of each of {len(files)} photographs, medians, by what is seen around")
    for name, found in rows.items():
        to_alone, to_whole = np.median(found, axis=0)
        print(f"  {name}: to cut-outs {to_alone:.3f}, to windows of the photograph {to_whole:.3f}")
    fields = [geometry.window[0] for geometry in scorer._regions.geometries]
    print(f"receptive fields of the maps, in pixels: {', '.join(map(str, fields))}")


def measure_people(scorer: Scorer, folder: Path, first: int) -> None:
    pairs = list(csv.DictReader((folder / "pairs.csv").open()))
    best = {row["file"]: row for row in csv.DictReader((folder / "best.csv").open())}
    files = sorted(best)[:first]
    right = decided = 0
    overlaps = []
    for file in files:
        with Image.open(folder / file) as picture:
            width, height = picture.size
        limits = [width, height, width, height]
        rows = [
            {name: int(text) for name, text in row.items() if name != "file"}
            for row in pairs
            if row["file"] == file
        ]
        rows = [row for row in rows if clear(row)]
        boxes = [
            [row[f"x{i}"], row[f"y{i}"], row[f"x{i}"] + row[f"w{i}"], row[f"y{i}"] + row[f"h{i}"]]
            for row in rows
            for i in (0, 1)
        ]
        if rows:
            scores = _first(scorer.score_boxes(folder / file, np.minimum(boxes, limits))).reshape(-1, 2)
            ahead = scores[:, 0] > scores[:, 1]
            people = np.array([row["votes0"] > row["votes1"] for row in rows])
            right, decided = right + int((ahead == people).sum()), decided + len(rows)
        x, y, w, h = (int(best[file][name]) for name in ("x", "y", "w", "h"))
        theirs = (x, y, x + w, y + h)
        crops = scorer.crops(folder / file, count=1)
        middle = (width * 0.05, height * 0.05, width * 0.95, height * 0.95)
        overlaps.append([overlap(theirs, box) for box in (crops[0].box, (0, 0, width, height), middle)])
    chance = binomtest(right, decided)
    low, high = chance.proportion_ci(0.95)
    print(
        f"pairs of equal area, decided 4:1 or 5:0: {right} of {decided} as people, "
        f"{right / decided:.3f} ({low:.3f} to {high:.3f})"
    )
    mine, whole, middle = np.mean(overlaps, axis=0)
    print(
        f"overlap with the crop a person drew, {len(files)} photographs: best crop {mine:.3f}, "
        f"whole {whole:.3f}, middle 0.9 {middle:.3f}"
    )


def overlap(a: tuple, b: tuple) -> float:
    """Intersection over union."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (area - wide * high)


def clear(row: dict[str, Any]) -> bool:
    """Whether areas are equal within 2 %, and at least four of five people agreed."""
    areas = row["w0"] * row["h0"], row["w1"] * row["h1"]
    return max(areas) <= 1.02 * min(areas) and max(row["votes0"], row["votes1"]) >= 4


def _first(scores: np.ndarray) -> np.ndarray:
    """Of a judge of several attributes, the first."""
    return scores if scores.ndim == 1 else scores[:, 0]


def main() -> int:
    options = tyro.cli(Options)
    files = sorted(options.photos.glob("*.jpg"))
    if not files:
        print(f"crops.py: there are no photographs in {options.photos}", file=sys.stderr)
        return 2
    if options.checkpoint:
        scorer = Scorer.from_checkpoint(options.checkpoint)
    else:
        scorer = Scorer.from_pretrained(options.judge)
    if options.part in ("all", "time"):
        measure_time(scorer, files[0], options)
    if options.part in ("all", "agreement"):
        measure_agreement(scorer, files[: options.compared], options.each)
    if options.part == "reach":
        measure_reach(scorer, files[: options.compared], options.each, options.margins)
    if options.part in ("all", "people"):
        measure_people(scorer, options.photos, options.first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
