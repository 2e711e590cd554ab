"""How a run begins: fresh, from the weights of another network, or from a checkpoint of its own."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from spp_jax.addresses import path_at
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.compilation import placed
from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.layers import RandomState
from spp_jax.models.weights import (
    Imported,
    flat_names,
    from_imagenet,
    from_torchvision,
    read_tensors,
    take_variables,
)
from spp_jax.training import TrainState

__all__ = ["from_checkpoint", "from_weights", "other_records", "training_part"]

_log = logging.getLogger(__name__)


def from_weights(config: RunConfig, state: TrainState) -> TrainState:
    """The state whose variables are another run's, or torchvision's, where they fit.

    Args:
        config: ``init_from`` names them.
        state: fresh; what does not fit stays as it is there.

    Raises:
        UsageError: nothing fits, or the file is of another network.
    """
    source = str(config.init_from)
    imported, found = _variables(source, config)
    random, stats = nnx.split_state(state.stats, RandomState, ...)
    begun = nnx.merge_state(state.params, stats)
    merged, taken, left = take_variables(begun, found)
    misfits = [name for name in left if name.startswith("body/") and name in found]
    if misfits and imported:
        pure = nnx.to_pure_dict(begun)
        ours = dict(zip(flat_names(pure), jax.tree.leaves(pure), strict=True))
        raise UsageError(
            f"init_from {source}: another network's of the same names: {misfits[0]} has shape "
            f"{found[misfits[0]].shape} there, and {ours[misfits[0]].shape} here",
            "init_from",
        )
    if not taken:
        raise UsageError(
            f"init_from {source}: no variable there has path and shape of one of {config.model}", "init_from"
        )
    more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""  # all that is not left is taken
    _log.info(f"taken from {source}: {', '.join(taken[:3])}{more}")
    if left:
        _log.info(f"left as they begin, as they are not there in this shape: {', '.join(left)}")
    params, stats = nnx.split_state(merged, nnx.Param, ...)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    fresh = state._replace(params=params, stats=nnx.merge_state(stats, random), average=average)
    return placed(fresh, jax.tree.map(lambda x: x.sharding, state))


def _variables(source: str, config: RunConfig) -> tuple[Imported | None, dict]:
    """What a package, a file or a run offers, by path; of all but a run also what of it has no place here."""
    if source == "imagenet":
        imported = from_imagenet(config.model, config.levels)
        return imported, imported.variables
    if Path(source).suffix not in (".pth", ".pt", ".safetensors"):
        with Checkpoints(path_at(source)) as checkpoints:
            return None, checkpoints.model_variables()
    imported = from_torchvision(config.model, read_tensors(source), config.levels)
    for what, names in (("has no place here", imported.unused), ("is missing there", imported.missing)):
        if names:
            _log.info(f"{source}: {', '.join(names)} {what}")
    return imported, imported.variables


def from_checkpoint(checkpoints: Checkpoints, about: About, like: TrainState) -> tuple[int, TrainState]:
    """The steps done, and the state, of a run's newest checkpoint.

    Args:
        checkpoints: of the run.
        about: what the run would say of itself now.
        like: a state of the same shapes and places, such as the fresh one.

    Raises:
        UsageError: there is none, it is damaged, or it was trained on other records.
    """
    saved = checkpoints.about()
    if saved.records != about.records:
        raise other_records(checkpoints.folder)
    saved.check_parts()
    merged = checkpoints.restore_model(like.model)
    judging, stats = nnx.split_state(merged, nnx.Param, ...)
    start = checkpoints.latest_step()
    assert start is not None  # restore_model would have said so
    opt_state, params = checkpoints.restore_training(training_part(like))
    state = like._replace(params=judging, stats=stats, opt_state=opt_state)
    return start, state if params is None else state._replace(params=params, average=judging)


def training_part(state: TrainState) -> tuple:
    """What only going on needs: the optimiser's state, and the parameters where others are judged by."""
    return state.opt_state, None if state.average is None else state.params


def other_records(folder: Path) -> UsageError:
    """The error of going on with a run whose data set has changed."""
    return UsageError(
        f"{folder} was trained on other records: the data set has changed since. "
        "Train anew in another folder (out)",
        "out",
    )
