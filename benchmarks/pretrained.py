"""Whole pictures against squares, with a body that has seen the world: what a probe makes of each.

    python benchmarks/pretrained.py --photos PHOTOS [--sets vessel oasis] [--systems whole warp crop pad]

Protocol. Each set is a folder that `--data folder` reads. The network is that of the judges
(checkpoints/judges), which stays as it is; systems differ in what it is given, or in what is read of its
maps. `whole`: pictures at their shape, of at most 270,000 pixels. `warp`, `crop`, `pad`: squares of 224 a
side, as `--input` makes them. `warp-same`: warped to a square of 512, about the whole picture's pixels.
`whole-150` to `whole-400`: whole, of at most 150 x 150 to 400 x 400 pixels. `global` and `pyramid`: whole
pictures, three inner maps and mean and maximum of the last one, over all of it or over levels (1, 2, 4).
Ten random cuts into 80 % and 20 % (seeds 0 to 9), the same for all systems. The head is fitted on the 80 %,
to ranks within each kind of picture, what is chosen of it chosen inside them. The figure is SRCC on the 20
%, within each kind, weighted by its pictures. Differences to `whole` (of `pyramid` to `global`) are paired,
with 95 % intervals that allow for overlapping training parts (Nadeau and Bengio 2003).
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr, t

from spp_jax.config import RunConfig
from spp_jax.models.configured import abstract_model
from spp_jax.run.job import prepare
from spp_jax.run.probe import FEATURES, head_options, job_features
from spp_jax.training.probe import fit_probe

WHOLE = RunConfig(
    recipe="probe",
    data="folder",
    model="efficientnet_lite0",
    model_options=("maps=judging", "head=quadratic"),
    init_from="imagenet",
    levels=(1,),
    max_pixels=270_000,
    buckets=4,
    flip=False,
)
_SEVERAL = ("maps=several", "head=quadratic")
SYSTEMS = {
    "whole": WHOLE,
    "warp": dataclasses.replace(WHOLE, input="warp"),
    "crop": dataclasses.replace(WHOLE, input="crop"),
    "pad": dataclasses.replace(WHOLE, input="pad"),
    "warp-same": dataclasses.replace(WHOLE, input="warp", input_side=512),
    **{f"whole-{side}": dataclasses.replace(WHOLE, max_pixels=side**2) for side in (150, 224, 300, 400)},
    "global": dataclasses.replace(WHOLE, model_options=_SEVERAL),
    "pyramid": dataclasses.replace(WHOLE, model_options=_SEVERAL, levels=(1, 2, 4)),
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
        print(f"\n{name}\n")
        show(found)


def show(found: dict[str, np.ndarray]) -> None:
    """Print a table of the systems of one set."""
    print("| system | SRCC | difference |\n|---|---|---|")
    for system, srcc in found.items():
        base = "global" if system == "pyramid" else "whole"
        against = "" if system in (base, "global") or base not in found else interval(srcc - found[base])
        print(f"| {system} | {srcc.mean():.3f} ({srcc.std():.3f}) | {against} |", flush=True)


def figures(config: RunConfig, folder: Path, features_dir: Path) -> np.ndarray:
    """SRCC on the test part of each of the cuts."""
    job = prepare(config, folder, keep_mib=0)
    every, (image, *_) = job_features(job, features_dir)
    kinds: dict[str, str] = {}
    for part in job.parts.values():
        kinds |= dict(zip(part.ids, part.categories, strict=False))  # which there may be none of
    kind = np.array([kinds.get(name, "") for name in every.ids])
    options = head_options(abstract_model(config, 1))
    return agreement(image.values, np.asarray(every.scores), kind, every.groups, options)


def agreement(
    values: np.ndarray, scores: np.ndarray, kind: np.ndarray, groups: Sequence[str], options: dict[str, Any]
) -> np.ndarray:
    """SRCC of each cut: of pictures' features, scores, kinds and groups, in the order of their ids."""
    # Scores of different kinds may mean nothing to each other (Savoias): ranks within each are fitted.
    ranks, found = within(scores, kind), []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(scores))
        test, train = np.split(order, [round(len(order) / 5)])
        probe = fit_probe(values[train], ranks[train], np.asarray(groups)[train].tolist(), **options)
        logits = probe.logits(values[test])[:, 0]
        parts = [kind[test] == name for name in sorted(set(kind[test].tolist()))]
        within_kinds: list[Any] = [spearmanr(logits[part], scores[test][part]) for part in parts]
        srcc = [float(one.statistic) for one in within_kinds]
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
