"""The op: a feature map of any size to a vector of fixed length.

Arrays in, arrays out; jax and numpy only, and jaxtyping to say the shapes.
Arrays are channels-last, ``[batch, *spatial, channels]``; sizes and windows are int32, in cells, height
before width; a bin or a window is half open.
"""

from spp_jax.pooling.bins import Level, bin_edges, num_bins
from spp_jax.pooling.op import pool_windows, spatial_pyramid_pool
from spp_jax.pooling.reductions import GeneralizedMean, Max, Mean, Monoid, Reduction, TopKMean
from spp_jax.pooling.windows import boxes_to_windows

__all__ = [
    "GeneralizedMean",
    "Level",
    "Max",
    "Mean",
    "Monoid",
    "Reduction",
    "TopKMean",
    "bin_edges",
    "boxes_to_windows",
    "num_bins",
    "pool_windows",
    "spatial_pyramid_pool",
]
