"""How well scores agree with labels. Host code, NumPy and scipy.

Scores and labels are float ``[n]`` in [0, 1], or ``[n, k]`` of k attributes; a picture is judged good from
0.5 up. Shapes must be equal: a ``[n, 1]`` against ``[n]`` would broadcast to a silent wrong answer.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Agreement", "PairAgreement", "agreement", "merit", "pair_agreement"]


@dataclasses.dataclass(frozen=True)
class PairAgreement:
    """How well scores tell which of two pictures people preferred.

    Attributes:
        count: pairs of which both pictures were scored.
        decided: those of them in which one had more votes than the other.
        accuracy: share of these in which that one was scored higher, equal scores half; NaN of none.
        votes: mean share of votes for the picture that was scored higher: what a person would agree with.
    """

    count: int
    decided: int
    accuracy: float
    votes: float


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Figures of one evaluation.

    Of several attributes, means over these; of pairs alone, accuracy is the pairs' and KRCC what it says of
    their order, twice the accuracy less 1.

    Attributes:
        count: pictures that were scored and have a label.
        accuracy: share judged rightly to be good or not.
        srcc: Spearman's rank correlation; NaN where either side is constant.
        plcc: Pearson's linear correlation, with no fitted curve; NaN likewise.
        krcc: Kendall's rank correlation (tau-b); NaN likewise.
        auc: the chance that a good picture is scored above a bad one, ties half; NaN where one kind lacks.
        confusion: pictures by (truly good?, judged good?), each 0 or 1: ``confusion[0][1]`` counts bad
            ones judged good.
        attributes: the figures of each of several, by name.
        categories: the figures within each kind of pictures, by name.
        pairs: of pictures that people compared.
    """

    count: int
    accuracy: float
    srcc: float
    plcc: float
    krcc: float
    auc: float
    confusion: tuple[tuple[int, int], tuple[int, int]]
    attributes: Mapping[str, "Agreement"] = dataclasses.field(default_factory=dict)
    categories: Mapping[str, "Agreement"] = dataclasses.field(default_factory=dict)
    pairs: PairAgreement | None = None

    def rows(self) -> dict[str, "Agreement"]:
        """All figures, by what they are of: all, each attribute, each category and its attributes."""
        found = {"all": self} | dict(self.attributes)
        for kind, figures in self.categories.items():
            found[kind] = figures
            found |= {f"{kind}, {name}": inner for name, inner in figures.attributes.items()}
        return found

    def table(self) -> str:
        """For people: a few lines of text."""
        (bad_bad, bad_good), (good_bad, good_good) = self.confusion
        lines = []
        parts = self.rows() if self.attributes or self.categories else {"": self}
        for name, part in parts.items():
            lead = f"{name}: " if name else ""
            lines.append(
                f"{lead}pictures {part.count}   accuracy {part.accuracy:.1%}   "
                f"SRCC {part.srcc:.3f}   PLCC {part.plcc:.3f}   KRCC {part.krcc:.3f}   AUC {part.auc:.3f}"
            )
        if pairs := self.pairs:
            lines.append(
                f"pairs {pairs.count}, {pairs.decided} decided, {pairs.accuracy:.1%} of them rightly; "
                f"{pairs.votes:.1%} of the votes are for the picture scored higher"
            )
        if self.auc == self.auc or not self.pairs:
            lines += [
                "",
                "              judged bad  judged good",
                f"truly bad     {bad_bad:10d}  {bad_good:11d}",
                f"truly good    {good_bad:10d}  {good_good:11d}",
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """For JSON, which knows no NaN: None in its place; no further parts where there are none."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("attributes", "categories"):
            fields[name] = {part: figures.to_dict() for part, figures in fields[name].items()}
        if self.pairs:
            fields["pairs"] = {name: _json(value) for name, value in dataclasses.asdict(self.pairs).items()}
        further = ("attributes", "categories", "pairs")
        return {name: _json(value) for name, value in fields.items() if value or name not in further}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def agreement(
    scores: np.ndarray,
    labels: np.ndarray,
    good: np.ndarray | None = None,
    *,
    attributes: Sequence[str] = ("score",),
    categories: Sequence[str] = (),
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
) -> Agreement:
    """Compare scores with labels; pictures whose score or label is NaN are left out.

    Args:
        scores: float ``[n]``, or ``[n, k]`` of k attributes.
        labels: float, shaped like the scores.
        good: bool, shaped like the scores, which of the pictures are truly good; None: those of a label of
            at least 0.5.
        attributes: names of the columns, where there are several.
        categories: the kind of each picture; empty where there are none.
        pairs: int ``[m, 2]``, two pictures each, and float ``[m]``, the share of votes for the first; judged
            by the first attribute.

    Raises:
        ValueError: the shapes are not equal, or nothing was scored that has a label.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    good = labels >= 0.5 if good is None else np.asarray(good, bool)
    if not scores.shape == labels.shape == good.shape or scores.ndim != 1 + (len(attributes) > 1):
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape}, good {good.shape} must all be [n], or [n, k] "
            "of k attributes"
        )
    compared = None if pairs is None else pair_agreement(scores if scores.ndim == 1 else scores[:, 0], *pairs)
    if scores.ndim == 1:
        found = _of_one(scores, labels, good)
    else:
        columns = zip(attributes, scores.T, labels.T, good.T, strict=True)
        parts = {name: part for name, *arrays in columns if (part := _of_one(*arrays)) is not None}
        found = _mean(parts, int((~np.isnan(scores + labels)).any(axis=1).sum())) if parts else None
    if found is None and compared is not None and compared.count:
        order = 2 * compared.accuracy - 1
        found = Agreement(
            int((~np.isnan(scores if scores.ndim == 1 else scores[:, 0])).sum()),
            *(compared.accuracy, math.nan, math.nan, order, math.nan),
            ((0, 0), (0, 0)),
        )
    if found is None:
        raise ValueError("there is no scored picture to compare with its label")
    kinds: dict[str, Agreement] = {}
    for kind in sorted(set(categories)):
        chosen = np.asarray(categories) == kind
        try:
            kinds[kind] = agreement(
                *(array[chosen] for array in (scores, labels, good)),
                attributes=attributes,
                pairs=None if pairs is None else _within(chosen, *pairs),
            )
        except ValueError:  # none of them was scored
            continue
    return dataclasses.replace(found, categories=kinds, pairs=compared)


