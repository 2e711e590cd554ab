"""Spatial pyramid pooling for JAX and Flax: images of every size, exactly, in few compilations.

The names below are the public ones. The op, `Padded` and the planner need jax and numpy alone; models
and scoring are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING

from spp_jax.buckets import Bucket, BucketPlan, plan_buckets
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.padded import Padded, pad_batch
from spp_jax.pooling import (
    GeneralizedMean,
    Max,
    Mean,
    Monoid,
    TopKMean,
    bin_edges,
    boxes_to_windows,
    num_bins,
    pool_windows,
    spatial_pyramid_pool,
)

if TYPE_CHECKING:
    from spp_jax.data.arrays import batches
    from spp_jax.layers import SpatialPyramidPool
    from spp_jax.models import SPPNet, create_model, list_models
    from spp_jax.scoring import Scorer

__version__ = "0.2.0"

__all__ = [
    "Bucket",
    "BucketPlan",
    "GeneralizedMean",
    "Max",
    "Mean",
    "Monoid",
    "Padded",
    "SPPNet",
    "Scorer",
    "SpatialPyramidPool",
    "SppJaxError",
    "TopKMean",
    "UsageError",
    "batches",
    "bin_edges",
    "boxes_to_windows",
    "create_model",
    "list_models",
    "num_bins",
    "pad_batch",
    "plan_buckets",
    "pool_windows",
    "spatial_pyramid_pool",
]

_ON_FIRST_USE = {
    "SPPNet": "spp_jax.models",
    "Scorer": "spp_jax.scoring",
    "SpatialPyramidPool": "spp_jax.layers",
    "batches": "spp_jax.data.arrays",
    "create_model": "spp_jax.models",
    "list_models": "spp_jax.models",
}


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module 'spp_jax' has no attribute {name!r}")
