"""The network that a run's configuration describes."""

import jax.numpy as jnp
from flax import nnx

from spp_jax.config import RunConfig, UsageError
from spp_jax.models import SPPNet, create_model

__all__ = ["build_model"]


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
