"""The loop: a step's programs over a schedule of batches."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from spp_jax.compilation import BucketExecutables
from spp_jax.data.loading import load_batches, put
from spp_jax.data.records import Records
from spp_jax.data.schedule import Schedule
from spp_jax.training.step import TrainState

__all__ = ["fit"]


def fit(
    executables: BucketExecutables,
    state: TrainState,
    records: Records,
    schedule: Schedule,
    mesh: Mesh,
    *,
    start: int,
    stop: int,
    after_step: Callable[[int, TrainState, dict[str, Any]], bool],
) -> TrainState:
    """Run steps ``start`` to ``stop - 1``.

    Args:
        executables: of the step, as :func:`step_executables` makes them.
        state: before step ``start``; donated, not to be used again.
        records: what the schedule draws from.
        schedule: which batch each step takes.
        mesh: of ``executables``.
        start: the first step, counted from 0.
        stop: one past the last.
        after_step: called with the number of steps done, the state, and of the step its mean
            ``loss`` and ``accuracy``, the ``grad_norm``, the ``pictures`` it saw and those that
            ``failed`` (reason by index); training ends early where it returns True. It must not keep
            the state.

    Returns:
        The state after the last step that ran.

    Raises:
        FloatingPointError: a loss or a gradient is not finite; names the step, its bucket and its pictures.
    """
    batches = load_batches(records, schedule.steps(start, stop), devices=mesh.size)
    for done, loaded in enumerate(batches, start + 1):
        spec, on_device = loaded.spec, put(loaded.batch, mesh)
        with jax.transfer_guard("disallow"):
            state, sums = executables[spec.bucket].call(state, on_device)
        *sums, weights = jax.device_get(sums)
        loss, correct, pictures, grad_norm = map(float, sums)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            names = ", ".join(records.ids[index] for index in spec.rows)
            what, found = ("gradient's norm", grad_norm) if math.isfinite(loss) else ("loss", loss)
            raise FloatingPointError(
                f"the {what} of step {done} is {found} (bucket {spec.bucket}, pictures "
                f"{names}): lower learning_rate; the checkpoints before it stand"
            )
        metrics = {
            "loss": loss / max(pictures, 1),
            "accuracy": correct / max(pictures, 1),
            "grad_norm": grad_norm,
            "pictures": int(pictures),
            "failed": loaded.unread(weights),
        }
        if after_step(done, state, metrics):
            break
    return state
