"""Whether mirror images help the judges that ship: three ways to fit one head, on the same ten cuts.

    python benchmarks/mirrored.py --photos PHOTOS [--features-dir DIR] [--splits N] [--out FILE]

Protocol, written before the results. The cuts, the network, the head and the figures are those of
`benchmarks/judges.py`: each set is cut into 80 % and 20 % (seeds 0 to 9), one head is fitted on the 80 % of
all sets together, and the figures are SRCC and accuracy on the 20 % of each set. The photographs that are
judged are never mirrored. The ways differ in what the head is fitted on:

- `alone`: each photograph as it is, which is how the judges that ship were fitted.
- `mean`: the mean of a photograph's features and its mirror image's.
- `rows`: both as rows of one group, so that the folds never part them.

Curvature and balance are those of the judges that ship. Strengths are chosen by five folds inside the 80 %:
of .2, .5 and 1 for quality, of .05, .1 and .2 for beauty, in `rows` of twice each (there each photograph
counts twice, so twice the penalty weighs as much). The grid of `benchmarks/judges.py`, 32 fits for each
head, would take too long with twice the rows. The fits are `fit_probe`'s, but the directions of the quadratic
part come from Lanczos iterations, which take a fraction of the time.

Differences to `alone` are paired by cut, with 95 % intervals that allow for overlapping training parts
(Nadeau and Bengio 2003). A way is better when the interval of its mean SRCC over the four sets lies above 0,
and no interval of a set's SRCC or accuracy lies below 0. Only then are the judges trained anew.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from judges import CONFIG, HEAD, figures, held_out
from pretrained import interval
from scipy.sparse.linalg import eigsh

from spp_jax.data.judged_photos import SETS
from spp_jax.data.records import Records
from spp_jax.run.job import prepare
from spp_jax.run.probe import FEATURES, job_features
from spp_jax.training import probe

WAYS = ("alone", "mean", "rows")
CHOICES = (((0.2, 0.5, 1.0), 0.5), ((0.05, 0.1, 0.2), 0.0))
"""Of each attribute: strengths to choose from, and the balance."""
Judge = Callable[[np.ndarray], np.ndarray]
"""Features ``[n, features]`` to logits ``[n, attributes]``."""


def main() -> None:
    """Print tables; what each cut gave is kept in a file and not fitted again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--features-dir", type=Path, default=FEATURES)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/mirrored.json"))
    options = parser.parse_args()
    job = prepare(dataclasses.replace(CONFIG, flip=True), options.photos, keep_mib=0)
    every, images = job_features(job, options.features_dir)
    as_is, mirrored = (image.values for image in images)
    sets = np.array([name.split("/")[0] for name in every.ids])
    found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for seed in range(options.splits):
        if str(seed) not in found:
            began = time.perf_counter()
            found[str(seed)] = of_a_cut(as_is, mirrored, every, sets, held_out(sets, seed))
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found))
            print(f"cut {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    show(np.array([[found[str(seed)][way] for seed in range(options.splits)] for way in WAYS]))


def of_a_cut(
    as_is: np.ndarray, mirrored: np.ndarray, every: Records, sets: np.ndarray, test: np.ndarray
) -> dict[str, list[list[float]]]:
    """By way, the SRCC and the accuracy of each set's held-out photographs."""
    rows = np.flatnonzero(~test)
    judges = {
        "alone": fitted(as_is[rows], every, rows),
        "mean": fitted((as_is[rows] + mirrored[rows]) / 2, every, rows),
        "rows": fitted(np.concatenate([as_is[rows], mirrored[rows]]), every, np.tile(rows, 2), times=2),
    }
    return {way: of_sets(judge(as_is), every, sets, test) for way, judge in judges.items()}


def fitted(values: np.ndarray, every: Records, rows: np.ndarray, times: int = 1) -> Judge:
    """A head fitted on these features, of these photographs, each of which is there so many times."""
    mean, scale = probe._moments(values)
    fold = probe._deal([every.groups[row] for row in rows], 5, 0)
    judges = []
    for column, (strengths, balance) in enumerate(CHOICES):
        weights = scale * probe._factors(HEAD["parts"], balance, scale) / np.sqrt(np.count_nonzero(scale))
        labelled = np.isfinite(every.scores[rows, column])
        labels, good = every.scores[rows[labelled], column], every.good[rows[labelled], column]
        known = (values[labelled] - mean) * weights
        tried = [strength * times for strength in strengths]
        judge = of_attribute(known, probe._logit(labels.astype(float)), good, fold[labelled], tried)
        judges.append(lambda new, weights=weights, judge=judge: judge((new - mean) * weights))
    return lambda new: np.stack([judge(new) for judge in judges], axis=1)


def of_attribute(
    known: np.ndarray, targets: np.ndarray, good: np.ndarray, fold: np.ndarray, strengths: list[float]
) -> Judge:
    """Of standardised features ``[n, features]`` and what people said of them, logits of others."""
    inner = known @ known.T
    fits = [probe._fit(inner + inner**2, targets, fold, strength) for strength in strengths]
    dual, bias, held = min(fits, key=lambda fit: ((fit[2] - targets) ** 2).mean())
    slope, offset = probe._calibration(held, targets, good)
    squares, axes = eigsh((known.T * dual) @ known, HEAD["rank"], which="LM", v0=np.ones(known.shape[1]))
    cut = (inner**2 @ dual - (known @ axes) ** 2 @ squares).mean()
    line = known.T @ dual
    return lambda new: slope * (new @ line + (new @ axes) ** 2 @ squares + bias + cut) + offset


def of_sets(logits: np.ndarray, every: Records, sets: np.ndarray, test: np.ndarray) -> list[list[float]]:
    """SRCC and accuracy of each set."""
    found = []
    for name, attribute in SETS.items():
        column, of = list(SETS.values()).index(attribute) // 2, (sets == name) & test
        srcc, _, right = figures(logits[of, column], every.scores[of, column], every.good[of, column])
        found.append([srcc, right])
    return found


def show(found: np.ndarray) -> None:
    """Print the tables: of ``[ways, cuts, sets, 2]``."""
    for number, figure in enumerate(("SRCC", "accuracy")):
        values = found[..., number]
        values = np.concatenate([values, values.mean(axis=2, keepdims=True)], axis=2)
        print(f"\n| {figure} | {' | '.join([*SETS, 'mean'])} |\n{'|---' * (len(SETS) + 2)}|")
        for way, of in zip(WAYS, values, strict=True):
            cells = [f"{mean:.3f} ({spread:.3f})" for mean, spread in zip(of.mean(0), of.std(0), strict=True)]
            print(f"| {way} | {' | '.join(cells)} |")
        for way, of in zip(WAYS[1:], values[1:], strict=True):
            cells = [interval(one) for one in (of - values[0]).T]
            print(f"| {way} against alone | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
