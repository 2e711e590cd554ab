"""A better crop: windows of one photograph of given shapes, judged, the best of each neighbourhood kept."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spp_jax.errors import UsageError

__all__ = ["Crop", "aspect_of", "best_crops", "candidates", "smallest_crop", "suppressed", "wanted"]

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the sides of the largest that fits; no crop is smaller
_STEPS = 10  # places along an axis, at most
_OVERLAP = 0.6  # intersection over union from which the better of two is kept


class Crop(NamedTuple):
    """A part of a photograph.

    Attributes:
        box: left, top, right, bottom, in pixels of the upright photograph; integers.
        score: of the part, in [0, 1].
        original: of the whole photograph.
        aspect: as it was asked for; None: the photograph's own.
    """

    box: tuple[int, int, int, int]
    score: float
    original: float
    aspect: str | None


def aspect_of(aspect: str) -> float:
    """Width over height, from such as ``"4:5"``.

    Raises:
        UsageError: it is not two numbers above 0 with a colon between them, or beyond 1:100 or 100:1.

    Example:
        >>> aspect_of("16:9") == 16 / 9
        True
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?):(\d{1,6}(?:\.\d{1,6})?)", str(aspect))
    ratio = float(found[1]) / float(found[2]) if found and float(found[2]) else 0.0
    if not 0.01 <= ratio <= 100:
        raise UsageError(
            f"aspect {aspect!r} must be width:height, such as 4:5, between 1:100 and 100:1", "aspect"
        )
    return ratio


def candidates(size: tuple[int, int], aspect: str | None, smallest: tuple[int, int]) -> np.ndarray:
    """Boxes of one shape, at six sizes and up to 10 x 10 places: int64 ``[n, 4]``, pixels.

    The largest fits the photograph exactly, the least has half its sides. The photograph itself is none.

    Args:
        size: (height, width) of the photograph.
        aspect: width:height; None: the photograph's own.
        smallest: (height, width) below which there is no box.
    """
    height, width = size
    ratio = width / height if aspect is None else aspect_of(aspect)
    largest = (min(height, width / ratio), min(width, height * ratio))
    boxes = []
    for share in _SHARES:
        high, wide = (max(1, round(side * share)) for side in largest)
        if high < smallest[0] or wide < smallest[1] or (high, wide) == size:
            continue
        tops, lefts = (
            np.unique(np.linspace(0, room, min(room + 1, _STEPS)).round().astype(np.int64))
            for room in (height - high, width - wide)
        )
        top, left = (grid.reshape(-1) for grid in np.meshgrid(tops, lefts, indexing="ij"))
        boxes.append(np.stack([left, top, left + wide, top + high], axis=1))
    return np.concatenate(boxes) if boxes else np.zeros((0, 4), np.int64)


def smallest_crop(
    size: tuple[int, int], judged: tuple[int, int], smallest: tuple[int, int]
) -> tuple[int, int]:
    """(height, width) in pixels of the photograph from which a part is no smaller than the judge takes.

    Args:
        size: of the photograph.
        judged: of the picture as decoded.
        smallest: that the judge takes, of such.
    """
    height, width = (
        -(-least * whole // seen) for least, whole, seen in zip(smallest, size, judged, strict=True)
    )
    return height, width


def best_crops(
    boxes: dict[str | None, np.ndarray], scores: dict[str | None, np.ndarray], original: float, count: int
) -> list[Crop]:
    """The best, at most ``count``, best first; of each shape at least one where ``count`` allows.

    Of two of one shape that overlap by more than 0.6 (intersection over union) the better is kept.

    Args:
        boxes: by aspect, ``[n, 4]``.
        scores: by aspect, ``[n]``.
        original: the whole photograph's.
        count: of crops.
    """
    firsts, others = [], []
    for aspect, found in boxes.items():
        kept = suppressed(found, scores[aspect], _OVERLAP, count)
        crops = [
            Crop(
                tuple(found[place].tolist()),
                float(scores[aspect][place]),
                original,
                aspect,
            )
            for place in kept
        ]
        firsts, others = firsts + crops[:1], others + crops[1:]

    def by_score(crops: list[Crop]) -> list[Crop]:
        return sorted(crops, key=lambda crop: -crop.score)

    return by_score((by_score(firsts) + by_score(others))[:count])


def suppressed(boxes: np.ndarray, scores: np.ndarray, overlap: float, count: int) -> list[int]:
    """Non-maximum suppression: the places of the best, at most ``count``, none over a better one.

    Args:
        boxes: ``[n, 4]``.
        scores: ``[n]``.
        overlap: intersection over union that is too much.
        count: of them.
    """
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    left = np.argsort(-scores, kind="stable")
    while len(left) and len(kept) < count:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        low = np.maximum(boxes[left, :2], boxes[best, :2])
        high = np.minimum(boxes[left, 2:], boxes[best, 2:])
        common = np.maximum(high - low, 0).prod(axis=1)
        left = left[common <= overlap * (areas[left] + areas[best] - common)]
    return kept


def wanted(aspects: Sequence[str | None], count: int) -> tuple[str | None, ...]:
    """The aspects, each once.

    Raises:
        UsageError: ``aspects`` is one text, or one of them is malformed; ``count`` is below 1.
    """
    if isinstance(aspects, str):
        raise UsageError(f"aspects must be a sequence, such as ({aspects!r},), not one text", "aspects")
    if count < 1:
        raise UsageError(f"count must be at least 1, not {count}", "count")
    for aspect in aspects:
        if aspect is not None:
            aspect_of(aspect)
    return tuple(dict.fromkeys(aspects))
