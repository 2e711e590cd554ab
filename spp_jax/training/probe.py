"""The probe: a head over a frozen body's features, in closed form. Arrays in, arrays out.

Ridge regression (Hoerl and Kennard 1970) in its dual form, as there are more features than pictures, with
an intercept that is not shrunk; linear, or with a kernel of degree two (Saunders, Gammerman and Vovk 1998),
whose quadratic form is then cut to the directions that bend most. Its strength is chosen by what it says of
pictures that it was not fitted on: groups are dealt into folds, and the residuals of a fold that was left
out follow exactly from the inverse over all pictures (Cawley and Talbot 2004, for least-squares support
vector machines; An, Liu and Venkatesh 2007, for folds), so no fold is fitted by itself. The kernel, and how
much each map counts in it, are chosen in the same way.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

__all__ = ["BALANCES", "CURVATURES", "STRENGTHS", "Probe", "fit_probe"]

STRENGTHS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Tried by default: of the penalty, relative to the mean square of a standardised picture's features."""
BALANCES = (0.0, 0.5)
"""Tried where features are of several maps: how much those of a large map count, see :func:`fit_probe`."""
CURVATURES = (0.0, 1.0)
"""Tried where a head is quadratic: the share of the inner product's square in the kernel; 0: linear."""
_CLIP = 0.02  # scores nearer than this to 0 and 1 count as this: their logits would decide everything
_COLUMNS = 4096  # standardised at a time: all features of thousands of pictures in float64 would be large


class Probe(NamedTuple):
    """A head of :class:`~spp_jax.models.sppnet.QuadraticHead` or ``LinearHead``, and how it was found.

    The logits are ``z @ weights + bias + (z @ directions)**2 @ squares`` where ``z = (x - mean) * scale``;
    their sigmoid is the score.

    Attributes:
        mean: float64 ``[features]``.
        scale: likewise; 0 for a feature that does not vary.
        weights: float64 ``[features, k]``, calibrated.
        bias: float64 ``[k]``, calibrated.
        directions: float64 ``[features, rank * k]``, the first ``rank`` for the first attribute and so on.
        squares: float64 ``[rank * k, k]``, calibrated; 0 between an attribute and directions of another.
        strengths: float64 ``[k]``, chosen.
        curvatures: float64 ``[k]``, chosen.
        balances: float64 ``[k]``, chosen.
        errors: float64 ``[balances, curvatures, strengths, k]``: the mean square of what was left of the
            logits of held-out pictures, before calibration.
        held_out: float64 ``[n, k]``: the calibrated logit of each picture by a fit without its fold; NaN
            where it has no label. Nothing is cut of its quadratic form.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    directions: np.ndarray
    squares: np.ndarray
    strengths: np.ndarray
    curvatures: np.ndarray
    balances: np.ndarray
    errors: np.ndarray
    held_out: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """``[n, features]`` to ``[n, k]``."""
        layers = np.concatenate([self.weights, self.directions], axis=1)
        found = np.zeros((len(features), layers.shape[1]))
        for columns in _blocks(len(self.mean)):
            found += _standard(features, self.mean, self.scale, columns) @ layers[columns]
        linear, along = np.split(found, [self.weights.shape[1]], axis=1)
        return linear + along**2 @ self.squares + self.bias


def fit_probe(
    features: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[str],
    *,
    good: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
    curvatures: Sequence[float] = (0.0,),
    rank: int = 0,
    parts: Sequence[int] = (),
    balances: Sequence[float] = (0.0,),
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """Fit a linear or quadratic head to what people said.

    What is fitted is the logit of the score. It is then calibrated, which keeps the order of any two
    pictures: held-out logits get the spread of the labels' (a fit alone draws all scores to the middle), and
    0, a score of .5, lies where a picture is as likely good as not.

    Args:
        features: float ``[n, features]``; several rows may be of one picture, such as its mirror image.
        scores: ``[n, k]`` of k attributes, or ``[n]``, in [0, 1]; NaN where there is no label. Each
            attribute is fitted on the rows that have it.
        groups: of each row: no group is on both sides when the strength is chosen.
        good: bool, shaped like the scores; None: scores of at least .5.
        strengths: to choose from.
        curvatures: to choose from: the kernel is ``g + curvature * g**2``, of the inner product ``g`` of two
            standardised pictures over the number of features that vary. :data:`CURVATURES`, with a rank.
        rank: of the quadratic form, so many directions are kept for each attribute.
        parts: how many features, one after the other, are of one map; (): all.
        balances: to choose from: in the inner product a feature counts by the number of its part to the power
            of -balance, so at 0 large parts count most, and at 1 all parts alike. :data:`BALANCES`.
        folds: into which groups are dealt; as many as groups where these are fewer.
        seed: of the dealing.

    Raises:
        ValueError: shapes do not agree, features are not finite, an attribute has labels in fewer than two
            groups or always the same label, parts are not of all features, or a curvature has no rank.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(60, 5))
        >>> y = 1 / (1 + np.exp(-x[:, 0]))
        >>> probe = fit_probe(x, y, [str(i) for i in range(60)])
        >>> bool(np.corrcoef(probe.logits(x)[:, 0], x[:, 0])[0, 1] > 0.99)
        True
    """
    features, scores = np.asarray(features), np.asarray(scores, np.float64)
    n = len(features)
    good = scores >= 0.5 if good is None else np.asarray(good, bool)
    if features.ndim != 2 or scores.shape[:1] != (n,) or scores.shape != good.shape or len(groups) != n:
        raise ValueError(
            f"features {features.shape}, scores {scores.shape}, good {good.shape} and {len(groups)} groups "
            "must be of the same pictures"
        )
    if any(curvatures) and rank < 1:
        raise ValueError(f"curvatures {tuple(curvatures)} need a rank of at least 1")
    scores, good = scores.reshape(n, -1), good.reshape(n, -1)
    parts = tuple(parts) or (features.shape[1],)
    if sum(parts) != features.shape[1]:
        raise ValueError(f"parts {parts} are of {sum(parts)} features, not of {features.shape[1]}")
    mean, scale = _moments(features)
    fold = _deal(groups, folds, seed)
    factors = {balance: _factors(parts, balance, scale) for balance in balances}
    grams = {balance: _gram(features, mean, scale * factor) for balance, factor in factors.items()}
    fits = [
        _best(grams, _logit(of), which, fold, strengths, curvatures, column)
        for column, (of, which) in enumerate(zip(scores.T, good.T, strict=True))
    ]
    forms = [_form(grams[fit.balance], fit, rank) for fit in fits]
    layers = []
    for fit, form in zip(fits, forms, strict=True):
        factor = factors[fit.balance]
        duals = np.concatenate([fit.dual[:, None], form.duals], axis=1)
        layers.append(factor[:, None] * _primal(features, mean, scale * factor, duals))
    return Probe(
        mean,
        scale,
        weights=np.concatenate([layer[:, :1] for layer in layers], axis=1),
        bias=np.array([fit.bias + form.cut for fit, form in zip(fits, forms, strict=True)]),
        directions=np.concatenate([layer[:, 1:] for layer in layers], axis=1),
        squares=np.asarray(scipy.linalg.block_diag(*(form.squares[:, None] for form in forms))),
        strengths=np.array([fit.strength for fit in fits]),
        curvatures=np.array([fit.curvature for fit in fits]),
        balances=np.array([fit.balance for fit in fits]),
        errors=np.stack([fit.errors for fit in fits], axis=-1),
        held_out=np.stack([fit.held for fit in fits], axis=1),
    )


def _factors(parts: Sequence[int], balance: float, scale: np.ndarray) -> np.ndarray:
    """Of each feature, the root of what it counts; the mean of what those count that vary is 1."""
    counts = np.repeat(np.array(parts, np.float64) ** -balance, parts)
    varying = counts[scale != 0]
    return np.sqrt(counts / varying.mean()) if varying.size else counts


class _Fit(NamedTuple):
    """Of one attribute, calibrated: dual weights, intercept, held-out logits, and what was chosen how."""

    dual: np.ndarray
    bias: float
    held: np.ndarray
    strength: float
    curvature: float
    balance: float
    errors: np.ndarray


class _Form(NamedTuple):
    """Directions as dual weights ``[n, rank]``, their squares' weights, and the mean of what was cut."""

    duals: np.ndarray
    squares: np.ndarray
    cut: float


