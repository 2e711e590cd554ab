"""The job: what follows from a configuration and its data set before anything is trained."""

import collections
import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from spp_jax.buckets import STEP_COMPILATION_PRICE, Bucket, BucketPlan, plan_buckets
from spp_jax.compilation import data_mesh
from spp_jax.config import RunConfig
from spp_jax.data import load_dataset
from spp_jax.data.records import SPLITS, Records, split_records
from spp_jax.data.schedule import Schedule, at_scale, pair_sizes
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.models.configured import abstract_model
from spp_jax.names import some
from spp_jax.training.losses import Loss, create_loss

__all__ = ["DoesNotHoldError", "Job", "prepare"]

_log = logging.getLogger(__name__)


class DoesNotHoldError(SppJaxError):
    """A plan was given that does not hold every picture."""


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a run will do, with nothing done yet.

    Attributes:
        config: what decides the result.
        mesh: the devices, over which the rows of each batch are split.
        parts: the records of each part, by its name in :data:`spp_jax.data.records.SPLITS`.
        skipped: by id, why a picture of the data set is in none of them.
        schedule: which pictures each step trains on.
        total_steps: after which the run ends.
    """

    config: RunConfig
    mesh: Mesh
    parts: dict[str, Records]
    skipped: dict[str, str]
    schedule: Schedule
    total_steps: int

    @property
    def marks(self) -> tuple[float, ...]:
        """The scores that the votes stand for; empty where they are not used."""
        return self.parts["train"].marks

    @property
    def pictures(self) -> int:
        """Of the whole data set, those that are skipped included."""
        return len(self.skipped) + sum(map(len, self.parts.values()))

    def __str__(self) -> str:
        schedule, levels = self.schedule, self.config.levels
        steps = f"{self.total_steps} steps of about {schedule.mean_batch:.1f} pictures"
        padding = f", {schedule.waste:.1%} of the pixels are padding"
        return self.described(f"pyramid {levels}: {steps}", len(schedule.buckets), padding)

    def described(self, work: str, buckets: int, padding: str = "") -> str:
        """What a run learns from, and how and on what, in two lines.

        Args:
            work: what is done with the network.
            buckets: in how many.
            padding: what is said of them.
        """
        counts = ", ".join(f"{len(records)} {split}" for split, records in self.parts.items())
        return (
            f"{self.config.data}, fold {self.config.fold}: {counts} pictures\n"
            f"{self.config.model}, {work}; {buckets} bucket{'s' * (buckets > 1)}{padding}; "
            f"on {self.mesh.size} {self.mesh.devices.flat[0].device_kind}"
        )

    def epoch(self) -> dict[Bucket, tuple[int, int]]:
        """By bucket, the pictures and the batches of the first epoch."""
        batches, pictures = collections.Counter(), collections.Counter()
        for spec in self.schedule.steps(0, self.schedule.first_step(1)):
            batches[spec.bucket] += 1
            pictures[spec.bucket] += len(spec.rows)
        return {bucket: (pictures[bucket], batches[bucket]) for bucket in self.schedule.buckets}


def prepare(
    config: RunConfig,
    data_dir: Path,
    *,
    plan: BucketPlan | None = None,
    keep_mib: int = 1024,
    outside_files: bool = False,
) -> Job:
    """Load the data set, split it, and plan buckets and steps.

    Args:
        config: what decides the result.
        data_dir: where data sets are kept; of the data set ``folder``, the folder.
        plan: to be used instead of planning.
        keep_mib: a picture is decoded once, and not anew in every epoch, where those of training and
            validation take no more memory than this, decoded, and each is seen at one size alone.
        outside_files: of the data set ``folder``: whether its table may name files outside of it.

    Raises:
        UsageError: the configuration names what does not exist, or leaves a part without a picture.
        DoesNotHoldError: a picture is larger than every bucket of ``plan``.
    """
    smallest = _smallest(config)
    records, unread = load_dataset(
        config.data,
        data_dir,
        config.decoding,
        outside_files=outside_files,
        near_duplicates=config.near_duplicates,
    )
    if records.splits and config.protocol != "official":
        _log.info(f"{config.data} has a split of its own, which protocol official would use")
    loss = create_loss(config.loss, marks=records.marks, attributes=config.labels)  # refused before any work
    try:
        records = records.judged_by(config.labels)
    except ValueError as error:
        raise UsageError(f"labels {error}", "labels") from None
    parts, skipped = _parts(config, loss, records, unread, smallest)
    watched = {split: parts[split] for split in ("train", "validation")}  # each epoch
    if config.scales == (1.0,) and sum(part.nbytes for part in watched.values()) <= keep_mib * 2**20:
        parts |= {split: part.decoded_once() for split, part in watched.items()}
    schedule = Schedule(
        parts["train"].sizes,
        _plan(config, parts, smallest, plan),
        seed=config.seed,
        flip=config.flip,
        scales=config.scales,
        smallest=smallest,
        pairs=parts["train"].pair_rows,
    )
    total_steps = config.steps or schedule.first_step(config.epochs)
    return Job(config, data_mesh(), parts, skipped, schedule, total_steps)


def _parts(
    config: RunConfig, loss: Loss, records: Records, unread: dict[str, str], smallest: tuple[int, int]
) -> tuple[dict[str, Records], dict[str, str]]:
    """The records of each part, with the labels that the loss needs, and why others are in none, by id."""
    parts, skipped = {}, {}
    for split in SPLITS:  # before any picture is dropped: a part does not depend on what can be read
        try:
            whole = split_records(records, split, config.protocol, config.fold)
        except ValueError as error:
            raise UsageError(str(error), "protocol") from None
        try:
            labelled = whole.labelled(loss.needs)
        except ValueError as error:
            raise UsageError(f"loss {config.loss} {error}", "loss") from None
        if without := len(whole) - len(labelled):
            _log.info(f"{without} pictures of {split} have no label that loss {config.loss} needs")
        parts[split], dropped = labelled.usable(smallest, unread)
        if not len(parts[split]):
            raise UsageError(f"no picture of {split} can be read and is at least {smallest}: {some(dropped)}")
        skipped |= dropped
    if parts["train"].pairs is not None and records.pairs is not None:
        within, every = sum(len(part.pairs.rows) for part in parts.values()), len(records.pairs.rows)
        if within < every:
            _log.info(f"{every - within} of {every} pairs lie in two parts of the split or cannot be read")
    return parts, skipped


def _plan(
    config: RunConfig, parts: dict[str, Records], smallest: tuple[int, int], given: BucketPlan | None
) -> BucketPlan:
    """One plan for the whole data set: all of training, validation and test runs in its buckets."""
    # Counted once at their own size: what is planned, and so compiled, is then the same for all folds.
    train = parts["train"]
    scaled = [at_scale(train.sizes, scale, smallest) for scale in config.scales if scale != 1]
    every = [pair_sizes(part.sizes, part.pair_rows) for part in parts.values()]
    sizes = np.concatenate([*every, *(pair_sizes(sizes, train.pair_rows) for sizes in scaled)])
    if given is not None:
        try:
            given.assign(sizes)
        except ValueError as error:
            raise DoesNotHoldError(str(error)) from None
        return given
    bucketing = config.bucketing
    if config.buckets == "auto" and config.steps:  # which say how often a picture is seen, and not the epochs
        passes = config.steps * config.pixels_per_step / int(sizes.prod(axis=1).sum())
        bucketing["compilation_price"] = STEP_COMPILATION_PRICE / passes
    if train.pairs is not None:  # both of a pair are in one batch
        bucketing["batch_multiple"] = math.lcm(2, config.batch_multiple)
    plan = plan_buckets(sizes, **bucketing)
    for bucket in plan.buckets:
        if bucket.pixels > config.pixels_per_step:
            _log.warning(
                f"a batch of {bucket} has {bucket.pixels:,} pixels, more than pixels_per_step "
                f"{config.pixels_per_step:,}: its batch size cannot be smaller"
            )
    return plan


def _smallest(config: RunConfig) -> tuple[int, int]:
    """The smallest picture the model takes; refuses an unknown model before any work is done."""
    model = abstract_model(config, 1)
    return max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side)
