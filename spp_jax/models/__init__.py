"""Backbones by name. A new one is a file in this folder and a line in the table."""

import functools
from collections.abc import Callable, Sequence

from flax import nnx

from spp_jax.models.alexnet import alexnet
from spp_jax.models.compact import compact
from spp_jax.models.efficientnet_lite import efficientnet_lite
from spp_jax.models.resnet import resnet18, resnet50
from spp_jax.models.sppnet import SPPNet
from spp_jax.models.vgg import mna, vgg16
from spp_jax.models.zf5 import zf5
from spp_jax.pooling import Level

__all__ = ["SPPNet", "create_model", "list_models"]

_MODELS: dict[str, Callable[..., SPPNet]] = {
    "alexnet": alexnet,
    "compact": compact,
    "efficientnet_lite0": functools.partial(efficientnet_lite, "efficientnet_lite0"),
    "efficientnet_lite1": functools.partial(efficientnet_lite, "efficientnet_lite1"),
    "efficientnet_lite2": functools.partial(efficientnet_lite, "efficientnet_lite2"),
    "mna": mna,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "zf5": zf5,
}


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return sorted(_MODELS)


def create_model(
    name: str, *, levels: Sequence[Level] = (1, 2, 4), outputs: int = 1, rngs: nnx.Rngs, **options
) -> SPPNet:
    """Make a network that takes images of any size, at their own size.

    Args:
        name: one of :func:`list_models`.
        levels: the pyramid before the head; an int, or (rows, columns), per level.
        outputs: how many logits.
        rngs: for the initial parameters.
        options: the model's own; each is documented by the function of that name.

    Returns:
        A Flax NNX module: a `Padded` batch (or a plain array, of which every cell is real) to logits
        ``[batch, outputs]``.

    Raises:
        ValueError: the name is unknown, or ``levels`` is malformed.
        TypeError: an option that the model does not have.
    """
    if name not in _MODELS:
        raise ValueError(f"model {name!r} is unknown; known are {', '.join(list_models())}")
    return _MODELS[name](levels=levels, outputs=outputs, rngs=rngs, **options)
