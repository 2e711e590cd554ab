"""How well the judges that ship do on photographs that they have not seen: ten random splits.

    python benchmarks/judges.py --photos PHOTOS [--features-dir DIR] [--splits N]

Protocol. Each set of `spp_jax/data/judged_photos.py` is cut at random into 80 % and 20 %, ten times (seeds
0 to 9), each picture a group of its own. On the 80 % of all sets together a head is fitted as the judges
are, what is chosen of it (strength, curvature, balance of the maps) by five folds inside them; the figures
are of the 20 % of each set, and of each kind of its pictures: means over the ten, and the standard
deviation in brackets. `alone`: the same, fitted on that set alone; `linear`: together, with a linear head
all of whose features count alike. Good is a score of at least .5; of BIQ2021, after it is brought to the
scale of LIVE In the Wild.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr, spearmanr

from spp_jax.config import RunConfig
from spp_jax.data.judged_photos import SETS
from spp_jax.data.records import Records
from spp_jax.models.configured import abstract_model
from spp_jax.run.job import prepare
from spp_jax.run.probe import FEATURES, head_options, job_features
from spp_jax.training.probe import Probe, fit_probe

CONFIG = RunConfig(
    recipe="probe",
    data="judged_photos",
    labels=("quality", "beauty"),
    model="efficientnet_lite0",
    model_options=("maps=judging", "head=quadratic"),
    init_from="imagenet",
    levels=(1,),
    max_pixels=270_000,
    buckets=3,
    flip=False,
)
"""As the judges are trained: see their card."""
HEAD = head_options(abstract_model(CONFIG, 2))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--features-dir", type=Path, default=FEATURES)
    parser.add_argument("--splits", type=int, default=10)
    options = parser.parse_args()
    job = prepare(CONFIG, options.photos, keep_mib=0)
    every, (image, *_) = job_features(job, options.features_dir)
    kinds = kinds_of(options.photos, every.ids)
    sets = np.array([name.split("/")[0] for name in every.ids])
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for seed in range(options.splits):
        test = held_out(sets, seed)
        for how in ("together", "linear"):
            fitted = head_of(image.values, every, np.flatnonzero(~test), linear=how == "linear")
            logits = fitted.logits(image.values)
            for name, attribute in SETS.items():
                column, of = list(SETS.values()).index(attribute) // 2, sets == name
                for kind in ("", *sorted(set(kinds[of]) - {""})):
                    among = of & test & ((kinds == kind) if kind else True)
                    rows.setdefault((f"{name} {kind}".strip(), how), []).append(
                        figures(logits[among, column], every.scores[among, column], every.good[among, column])
                    )
        for name, attribute in SETS.items():
            column, of = list(SETS.values()).index(attribute) // 2, sets == name
            alone = head_of(image.values, every, np.flatnonzero(of & ~test), column)
            among = of & test
            rows.setdefault((name, "alone"), []).append(
                figures(
                    alone.logits(image.values[among])[:, 0],
                    every.scores[among, column],
                    every.good[among, column],
                )
            )
        print(f"split {seed} done", flush=True)
    print("| pictures | trained on | SRCC | PLCC | accuracy |\n|---|---|---|---|---|")
    for (name, how), found in rows.items():
        means, spread = np.nanmean(found, axis=0), np.nanstd(found, axis=0)
        cells = [f"{mean:.3f} ({deviation:.3f})" for mean, deviation in zip(means, spread, strict=True)]
        print(f"| {name} | {how} | {' | '.join(cells)} |")


def head_of(
    values: np.ndarray, every: Records, rows: np.ndarray, column: int | None = None, *, linear: bool = False
) -> Probe:
    """A head fitted on these pictures, of every attribute or of one."""
    which = slice(None) if column is None else column
    return fit_probe(
        values[rows],
        every.scores[rows][:, which],
        [every.groups[row] for row in rows],
        good=every.good[rows][:, which],
        **({} if linear else HEAD),
    )


def kinds_of(photos: Path, ids: tuple[str, ...]) -> np.ndarray:
    """The category that each picture's table names; empty where it names none."""
    import csv

    found = {}
    for name in SETS:
        with (photos / name / "scores.csv").open(newline="") as file:
            found |= {f"{name}/{row['file']}": row.get("category") or "" for row in csv.DictReader(file)}
    return np.array([found[name] for name in ids])


def held_out(sets: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of each set."""
    test = np.zeros(len(sets), bool)
    rng = np.random.default_rng(seed)
    for name in SETS:
        members = np.flatnonzero(sets == name)
        test[rng.permutation(members)[: round(len(members) / 5)]] = True
    return test


def figures(logits: np.ndarray, scores: np.ndarray, good: np.ndarray) -> tuple[float, float, float]:
    """SRCC, PLCC of the score, and accuracy."""
    judged = 1 / (1 + np.exp(-logits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a kind with one picture
        return (
            float(spearmanr(judged, scores)[0]),  # pyright: ignore[reportArgumentType]
            float(pearsonr(judged, scores)[0]),  # pyright: ignore[reportArgumentType]
            float(((judged >= 0.5) == good).mean()),
        )


if __name__ == "__main__":
    main()
