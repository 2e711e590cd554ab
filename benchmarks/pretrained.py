"""Whole pictures against squares, with a body that has seen the world: what a probe makes of each.

    python benchmarks/pretrained.py --photos PHOTOS [--sets vessel oasis] [--systems whole warp crop pad]

Protocol. Each set is a folder that `--data folder` reads. The network is that of the judges
(checkpoints/judges); systems differ in what it is given. `whole`: pictures at their shape, of at most
270,000 pixels. `warp`, `crop`, `pad`: squares of 224 a side, as `--input` makes them. `warp-same`: warped to
a square of 512, about the whole picture's pixels. Ten random cuts into 80 % and 20 % (seeds 0 to 9), the same
for all systems. The head is fitted on the 80 %, to ranks within each kind of picture, its strength chosen
inside them. The figure is SRCC on the 20 %, within each kind, weighted by its pictures. Differences to
`whole` are paired, with 95 % intervals that allow for overlapping training parts (Nadeau and Bengio 2003).
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr, t

from spp_jax.config import RunConfig
from spp_jax.run.job import prepare
from spp_jax.run.probe import FEATURES, job_features
from spp_jax.training.probe import fit_probe

WHOLE = RunConfig(
    recipe="probe",
    data="folder",
    model="efficientnet_lite0",
    model_options=("maps=judging", "head=linear"),
    init_from="imagenet",
    levels=(1,),
    max_pixels=270_000,
    buckets=4,
    flip=False,
)
SYSTEMS = {
    "whole": WHOLE,
    "warp": dataclasses.replace(WHOLE, input="warp"),
    "crop": dataclasses.replace(WHOLE, input="crop"),
    "pad": dataclasses.replace(WHOLE, input="pad"),
    "warp-same": dataclasses.replace(WHOLE, input="warp", input_side=512),
}
SPLITS = 10


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["vessel", "oasis", "savoias", "live_wild"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["whole", "warp", "crop"])
    parser.add_argument("--features-dir", type=Path, default=FEATURES)
    options = parser.parse_args()
    for name in options.sets:
        found = {
            system: figures(SYSTEMS[system], options.photos / name, options.features_dir)
            for system in options.systems
        }
        print(f"\n{name}\n\n| system | SRCC | to whole |\n|---|---|---|")
        for system, srcc in found.items():
            against = "" if system == "whole" or "whole" not in found else interval(srcc - found["whole"])
            print(f"| {system} | {srcc.mean():.3f} ({srcc.std():.3f}) | {against} |", flush=True)


def figures(config: RunConfig, folder: Path, features_dir: Path) -> np.ndarray:
    """SRCC on the test part of each of the cuts."""
    job = prepare(config, folder, keep_mib=0)
    every, (image, *_) = job_features(job, features_dir)
    kinds = dict(
        zip(
            *(sum((getattr(p, n) for p in job.parts.values()), ()) for n in ("ids", "categories")),
            strict=False,
        )
    )
    kind = np.array([kinds.get(name, "") for name in every.ids])
    found = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(every))
        test, train = np.split(order, [round(len(order) / 5)])
        groups = [every.groups[i] for i in train]
        # Scores of different kinds may mean nothing to each other (Savoias): ranks within each are fitted.
        probe = fit_probe(image.values[train], within(every.scores, kind)[train], groups)
        logits = probe.logits(image.values[test])[:, 0]
        parts = [(kind[test] == k) for k in sorted(set(kind[test].tolist()))]
        srcc = [float(spearmanr(logits[part], every.scores[test][part]).statistic) for part in parts]
        found.append(np.average(srcc, weights=[part.sum() for part in parts]))
    return np.array(found)


def within(scores: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """The share of pictures of its kind that each picture is above."""
    shares = np.empty(len(scores))
    for name in set(kind.tolist()):
        of = kind == name
        shares[of] = (np.argsort(np.argsort(scores[of])) + 0.5) / of.sum()
    return shares


def interval(differences: np.ndarray) -> str:
    """Mean and 95 % interval."""
    n = len(differences)
    error = np.sqrt((1 / n + 0.25) * differences.var(ddof=1))  # test / training pictures: a quarter
    half = t.ppf(0.975, n - 1) * error
    return f"{differences.mean():+.3f} ({differences.mean() - half:+.3f} to {differences.mean() + half:+.3f})"


if __name__ == "__main__":
    main()
