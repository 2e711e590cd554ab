"""Scoring: a trained model applied to photographs."""

from spp_jax.scoring.forward import forward_executables, score_records
from spp_jax.scoring.scorer import Scorer

__all__ = ["Scorer", "forward_executables", "score_records"]
