"""Training: the pure step, optimisers, losses and the loop. Arrays and schedules; no files."""

from spp_jax.training.loop import fit
from spp_jax.training.losses import Loss, create_loss, list_losses
from spp_jax.training.step import (
    Recipe,
    ScheduleConstants,
    StepMetrics,
    TrainState,
    configured_training,
    create_training,
    step_executables,
    train_step,
)

__all__ = [
    "Loss",
    "Recipe",
    "ScheduleConstants",
    "StepMetrics",
    "TrainState",
    "configured_training",
    "create_loss",
    "create_training",
    "fit",
    "list_losses",
    "step_executables",
    "train_step",
]
