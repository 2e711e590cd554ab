"""How well scores agree with labels. Host code, NumPy and scipy.

Scores and labels are float ``[n]`` in [0, 1]; a picture is judged good from 0.5 up. Shapes must be equal: a
``[n, 1]`` against ``[n]`` would broadcast to a silent wrong answer.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats

__all__ = ["Agreement", "agreement"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Figures of one evaluation.

    Attributes:
        count: pictures that were scored.
        accuracy: share judged rightly to be good or not.
        srcc: Spearman's rank correlation; NaN where either side is constant.
        plcc: Pearson's linear correlation, with no fitted curve; NaN likewise.
        krcc: Kendall's rank correlation (tau-b); NaN likewise.
        auc: the chance that a good picture is scored above a bad one, ties half; NaN where one kind lacks.
        confusion: pictures by (truly good?, judged good?), each 0 or 1: ``confusion[0][1]`` counts bad
            ones judged good.
    """

    count: int
    accuracy: float
    srcc: float
    plcc: float
    krcc: float
    auc: float
    confusion: tuple[tuple[int, int], tuple[int, int]]

    def table(self) -> str:
        """For people: a few lines of text."""
        (bad_bad, bad_good), (good_bad, good_good) = self.confusion
        return "\n".join(
            [
                f"pictures {self.count}   accuracy {self.accuracy:.1%}   "
                f"SRCC {self.srcc:.3f}   PLCC {self.plcc:.3f}   KRCC {self.krcc:.3f}   AUC {self.auc:.3f}",
                "",
                "              judged bad  judged good",
                f"truly bad     {bad_bad:10d}  {bad_good:11d}",
                f"truly good    {good_bad:10d}  {good_good:11d}",
            ]
        )

    def to_dict(self) -> dict:
        """For JSON, which knows no NaN: None in its place."""
        fields = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in fields.items()}


def agreement(scores: np.ndarray, labels: np.ndarray, good: np.ndarray | None = None) -> Agreement:
    """Compare scores with labels; pictures whose score is NaN (unreadable ones) are left out.

    Args:
        scores: float ``[n]``.
        labels: float ``[n]``.
        good: bool ``[n]``, which of the pictures are truly good; None: those of a label of at least 0.5.

    Raises:
        ValueError: the shapes are not equal ``[n]``, or nothing was scored.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    good = labels >= 0.5 if good is None else np.asarray(good, bool)
    if not scores.shape == labels.shape == good.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape}, labels {labels.shape}, good {good.shape} must all be [n]")
    scored = ~np.isnan(scores)
    if not scored.any():
        raise ValueError("there is no scored picture to compare with its label")
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
