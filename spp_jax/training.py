"""Training: the loss, a pure step, and the loop that runs it over a schedule."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from spp_jax.compilation import BucketExecutables, abstract, over_rows, replicated
from spp_jax.config import RunConfig
from spp_jax.data.loading import Batch, abstract_batch, load_batches
from spp_jax.data.records import Records
from spp_jax.data.schedule import Schedule
from spp_jax.models import create_model

__all__ = [
    "StepMetrics",
    "TrainState",
    "create_optimizer",
    "create_state",
    "fit",
    "score_loss",
    "step_executables",
    "train_step",
]


class TrainState(NamedTuple):
    """Everything that a step changes, as a pytree.

    Attributes:
        params: what is learnt.
        stats: the model's other variables, such as running statistics.
        opt_state: of the optimiser; it counts the steps.
    """

    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """Sums over the pictures of one batch, float32 scalars.

    Attributes:
        loss: summed over pictures.
        correct: good pictures judged at least 0.5, and others below.
        pictures: how many were of weight 1.
    """

    loss: jax.Array
    correct: jax.Array
    pictures: jax.Array


def score_loss(logits: jax.Array, scores: jax.Array) -> jax.Array:
    """Cross-entropy between the judged and the true probability of being good, per picture.

    Args:
        logits: float ``[batch]``.
        scores: float ``[batch]`` in [0, 1].

    Raises:
        ValueError: the shapes are not equal ``[batch]``: broadcasting would hide a mistake.
    """
    if logits.shape != scores.shape or logits.ndim != 1:
        raise ValueError(f"logits {logits.shape} and scores {scores.shape} must both be [batch]")
    return optax.sigmoid_binary_cross_entropy(logits, scores)


def create_optimizer(config: RunConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) with clipping, linear warm-up and cosine decay."""
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(round(config.warmup * total_steps), total_steps - 1),
        decay_steps=total_steps,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, weight_decay=config.weight_decay),
    )


def create_state(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's static part, and the state before the first step."""
    model = create_model(config.model, levels=config.levels, rngs=nnx.Rngs(config.seed))
    model.train()
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    return graph, TrainState(params, stats, optimizer.init(params))


def train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mean_batch: float,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, StepMetrics]:
    """One step of gradient descent; pure. The first three arguments are static.

    The batch's losses are summed and divided by ``mean_batch``, the schedule's constant, so that every
    picture weighs the same in an epoch whether its bucket's batches are large or small.
    """

    def objective(params: nnx.State):
        model = nnx.merge(graph, params, state.stats, copy=True)
        logits = model(batch.images)[:, 0]
        losses = score_loss(logits, batch.scores)
        correct = (logits >= 0) == batch.good
        metrics = StepMetrics(batch.weights @ losses, batch.weights @ correct, batch.weights.sum())
        return metrics.loss / mean_batch, (nnx.state(model, nnx.Not(nnx.Param)), metrics)

    grads, (stats, metrics) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(params, stats, opt_state), metrics


def step_executables(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mean_batch: float,
    state: TrainState,
    mesh: Mesh,
) -> BucketExecutables:
    """:func:`train_step` as ``(state, batch) -> (state, metrics)``, for any bucket.

    Args:
        graph: the model's static part.
        optimizer: of its parameters.
        mean_batch: the schedule's constant.
        state: or its shapes and dtypes. It is donated: not to be used again after a step.
        mesh: every device has the whole state and its share of a batch's rows.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return train_step(graph, optimizer, mean_batch, state, batch)

    like = abstract(state, replicated(mesh))
    return BucketExecutables(
        step,
        lambda bucket: (like, abstract_batch(bucket, mesh)),
        donate_argnums=(0,),
        out_shardings=replicated(mesh),
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
            ``loss`` and ``accuracy``, the ``pictures`` it saw and those that ``failed`` (reason by
            index); training ends early where it returns True. It must not keep the state.

    Returns:
        The state after the last step that ran.

    Raises:
        FloatingPointError: a loss is not finite; names the step, its bucket and its pictures.
    """
    batches = load_batches(records, schedule.steps(start, stop), devices=mesh.size)
    for done, (spec, batch, failed) in enumerate(batches, start + 1):
        on_device = jax.device_put(batch, over_rows(batch, mesh))
        with jax.transfer_guard("disallow"):
            state, sums = executables[spec.bucket].call(state, on_device)
        loss, correct, pictures = map(float, jax.device_get(sums))
        if not math.isfinite(loss):
            names = ", ".join(records.ids[index] for index in spec.rows)
            raise FloatingPointError(
                f"the loss of step {done} is {loss} (bucket {spec.bucket}, pictures "
                f"{names}): lower --learning-rate; the checkpoints before it stand"
            )
        metrics = {
            "loss": loss / max(pictures, 1),
            "accuracy": correct / max(pictures, 1),
            "pictures": int(pictures),
            "failed": failed,
        }
        if after_step(done, state, metrics):
            break
    return state
