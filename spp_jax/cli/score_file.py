"""The file that scores go to: each when it is known, whole when all are; the next run reads it again."""

import csv
import datetime
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from spp_jax.addresses import stamp
from spp_jax.errors import UsageError
from spp_jax.names import cell, guarded
from spp_jax.scoring import Entry
from spp_jax.whole_files import write_whole, written_whole

__all__ = ["ScoreFile"]

_OF_ALL = ("rank", "percentile", "series", "pick", "why")  # known when all others are
_FACTS = ("width", "height", "taken", "camera", "rating")
_COLUMNS = (
    *("photo", "rank", "percentile", "width", "height", "taken", "series", "pick", "why", "reason"),
    *("camera", "rating", "look", "bytes", "changed", "checkpoint"),
)
_WHOLE = (".json", ".parquet")  # forms without lines: made at the end
_NUMBERS = ("width", "height", "rating")


class ScoreFile:
    """Scores of files, one a line, written when known: CSV or JSON lines. Or JSON, parquet: made at the end.

    A line has the photograph's path, its scores, or the reason why it has none, what its header told, its
    length in bytes, the time of its last change in nanoseconds, and the digest of the checkpoint. Opened
    again, a file keeps all whole lines; those of the same photograph, length, time and checkpoint are not to
    be scored again. What follows from all scores, such as the rank, is filled in by :meth:`finish`; lines of
    photographs that it was not told of keep their scores and have none of that.

    Use as a context: a JSON or parquet file is there when it was left without an error, and beside it, until
    then, its lines in ``NAME.part``. A file of only the best has the lines of all others in ``NAME.all``, for
    good.

    In CSV, no cell is a formula to a spreadsheet: a quote stands before what would be one.
    """

    def __init__(
        self, path: Path, checkpoint: str, attributes: Sequence[str] = ("score",), *, only_best: bool = False
    ):
        """Open a file, or begin one.

        Args:
            path: its ending says the form: .csv, .jsonl, .json or .parquet.
            checkpoint: the digest of who judges.
            attributes: what is judged: a column each.
            only_best: :meth:`finish` will say which lines it has.

        Raises:
            UsageError: another ending, no folder, or a file that is none of scores.
        """
        if path.suffix not in (".csv", ".jsonl", *_WHOLE):
            raise UsageError(f"--out {path}: give a name that ends in .csv, .json, .jsonl or .parquet")
        if path.suffix == ".parquet":
            _pyarrow(path)
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.absolute().parent}")
        self.path, self._checkpoint = path, checkpoint
        self._attributes = tuple(f"{name} (score)" if name in _COLUMNS else name for name in attributes)
        self._columns = ("photo", *self._attributes, *_COLUMNS[1:])
        self._part, self._all = (path.with_name(path.name + ending) for ending in (".part", ".all"))
        self._only_best = only_best
        self._lines = self._all if only_best else self._part if path.suffix in _WHOLE else path
        self._rows: dict[str, dict[str, Any]] = {}
        self._best: list[str] | None = None
        for file in (path, self._all, self._part):
            try:
                if file.exists():
                    text = "" if file.suffix == ".parquet" else file.read_text(encoding="utf-8")
                    self._rows |= {row["photo"]: row for row in self._read(text, file)}
            except (ValueError, TypeError, RecursionError, csv.Error) as error:
                what = f"is there, and holds no scores ({error}): name another"
                raise UsageError(f"--out {path}: {'' if file == path else f'{file} '}{what}") from None
        self._file: TextIO | None = None

    def __enter__(self) -> "ScoreFile":
        write_whole(self._lines, self._text(self._rows.values()).encode())
        self._file = self._lines.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        assert self._file is not None
        self._file.close()
        if kind is not None:
            return
        shown = list(self._rows.values())
        if self._only_best:  # the lines of all, without those that others stand for now
            write_whole(self._all, self._text(shown).encode())
            shown = [self._rows[key] for key in self._best or ()]
        in_order = [{name: row.get(name) for name in self._columns} for row in shown]
        if self.path.suffix == ".parquet":
            self._write_parquet(in_order)
        elif self.path.suffix == ".json":
            write_whole(self.path, (json.dumps(in_order, indent=1) + "\n").encode())
        else:
            write_whole(self.path, self._text(shown).encode())
        for file in (self._part, *(() if self._only_best else (self._all,))):
            file.unlink(missing_ok=True)

    def kept(self, photos: Sequence[Path]) -> list[Entry]:
        """What stands for these photographs, as they are now; its places are in ``photos``.

        Of a file of an older version it may lack what the header told: its height is then None.
        """
        keys = [self._key(photo) for photo in photos]
        found = []
        for place, (photo, key) in enumerate(zip(photos, keys, strict=True)):
            row = self._rows.get(key)
            if (
                row
                and row["checkpoint"] == self._checkpoint
                and _about(photo) == (row["bytes"], row["changed"])
            ):
                values = [math.nan if row[name] is None else row[name] for name in self._attributes]
                facts = {name: row[name] for name in (*_FACTS, "look", "reason", "bytes")}
                found.append(Entry(place, photo, photo.name, np.array(values, np.float32), **facts))
        return found

    def keep(self, entry: Entry) -> None:
        """Write what is known of a photograph."""
        assert self._file is not None
        length, changed = _about(entry.path)
        row = self._row(entry) | {"bytes": length, "changed": changed, "checkpoint": self._checkpoint}
        self._rows[row["photo"]] = row
        self._file.write(self._line(row))
        self._file.flush()

    def finish(self, entries: Sequence[Entry], best: Sequence[Entry] | None = None) -> None:
        """Fill in what follows from all scores.

        Args:
            entries: of all photographs, each kept before, in the order in which the file shall have them.
            best: of a file of only the best, these, in their order.
        """
        in_series, done = any(entry.pick for entry in entries), {}
        for entry in entries:
            row = self._row(entry)
            row |= {name: getattr(entry, name) for name in _OF_ALL}
            row |= {} if in_series else {"pick": None}
            row |= {name: self._rows[row["photo"]][name] for name in ("bytes", "changed", "checkpoint")}
            done[row["photo"]] = row
        for key, row in self._rows.items():
            done.setdefault(key, row | dict.fromkeys(_OF_ALL))
        self._rows = done
        self._best = None if best is None else [self._key(entry.path) for entry in best]

    def _key(self, photo: Path) -> str:
        """Its name in this file."""
        if self.path.suffix == ".parquet":  # whose texts are UTF-8
            return str(photo).encode("utf-8", "backslashreplace").decode()
        return guarded(photo) if self.path.suffix == ".csv" else str(photo)

    def _row(self, entry: Entry) -> dict[str, Any]:
        scores = [None] * len(self._attributes) if entry.reason else entry.scores.tolist()
        row = {"photo": self._key(entry.path), **dict(zip(self._attributes, scores, strict=True))}
        return row | {name: getattr(entry, name) for name in (*_FACTS, "reason", "look")}

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> str:
        head = ",".join(self._columns) + "\n" if self.path.suffix == ".csv" else ""
        return head + "".join(self._line(row) for row in rows)

    def _line(self, row: Mapping[str, Any]) -> str:
        values = [row.get(name) for name in self._columns]
        if self.path.suffix != ".csv":
            return json.dumps(dict(zip(self._columns, values, strict=True))) + "\n"
        return ",".join(_csv_cell(v, name) for name, v in zip(self._columns, values, strict=True)) + "\n"

    def _read(self, text: str, file: Path) -> list[dict[str, Any]]:
        if file.suffix == ".parquet":
            return [self._checked(row) for row in _pyarrow(file).parquet.read_table(file).to_pylist()]
        if not text:
            return []
        if file.suffix == ".json":
            rows = json.loads(text)
            if type(rows) is not list:
                raise ValueError("no list")
            return [self._checked(row) for row in rows]
        whole = text[: text.rfind("\n") + 1]  # without what a kill broke off
        if not whole and (self.path.suffix == ".csv" or not text.startswith('{"photo": ')):
            raise ValueError("no line")
        if self.path.suffix != ".csv":
            return [self._checked(json.loads(line)) for line in whole.splitlines()]
        head, *rows = csv.reader(io.StringIO(whole, newline=""))
        if len(set(head)) < len(head):
            raise ValueError("a column twice")
        found: list[dict[str, Any]] = [dict(zip(head, row, strict=True)) for row in rows]
        if not found:
            self._check_columns(head)
        for row in found:
            self._check_columns(row)
            row |= {name: float(row[name]) if row[name] else None for name in self._attributes}
            row |= {name: int(row[name]) if row.get(name) else None for name in _NUMBERS}
            row |= {name: int(row[name]) for name in ("bytes", "changed")}
            if not row["photo"].startswith("'"):  # an older version's
                row["photo"] = guarded(row["photo"])
        return [self._checked(row) for row in found]

    def _check_columns(self, names: Iterable[str]) -> None:
        """Refuse those that we would lose, or that we need and are not there."""
        needed = {"photo", *self._attributes, "reason", "bytes", "changed", "checkpoint"}
        if not needed <= set(names) <= set(self._columns):
            raise ValueError(f"it has {', '.join(map(str, names))} instead of {', '.join(self._columns)}")

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of any version, with all columns; those that follow from all scores are empty.

        Raises:
            ValueError: a cell holds what none of ours does.
        """
        self._check_columns(row)
        row = dict.fromkeys(self._columns) | row | dict.fromkeys(_OF_ALL)
        row |= {name: row[name] or "" for name in ("look", "camera")} | {"taken": row["taken"] or None}
        kinds: dict[str, Any] = dict.fromkeys(("photo", "reason", "checkpoint", "look", "camera"), str)
        kinds |= dict.fromkeys(_NUMBERS, int | None) | {"bytes": int, "changed": int, "taken": str | None}
        kinds |= dict.fromkeys(self._attributes, float | int | None)
        wrong = [name for name, kind in kinds.items() if not isinstance(row[name], kind)]
        if wrong or not re.fullmatch("([0-9a-f]{16})?", row["look"]):
            raise ValueError(f"a {wrong[0] if wrong else 'look'} that none of ours is")
        if row["taken"]:
            datetime.datetime.fromisoformat(row["taken"])
        return row

    def _write_parquet(self, rows: list[dict[str, Any]]) -> None:
        """With the same types whatever the rows are, so that files can be read together."""
        arrow = _pyarrow(self.path)
        kinds = dict.fromkeys(self._columns, arrow.string())
        kinds |= dict.fromkeys(self._attributes, arrow.float32())
        kinds |= {"percentile": arrow.float64(), "pick": arrow.bool_()}
        kinds |= dict.fromkeys(("rank", "series", *_NUMBERS, "bytes", "changed"), arrow.int64())
        table = arrow.Table.from_pylist(rows, arrow.schema(list(kinds.items())))
        with written_whole(self.path) as part:
            arrow.parquet.write_table(table, part)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError(f"--out {path}: .parquet needs pip install 'spp_jax[parquet]'") from None
    return pyarrow


def _csv_cell(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str):
        return str(value)
    text = value if column == "photo" else cell(value)  # a photograph's key is guarded already
    quoted = any(character in text for character in ',;\t"\r\n')  # ; and tabs are some spreadsheets' commas
    return '"' + text.replace('"', '""') + '"' if quoted else text


def _about(photo: Path) -> tuple[int, int]:
    """Length and time of the last change; zeros of what cannot be reached."""
    try:
        return stamp(photo)
    except Exception:  # each file system has errors of its own; reading it says what is wrong
        return 0, 0
