"""A trained model applied to photographs."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spp_jax.addresses import path_at
from spp_jax.buckets import BucketPlan, plan_buckets
from spp_jax.checkpoints import Checkpoints
from spp_jax.compilation import BucketExecutables, abstract, data_mesh, placements, replicated
from spp_jax.config import RunConfig, UsageError
from spp_jax.data.decoding import Photo
from spp_jax.data.loading import OF_ANOTHER_HOST, Batch, abstract_batch, load_batches, put
from spp_jax.data.records import Records, photo_records
from spp_jax.data.schedule import in_order
from spp_jax.losses import Loss, create_loss
from spp_jax.models import SPPNet
from spp_jax.training import build_model

__all__ = ["Scorer", "forward_executables", "score_records"]


class Scorer:
    """Scores photographs of any size, each at its own shape.

    It plans buckets for each collection it is given: the model is exact on padded batches, so any
    plan gives the same scores.

    Attributes:
        config: of the run that trained the model.
        min_size: the smallest (height, width) that can be scored.
        skipped: the reason for each photograph of the latest call that has no score, by its place.
    """

    def __init__(self, model: SPPNet, config: RunConfig, loss: Loss | None = None):
        """Take a trained model, the configuration of its run, and its loss (None: one without votes)."""
        model.eval()
        self.config = config
        self.min_size = (max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side))
        self.skipped: dict[int, str] = {}
        graph, variables = nnx.split(model)
        self._mesh = data_mesh()
        self._variables = jax.device_put(variables, replicated(self._mesh))
        loss = loss or create_loss(config.loss, huber_delta=config.huber_delta)
        self._forward = forward_executables(
            graph, dataclasses.replace(loss, of=_unknown), self._variables, self._mesh
        )

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Scorer":
        """Load the latest checkpoint of a run's folder.

        Raises:
            UsageError: there is no checkpoint, or it is not one of a run of this version.
        """
        with Checkpoints(path_at(path)) as checkpoints:
            about = checkpoints.about()
            config = about.config
            try:
                loss = create_loss(config.loss, marks=about.marks, huber_delta=config.huber_delta)
                model = build_model(config, loss.outputs)
            except UsageError as error:
                raise UsageError(f"{path} is no checkpoint of this version of spp_jax: {error}") from None
            graph, variables = nnx.split(model)
            variables = checkpoints.restore_model(variables)
        return cls(nnx.merge(graph, variables), config, loss)

    def score(
        self, photos: Iterable[Photo], *, progress: Callable[[int], Any] = lambda count: None
    ) -> np.ndarray:
        """How good each photograph is: float32 ``[n]`` in [0, 1], NaN where it could not be read.

        Args:
            photos: paths, bytes of files, PIL images, or uint8 arrays ``[height, width, 3]``.
            progress: called with the number of photographs done since the last call.
        """
        photos = list(photos)
        scores = np.full(len(photos), np.nan, np.float32)
        records, places, self.skipped = photo_records(photos, self.min_size, self.config.decoding)
        progress(len(self.skipped))
        if len(records):
            found, failed = self.score_records(records, progress=progress)
            scores[places] = found
            self.skipped |= {int(places[i]): reason for i, reason in failed.items()}
        return scores

    def score_records(
        self, records: Records, *, progress: Callable[[int], Any] = lambda count: None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """As the function of this name, with a plan made for these records."""
        plan = plan_buckets(records.sizes, **self.config.bucketing)
        records = dataclasses.replace(records, histograms=None)  # labels that scores do not need
        scores, _, skipped = score_records(
            self._forward, self._variables, records, plan, self._mesh, progress
        )
        return scores, skipped


def forward_executables(
    graph: nnx.GraphDef,
    loss: Loss,
    variables: nnx.State,
    mesh: Mesh,
    marks: int = 0,
    fsdp: int | None = None,
) -> BucketExecutables:
    """The model in evaluation mode, ``(variables, batch) -> Judged``, for any bucket.

    Args:
        graph: the model's static part.
        loss: how its logits are read.
        variables: the others, or their shapes and dtypes.
        mesh: as :func:`spp_jax.compilation.data_mesh` makes it.
        marks: of the records' histograms, where they have them.
        fsdp: as :func:`~spp_jax.compilation.placements` takes it, for the variables.
    """
    like = abstract(variables, placements(variables, mesh, fsdp))

    def forward(variables: nnx.State, batch: Batch) -> Judged:
        model = nnx.merge(graph, variables, copy=True)
        model.eval()
        logits = model(batch.images)
        return Judged(loss.score(logits), loss.of(logits, batch), batch.weights)

    return BucketExecutables(
        forward,
        lambda bucket: (like, abstract_batch(bucket, mesh, marks)),
        out_shardings=replicated(mesh),
    )


def _unknown(logits: jax.Array, batch: Batch) -> jax.Array:
    return jnp.full(len(logits), jnp.nan)


class Judged(NamedTuple):
    """What a forward program gives, each ``[batch]``, on every host.

    Attributes:
        scores: in [0, 1].
        losses: by the labels.
        weights: of the batch.
    """

    scores: jax.Array
    losses: jax.Array
    weights: jax.Array


def score_records(
    forward: BucketExecutables,
    variables: nnx.State,
    records: Records,
    plan: BucketPlan,
    mesh: Mesh,
    progress: Callable[[int], Any] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Score every record exactly once.

    Args:
        forward: as :func:`forward_executables` makes it.
        variables: of the model.
        records: pictures.
        plan: buckets that hold them.
        mesh: of ``forward``.
        progress: called with the number of pictures done since the last call.

    Returns:
        Scores and losses, float32 ``[n]``, NaN where unreadable; and the reasons, by index.

    Raises:
        DoesNotFitError: a batch needs more memory than the device has.
        FloatingPointError: the score of a picture that was read is no number.
    """
    scores, losses = np.full((2, len(records)), np.nan, np.float32)
    skipped: dict[int, str] = {}
    specs = in_order(records.sizes, plan)
    for _ in forward.compile_all(spec.bucket for spec in specs):  # several at a time
        pass
    for spec, batch, failed in load_batches(records, specs, devices=mesh.size):
        judged = jax.device_get(forward[spec.bucket].call(variables, put(batch, mesh)))
        rows = np.flatnonzero(judged.weights)  # the others could not be read
        if not np.isfinite(judged.scores[rows]).all():
            raise FloatingPointError("the model gives scores that are no numbers: its training diverged")
        members = np.asarray(spec.rows)[rows]
        scores[members], losses[members] = judged.scores[rows], judged.losses[rows]
        missing = set(spec.rows) - set(members.tolist())
        skipped |= {index: failed.get(index, OF_ANOTHER_HOST) for index in sorted(missing)}
        progress(len(spec.rows))
    return scores, losses, skipped
