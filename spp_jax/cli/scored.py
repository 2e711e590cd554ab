"""What becomes of scores on the command line: said when known, and kept in a file that outlives a kill."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from spp_jax.addresses import stamp
from spp_jax.config import UsageError
from spp_jax.scoring import Scored, Scorer

__all__ = ["DONE", "SKIPPED", "ScoreFile", "score_paths"]

DONE, SKIPPED = 0, 3
_MANY = 100  # photographs from which a progress bar is worth its line
_COLUMNS = ("photo", "score", "reason", "bytes", "changed", "checkpoint")


def score_paths(
    scorer: Scorer, photos: Sequence[Path], keep: Callable[[Path, Scored], Any], kept: Sequence[Scored] = ()
) -> int:
    """Score files, and say each score, or why there is none, when it is known.

    Args:
        scorer: judges.
        photos: files.
        keep: told each result.
        kept: results of an earlier call, which are only said; their places are in ``photos``.

    Returns:
        The exit status.
    """
    done = {scored.place for scored in kept}
    left = [place for place in range(len(photos)) if place not in done]
    hidden = len(photos) < _MANY or not sys.stderr.isatty()
    with tqdm(total=len(photos), unit="photo", desc="score", mininterval=1, disable=hidden) as bar:
        skipped = 0
        for scored in kept:
            skipped += _say(photos[scored.place], scored)
            bar.update()
        for scored in scorer.stream([photos[place] for place in left]):
            photo = photos[left[scored.place]]
            keep(photo, scored)
            skipped += _say(photo, scored)
            bar.update()
    if skipped:
        print(f"{skipped} photographs skipped", file=sys.stderr)
    return SKIPPED if skipped else DONE


def _say(photo: Path, scored: Scored) -> bool:
    """Whether it has no score."""
    if scored.reason:
        print(f"skipped {photo}: {scored.reason}", file=sys.stderr, flush=True)
    else:
        print(f"{scored.score:.3f}  {photo}", flush=True)
    return bool(scored.reason)


class ScoreFile:
    """Scores of files, one a line, written when known: CSV or JSON lines, or JSON, made of lines at the end.

    A line has the photograph's path, its score, or the reason why it has none, its length in bytes, the
    time of its last change in nanoseconds, and the digest of the checkpoint. Opened again, a file keeps
    all whole lines; those of the same photograph, length, time and checkpoint are not to be scored again.
    Use as a context: a JSON file is there when it was left without an error, and beside it, until then, its
    lines in ``NAME.part``.
    """

    def __init__(self, path: Path, checkpoint: str):
        """Open a file, or begin one.

        Args:
            path: its ending says the form: .csv, .jsonl or .json.
            checkpoint: the digest of who judges.

        Raises:
            UsageError: another ending, no folder, or a file that is none of scores.
        """
        if path.suffix not in (".csv", ".jsonl", ".json"):
            raise UsageError(f"--out {path}: give a name that ends in .csv, .json or .jsonl")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.absolute().parent}")
        self.path, self._checkpoint = path, checkpoint
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
                score = math.nan if row["score"] is None else row["score"]
                found.append(Scored(place, score, row["reason"]))
        return found

    def keep(self, photo: Path, scored: Scored) -> None:
        """Write a result."""
        assert self._file is not None
        length, changed = _about(photo)
        score = None if scored.reason else scored.score
        row = dict(
            zip(_COLUMNS, (str(photo), score, scored.reason, length, changed, self._checkpoint), strict=True)
        )
        self._rows[row["photo"]] = row
        self._file.write(self._line(row))
        self._file.flush()

    def _line(self, row: dict[str, Any]) -> str:
        if self.path.suffix != ".csv":
            return json.dumps(row) + "\n"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(["" if row[n] is None else row[n] for n in _COLUMNS])
        return text.getvalue()

    def _read(self, text: str) -> list[dict[str, Any]]:
        text = text[: text.rfind("\n") + 1]  # what a kill broke off
        if self.path.suffix != ".csv":
            return [json.loads(line) for line in text.splitlines()]
        if not text:
            return []
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if tuple(rows[0]) != _COLUMNS:
            raise ValueError(f"its first line is not {','.join(_COLUMNS)}")
        found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows[1:]]
        for row in found:
            row |= {"score": float(row["score"]) if row["score"] else None}
            row |= {name: int(row[name]) for name in ("bytes", "changed")}
        return found

    def _write_all(self, path: Path, lines: str) -> None:
        """Whole or not at all."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        head = ",".join(_COLUMNS) + "\n" if path.suffix == ".csv" else ""
        part.write_text(head + lines, encoding="utf-8")
        os.replace(part, path)


def _about(photo: Path) -> tuple[int, int]:
    """Length and time of the last change; zeros of what cannot be reached."""
    try:
        return stamp(photo)
    except Exception:  # each file system has errors of its own; reading it says what is wrong
        return 0, 0
