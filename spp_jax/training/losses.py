"""Losses: from logits and labels to one number a picture; and from logits to the score that is judged.

A new one is a function here and a line in the table, or ``file.py:function`` of one's own. All are pure, take
no mean (a step weighs pictures by :attr:`Batch.weights`), compute in float32 at least, and refuse shapes that
broadcasting would hide.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

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
        of: ``(logits [batch, outputs], batch) -> [batch]``, whatever the weights are; 0 of a row without
            the labels that it needs.
        score: ``logits [batch, outputs] -> [batch]``, or ``[batch, k]`` of k attributes, in [0, 1]; at least
            0.5 is judged good.
        needs: labels that :attr:`of` reads: ``score``, ``pairs`` or names of
            :attr:`~spp_jax.data.records.Records.labels`. A batch carries no others but the scores.
        right: ``(logits, batch) -> [batch]``, the share of a row's labels that were judged rightly; None:
            of its attributes, those judged good that are good, and the others not.
    """

    outputs: int
    of: Callable[[jax.Array, Batch], jax.Array]
    score: Callable[[jax.Array], jax.Array]
    needs: tuple[str, ...] = ("score",)
    right: Callable[[jax.Array, Batch], jax.Array] | None = None

    def correct(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The share of each row's labels that were judged rightly: float ``[batch]``, 0 where it has none."""
        if self.right is not None:
            return self.right(logits, batch)
        return _mean_of_known((self.score(logits) >= 0.5) == batch.good, batch.scores)


def create_loss(
    name: str, *, marks: Sequence[float] = (), huber_delta: float = 0.1, attributes: Sequence[str] = ()
) -> Loss:
    """A loss by name.

    Args:
        name: one of :func:`list_losses`, or ``file.py:thing`` of one's own: a :class:`Loss`, or a function
            that returns one and takes any of ``marks``, ``huber_delta`` and ``outputs``; or several with
            ``+`` between them: their sum, whose score is the first one's.
        marks: the score that each mark stands for, worst first; empty where the records have no votes.
        huber_delta: of ``huber``: the error, in scores, from which it grows linearly.
        attributes: of the scores; a network has an output for each. Empty: there is one.

    Raises:
        UsageError: the name is unknown, the loss needs votes and there are none, it cannot judge several
            attributes, or losses of other numbers of outputs are to be added.
    """
    given = {"marks": tuple(marks), "huber_delta": huber_delta, "outputs": max(1, len(attributes))}
    losses = [_made(LOSSES[part], given) for part in name.split("+")]
    first = losses[0]
    if len(losses) == 1:
        return first
    if any(loss.outputs != first.outputs for loss in losses):
        raise UsageError(
            f"loss {name} adds losses of {', '.join(str(loss.outputs) for loss in losses)} outputs, which "
            "must be as many",
            "loss",
        )

    def of(logits: jax.Array, batch: Batch) -> jax.Array:
        return sum((loss.of(logits, batch) for loss in losses[1:]), first.of(logits, batch))

    needs = tuple(dict.fromkeys(need for loss in losses for need in loss.needs))
    return dataclasses.replace(first, of=of, needs=needs)


def _made(part: "Loss | Callable[..., Loss]", given: dict[str, Any]) -> Loss:
    """A loss, from a function by those of these arguments that it takes."""
    if isinstance(part, Loss):
        return part
    takes = inspect.signature(part).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return part(**given)
    return part(**{name: value for name, value in given.items() if name in takes})


def list_losses() -> list[str]:
    """The names that :func:`create_loss` takes."""
    return list(LOSSES)


def _cross_entropy(marks: tuple[float, ...], huber_delta: float, outputs: int) -> Loss:
    """Between the judged probability of being good and the score, taken for the true one."""
    return _each_attribute(outputs, lambda logits, batch: _binary(logits, batch.scores))


def _good(marks: tuple[float, ...], huber_delta: float, outputs: int) -> Loss:
    """Binary cross-entropy on what the source calls good."""
    return _each_attribute(outputs, lambda logits, batch: _binary(logits, batch.good))


def _huber(marks: tuple[float, ...], huber_delta: float, outputs: int) -> Loss:
    """Regression on the score (Huber 1964): squared errors below delta, absolute ones above."""
    return _each_attribute(
        outputs,
        lambda logits, batch: optax.huber_loss(
            jax.nn.sigmoid(_wide(logits)), _wide(batch.scores), delta=huber_delta
        ),
    )


def _emd(marks: tuple[float, ...], huber_delta: float, outputs: int) -> Loss:
    """Squared earth mover's distance between the judged and the true shares of votes.

    Hou, Yu, Samaras 2016 (arXiv:1611.05916), equation 5; NIMA (Talebi and Milanfar 2018, arXiv:1709.05424,
    equation 1 with r = 2) trains on its root. The score is the mean of the marks.
    """
    if not marks:
        raise UsageError("loss emd needs a data set with votes, such as ava or koniq10k", "loss")
    if outputs > 1:
        raise UsageError("loss emd judges one attribute, by its votes: name one label", "loss")
    values = jnp.asarray(marks)

    def of(logits: jax.Array, batch: Batch) -> jax.Array:
        expected, votes = (len(logits), len(marks)), batch.labels.get("votes")
        _check(logits, expected, "votes", votes, expected)
        assert votes is not None
        known = ~jnp.isnan(votes).any(axis=-1)
        ahead = jnp.cumsum(jax.nn.softmax(_wide(logits)) - _wide(jnp.nan_to_num(votes)), axis=-1)
        return jnp.where(known, (ahead**2).mean(axis=-1), 0)

    def score(logits: jax.Array) -> jax.Array:
        shares = jax.nn.softmax(_wide(logits))
        return (shares * values.astype(shares.dtype)).sum(axis=-1)

    return Loss(len(marks), of, score, ("votes",))


def _bradley_terry(marks: tuple[float, ...], huber_delta: float, outputs: int) -> Loss:
    """Which of two pictures people prefer (Bradley and Terry 1952): cross-entropy on the votes of each pair.

    The chance that a picture is preferred is the sigmoid of the difference of the two logits, of the first
    attribute. Each row of a pair has the pair's loss, so that the mean over rows is the mean over pairs. A
    pair counts for nothing where one of its pictures could not be read.
    """

    def ahead(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        rows = (len(logits),)
        share, partner = batch.labels.get("preferred"), batch.labels.get("partner")
        _check(logits, (len(logits), outputs), "preferred", share, rows)
        assert share is not None
        assert partner is not None
        mine = _wide(logits[:, 0])
        there = ~jnp.isnan(share) & (batch.weights[partner] > 0)
        return mine - mine[partner], jnp.where(there, share, jnp.nan)

    def of(logits: jax.Array, batch: Batch) -> jax.Array:
        difference, share = ahead(logits, batch)
        losses = optax.sigmoid_binary_cross_entropy(difference, _wide(jnp.nan_to_num(share)))
        return jnp.where(jnp.isnan(share), 0, losses)

    def right(logits: jax.Array, batch: Batch) -> jax.Array:
        difference, share = ahead(logits, batch)
        agree = (jnp.sign(difference) * jnp.sign(share - 0.5) + 1) / 2
        return jnp.where(jnp.isnan(share), 0, agree)

    return Loss(outputs, of, _sigmoids(outputs), ("pairs",), right)


def _each_attribute(outputs: int, elementwise: Callable[[jax.Array, Batch], jax.Array]) -> Loss:
    """Of logits and labels in the shape of the scores; of a picture the mean over the attributes it has."""

    def of(logits: jax.Array, batch: Batch) -> jax.Array:
        shape = (len(logits), *((outputs,) if outputs > 1 else ()))
        _check(logits, (len(logits), outputs), "scores", batch.scores, shape)
        _check(logits, (len(logits), outputs), "good", batch.good, shape)
        known = batch._replace(scores=jnp.nan_to_num(batch.scores))
        return _mean_of_known(elementwise(logits.reshape(shape), known), batch.scores)

    return Loss(outputs, of, _sigmoids(outputs))


def _mean_of_known(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Over the attributes a picture has, ``[batch]`` or ``[batch, k] -> [batch]``; 0 where it has none."""
    known = ~jnp.isnan(labels)
    values = jnp.where(known, values, jnp.zeros((), values.dtype))
    if values.ndim == 1:
        return values
    return values.sum(axis=-1) / jnp.maximum(known.sum(axis=-1), 1)


def _binary(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(_wide(logits), _wide(labels))


def _sigmoids(outputs: int) -> Callable[[jax.Array], jax.Array]:
    """From logits to scores, ``[batch]`` of one attribute and ``[batch, k]`` of several."""
    return lambda logits: jax.nn.sigmoid(_wide(logits if outputs > 1 else logits[:, 0]))


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
    {
        "bradley_terry": _bradley_terry,
        "cross_entropy": _cross_entropy,
        "good": _good,
        "huber": _huber,
        "emd": _emd,
    },
    argument="loss",
)
"""Losses, or functions that return one and take any of ``marks``, ``huber_delta`` and ``outputs``."""
