"""The network that a run's configuration describes."""

import ast
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.layers import SpatialPyramidPool
from spp_jax.models import MODELS, create_model
from spp_jax.models.abstract import without_values
from spp_jax.pooling import reductions
from spp_jax.pooling.bins import rule_named
from spp_jax.registry import Registry

__all__ = ["REDUCTIONS", "abstract_model", "build_model", "model_options"]

REDUCTIONS: Registry[Any] = Registry("reduction", reductions.REDUCTIONS, argument="reduce")
"""What a configuration's ``reduce`` names; in Python a reduction is passed as it is."""
_GIVEN = ("levels", "outputs", "rngs")  # to every network


def build_model(config: RunConfig, outputs: int, rngs: nnx.Rngs | None = None) -> Any:
    """The network of a run, as it is before training.

    Args:
        config: of the run.
        outputs: of its head.
        rngs: what initial values are drawn from; None: the configuration's seed.

    Raises:
        UsageError: there is no such model, or not with these levels or options.
    """
    options = model_options(config)
    rngs = nnx.Rngs(config.seed) if rngs is None else rngs
    try:
        model = create_model(config.model, levels=config.levels, outputs=outputs, rngs=rngs, **options)
        if config.rule != RunConfig.rule:
            _cut_by(config.rule, model)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"model {config.model}: {error}", "model", "levels", "rule") from None
    return model


def abstract_model(config: RunConfig, outputs: int) -> Any:
    """The network of a run without values: each variable is a `jax.ShapeDtypeStruct`.

    Args:
        config: of the run.
        outputs: of its head.

    Raises:
        UsageError: as :func:`build_model` does.

    Example::

        graph, variables = nnx.split(abstract_model(config, 1))
    """
    return without_values(lambda rngs: build_model(config, outputs, rngs))


def _cut_by(rule: str, model: nnx.Module) -> None:
    """Have every pyramid of a network cut its bins by this rule: there are as many, elsewhere."""
    rule_named(rule)
    pools = [module for _, module in nnx.iter_modules(model) if isinstance(module, SpatialPyramidPool)]
    if not pools:
        raise UsageError(f"rule {rule}: this network has no spp_jax.SpatialPyramidPool", "rule")
    for pool in pools:
        pool.rule = rule


def _reduction(name: str) -> Any:
    """A reduction by name; of a class, an instance as it begins."""
    found = REDUCTIONS[name]
    return found() if isinstance(found, type) else found


def model_options(config: RunConfig) -> dict[str, Any]:
    """What a network is given besides levels, outputs and random numbers, typed by its own signature.

    ``dtype`` and ``remat`` of the configuration go to a network that has them, and must be left at their
    defaults for one that has not.

    Raises:
        UsageError: it has no option of that name, or none that takes such a value.
    """
    function = MODELS[config.model]
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except NameError:  # annotations that only a type checker can read
        parameters = inspect.signature(function).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    own = [name for name, p in parameters.items() if name not in _GIVEN and p.kind is not p.VAR_KEYWORD]
    found: dict[str, Any] = {}
    asked = {"dtype": None if config.dtype == "float32" else jnp.dtype(config.dtype), "remat": config.remat}
    for name, value in asked.items():
        if name in parameters or anything:
            found[name] = value
        elif value:
            raise UsageError(f"{name}: the model {config.model} has no such option", name)
    if config.reduce and not ("reduce" in parameters or anything):
        raise UsageError(f"reduce: the model {config.model} has no such option", "reduce")
    if config.reduce:
        found["reduce"] = tuple(map(_reduction, config.reduce))
    if config.recipe == "finetune" and "freeze_norm" in parameters:
        found["freeze_norm"] = True
    for text in config.model_options:
        name, equals, value = text.partition("=")
        if not equals or not (name in own or anything):
            raise UsageError(
                f"model_options {text}: expected NAME=VALUE; {config.model} has {', '.join(own)}"
            )
        found[name] = _typed(text, value, parameters[name].annotation if name in parameters else Any)
    return found


def _typed(text: str, value: str, hint: Any) -> Any:
    """The value as Python writes it, where the annotation allows that; else as text."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        read = value
    if isinstance(read, list):
        read = tuple(read)
    if _fits(read, hint):
        return float(read) if hint is float and not isinstance(read, tuple) else read
    if _fits(value, hint):
        return value
    wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    raise UsageError(f"model_options {text}: must be of type {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is what an annotation says; what it says in other words fits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, inspect.Parameter.empty):
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence) and not issubclass(origin, str):
        items = (each for each in inner if each is not ...)
        kinds = list(items) or [Any]
        return isinstance(value, tuple) and all(any(_fits(v, kind) for kind in kinds) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    return origin is not Callable
