"""A run by `--recipe probe`: features of every picture, and a head over them in closed form."""

import contextlib
import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from flax import nnx
from tqdm import tqdm

from spp_jax.addresses import is_address
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.compilation import placed, replicated
from spp_jax.data.records import SPLITS, Records
from spp_jax.errors import UsageError
from spp_jax.metrics import Agreement, merit
from spp_jax.models.sppnet import LinearHead, QuadraticHead, SPPNet
from spp_jax.names import printable
from spp_jax.run.artifacts import check_writable, write_description, write_figures, write_page
from spp_jax.run.beginning import from_weights
from spp_jax.run.features import (
    Features,
    features_key,
    features_of,
    features_program,
    keep_features,
    kept_features,
)
from spp_jax.run.job import Job
from spp_jax.run.journal import Journal, write_skipped
from spp_jax.run.lock import RunLock
from spp_jax.run.training_run import TooManySkippedError
from spp_jax.training import TrainState, configured_training
from spp_jax.training.probe import BALANCES, CURVATURES, STRENGTHS, Probe, fit_probe

__all__ = ["FEATURES", "ProbeResult", "head_options", "job_features", "run_probe"]

_log = logging.getLogger(__name__)
FEATURES = Path(platformdirs.user_cache_dir("spp_jax")) / "features"
"""Where features are kept."""
_LOSSES = ("cross_entropy", "good", "huber")  # whose score is the sigmoid of the logit


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a probe gave.

    Attributes:
        figures: of the test part.
        probe: the head, fitted on the training part.
        skipped: by id, why a picture was left out.
    """

    figures: Agreement
    probe: Probe
    skipped: dict[str, str]


def run_probe(job: Job, folder: Path, *, features_dir: Path = FEATURES) -> ProbeResult:
    """Fit the head of a network whose body stays as it is, and leave a checkpoint as every run does.

    Features are worked out once for each network, policy and collection, for pictures and, with
    ``config.flip``, their mirror images, and kept. The strength of the ridge is chosen by folds, by group,
    inside the training part. The validation part only gives figures. With ``config.refit`` the head of the
    checkpoint is fitted anew on all parts, with the figures of the one fitted on the training part.

    Args:
        job: what to do; of its schedule only the buckets count.
        folder: to write to.
        features_dir: where features are kept.

    Raises:
        UsageError: the network has no linear or quadratic head, the labels cannot be fitted, or another
            process trains into the folder.
        TooManySkippedError: more pictures could not be read than allowed.
        OSError: the folder cannot be written.

    Example:
        >>> config = RunConfig(
        ...     recipe="probe", data="folder", model="efficientnet_lite0", init_from="imagenet",
        ...     model_options=("maps=judging", "head=quadratic"), max_pixels=270_000,
        ... )  # doctest: +SKIP
        >>> result = run_probe(prepare(config, Path("photos")), Path("runs/probe"))  # doctest: +SKIP
    """
    config, began = job.config, time.perf_counter()
    if config.loss not in _LOSSES:
        raise UsageError(f"recipe probe fits scores: loss must be one of {', '.join(_LOSSES)}", "loss")
    if jax.process_count() > 1:
        raise UsageError("recipe probe runs in one process", "recipe")
    if not is_address(folder):
        check_writable(folder)
    with RunLock(folder):
        result = _run(job, folder, features_dir)
    _log.info(
        f"done in {time.perf_counter() - began:.0f} s; strength {result.probe.strengths.tolist()}, "
        f"curvature {result.probe.curvatures.tolist()}, balance {result.probe.balances.tolist()}"
    )
    return result


def _run(job: Job, folder: Path, features_dir: Path) -> ProbeResult:
    """Features, fit and what is written."""
    config = job.config
    work = "a head over features that stay as they are"
    _log.info(job.described(work, len(job.schedule.plan.buckets)))
    state, graph = _network(job)
    every, rows = _joined(job.parts)
    images = _images(job, graph, state, every, features_dir)
    skipped = dict(job.skipped) | {name: why for image in images for name, why in image.failed.items()}
    for name, reason in skipped.items():
        _log.warning(f"skipped {printable(name)}: {printable(reason)}")
    if len(skipped) > config.max_failed * job.pictures:
        raise TooManySkippedError(
            f"{len(skipped)} of {job.pictures} pictures had to be skipped, more than max_failed "
            f"{config.max_failed:g} allows"
        )
    options = head_options(nnx.merge(graph, state.model))
    probe = _fitted(every, images, rows["train"], options)
    scores = _scores(probe, images[0], every)
    parts = {split: job.parts[split].agreement(scores[rows[split]]) for split in ("validation", "test")}
    final = _fitted(every, images, np.concatenate(list(rows.values())), options) if config.refit else probe
    _write(job, folder, state, final, probe, parts, scores[rows["validation"]], every)
    if skipped:
        write_skipped(folder / "skipped.csv", skipped)
    return ProbeResult(parts["test"], probe, skipped)


def _network(job: Job) -> tuple[TrainState, nnx.GraphDef]:
    """The run's variables, begun as its configuration says, and the network's static part."""
    recipe, state = configured_training(job.config, 1, 1.0, job.marks)
    if job.config.init_from:
        state = from_weights(job.config, state)
    else:
        _log.warning("init_from is not given: the body is random, and a probe of it learns little")
    model = nnx.merge(recipe.graph, state.model)
    if not isinstance(model.head, LinearHead | QuadraticHead):
        raise UsageError(
            f"recipe probe needs a linear or quadratic head, which {job.config.model} has with model_options "
            "head=linear or head=quadratic, or has not",
            "recipe",
        )
    return state, recipe.graph


def head_options(model: SPPNet) -> dict[str, Any]:
    """What a network says of how its head is to be fitted: options of :func:`fit_probe`."""
    pools = zip(model.body.widths, model.map_pools, strict=True)
    parts = tuple(sum(channels * pool.num_bins for pool in of) for channels, of in pools)
    options: dict[str, Any] = {"parts": parts, "balances": BALANCES} if len(parts) > 1 else {}
    if isinstance(model.head, QuadraticHead):
        curvature: nnx.Linear = model.head.curvature
        options |= {"curvatures": CURVATURES, "rank": curvature.in_features // curvature.out_features}
    return options


def _joined(parts: dict[str, Records]) -> tuple[Records, dict[str, np.ndarray]]:
    """All parts as one collection, ordered by id, so alike in every fold; and the rows of each part."""
    owners = [(split, place) for split in SPLITS for place in range(len(parts[split]))]
    ids = [parts[split].ids[place] for split, place in owners]
    order = np.argsort(np.array(ids, str))
    owners = [owners[i] for i in order]
    rows = {split: np.empty(len(parts[split]), np.int64) for split in SPLITS}
    for row, (split, place) in enumerate(owners):
        rows[split][place] = row

    def together(name: str) -> np.ndarray:
        return np.concatenate([getattr(parts[split], name) for split in SPLITS])[order]

    first = parts[SPLITS[0]]
    every = dataclasses.replace(
        first,
        ids=tuple(ids[i] for i in order),
        sizes=together("sizes"),
        photo=lambda i: parts[owners[i][0]].photo(owners[i][1]),
        scores=together("scores"),
        good=together("good"),
        groups=tuple(parts[split].groups[place] for split, place in owners),
        splits=(),
        labels={},
        categories=(),
        pairs=None,
    )
    return every, rows


def job_features(job: Job, features_dir: Path = FEATURES) -> tuple[Records, list[Features]]:
    """What a probe is fitted on: all pictures of a job, ordered by id, and features of each image of them.

    The first are the pictures' own; with ``config.flip`` their mirror images' follow.
    """
    state, graph = _network(job)
    every, _ = _joined(job.parts)
    return every, _images(job, graph, state, every, features_dir)


def _images(job: Job, graph: nnx.GraphDef, state: TrainState, every: Records, folder: Path) -> list[Features]:
    turns = (False, True) if job.config.flip else (False,)
    return [_features(job, graph, state, every, folder, mirrored) for mirrored in turns]


def _features(
    job: Job, graph: nnx.GraphDef, state: TrainState, every: Records, folder: Path, mirrored: bool
) -> Features:
    """Of all pictures, or of their mirror images: kept ones, or worked out now, with a progress bar."""
    variables = placed(state.model, replicated(job.mesh))
    path = folder / f"{features_key(job.config, variables, every, mirrored)}.npz"
    if (kept := kept_features(path, every.ids)) is not None:
        _log.info(f"features of {len(every)} pictures are kept in {path}")
        return kept
    program = features_program(graph, variables, job.mesh, every)
    what = "mirrored" if mirrored else "features"
    with tqdm(total=len(every), unit="photo", desc=what, mininterval=1) as bar:
        found = features_of(
            program, variables, every, job.schedule.plan, job.mesh, mirrored=mirrored, progress=bar.update
        )
    keep_features(path, every.ids, found)
    return found


def _fitted(every: Records, images: list[Features], rows: np.ndarray, options: dict[str, Any]) -> Probe:
    """The head, fitted on these records, each by all of its images that could be read."""
    read = [rows[np.isfinite(image.values[rows]).all(axis=1)] for image in images]
    places = np.concatenate(read)
    features = np.concatenate([image.values[some] for image, some in zip(images, read, strict=True)])
    try:
        return fit_probe(
            features,
            every.scores[places],
            [every.groups[place] for place in places],
            good=every.good[places],
            **options,
        )
    except ValueError as error:
        raise UsageError(f"no head can be fitted: {error}", "labels") from None


def _scores(probe: Probe, image: Features, every: Records) -> np.ndarray:
    """Of every picture, float32 in the shape of the labels; NaN where unreadable."""
    read = np.isfinite(image.values).all(axis=1)
    scores = np.full((len(every), probe.weights.shape[1]), np.nan, np.float32)
    scores[read] = 1 / (1 + np.exp(-probe.logits(image.values[read])))
    return scores.reshape(every.scores.shape)


def _rounded(values: Any, dtype: Any, bits: int) -> np.ndarray:
    """Numbers to the nearest of so many significant bits; of other dtypes than float32 as they are."""
    values = np.asarray(values, dtype)
    if values.dtype != np.float32 or bits == 24:
        return values
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits).astype(np.float32)


def _write(
    job: Job,
    folder: Path,
    state: TrainState,
    final: Probe,
    probe: Probe,
    parts: dict[str, Agreement],
    validated: np.ndarray,
    every: Records,
) -> None:
    """The checkpoint and what a run leaves for people."""
    variables = nnx.clone(state.model)
    pure = nnx.to_pure_dict(variables)
    pure["head"]["mean"], pure["head"]["scale"] = jnp.asarray(final.mean), jnp.asarray(final.scale)
    pure["head"]["logits"] = {"kernel": jnp.asarray(final.weights), "bias": jnp.asarray(final.bias)}
    if final.squares.size:
        pure["head"]["directions"] = {"kernel": jnp.asarray(final.directions)}
        pure["head"]["curvature"] = {"kernel": jnp.asarray(final.squares)}
    like = nnx.to_pure_dict(state.model)
    rounded = jax.tree.map(lambda x, y: jnp.asarray(_rounded(x, y.dtype, job.config.bits)), pure, like)
    nnx.replace_by_pure_dict(variables, rounded)
    about = About.of(job.config, job.schedule.plan, job.parts["train"].digest(), job.marks)
    figures = parts["validation"].to_dict()
    with Checkpoints(folder) as checkpoints:
        # No part to go on with: a fit has no steps.
        checkpoints.save(1, variables, jnp.zeros(1), about, merit(figures))
    with contextlib.closing(Journal(folder, 0)) as journal:
        journal.write({"step": 1, "validation": figures})
    write_description(job, folder)
    write_figures(job, folder, parts["test"])
    described = {
        "attributes": every.attributes,
        "strengths_tried": STRENGTHS,
        "errors": probe.errors.tolist(),  # by balance, curvature, strength and attribute
        "strengths": probe.strengths.tolist(),
        "curvatures": probe.curvatures.tolist(),
        "balances": probe.balances.tolist(),
        "pictures": [int(n) for n in np.isfinite(probe.held_out).sum(axis=0)],
        "refit": job.config.refit,
    }
    (folder / "probe.json").write_text(json.dumps(described, indent=2) + "\n")
    write_page(job, folder, journal, validated)
