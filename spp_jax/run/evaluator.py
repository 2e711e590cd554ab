"""The evaluator: scores a run's validation and test parts, with the parameters of the moment."""

from collections.abc import Callable

import numpy as np

from spp_jax.data.records import Records
from spp_jax.data.schedule import pair_sizes
from spp_jax.errors import UsageError
from spp_jax.run.job import Job
from spp_jax.scoring.forward import forward_executables, score_records
from spp_jax.training import Recipe, TrainState

__all__ = ["Evaluator"]


class Evaluator:
    """Scores the parts that are not trained on, in the buckets of the run.

    Attributes:
        forward: the forward program, by bucket.
        buckets: those that validation and test need.
    """

    def __init__(
        self, recipe: Recipe, state: TrainState, job: Job, fsdp: int | None, check: Callable[..., None]
    ):
        """Make the programs; none is compiled yet.

        Args:
            recipe: how the run trains and judges.
            state: or its shapes and dtypes.
            job: whose buckets are used.
            fsdp: as :func:`~spp_jax.compilation.placements` takes it.
            check: called after each batch; what it raises breaks the scoring off.
        """
        self._check = check
        self._plan, self._mesh = job.schedule.plan, job.mesh
        self.forward = forward_executables(
            recipe.graph, recipe.loss, state.model, job.mesh, job.parts["train"], fsdp
        )
        parts = [job.parts[split] for split in ("validation", "test")]
        judged = np.concatenate([pair_sizes(part.sizes, part.pair_rows) for part in parts])
        self.buckets = tuple(
            job.schedule.plan.buckets[i] for i in np.unique(job.schedule.plan.assign(judged))
        )

    def score(self, state: TrainState, records: Records) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        """Scores and losses as :func:`score_records` gives them, and by id why a picture has none.

        Raises:
            UsageError: not one could be read.
        """
        scores, losses, failed = score_records(
            self.forward, state.model, records, self._plan, self._mesh, self._check
        )
        if len(failed) == len(records):
            raise UsageError(f"not one of the {len(records)} photographs to judge by could be read")
        return scores, losses, {records.ids[index]: reason for index, reason in failed.items()}

    def validate(self, state: TrainState, records: Records) -> tuple[dict, np.ndarray, dict[str, str]]:
        """The figures, the scores, and what could not be read."""
        scores, losses, failed = self.score(state, records)
        figures = records.agreement(scores).to_dict()
        return {"loss": float(np.nanmean(losses)), **figures}, scores, failed
