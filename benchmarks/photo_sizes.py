"""Sizes of a collection, for benchmarks that plan buckets: from a file, or the default data set's."""

from pathlib import Path

import numpy as np
import platformdirs

from spp_jax.config import Decoding
from spp_jax.data import load_dataset

__all__ = ["read_sizes", "scaled"]


def read_sizes(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, int64 ``[n, 2]``, and how many pictures have each, ``[n]``.

    Args:
        path: a file of lines ``height,width,count`` after a heading; None: the default data set.
    """
    if path is None:
        data_dir = Path(platformdirs.user_cache_dir("spp_jax")) / "data"
        sizes = load_dataset("distorted_photos", data_dir, Decoding())[0].sizes
        return sizes, np.ones(len(sizes), np.int64)
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.int64, ndmin=2)
    return table[:, :2], table[:, 2]


def scaled(sizes: np.ndarray, max_side: int) -> np.ndarray:
    """Larger pictures scaled down to this longest side, their shape kept."""
    scale = np.minimum(1, max_side / sizes.max(axis=1, keepdims=True))
    return np.maximum(np.round(sizes * scale), 1).astype(np.int64)
