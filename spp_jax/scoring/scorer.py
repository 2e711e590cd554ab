"""`Scorer`: a trained model applied to photographs."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spp_jax.addresses import path_at
from spp_jax.buckets import plan_buckets
from spp_jax.checkpoints import Checkpoints
from spp_jax.compilation import data_mesh, replicated
from spp_jax.config import RunConfig, UsageError
from spp_jax.data.decoding import Photo
from spp_jax.data.records import Records, photo_records
from spp_jax.models import SPPNet
from spp_jax.models.configured import build_model
from spp_jax.scoring.forward import forward_executables, score_records, unlabelled
from spp_jax.training.losses import Loss, create_loss

__all__ = ["Scorer"]


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
        self._process = os.getpid()
        self.config = config
        self.min_size = (max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side))
        self.skipped: dict[int, str] = {}
        graph, variables = nnx.split(model)
        self._mesh = data_mesh()
        self._variables = jax.device_put(variables, replicated(self._mesh))
        loss = loss or create_loss(config.loss, huber_delta=config.huber_delta)
        self._forward = forward_executables(
            graph, dataclasses.replace(loss, of=unlabelled), self._variables, self._mesh
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
            about.check_parts()
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
        self._check_process()
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
        self._check_process()
        plan = plan_buckets(records.sizes, **self.config.bucketing)
        records = dataclasses.replace(records, histograms=None)  # labels that scores do not need
        scores, _, skipped = score_records(
            self._forward, self._variables, records, plan, self._mesh, progress
        )
        return scores, skipped

    def _check_process(self) -> None:
        """Raise RuntimeError in a forked child, where JAX's threads are gone and any call would hang."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "a Scorer does not work in a forked child: start processes by multiprocessing's 'spawn' or "
                "'forkserver', and make the Scorer in each; threads may share one"
            )

    def __reduce__(self):
        raise TypeError(
            "a Scorer cannot be pickled, as its programs belong to this process: send the checkpoint's path "
            "and call Scorer.from_checkpoint there"
        )
