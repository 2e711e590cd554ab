"""Why a photograph has its score: where it is good, which cells won their bins, and how its parts add up.

All is read from one pass of the convolutions. Arrays are upright; pixels are those of the picture as decoded.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from spp_jax.pooling.bins import bin_edges
from spp_jax.pooling.reductions import Max
from spp_jax.scoring.regions import Judged, Regions, Seen

__all__ = ["BinWinners", "Explanation", "explain"]

_SHARE = 4  # a local window's side is the picture's shorter side over this
_STEPS = 4  # windows to a side of one
_ALONG = 32  # windows along an axis, at most
_PLAYERS = 10  # parts whose every subset is judged


class BinWinners(NamedTuple):
    """The cells that won one bin of a maximum.

    Attributes:
        map: of the network's maps, from 0.
        level: bins per axis, (height, width).
        bin: its place there, (row, column).
        box: what the bin covers: left, top, right, bottom in pixels, by the centres of its cells' fields.
        cells: int32 ``[k, 2]``: row and column in the map of each cell that won in some channel.
        pixels: float32 ``[k, 2]``: x and y of the centre of its receptive field.
        channels: int32 ``[k]``: in how many channels it won.
        effects: float32 ``[k]``: how much it moves the logit: over the channels it won, the sum of the
            gradient of the logit by the feature times what the feature is above its base.
    """

    map: int
    level: tuple[int, int]
    bin: tuple[int, int]
    box: tuple[float, float, float, float]
    cells: np.ndarray
    pixels: np.ndarray
    channels: np.ndarray
    effects: np.ndarray


class Explanation(NamedTuple):
    """Why a photograph has its score.

    Attributes:
        score: in [0, 1].
        map: float32 ``[height, width]``: the score that the judge gives to the window around each pixel, a
            square of :attr:`window` pixels, shifted inside at the edges; between the windows judged, linear.
        window: the side of these squares.
        winners: of each bin of each maximum, finest maps first, in the order of levels, then row-major.
        parts: what adds up to the :attr:`logit`: ``base``, and an amount for every level of every map, such
            as ``map 0, 4x4`` (for every map alone, where there are more than 10 and the head is not linear).
            Of a linear head, its weights times what the features are above their base; of others, Shapley's
            value (1953): what a part adds to the logit on average over all orders in which the parts could
            come, those that have not come being at their base. The base is the mean photograph of the
            training where the head knows it, else features of 0.
        logit: the log odds of the score, by the head itself where it has an output for each attribute.
        attribute: that is explained.
    """

    score: float
    map: np.ndarray
    window: int
    winners: tuple[BinWinners, ...]
    parts: dict[str, float]
    logit: float
    attribute: str


class _Slot(NamedTuple):
    """What one pool of one map gives: its place in the head's vector, int ``[bins, channels]``."""

    map: int
    pool: int
    places: np.ndarray


def explain(regions: Regions, seen: Seen, attributes: tuple[str, ...], attribute: str) -> Explanation:
    """Explain one photograph's score.

    Args:
        regions: of the judge.
        seen: the photograph.
        attributes: that the judge judges.
        attribute: of them, the one to explain.
    """
    column = attributes.index(attribute)
    whole = regions.judge_vectors(seen.vector[None])
    logit = float(_logits(regions, whole, column, len(attributes))[0])
    slots = _slots(regions, seen)
    linear = regions.linear and regions.loss.outputs == len(attributes)
    side, local = local_map(regions, seen, column)
    return Explanation(
        float(_scores(whole, column)[0]),
        local,
        side,
        _winners(regions, seen, slots, _slope(regions, seen.vector, column, len(attributes))),
        _parts(regions, seen, slots, column, len(attributes), linear),
        logit,
        attribute,
    )


