"""Scoring: a trained model applied to photographs."""

from spp_jax.scoring.album import Entry, best_first, in_series, ranked
from spp_jax.scoring.crops import Crop
from spp_jax.scoring.explanation import BinWinners, Explanation
from spp_jax.scoring.forward import forward_executables, score_records
from spp_jax.scoring.scorer import Scorer, judge_of
from spp_jax.scoring.shipped import DEFAULT, JUDGES, list_shipped, shipped
from spp_jax.scoring.stream import Scored

__all__ = [
    "DEFAULT",
    "JUDGES",
    "BinWinners",
    "Crop",
    "Entry",
    "Explanation",
    "Scored",
    "Scorer",
    "best_first",
    "forward_executables",
    "in_series",
    "judge_of",
    "list_shipped",
    "ranked",
    "score_records",
    "shipped",
]
