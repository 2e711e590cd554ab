"""Scoring: a trained model applied to photographs."""

from spp_jax.scoring.crops import Crop
from spp_jax.scoring.explanation import BinWinners, Explanation
from spp_jax.scoring.forward import forward_executables, score_records
from spp_jax.scoring.scorer import Scorer
from spp_jax.scoring.shipped import DEFAULT, JUDGES, list_shipped, shipped
from spp_jax.scoring.stream import Scored

__all__ = [
    "DEFAULT",
    "JUDGES",
    "BinWinners",
    "Crop",
    "Explanation",
    "Scored",
    "Scorer",
    "forward_executables",
    "list_shipped",
    "score_records",
    "shipped",
]
