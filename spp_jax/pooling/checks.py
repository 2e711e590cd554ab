"""Whether what the op is given fits: what is known is refused by name and place, the rest is clipped."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from spp_jax.pooling.bins import Levels, check_lengths, normalize_levels


def checked_features(features, levels) -> tuple[jax.Array, Levels]:
    """Features as a JAX array, and the levels for its axes; see :func:`spp_jax.spatial_pyramid_pool`."""
    features = jnp.asarray(features)
    rank = features.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            "features must be [batch, *spatial, channels] with 1 to 3 spatial axes, got shape "
            f"{features.shape}"
        )
    if not all(features.shape[1:-1]):
        raise ValueError(f"features of shape {features.shape} have a spatial axis without cells")
    return features, normalize_levels(levels, rank)


def checked_sizes(sizes, features: jax.Array, levels: Levels, rule: str) -> jax.Array:
    """Sizes as int32 ``[batch, spatial_rank]``, clipped to the array; None: all of it."""
    extent = np.asarray(features.shape[1:-1], np.int32)
    expected = (features.shape[0], len(extent))
    if sizes is None:
        sizes = np.broadcast_to(extent, expected)
    sizes = _as_array(sizes)
    _check_integers(sizes, expected, "sizes", "(batch, spatial axes)", features)
    if not isinstance(sizes, Tracer):
        known = np.asarray(sizes)
        _refuse((known < 0) | (known > extent), "sizes", known, f"outside the array: 0 to {extent.tolist()}")
        _refuse_half_empty(known, "sizes", known)
        _check_rule(known, levels, rule)
    return jnp.clip(jnp.asarray(sizes, jnp.int32), 0, extent)


def checked_windows(windows, features: jax.Array, sizes: jax.Array, levels: Levels, rule: str):
    """Starts and lengths of windows, int32 ``[batch, windows, spatial_rank]`` each, clipped to ``sizes``."""
    windows = _as_array(windows)
    count = windows.shape[1] if windows.ndim > 1 else 0
    expected = (features.shape[0], count, 2, features.ndim - 2)
    _check_integers(windows, expected, "windows", "(batch, windows, 2, spatial axes)", features)
    if not isinstance(windows, Tracer):
        known = np.asarray(windows).astype(np.int64)  # unsigned ones wrap
        lengths = known[:, :, 1] - known[:, :, 0]
        _refuse(lengths < 0, "windows", known, "reversed: it stops before it starts")
        _refuse_half_empty(lengths, "windows", known)
        if not isinstance(sizes, Tracer):
            most = np.asarray(sizes)[:, None, None]
            outside = ((known < 0) | (known > most)).any(2) & (lengths > 0)
            _refuse(outside, "windows", known, "outside its map's true cells")
        _check_rule(lengths, levels, rule)
    clipped = jnp.clip(jnp.asarray(windows, jnp.int32), 0, sizes[:, None, None])
    return clipped[:, :, 0], jnp.maximum(clipped[:, :, 1] - clipped[:, :, 0], 0)


def _check_integers(values, expected: tuple[int, ...], name: str, axes: str, features: jax.Array) -> None:
    if values.shape != expected:
        raise ValueError(
            f"{name} must have shape {expected} {axes} for features of shape {features.shape}, got "
            f"{values.shape}"
        )
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers (cells), got dtype {values.dtype}")


def _as_array(values) -> Any:
    """JAX's, if it is one or holds tracers, else NumPy's."""
    traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values))
    return jnp.asarray(values) if traced else np.asarray(values)


def _refuse_half_empty(lengths: np.ndarray, name: str, known: np.ndarray) -> None:
    half_empty = (lengths == 0) & (lengths != 0).any(-1, keepdims=True)
    _refuse(half_empty, name, known, "empty along some axes only; a filler is empty along all")


def _refuse(wrong: np.ndarray, name: str, known: np.ndarray, why: str) -> None:
    """Raise for the first row (or window) that is wrong along an axis, the last of ``wrong``."""
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0, :-1].tolist())
        place = "".join(f"[{i}]" for i in at)
        raise ValueError(f"{name}{place} = {known[at].tolist()} is {why}")


def _check_rule(lengths: np.ndarray, levels: Levels, rule: str) -> None:
    for level in levels:
        for axis, bins in enumerate(level):
            check_lengths(lengths[..., axis], bins, rule)


def check_shape(pooled: jax.Array, expected: tuple[int, ...]) -> None:
    """Refuse what a reduction gave where it has another shape."""
    if pooled.shape != expected:
        raise TypeError(
            f"the reduction gave an array of shape {pooled.shape}, not {expected}: a function of "
            "(cells, mask) has to give [channels], and finish what its states are shaped like"
        )
