"""Which photographs are of one series: taken in a burst, or alike to look at."""

import collections
import datetime
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from spp_jax.data.duplicates import alike_pairs, joined

__all__ = ["Series", "reason_of", "series_of"]


class Series(NamedTuple):
    """Photographs of one series.

    Attributes:
        members: their places, in order; two or more.
        span: seconds from the first to the last, where all are of one burst; else None.
        burst: some were taken in a burst.
    """

    members: list[int]
    span: float | None
    burst: bool


def series_of(
    taken: Sequence[str | None], cameras: Sequence[str], looks: Sequence[str], seconds: float
) -> list[Series]:
    """Series in the order of their first members; who is alone is in none.

    Args:
        taken: when each was taken, in ISO 8601; None: not known.
        cameras: what took each; bursts are of one camera.
        looks: perceptual hash of each, 16 hexadecimal digits; empty: not known.
        seconds: between two photographs of a burst; negative: there are no bursts.

    Example:
        >>> series_of(["2024-05-01T12:00:00", "2024-05-01T12:00:02", None], ["", "", ""], ["", "", ""], 2)
        [Series(members=[0, 1], span=2.0, burst=True)]
    """
    times = [_seconds(text) for text in taken]
    in_time = sorted((cameras[i], time, i) for i, time in enumerate(times) if time is not None)
    bursts = [
        (i, j)
        for (camera, time, i), (other, later, j) in itertools.pairwise(in_time)
        if camera == other and later - time <= seconds
    ]
    roots = joined(range(len(times)), [*bursts, *alike_pairs(looks)])
    burst = joined(range(len(times)), bursts)
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for i, root in enumerate(roots):
        groups[root].append(i)
    found = []
    for members in groups.values():
        if len(members) > 1:
            known = [time for i in members if (time := times[i]) is not None]
            parts = len({burst[i] for i in members})
            span = max(known) - min(known) if parts == 1 else None
            found.append(Series(members, span, parts < len(members)))
    return found


def reason_of(series: Series, best: float, second: float) -> str:
    """Why one is the pick: of how many, what they share, and its score against the next one's.

    Example:
        >>> reason_of(Series([0, 1, 2, 3], 1.5, True), 0.712, 0.66)
        'best of 4 taken within 2 s: 0.71 against 0.66'
    """
    if series.span is not None:
        kind = f"taken within {max(1, math.ceil(series.span))} s"
    else:
        kind = "taken in bursts or alike" if series.burst else "that look alike"
    if best == second:
        return f"one of {len(series.members)} {kind}: {best:.2f} as the next"
    digits = next((n for n in range(2, 8) if f"{best:.{n}f}" != f"{second:.{n}f}"), 8)
    return f"best of {len(series.members)} {kind}: {best:.{digits}f} against {second:.{digits}f}"


def _seconds(taken: str | None) -> float | None:
    """On the camera's own clock, whatever zone it was set to."""
    if taken is None:
        return None
    local = datetime.datetime.fromisoformat(taken).replace(tzinfo=datetime.UTC)
    return local.timestamp()
