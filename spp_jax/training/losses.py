"""Losses: from logits and labels to one number a picture; and from logits to the score that is judged.

A new one is a function here and a line in the table, or ``file.py:function`` of one's own. All are pure, take
no mean (a step weighs pictures by :attr:`Batch.weights`), compute in float32 at least, and refuse shapes that
broadcasting would hide.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from spp_jax.data.loading import Batch
from spp_jax.errors import UsageError
from spp_jax.registry import Registry

__all__ = ["LOSSES", "Loss", "create_loss", "list_losses"]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a network is trained for, and how its logits are read.

    Attributes:
        outputs: logits per picture.
        of: ``(logits [batch, outputs], batch) -> [batch]``, whatever the weights are.
        score: ``logits [batch, outputs] -> [batch]``, in [0, 1]; at least 0.5 is judged good.
    """

    outputs: int
    of: Callable[[jax.Array, Batch], jax.Array]
    score: Callable[[jax.Array], jax.Array]


def create_loss(name: str, *, marks: Sequence[float] = (), huber_delta: float = 0.1) -> Loss:
    """A loss by name.

    Args:
        name: one of :func:`list_losses`, or ``file.py:thing`` of one's own: a :class:`Loss`, or a function
            that is given ``marks`` and ``huber_delta`` and returns one.
        marks: the score that each mark stands for, worst first; empty where the records have no votes.
        huber_delta: of ``huber``: the error, in scores, from which it grows linearly.

    Raises:
        UsageError: the name is unknown, or the loss needs votes and there are none.
    """
    found = LOSSES[name]
    return found if isinstance(found, Loss) else found(marks=tuple(marks), huber_delta=huber_delta)


def list_losses() -> list[str]:
    """The names that :func:`create_loss` takes."""
    return list(LOSSES)


def _cross_entropy(marks: tuple[float, ...], huber_delta: float) -> Loss:
    """Between the judged probability of being good and the score, taken for the true one."""
    return Loss(1, lambda logits, batch: _binary(logits, batch.scores), _sigmoid)


def _good(marks: tuple[float, ...], huber_delta: float) -> Loss:
    """Binary cross-entropy on what the source calls good."""
    return Loss(1, lambda logits, batch: _binary(logits, batch.good), _sigmoid)


def _huber(marks: tuple[float, ...], huber_delta: float) -> Loss:
    """Regression on the score (Huber 1964): squared errors below delta, absolute ones above."""

    def of(logits: jax.Array, batch: Batch) -> jax.Array:
        _check(logits, (len(logits), 1), "scores", batch.scores, (len(logits),))
        return optax.huber_loss(_sigmoid(logits), _wide(batch.scores), delta=huber_delta)

    return Loss(1, of, _sigmoid)


def _emd(marks: tuple[float, ...], huber_delta: float) -> Loss:
    """Squared earth mover's distance between the judged and the true shares of votes.

    Hou, Yu, Samaras 2016 (arXiv:1611.05916), equation 5; NIMA (Talebi and Milanfar 2018, arXiv:1709.05424,
    equation 1 with r = 2) trains on its root. The score is the mean of the marks.
    """
    if not marks:
        raise UsageError("loss emd needs a data set with votes, such as ava or koniq10k", "loss")
    values = jnp.asarray(marks)

    def of(logits: jax.Array, batch: Batch) -> jax.Array:
        expected = (len(logits), len(marks))
        _check(logits, expected, "histograms", batch.histograms, expected)
        assert batch.histograms is not None
        ahead = jnp.cumsum(jax.nn.softmax(_wide(logits)) - _wide(batch.histograms), axis=-1)
        return (ahead**2).mean(axis=-1)

    def score(logits: jax.Array) -> jax.Array:
        shares = jax.nn.softmax(_wide(logits))
        return (shares * values.astype(shares.dtype)).sum(axis=-1)

    return Loss(len(marks), of, score)


def _binary(logits: jax.Array, labels: jax.Array) -> jax.Array:
    _check(logits, (len(logits), 1), "labels", labels, (len(logits),))
    return optax.sigmoid_binary_cross_entropy(_wide(logits[:, 0]), _wide(labels))


def _sigmoid(logits: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(_wide(logits[:, 0]))


def _wide(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _check(logits: jax.Array, expected: tuple, name: str, labels: jax.Array | None, shape: tuple) -> None:
    found = None if labels is None else labels.shape
    if logits.shape != expected or found != shape:
        raise ValueError(
            f"logits {logits.shape} and {name} {found} must be {expected} and {shape}: broadcasting would "
            "hide a mistake"
        )


LOSSES: Registry[Loss | Callable[..., Loss]] = Registry(
    "loss",
    {"cross_entropy": _cross_entropy, "good": _good, "huber": _huber, "emd": _emd},
    argument="loss",
)
"""Losses, or functions ``(marks, huber_delta) -> Loss``."""
