"""What is said of scores on the command line: each when it is known, or the best of them at the end."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from spp_jax.cli.program import DONE, SKIPPED
from spp_jax.data.finding import Found
from spp_jax.names import printable
from spp_jax.scoring import Entry, Scored, Scorer
from spp_jax.scoring.stream import Watch

__all__ = ["bar_hidden", "limited", "say_entries", "score_paths", "tell_passed"]

_MANY = 100  # photographs from which a progress bar is worth its line


def bar_hidden(count: int) -> bool:
    """Whether a progress bar over so many photographs is not worth its line, or nobody sees it."""
    return count < _MANY or not sys.stderr.isatty()


def score_paths(
    scorer: Scorer,
    photos: Sequence[Path],
    keep: Callable[[Path, Scored], Any],
    kept: Sequence[Scored] = (),
    skipped: Mapping[str, str] = MappingProxyType({}),
    *,
    at_once: bool = True,
    watch: Watch | None = None,
) -> int:
    """Score files, and say each score, or why there is none, when it is known.

    Args:
        scorer: judges.
        photos: files.
        keep: told each result, with its place in ``photos``.
        kept: results of an earlier call, which are only said; their places are in ``photos``.
        skipped: what was found beside them and cannot be read, with the reason.
        at_once: say scores; else only why there is none.
        watch: shown the pixels of each that is scored now, with its place in ``photos``, by other threads.

    Returns:
        The exit status.
    """
    done = {scored.place for scored in kept}
    left = [place for place in range(len(photos)) if place not in done]
    with tqdm(
        total=len(photos), unit="photo", desc="score", mininterval=1, disable=bar_hidden(len(photos))
    ) as bar:
        if at_once and len(scorer.attributes) > 1:
            print("  ".join(scorer.attributes), flush=True)
        unread = 0
        for scored in kept:
            unread += _say(photos[scored.place], scored, at_once)
            bar.update()
        shown: dict[str, Any] = {}
        if watch is not None:
            shown["watch"] = lambda place, pixels, turned: watch(left[place], pixels, turned)
        for scored in scorer.stream([photos[place] for place in left], **shown):
            scored = scored._replace(place=left[scored.place])
            photo = photos[scored.place]
            keep(photo, scored)
            unread += _say(photo, scored, at_once)
            bar.update()
    for name, reason in skipped.items():
        print(f"skipped {printable(name)}: {printable(reason)}", file=sys.stderr)
    unread += len(skipped)
    if unread:
        print(f"{unread} photographs skipped", file=sys.stderr)
    return SKIPPED if unread else DONE


def _say(photo: Path, scored: Scored, score: bool) -> bool:
    """Whether it has no score."""
    if scored.reason:
        print(f"skipped {printable(photo)}: {printable(scored.reason)}", file=sys.stderr, flush=True)
    elif score:
        print(f"{_numbers(np.atleast_1d(scored.score))}  {printable(photo)}", flush=True)
    return bool(scored.reason)


def say_entries(entries: Sequence[Entry], attributes: Sequence[str]) -> None:
    """The scores of these, in their order, and why each pick of a series is it."""
    if len(attributes) > 1:
        print("  ".join(attributes))
    for entry in entries:
        why = f"  ({entry.why})" if entry.why else ""
        print(f"{_numbers(entry.scores)}  {printable(entry.path)}{why}")


def _numbers(scores: np.ndarray) -> str:
    return "  ".join(f"{number:.3f}" for number in scores)


def tell_passed(found: Found) -> None:
    """What is no photograph to be scored, and so not counted as skipped."""
    if found.unread:
        counts = ", ".join(f"{count} {printable(ending)}" for ending, count in found.unread.items())
        print(f"not read, by ending: {counts}", file=sys.stderr)
    if found.passed:
        print(
            f"passed over: {found.passed} hidden or system entries, such as {printable(found.example)}",
            file=sys.stderr,
        )


def limited(scorer: Scorer, refuse_pixels: int | None, refuse_seconds: float | None) -> None:
    """Have a scorer skip photographs over these limits; None: as its model was trained."""
    limits = {"refuse_pixels": refuse_pixels, "refuse_seconds": refuse_seconds}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    scorer.config = dataclasses.replace(scorer.config, **given)
