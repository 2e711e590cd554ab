"""The training step: a pure function of state and batch, and what is static about it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from spp_jax.compilation import BucketExecutables, abstract, placements, replicated
from spp_jax.config import RunConfig
from spp_jax.data.loading import Batch, abstract_batch
from spp_jax.data.records import Records
from spp_jax.models.configured import build_model
from spp_jax.training.losses import Loss, create_loss
from spp_jax.training.optimizers import create_optimizer

__all__ = [
    "Recipe",
    "ScheduleConstants",
    "StepMetrics",
    "TrainState",
    "configured_training",
    "create_training",
    "step_executables",
    "train_step",
]


class ScheduleConstants(NamedTuple):
    """What a run's schedule says to every step. Data, so that one program serves each fold and length.

    Attributes:
        total_updates: of the parameters, after which the learning rate is 0. An int32 scalar.
        mean_batch: pictures per step, averaged over the schedule. A float scalar.
    """

    total_updates: jax.Array
    mean_batch: jax.Array


class TrainState(NamedTuple):
    """All arrays that a step takes from the one before, as a pytree.

    Attributes:
        params: what is learnt.
        stats: the model's other variables, such as running statistics.
        opt_state: of the optimiser; it counts the updates.
        constants: which no step changes.
        average: of the parameters over the steps, by which the model judges; None: it judges by them.
    """

    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState
    constants: ScheduleConstants
    average: nnx.State | None = None

    @property
    def model(self) -> nnx.State:
        """The variables to judge with."""
        return nnx.merge_state(self.params if self.average is None else self.average, self.stats)


class StepMetrics(NamedTuple):
    """Of one batch: sums over its pictures, float32 scalars, and what tells which these were.

    Attributes:
        loss: summed over pictures.
        correct: good pictures judged at least 0.5, and others below.
        pictures: how many were of weight 1.
        grad_norm: of the whole gradient, before it is clipped.
        weights: float32 ``[batch]``, of its rows.
    """

    loss: jax.Array
    correct: jax.Array
    pictures: jax.Array
    grad_norm: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is static about a step.

    Attributes:
        graph: the model's static part.
        loss: what it is trained for.
        optimizer: of its parameters; :attr:`ScheduleConstants.total_updates` is an argument of its update.
        ema: decay of the average of the parameters; None: there is none.
    """

    graph: nnx.GraphDef
    loss: Loss
    optimizer: optax.GradientTransformationExtraArgs
    ema: float | None = None


def create_training(
    model: nnx.Module,
    loss: Loss | str,
    optimizer: optax.GradientTransformation,
    *,
    total_updates: int,
    mean_batch: float,
    ema: float | None = None,
) -> tuple[Recipe, TrainState]:
    """What is static about a training's steps, and the state before the first.

    Args:
        model: from `Padded` images ``[batch, height, width, 3]`` to logits ``[batch, loss.outputs]``; it is
            put into training mode.
        loss: what it is trained for, or the name of one.
        optimizer: of its parameters, from optax. If its update takes ``total_updates``, it is given that.
        total_updates: how many updates of the parameters the training has.
        mean_batch: pictures per step, averaged over the schedule
            (:attr:`spp_jax.data.schedule.Schedule.mean_batch`): by which a batch's summed loss is divided.
        ema: decay of an average of the parameters to judge by; None: it judges by the parameters.

    Raises:
        UsageError: there is no loss of this name.

    Example:
        >>> import optax, spp_jax
        >>> model = spp_jax.create_model("compact", levels=(1,), rngs=nnx.Rngs(0))
        >>> recipe, state = create_training(model, "huber", optax.adam(1e-3), total_updates=10, mean_batch=8)
        >>> int(state.constants.total_updates)
        10
    """
    loss = create_loss(loss) if isinstance(loss, str) else loss
    model.train()
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    constants = ScheduleConstants(jnp.asarray(total_updates, jnp.int32), jnp.asarray(mean_batch, float))
    # Copied: a step is given the whole state for good, and two of its arrays must not be one.
    average = None if ema is None else jax.tree.map(jnp.copy, params)
    recipe = Recipe(graph, loss, optax.with_extra_args_support(optimizer), ema)
    return recipe, TrainState(params, stats, optimizer.init(params), constants, average)


def configured_training(
    config: RunConfig, total_steps: int, mean_batch: float, marks: tuple[float, ...] = ()
) -> tuple[Recipe, TrainState]:
    """:func:`create_training` of the model, loss and optimiser that a configuration names.

    The optimiser is AdamW (Loshchilov and Hutter 2019) or SGD with momentum and decoupled weight decay, with
    clipping, linear warm-up and cosine decay; with accumulation its schedule counts updates.

    Args:
        config: names them.
        total_steps: where the learning rate ends.
        mean_batch: pictures per step, averaged over the schedule.
        marks: of the records' votes.

    Raises:
        UsageError: the configuration names something unknown, or freezes nothing or everything.
    """
    loss = create_loss(config.loss, marks=marks, huber_delta=config.huber_delta, attributes=config.labels)
    model = build_model(config, loss.outputs)
    return create_training(
        model,
        loss,
        create_optimizer(config, nnx.state(model, nnx.Param)),
        total_updates=-(-total_steps // config.accumulate),
        mean_batch=mean_batch,
        ema=config.ema,
    )


def train_step(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    """One step of gradient descent; pure. The recipe is static.

    The batch's losses are summed and divided by the schedule's mean batch, so that every picture weighs the
    same in an epoch whether its bucket's batches are large or small.
    """

    def objective(params: nnx.State) -> tuple[jax.Array, tuple]:
        model: Any = nnx.merge(recipe.graph, params, state.stats, copy=True)
        logits = model(batch.images)
        losses = recipe.loss.of(logits, batch)
        correct = recipe.loss.correct(logits, batch)
        found = batch.weights @ losses
        metrics = found, batch.weights @ correct, batch.weights.sum()
        mean = found / state.constants.mean_batch.astype(found.dtype)
        return mean, (nnx.state(model, nnx.Not(nnx.Param)), metrics)

    grads, (stats, metrics) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = recipe.optimizer.update(
        grads, state.opt_state, state.params, total_updates=state.constants.total_updates
    )
    params: Any = optax.apply_updates(state.params, updates)
    average: Any = state.average
    if recipe.ema is not None:
        average = optax.incremental_update(params, average, 1 - recipe.ema)
    loss, correct, pictures = metrics
    metrics = StepMetrics(loss, correct, pictures, optax.tree.norm(grads), batch.weights)
    return TrainState(params, stats, opt_state, state.constants, average), metrics


def step_executables(
    recipe: Recipe, state: TrainState, mesh: Mesh, records: Records | None = None, fsdp: int | None = None
) -> BucketExecutables:
    """:func:`train_step` as ``(state, batch) -> (state, metrics)``, for any bucket.

    Args:
        recipe: what is static.
        state: or its shapes and dtypes. It is donated: not to be used again after a step.
        mesh: every device has its share of a batch's rows.
        records: whose labels the batches carry; None: a score each.
        fsdp: as :func:`~spp_jax.compilation.placements` takes it, for the state.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return train_step(recipe, state, batch)

    where = placements(state, mesh, fsdp)
    like = abstract(state, where)
    return BucketExecutables(
        step,
        lambda bucket: (like, abstract_batch(bucket, mesh, records)),
        donate_argnums=(0,),
        out_shardings=(where, replicated(mesh)),
    )
