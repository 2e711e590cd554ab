"""Training: a pure step, and the loop that runs it over a schedule."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from spp_jax.compilation import BucketExecutables, abstract, placements, replicated
from spp_jax.config import RunConfig, UsageError
from spp_jax.data.loading import OF_ANOTHER_HOST, Batch, abstract_batch, load_batches, put
from spp_jax.data.records import Records
from spp_jax.data.schedule import Schedule
from spp_jax.losses import Loss, create_loss
from spp_jax.models import SPPNet, create_model

__all__ = [
    "Recipe",
    "ScheduleConstants",
    "StepMetrics",
    "TrainState",
    "build_model",
    "create_training",
    "fit",
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


def build_model(config: RunConfig, outputs: int) -> SPPNet:
    """The network of a run, as it is before training.

    Raises:
        UsageError: there is no such model, or not with these levels.
    """
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    try:
        return create_model(
            config.model,
            levels=config.levels,
            outputs=outputs,
            dtype=dtype,
            remat=config.remat,
            rngs=nnx.Rngs(config.seed),
        )
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from None


def create_training(
    config: RunConfig, total_steps: int, mean_batch: float, marks: tuple[float, ...] = ()
) -> tuple[Recipe, TrainState]:
    """What is static about a run's steps, and the state before the first.

    The optimiser is AdamW (Loshchilov and Hutter 2019) or SGD with momentum and decoupled weight decay, with
    clipping, linear warm-up and cosine decay; with accumulation its schedule counts updates.

    Args:
        config: of the run.
        total_steps: where the learning rate ends.
        mean_batch: pictures per step, averaged over the schedule.
        marks: of the records' votes.

    Raises:
        UsageError: the configuration names something unknown, or freezes nothing or everything.
    """
    loss = create_loss(config.loss, marks=marks, huber_delta=config.huber_delta)
    model = build_model(config, loss.outputs)
    model.train()
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    optimizer = _optimizer(config, params)
    constants = ScheduleConstants(
        jnp.asarray(-(-total_steps // config.accumulate), jnp.int32), jnp.asarray(mean_batch, float)
    )
    # Copied: a step is given the whole state for good, and two of its arrays must not be one.
    average = None if config.ema is None else jax.tree.map(jnp.copy, params)
    recipe = Recipe(graph, loss, optimizer, config.ema)
    return recipe, TrainState(params, stats, optimizer.init(params), constants, average)


def _optimizer(config: RunConfig, params: nnx.State) -> optax.GradientTransformationExtraArgs:
    if config.optimizer == "adamw":
        direction = optax.scale_by_adam(config.beta1, config.beta2)
    else:
        direction = optax.trace(config.momentum)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        direction,
        optax.add_decayed_weights(config.weight_decay),
        _scale_by_warmup_cosine(config.learning_rate, config.warmup),
    )
    if config.freeze:
        labels = _frozen(config.freeze, params)
        optimizer = optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)
    if config.accumulate > 1:
        multi = optax.MultiSteps(optimizer, config.accumulate)
        optimizer = optax.GradientTransformationExtraArgs(multi.init, multi.update)  # pyright: ignore
    return optax.with_extra_args_support(optimizer)


def _scale_by_warmup_cosine(peak: float, warmup: float) -> optax.GradientTransformationExtraArgs:
    """Descent at the rate of ``optax.warmup_cosine_decay_schedule``, whose lengths cannot be arrays."""

    def update(updates, state, params=None, *, total_updates: jax.Array, **_):
        warm = jnp.minimum(jnp.round(warmup * total_updates), total_updates - 1)
        done = jnp.clip((state.count - warm) / (total_updates - warm), 0, 1)
        rate = peak * jnp.where(
            state.count < warm, state.count / jnp.maximum(warm, 1), (1 + jnp.cos(jnp.pi * done)) / 2
        )
        scaled = jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)),
        update,  # pyright: ignore[reportArgumentType]  # which has no type for those that need more
    )


def _frozen(patterns: tuple[str, ...], params: nnx.State) -> nnx.State:
    """For each parameter, "freeze" or "train"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, _ in leaves]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"--freeze {pattern}: no parameter's path is like that; there are {', '.join(names)}"
            )
    labels = ["freeze" if any(fnmatch.fnmatch(name, p) for p in patterns) else "train" for name in names]
    if "train" not in labels:
        raise UsageError(f"--freeze {' '.join(patterns)}: nothing is left to train")
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def train_step(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    """One step of gradient descent; pure. The recipe is static.

    The batch's losses are summed and divided by the schedule's mean batch, so that every picture weighs the
    same in an epoch whether its bucket's batches are large or small.
    """

    def objective(params: nnx.State) -> tuple[jax.Array, tuple]:
        model: Any = nnx.merge(recipe.graph, params, state.stats, copy=True)
        logits = model(batch.images)
        losses = recipe.loss.of(logits, batch)
        correct = (recipe.loss.score(logits) >= 0.5) == batch.good
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
    recipe: Recipe, state: TrainState, mesh: Mesh, marks: int = 0, fsdp: int | None = None
) -> BucketExecutables:
    """:func:`train_step` as ``(state, batch) -> (state, metrics)``, for any bucket.

    Args:
        recipe: what is static.
        state: or its shapes and dtypes. It is donated: not to be used again after a step.
        mesh: every device has its share of a batch's rows.
        marks: of the records' histograms, where they have them.
        fsdp: as :func:`~spp_jax.compilation.placements` takes it, for the state.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return train_step(recipe, state, batch)

    where = placements(state, mesh, fsdp)
    like = abstract(state, where)
    return BucketExecutables(
        step,
        lambda bucket: (like, abstract_batch(bucket, mesh, marks)),
        donate_argnums=(0,),
        out_shardings=(where, replicated(mesh)),
    )


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
    for done, (spec, batch, failed) in enumerate(batches, start + 1):
        on_device = put(batch, mesh)
        with jax.transfer_guard("disallow"):
            state, sums = executables[spec.bucket].call(state, on_device)
        *sums, weights = jax.device_get(sums)
        loss, correct, pictures, grad_norm = map(float, sums)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            names = ", ".join(records.ids[index] for index in spec.rows)
            what, found = ("gradient's norm", grad_norm) if math.isfinite(loss) else ("loss", loss)
            raise FloatingPointError(
                f"the {what} of step {done} is {found} (bucket {spec.bucket}, pictures "
                f"{names}): lower --learning-rate; the checkpoints before it stand"
            )
        metrics = {
            "loss": loss / max(pictures, 1),
            "accuracy": correct / max(pictures, 1),
            "grad_norm": grad_norm,
            "pictures": int(pictures),
            "failed": {
                index: failed.get(index, OF_ANOTHER_HOST)
                for index, weight in zip(spec.rows, weights, strict=False)
                if not weight
            },
        }
        if after_step(done, state, metrics):
            break
    return state