def _best(
    grams: Mapping[float, np.ndarray],
    targets: np.ndarray,
    good: np.ndarray,
    fold: np.ndarray,
    strengths: Sequence[float],
    curvatures: Sequence[float],
    column: int,
) -> _Fit:
    """The fit of an attribute, on the rows that have it, that errs least on held-out pictures; calibrated."""
    rows = np.flatnonzero(~np.isnan(targets))
    targets, good, fold = targets[rows], good[rows], fold[rows]
    _check_labels(column, targets, fold)
    errors, found, least = [], None, np.inf
    for balance, curvature in itertools.product(grams, curvatures):
        inner = grams[balance][np.ix_(rows, rows)]
        kernel = inner + curvature * inner**2
        for strength in strengths:
            dual, bias, held = _fit(kernel, targets, fold, strength)
            errors.append(float(((held - targets) ** 2).mean()))
            if errors[-1] < least:
                least, found = errors[-1], (dual, bias, held, strength, curvature, balance)
    if found is None:
        raise ValueError("strengths, curvatures and balances must each be one or more numbers")
    dual, bias, held, strength, curvature, balance = found
    slope, offset = _calibration(held, targets, good)
    n = len(grams[balance])
    everywhere, held_out = np.zeros(n), np.full(n, np.nan)
    everywhere[rows], held_out[rows] = slope * dual, slope * held + offset
    shaped = np.array(errors).reshape(len(grams), len(curvatures), len(strengths))
    return _Fit(everywhere, slope * bias + offset, held_out, strength, curvature, balance, shaped)