def local_map(regions: Regions, seen: Seen, column: int = 0) -> tuple[int, np.ndarray]:
    """The side of the windows, and the score of the window around each pixel, float32 ``[height, width]``."""
    coarsest = max(max(geometry.strides) for geometry in regions.geometries)
    side = min(max(min(seen.size) // _SHARE, 2 * coarsest), min(seen.size))
    lines = []
    for extent in seen.size:
        count = min(max(math.ceil((extent - side) * _STEPS / side) + 1, 1), _ALONG)
        lines.append(np.linspace(0, extent - side, count))
    tops, lefts = (grid.reshape(-1) for grid in np.meshgrid(*lines, indexing="ij"))
    boxes = np.stack([lefts, tops, lefts + side, tops + side], axis=1)
    scores = _scores(regions.judge(seen, boxes), column).reshape(len(lines[0]), len(lines[1]))
    for axis, (extent, line) in enumerate(zip(seen.size, lines, strict=True)):
        scores = _stretched(scores, axis, line + side / 2, extent)
    return side, scores.astype(np.float32)


def _stretched(values: np.ndarray, axis: int, centres: np.ndarray, extent: int) -> np.ndarray:
    """From values at these places along an axis to one of each pixel: linear between, constant beyond."""
    if len(centres) == 1:
        return np.repeat(values, extent, axis=axis)
    at = np.clip(np.interp(np.arange(extent) + 0.5, centres, np.arange(len(centres))), 0, len(centres) - 1)
    low = np.minimum(at.astype(int), len(centres) - 2)
    share = (at - low).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share


def _scores(judged: Judged, column: int) -> np.ndarray:
    return judged.scores if judged.scores.ndim == 1 else judged.scores[:, column]


def _logits(regions: Regions, judged: Judged, column: int, attributes: int) -> np.ndarray:
    """The log odds of the scores, float64 ``[n]``."""
    if regions.loss.outputs == attributes:
        return judged.logits[:, column].astype(np.float64)
    scores = np.clip(_scores(judged, column).astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(scores) - np.log1p(-scores)


def _slope(regions: Regions, vector: np.ndarray, column: int, attributes: int) -> np.ndarray:
    """The gradient of the logit by the head's vector, float32 ``[num_features]``."""
    return regions.slope(vector, column, by_score=regions.loss.outputs != attributes)


def _slots(regions: Regions, seen: Seen) -> list[_Slot]:
    network = regions.network
    found, offset = [], 0
    channels = [each.values.shape[-1] for each in seen.maps]
    width = sum(count * len(pools) for count, pools in zip(channels, network.map_pools, strict=True))
    for number, pools in enumerate(network.map_pools):
        for place, pool in enumerate(pools):
            count = channels[number]
            if network.several:
                places = offset + np.arange(pool.num_bins * count).reshape(pool.num_bins, count)
                offset += pool.num_bins * count
            else:
                places = np.arange(pool.num_bins)[:, None] * width + offset + np.arange(count)
                offset += count
            found.append(_Slot(number, place, places))
    return found


def _bins_of(level: tuple[int, ...], first: int) -> slice:
    return slice(first, first + math.prod(level))


def _winners(regions: Regions, seen: Seen, slots: list[_Slot], slope: np.ndarray) -> tuple[BinWinners, ...]:
    amounts = slope.astype(np.float64) * (seen.vector.astype(np.float64) - regions.base)
    found = []
    for slot in slots:
        pool = regions.network.map_pools[slot.map][slot.pool]
        if not isinstance(regions.reductions[slot.map][slot.pool], Max):
            continue
        values = _upright_map(seen, slot.map)
        effects = iter(amounts[slot.places])
        for level in pool.levels:
            edges = [
                bin_edges(extent, bins, rule=pool.rule)
                for extent, bins in zip(values.shape[:2], level, strict=True)
            ]
            spans = [list(zip(starts, stops, strict=True)) for starts, stops in edges]
            for row, column in itertools.product(*map(range, level)):
                span = spans[0][row], spans[1][column]
                found.append(_bin(regions, seen, slot.map, level, (row, column), span, values, next(effects)))
    return tuple(found)


def _upright_map(seen: Seen, number: int) -> np.ndarray:
    """The true cells, ``[height, width, channels]``."""
    features = seen.maps[number]
    height, width = np.asarray(features.sizes)[0]
    values = np.asarray(features.values[0])[:height, :width]
    return values.swapaxes(0, 1) if seen.turned else values


def _bin(
    regions: Regions,
    seen: Seen,
    number: int,
    level: tuple[int, ...],
    place: tuple[int, ...],
    span: tuple[tuple[int, int], ...],
    values: np.ndarray,
    effects: np.ndarray,
) -> BinWinners:
    """The winners of one bin: the first of the greatest in row-major order, by channel."""
    geometry = regions.geometries[number]
    (top, bottom), (left, right) = span
    inside = values[top:bottom, left:right]
    if not inside.size:
        rows = columns = np.zeros(0, np.int64)
        effects = effects[:0]
    else:
        rows, columns = np.unravel_index(
            inside.reshape(-1, inside.shape[-1]).argmax(axis=0), inside.shape[:2]
        )
    won = np.stack([rows + top, columns + left], axis=1)
    cells, which, channels = np.unique(won, axis=0, return_inverse=True, return_counts=True)
    moved = np.bincount(which.reshape(-1), weights=effects, minlength=len(cells))
    strides, offsets = np.asarray(geometry.strides), np.asarray(geometry.offsets)
    centres = cells * strides + offsets + 0.5  # edges lie between pixels
    low, high = (
        np.array(corner) * strides + offsets - strides / 2 + 0.5 for corner in zip(*span, strict=True)
    )
    low, high = np.clip(low, 0, seen.size), np.clip(high, 0, seen.size)
    return BinWinners(
        number,
        (level[0], level[1]),
        (place[0], place[1]),
        (float(low[1]), float(low[0]), float(high[1]), float(high[0])),
        cells.astype(np.int32),
        np.clip(centres, 0, seen.size)[:, ::-1].astype(np.float32),
        channels.astype(np.int32),
        moved.astype(np.float32),
    )


def _parts(
    regions: Regions, seen: Seen, slots: list[_Slot], column: int, attributes: int, linear: bool
) -> dict[str, float]:
    owners: dict[str, list[np.ndarray]] = {}
    for slot in slots:
        pool, first = regions.network.map_pools[slot.map][slot.pool], 0
        for level in pool.levels:
            places = slot.places[_bins_of(level, first)]
            first += math.prod(level)
            owners.setdefault(f"map {slot.map}, {level[0]}x{level[1]}", []).append(places.reshape(-1))
    if len(owners) > _PLAYERS and not linear:  # by map alone
        by_map: dict[str, list[np.ndarray]] = {}
        for name, places in owners.items():
            by_map.setdefault(name.split(",")[0], []).extend(places)
        owners = by_map
    members = {name: np.concatenate(places) for name, places in owners.items()}
    if linear:
        return _linear_parts(regions, seen, members, column)
    return _shapley(regions, seen, members, column, attributes)


def _linear_parts(
    regions: Regions, seen: Seen, members: dict[str, np.ndarray], column: int
) -> dict[str, float]:
    base = float(regions.judge_vectors(regions.base[None]).logits[0, column])
    amounts = regions.slope(seen.vector, column).astype(np.float64)
    amounts *= seen.vector.astype(np.float64) - regions.base
    return {"base": base} | {name: float(amounts[places].sum()) for name, places in members.items()}


def _values(
    regions: Regions, seen: Seen, members: dict[str, np.ndarray], there: np.ndarray, column: int, k: int
) -> np.ndarray:
    """The logits where some parts are there and the others at their base: bool ``[n, parts]`` to ``[n]``."""
    vectors = np.repeat(regions.base[None], len(there), axis=0)
    for part, places in enumerate(members.values()):
        rows = np.flatnonzero(there[:, part])
        vectors[np.ix_(rows, places)] = seen.vector[places]
    return _logits(regions, regions.judge_vectors(vectors), column, k)


def _shapley(
    regions: Regions, seen: Seen, members: dict[str, np.ndarray], column: int, attributes: int
) -> dict[str, float]:
    count = len(members)
    subsets = np.arange(2**count)
    there = (subsets[:, None] >> np.arange(count)) & 1 == 1
    values = _values(regions, seen, members, there, column, attributes)
    sizes = there.sum(axis=1)
    found = {"base": float(values[0])}
    for part, name in enumerate(members):
        without = subsets[~there[:, part]]
        weights = np.array([1 / (count * math.comb(count - 1, size)) for size in sizes[without].tolist()])
        found[name] = float(weights @ (values[without | 1 << part] - values[without]))
    return found
