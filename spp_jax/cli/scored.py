"""What becomes of scores on the command line: said when known, and kept in a file that outlives a kill."""

import csv
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from spp_jax.addresses import stamp
from spp_jax.cli.program import DONE, SKIPPED
from spp_jax.data.finding import Found
from spp_jax.errors import UsageError
from spp_jax.names import printable
from spp_jax.scoring import Scored, Scorer

__all__ = ["ScoreFile", "limited", "score_paths", "tell_passed"]

_MANY = 100  # photographs from which a progress bar is worth its line


def score_paths(
    scorer: Scorer,
    photos: Sequence[Path],
    keep: Callable[[Path, Scored], Any],
    kept: Sequence[Scored] = (),
    skipped: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Score files, and say each score, or why there is none, when it is known.

    Args:
        scorer: judges.
        photos: files.
        keep: told each result.
        kept: results of an earlier call, which are only said; their places are in ``photos``.
        skipped: what was found beside them and cannot be read, with the reason.

    Returns:
        The exit status.
    """
    done = {scored.place for scored in kept}
    left = [place for place in range(len(photos)) if place not in done]
    hidden = len(photos) < _MANY or not sys.stderr.isatty()
    with tqdm(total=len(photos), unit="photo", desc="score", mininterval=1, disable=hidden) as bar:
        if len(scorer.attributes) > 1:
            print("  ".join(scorer.attributes), flush=True)
        unread = 0
        for scored in kept:
            unread += _say(photos[scored.place], scored)
            bar.update()
        for scored in scorer.stream([photos[place] for place in left]):
            photo = photos[left[scored.place]]
            keep(photo, scored)
            unread += _say(photo, scored)
            bar.update()
    for name, reason in skipped.items():
        print(f"skipped {printable(name)}: {printable(reason)}", file=sys.stderr)
    unread += len(skipped)
    if unread:
        print(f"{unread} photographs skipped", file=sys.stderr)
    return SKIPPED if unread else DONE


def _say(photo: Path, scored: Scored) -> bool:
    """Whether it has no score."""
    if scored.reason:
        print(f"skipped {printable(photo)}: {printable(scored.reason)}", file=sys.stderr, flush=True)
    else:
        numbers = "  ".join(f"{number:.3f}" for number in np.atleast_1d(scored.score))
        print(f"{numbers}  {printable(photo)}", flush=True)
    return bool(scored.reason)


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


class ScoreFile:
    """Scores of files, one a line, written when known: CSV or JSON lines, or JSON, made of lines at the end.

    A line has the photograph's path, its score, or the reason why it has none, its length in bytes, the
    time of its last change in nanoseconds, and the digest of the checkpoint. Opened again, a file keeps
    all whole lines; those of the same photograph, length, time and checkpoint are not to be scored again.
    Use as a context: a JSON file is there when it was left without an error, and beside it, until then, its
    lines in ``NAME.part``.
    """

    def __init__(self, path: Path, checkpoint: str, attributes: Sequence[str] = ("score",)):
        """Open a file, or begin one.

        Args:
            path: its ending says the form: .csv, .jsonl or .json.
            checkpoint: the digest of who judges.
            attributes: what is judged: a column each.

        Raises:
            UsageError: another ending, no folder, or a file that is none of scores.
        """
        if path.suffix not in (".csv", ".jsonl", ".json"):
            raise UsageError(f"--out {path}: give a name that ends in .csv, .json or .jsonl")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.absolute().parent}")
        self.path, self._checkpoint, self._attributes = path, checkpoint, tuple(attributes)
        self._columns = ("photo", *self._attributes, "reason", "bytes", "changed", "checkpoint")
        whole = path.suffix == ".json"
        self._lines = path.with_name(f"{path.name}.part") if whole else path
        self._rows: dict[str, dict[str, Any]] = {}
        try:
            if whole and path.exists():
                self._rows |= {row["photo"]: row for row in json.loads(path.read_text())}
            if self._lines.exists():
                self._rows |= {row["photo"]: row for row in self._read(self._lines.read_text())}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UsageError(f"--out {path}: is there, and holds no scores ({error}): name another") from None
        self._file: TextIO | None = None

    def __enter__(self) -> "ScoreFile":
        self._write_all(self._lines, "".join(self._line(row) for row in self._rows.values()))
        self._file = self._lines.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        assert self._file is not None
        self._file.close()
        if kind is not None:
            return
        if self._lines == self.path:  # without the lines that others stand for now
            self._write_all(self.path, "".join(self._line(row) for row in self._rows.values()))
        else:
            self._write_all(self.path, json.dumps(list(self._rows.values()), indent=1) + "\n")
            self._lines.unlink()

    def kept(self, photos: Sequence[Path]) -> list[Scored]:
        """The results that stand for these photographs, as they are now."""
        found = []
        for place, photo in enumerate(photos):
            row = self._rows.get(str(photo))
            if (
                row
                and _about(photo) == (row["bytes"], row["changed"])
                and row["checkpoint"] == self._checkpoint
            ):
                values = [math.nan if row[name] is None else row[name] for name in self._attributes]
                score = values[0] if len(values) == 1 else np.array(values, np.float32)
                found.append(Scored(place, score, row["reason"]))
        return found

    def keep(self, photo: Path, scored: Scored) -> None:
        """Write a result."""
        assert self._file is not None
        length, changed = _about(photo)
        values = [None if scored.reason else v for v in np.atleast_1d(scored.score).tolist()]
        values = values * (1 if len(values) == len(self._attributes) else len(self._attributes))
        cells = (str(photo), *values, scored.reason, length, changed, self._checkpoint)
        row: dict[str, Any] = dict(zip(self._columns, cells, strict=True))
        self._rows[row["photo"]] = row
        self._file.write(self._line(row))
        self._file.flush()

    def _line(self, row: dict[str, Any]) -> str:
        if self.path.suffix != ".csv":
            return json.dumps(row) + "\n"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(
            ["" if row[n] is None else row[n] for n in self._columns]
        )
        return text.getvalue()

    def _read(self, text: str) -> list[dict[str, Any]]:
        text = text[: text.rfind("\n") + 1]  # what a kill broke off
        if self.path.suffix != ".csv":
            return [json.loads(line) for line in text.splitlines()]
        if not text:
            return []
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if tuple(rows[0]) != self._columns:
            raise ValueError(f"its first line is not {','.join(self._columns)}")
        found: list[dict[str, Any]] = [dict(zip(self._columns, row, strict=True)) for row in rows[1:]]
        for row in found:
            row |= {name: float(row[name]) if row[name] else None for name in self._attributes}
            row |= {name: int(row[name]) for name in ("bytes", "changed")}
        return found

    def _write_all(self, path: Path, lines: str) -> None:
        """Whole or not at all."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        head = ",".join(self._columns) + "\n" if path.suffix == ".csv" else ""
        part.write_text(head + lines, encoding="utf-8")
        os.replace(part, path)


def _about(photo: Path) -> tuple[int, int]:
    """Length and time of the last change; zeros of what cannot be reached."""
    try:
        return stamp(photo)
    except Exception:  # each file system has errors of its own; reading it says what is wrong
        return 0, 0