def _form(gram: np.ndarray, fit: _Fit, rank: int) -> _Form:
    """The quadratic form of a fit, cut to the directions of its largest eigenvalues.

    With ``u`` the standardised features over the root of their number, it is ``u' S u``,
    ``S = curvature * sum_i dual_i u_i u_i'``, of which the rows' inner products tell all.
    """
    n = len(gram)
    rows = np.flatnonzero(np.isfinite(fit.held))
    if not rank or not fit.curvature:
        return _Form(np.zeros((n, rank)), np.zeros(rank), 0.0)
    inner = gram[np.ix_(rows, rows)]
    lengths, turn = scipy.linalg.eigh(inner)
    kept = lengths > 1e-10 * lengths[-1]
    roots, turn = np.sqrt(lengths[kept]), turn[:, kept]
    weighted = turn * (fit.curvature * fit.dual[rows])[:, None]
    values, axes = scipy.linalg.eigh(roots[:, None] * (turn.T @ weighted) * roots)
    largest = np.argsort(-np.abs(values))[:rank]
    duals, squares = np.zeros((n, rank)), np.zeros(rank)
    duals[np.ix_(rows, np.arange(len(largest)))] = (turn / roots) @ axes[:, largest]
    squares[: len(largest)] = values[largest]
    whole = fit.curvature * inner**2 @ fit.dual[rows]
    along = inner @ duals[rows]
    return _Form(duals, squares, float((whole - along**2 @ squares).mean()))


def _check_labels(column: int, labels: np.ndarray, folds: np.ndarray) -> None:
    if len(set(folds.tolist())) < 2:
        raise ValueError(f"attribute {column} has labels in fewer than two groups: nothing to choose by")
    if np.ptp(labels) == 0:
        raise ValueError(f"attribute {column} has always the same label: nothing to learn")


def _logit(scores: np.ndarray) -> np.ndarray:
    inside = np.clip(scores, _CLIP, 1 - _CLIP)
    return np.log(inside / (1 - inside))


def _deal(groups: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each row."""
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % folds)[members]


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _COLUMNS, count)) for start in range(0, count, _COLUMNS))


def _standard(features: np.ndarray, mean: np.ndarray, scale: np.ndarray, columns: slice) -> np.ndarray:
    return (features[:, columns].astype(np.float64) - mean[columns]) * scale[columns]


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and one over the deviation, of each feature; 0 where that is lost in rounding."""
    mean, deviation = np.empty((2, features.shape[1]))
    for columns in _blocks(features.shape[1]):
        block = features[:, columns].astype(np.float64)
        mean[columns], deviation[columns] = block.mean(axis=0), block.std(axis=0)
    if not np.isfinite(mean).all() or not np.isfinite(deviation).all():
        raise ValueError("features must be finite numbers")
    vary = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return mean, np.where(vary, 1 / np.where(vary, deviation, 1), 0)


def _gram(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Inner products of the standardised rows, over the number of features that vary: float64 ``[n, n]``."""
    products = np.zeros((len(features),) * 2)
    for columns in _blocks(len(mean)):
        block = _standard(features, mean, scale, columns)
        products += block @ block.T
    return products / max(np.count_nonzero(scale), 1)


def _primal(features: np.ndarray, mean: np.ndarray, scale: np.ndarray, duals: np.ndarray) -> np.ndarray:
    """The weights of the standardised features: ``[features, k]``."""
    weights = np.empty((len(mean), duals.shape[1]))
    for columns in _blocks(len(mean)):
        weights[columns] = _standard(features, mean, scale, columns).T @ duals
    return weights / max(np.count_nonzero(scale), 1)


def _fit(
    kernel: np.ndarray, targets: np.ndarray, fold: np.ndarray, strength: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """Dual weights, intercept, and what fits without each row's fold say of it."""
    n = len(targets)
    inverse = scipy.linalg.inv(kernel + strength * np.eye(n))
    ones = inverse.sum(axis=0)
    # The upper left block of the inverse of [[kernel + strength, 1], [1, 0]].
    inverse -= np.outer(ones, ones) / ones.sum()
    dual = inverse @ targets
    bias = float((targets - kernel @ dual - strength * dual).mean())
    held = np.empty(n)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        held[rows] = targets[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
    return dual, bias, held


def _calibration(held: np.ndarray, targets: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """Slope and offset of logits: the labels' spread, and 0 where good and not good are as likely.

    Where all are good, or none is, 0 lies where a line through the labels has it.
    """
    centre, spread = held.mean(), held.std()
    if spread == 0:
        return 1.0, 0.0
    unit = (held - centre) / spread
    if 0 < good.sum() < len(good):
        at, slope = _logistic(unit, good)
    else:
        at, slope = targets.mean(), float((unit * targets).mean())
    if slope <= 0:  # held-out pictures are not told apart: there is no such place
        return 1.0, 0.0
    threshold = centre - spread * at / slope
    return float(targets.std() / spread), float(-targets.std() / spread * threshold)


def _logistic(x: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of a logistic regression, slightly shrunk (so that it ends), by Newton's method."""
    design = np.stack([np.ones_like(x), x], axis=1)
    found = np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (chance - good) + found
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        found -= step
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0]), float(found[1])
