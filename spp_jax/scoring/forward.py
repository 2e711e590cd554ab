"""The forward program: a model in evaluation mode over the batches of a collection."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spp_jax.buckets import BucketPlan
from spp_jax.compilation import BucketExecutables, abstract, placements, replicated
from spp_jax.data.loading import Batch, abstract_batch, load_batches, put
from spp_jax.data.records import Records
from spp_jax.data.schedule import in_order
from spp_jax.training.losses import Loss

__all__ = ["Judged", "forward_executables", "score_records"]


def forward_executables(
    graph: nnx.GraphDef,
    loss: Loss,
    variables: nnx.State,
    mesh: Mesh,
    records: Records | None = None,
    fsdp: int | None = None,
) -> BucketExecutables:
    """The model in evaluation mode, ``(variables, batch) -> Judged``, for any bucket.

    Args:
        graph: the model's static part.
        loss: how its logits are read.
        variables: the others, or their shapes and dtypes.
        mesh: as :func:`spp_jax.compilation.data_mesh` makes it.
        records: whose labels the batches carry; None: a score each.
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
        lambda bucket: (like, abstract_batch(bucket, mesh, records)),
        out_shardings=replicated(mesh),
    )


class Judged(NamedTuple):
    """What a forward program gives, each ``[batch]``, on every host.

    Attributes:
        scores: in [0, 1]; ``[batch, k]`` of k attributes.
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
    """Score every record exactly once; where the records have pairs, once for each pair that it is in.

    Args:
        forward: as :func:`forward_executables` makes it.
        variables: of the model.
        records: pictures.
        plan: buckets that hold them.
        mesh: of ``forward``.
        progress: called with the number of pictures done since the last call.

    Returns:
        Scores, float32 ``[n]`` or ``[n, k]``, and losses, ``[n]``, NaN where unreadable; and the reasons, by
        index.

    Raises:
        DoesNotFitError: a batch needs more memory than the device has.
        FloatingPointError: the score of a picture that was read is no number.
    """
    n = len(records)
    scores, sums, seen = None, np.zeros(n), np.zeros(n)
    skipped: dict[int, str] = {}
    specs = in_order(records.sizes, plan, pairs=records.pair_rows)
    for _ in forward.compile_all(spec.bucket for spec in specs):  # several at a time
        pass
    for loaded in load_batches(records, specs, devices=mesh.size):
        program = forward[loaded.spec.bucket]
        judged = jax.device_get(program.call(variables, put(loaded.batch, mesh)))
        rows, members = loaded.read(judged.weights)
        if not np.isfinite(judged.scores[rows]).all():
            raise FloatingPointError("the model gives scores that are no numbers: its training diverged")
        if scores is None:
            scores = np.full((n, *judged.scores.shape[1:]), np.nan, np.float32)
        scores[members] = judged.scores[rows]
        np.add.at(sums, members, judged.losses[rows])
        np.add.at(seen, members, 1)
        skipped |= loaded.unread(judged.weights)
        progress(len(loaded.spec.rows))
    losses = np.divide(sums, seen, out=np.full(n, np.nan), where=seen > 0).astype(np.float32)
    return np.full(n, np.nan, np.float32) if scores is None else scores, losses, skipped
