"""The op: a feature map of any size to a vector of fixed length. Arrays in, arrays out; jax and numpy only.

Arrays are channels-last, ``[batch, *spatial, channels]``; sizes and windows are int32, in cells, height
before width; a bin or a window is half open.
"""

from spp_jax.pooling.bins import Level, bin_edges, num_bins
from spp_jax.pooling.op import boxes_to_windows, pool_windows, spatial_pyramid_pool
from spp_jax.pooling.reductions import GeneralizedMean, Max, Mean, Monoid, Reduction, TopKMean

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
