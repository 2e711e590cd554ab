"""Networks by name, ours or anybody's. A new one is a file; ``file.py:function`` names it, or the table."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from spp_jax.models.sppnet import SPPNet
from spp_jax.pooling import Level
from spp_jax.registry import Registry

__all__ = ["MODELS", "SPPNet", "create_model", "list_models"]

MODELS: Registry[Callable[..., Any]] = Registry(
    "model",
    {
        "alexnet": "spp_jax.models.alexnet:alexnet",
        "compact": "spp_jax.models.compact:compact",
        **{
            f"efficientnet_lite{n}": f"spp_jax.models.efficientnet_lite:efficientnet_lite{n}"
            for n in range(3)
        },
        "mna": "spp_jax.models.vgg:mna",
        "resnet18": "spp_jax.models.resnet:resnet18",
        "resnet50": "spp_jax.models.resnet:resnet50",
        "vgg16": "spp_jax.models.vgg:vgg16",
        "zf5": "spp_jax.models.zf5:zf5",
    },
    argument="model",
)
"""Functions from ``levels``, ``outputs``, ``rngs`` and options of their own to a network; what is imported is
what is used."""


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return list(MODELS)


def create_model(
    name: str, *, levels: Sequence[Level] = (1, 2, 4), outputs: int = 1, rngs: nnx.Rngs, **options
) -> Any:
    """Make a network that takes images of any size, at their own size.

    Args:
        name: one of :func:`list_models`, or ``module:function`` or ``file.py:function`` of one's own.
        levels: the pyramid before the head; an int, or (rows, columns), per level.
        outputs: how many logits.
        rngs: for the initial parameters.
        options: the model's own; each is documented by the function of that name.

    Returns:
        A Flax NNX module: a `Padded` batch (or a plain array, of which every cell is real) to logits
        ``[batch, outputs]``.

    Raises:
        UsageError: a `ValueError`; the name is unknown.
        ValueError: ``levels`` is malformed.
        TypeError: an option that the model does not have.
    """
    return MODELS[name](levels=levels, outputs=outputs, rngs=rngs, **options)
