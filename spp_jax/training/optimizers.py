"""Optimisers: gradients to updates of the parameters, by what a run's configuration says."""

import fnmatch

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from spp_jax.config import RunConfig
from spp_jax.errors import UsageError

__all__ = ["create_optimizer"]


def create_optimizer(config: RunConfig, params: nnx.State) -> optax.GradientTransformationExtraArgs:
    """Clipping, AdamW or SGD with momentum, decoupled weight decay, linear warm-up and cosine decay.

    Args:
        config: names the optimiser, its rates, and what is frozen.
        params: of the model; their paths are what ``config.freeze`` matches.

    Returns:
        A transformation whose ``update`` also takes ``total_updates``, an int32 scalar: the updates after
        which the learning rate is 0.

    Raises:
        UsageError: a pattern freezes nothing, or together they freeze everything.
    """
    if config.optimizer == "adamw":
        direction = optax.scale_by_adam(config.beta1, config.beta2)
    else:
        direction = optax.trace(config.momentum)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        direction,
        optax.add_decayed_weights(config.weight_decay),
        _scale_by_warmup_cosine(config.learning_rate, config.warmup),
        *(() if config.body_rate == 1 else (_scale_body(config.body_rate),)),
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


def _scale_body(rate: float) -> optax.GradientTransformation:
    """Updates of all parameters but the head's times ``rate``; no state, so checkpoints stay as they are."""

    def scale(path: tuple, leaf: jax.Array) -> jax.Array:
        of_head = jax.tree_util.keystr(path, simple=True, separator="/").startswith("head/")
        return leaf if of_head else leaf * jnp.asarray(rate, leaf.dtype)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _frozen(patterns: tuple[str, ...], params: nnx.State) -> nnx.State:
    """For each parameter, "freeze" or "train"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, _ in leaves]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"freeze {pattern}: no parameter's path is like that; there are {', '.join(names)}", "freeze"
            )
    labels = ["freeze" if any(fnmatch.fnmatch(name, p) for p in patterns) else "train" for name in names]
    if "train" not in labels:
        raise UsageError(f"freeze {' '.join(patterns)}: nothing is left to train", "freeze")
    return jax.tree.unflatten(jax.tree.structure(params), labels)
