"""A trained model applied to photographs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spp_jax.buckets import BucketPlan, plan_buckets
from spp_jax.checkpoints import Checkpoints
from spp_jax.compilation import BucketExecutables, abstract, data_mesh, over_rows, replicated
from spp_jax.config import RunConfig, UsageError
from spp_jax.data.decoding import Photo
from spp_jax.data.loading import abstract_batch, load_batches
from spp_jax.data.records import Records, photo_records
from spp_jax.data.schedule import in_order
from spp_jax.models import SPPNet, create_model
from spp_jax.padded import Padded

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

    def __init__(self, model: SPPNet, config: RunConfig):
        """Take a trained model and the configuration of its run."""
        model.eval()
        self.config = config
        self.min_size = (max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side))
        self.skipped: dict[int, str] = {}
        graph, variables = nnx.split(model)
        self._mesh = data_mesh()
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._forward = forward_executables(graph, self._variables, self._mesh)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Scorer":
        """Load the latest checkpoint of a run's folder.

        Raises:
            UsageError: there is no checkpoint, or it is not one of a run of this version.
        """
        with Checkpoints(Path(path)) as checkpoints:
            config = checkpoints.about().config
            try:
                model = create_model(config.model, levels=config.levels, rngs=nnx.Rngs(0))
            except ValueError as error:
                raise UsageError(f"{path} is no checkpoint of this version of spp_jax: {error}") from None
            graph, variables = nnx.split(model)
            variables = checkpoints.restore_model(variables)
        return cls(nnx.merge(graph, variables), config)

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
        return score_records(self._forward, self._variables, records, plan, self._mesh, progress)


def forward_executables(graph: nnx.GraphDef, variables: nnx.State, mesh: Mesh) -> BucketExecutables:
    """The model in evaluation mode, ``(variables, images) -> scores [batch]``, for any bucket.

    Args:
        graph: the model's static part.
        variables: the others, or their shapes and dtypes.
        mesh: as :func:`spp_jax.compilation.data_mesh` makes it.
    """
    like = abstract(variables, replicated(mesh))

    def forward(variables: nnx.State, images: Padded) -> jax.Array:
        model = nnx.merge(graph, variables, copy=True)
        model.eval()
        return jax.nn.sigmoid(model(images)[:, 0].astype(jnp.float32))

    return BucketExecutables(
        forward,
        lambda bucket: (like, abstract_batch(bucket, mesh).images),
        out_shardings=replicated(mesh),
    )


def score_records(
    forward: BucketExecutables,
    variables: nnx.State,
    records: Records,
    plan: BucketPlan,
    mesh: Mesh,
    progress: Callable[[int], Any] = lambda count: None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Score every record exactly once.

    Args:
        forward: as :func:`forward_executables` makes it.
        variables: of the model.
        records: pictures.
        plan: buckets that hold them.
        mesh: of ``forward``.
        progress: called with the number of pictures done since the last call.

    Returns:
        Scores, float32 ``[n]``, NaN where unreadable; and the reasons, by index.

    Raises:
        DoesNotFitError: a batch needs more memory than the device has.
        FloatingPointError: the score of a picture that was read is no number.
    """
    scores = np.full(len(records), np.nan, np.float32)
    skipped: dict[int, str] = {}
    specs = in_order(records.sizes, plan)
    for _ in forward.compile_all(spec.bucket for spec in specs):  # several at a time
        pass
    for spec, batch, failed in load_batches(records, specs, devices=mesh.size):
        images = jax.device_put(batch.images, over_rows(batch.images, mesh))
        found = np.asarray(forward[spec.bucket].call(variables, images))
        read = [row for row, index in enumerate(spec.rows) if index not in failed]
        if not np.isfinite(found[read]).all():
            raise FloatingPointError("the model gives scores that are no numbers: its training diverged")
        scores[[spec.rows[row] for row in read]] = found[read]
        skipped |= failed
        progress(len(spec.rows))
    return scores, skipped