def merit(figures: Mapping[str, Any]) -> float:
    """What the best of several states of a network is chosen by: SRCC, or else KRCC; -1 where neither is.

    Args:
        figures: as :meth:`Agreement.to_dict` gives them.
    """
    known = (figures.get(name) for name in ("srcc", "krcc"))
    return next((figure for figure in known if figure is not None), -1.0)


def pair_agreement(scores: np.ndarray, rows: np.ndarray, shares: np.ndarray) -> PairAgreement:
    """Compare scores, float ``[n]``, with people's preferences, as :func:`agreement` takes them."""
    scores = np.asarray(scores, np.float64)
    ahead = scores[rows[:, 0]] - scores[rows[:, 1]]
    shares = np.asarray(shares, np.float64)[~np.isnan(ahead)]
    ahead = ahead[~np.isnan(ahead)]
    decided = shares != 0.5
    right = (np.sign(ahead) * np.sign(shares - 0.5) + 1) / 2
    votes = np.where(ahead > 0, shares, np.where(ahead < 0, 1 - shares, 0.5))
    return PairAgreement(
        len(ahead),
        int(decided.sum()),
        float(right[decided].mean()) if decided.any() else math.nan,
        float(votes.mean()) if len(votes) else math.nan,
    )


def _within(chosen: np.ndarray, rows: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs both of which are chosen, by their places among these."""
    stay = chosen[rows].all(axis=1)
    return (np.cumsum(chosen) - 1)[rows[stay]], shares[stay]


def _mean(parts: dict[str, Agreement], count: int) -> Agreement:
    """Of several attributes: figures that one lacks are left out of the mean."""

    def mean(name: str) -> float:
        values = [value for part in parts.values() if not math.isnan(value := getattr(part, name))]
        return sum(values) / len(values) if values else math.nan

    confusion = np.sum([part.confusion for part in parts.values()], axis=0).tolist()
    figures: dict[str, Any] = {name: mean(name) for name in ("accuracy", "srcc", "plcc", "krcc", "auc")}
    figures["confusion"] = (tuple(confusion[0]), tuple(confusion[1]))
    return Agreement(count, **figures, attributes=parts)


def _of_one(scores: np.ndarray, labels: np.ndarray, good: np.ndarray) -> Agreement | None:
    """The figures of one attribute; None where no picture has both."""
    import scipy.stats  # a second that who only scores need not wait

    scored = ~np.isnan(scores) & ~np.isnan(labels)
    if not scored.any():
        return None
    scores, labels, good = scores[scored], labels[scored], good[scored]
    judged = scores >= 0.5

    def row(truth: bool) -> tuple[int, int]:
        return int(((good == truth) & ~judged).sum()), int(((good == truth) & judged).sum())

    srcc = plcc = krcc = auc = math.nan
    if np.ptp(scores) > 0 and np.ptp(labels) > 0:
        spearman: Any = scipy.stats.spearmanr(scores, labels)
        pearson: Any = scipy.stats.pearsonr(scores, labels)
        kendall: Any = scipy.stats.kendalltau(scores, labels)
        srcc, plcc, krcc = (float(found.statistic) for found in (spearman, pearson, kendall))
    many = int(good.sum())
    if 0 < many < len(good):  # by the sum of the good ones' ranks (Mann and Whitney 1947)
        above = scipy.stats.rankdata(scores)[good].sum() - many * (many + 1) / 2
        auc = float(above / (many * (len(good) - many)))
    accuracy = float((judged == good).mean())
    return Agreement(len(scores), accuracy, srcc, plcc, krcc, auc, (row(False), row(True)))
