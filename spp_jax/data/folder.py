"""`folder`: any folder of pictures with a CSV of scores, read in place: an edited one is never an old copy.

The CSV is `scores.csv`, or the only CSV there. Its columns are ``file`` (relative to the folder), ``score``
(0 to 1) and, as one likes, ``group`` (pictures of one group are never on both sides of a split), ``split``
(train, validation or test: the official split) and ``category`` (figures are given for each). Further columns
of numbers are labels to choose from, blank where a picture lacks one; others are left alone.

`pairs.csv`, with scores or without, has what people preferred of two pictures or crops: see
:func:`spp_jax.data.comparisons.read_comparisons`. `best.csv`, the best crop of each photograph, is for
judging croppers, and no label here.
"""

import csv
import logging
import math
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spp_jax.addresses import is_address
from spp_jax.config import Decoding
from spp_jax.data.comparisons import Comparison, read_comparisons, with_pairs
from spp_jax.data.duplicates import equal_files, joined, look_alikes
from spp_jax.data.names_on_disk import NamesOnDisk
from spp_jax.data.records import SPLITS, Records
from spp_jax.data.scanning import scan_sizes
from spp_jax.data.tables import file_name, split_table, text_of
from spp_jax.errors import UsageError
from spp_jax.names import printable, some

_DECIMAL_COMMA = re.compile(r"(-?\d*),(\d+)\Z")
_NO_NUMBER = re.compile("_")  # though Python takes 0_1 for one

__all__ = ["Row", "load_folder", "read_table"]

_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        line: its number in the file, from 1.
        file: relative to the folder.
        score: 0 to 1; NaN where it is blank or there is no such column.
        group: the file where there is no such column.
        split: empty where there is no such column.
        others: the further columns.
    """

    line: int
    file: str
    score: float
    group: str
    split: str
    others: dict[str, str]


def load_folder(
    folder: Path,
    decoding: Decoding,
    *,
    outside_files: bool = False,
    near_duplicates: bool = False,
) -> tuple[Records, dict[str, str]]:
    """The records of a folder, ordered by file, and the reason for each picture that cannot be read (size 0).

    Equal files are of one group, whatever the table says of their groups; that and contradictions between
    their labels are logged.

    Args:
        folder: with the table.
        decoding: how pictures become pixels.
        outside_files: whether files may lie outside of the folder, by absolute names, ``..`` or links.
        near_duplicates: whether pictures that look alike are of one group, too.

    Raises:
        UsageError: there is no folder or CSV, or a line of it is not what it should be.
    """
    table, pairs = _find_tables(folder)
    compared = read_comparisons(pairs, outside_files=outside_files) if pairs else []
    if pairs and not is_address(folder):
        compared = _pairs_on_disk(compared, folder, outside_files)
    rows = read_table(table, required=(), outside_files=outside_files) if table else []
    if table and not is_address(folder):
        rows = _as_on_disk(rows, table, outside_files)
    else:
        rows = [row._replace(file=row.file.strip()) for row in rows]
    listed = {row.file for row in rows}
    rows += [  # compared only
        Row(0, name, math.nan, name, "", {})
        for name in dict.fromkeys(name for comparison in compared for name in comparison.photos)
        if name not in listed
    ]
    rows.sort(key=lambda row: row.file)
    paths = [folder / row.file for row in rows]
    sizes, reasons = scan_sizes(paths, decoding, folder / ".spp_jax-sizes.npz")
    scores = np.array([row.score for row in rows], np.float32)
    equal = equal_files(paths, folder / ".spp_jax-equal.npz")
    labels = _further_labels(rows)
    _tell_equal(rows, equal, labels, (table or folder).name)
    alike = look_alikes(paths, folder / ".spp_jax-alike.npz") if near_duplicates else []
    if table:
        _check_labelled(table, rows, [scores, *labels.values()], compared)
    unread = {
        rows[i].file: f"{table.name}, line {rows[i].line}: {why}" if table and rows[i].line else why
        for i, why in reasons.items()
    }
    kinds = [row.others.get("category", "") for row in rows]
    records = Records(
        ids=tuple(row.file for row in rows),
        sizes=decoding.scaled(sizes),
        photo=paths.__getitem__,
        scores=scores,
        good=scores >= 0.5,
        groups=_groups(rows, equal + alike),
        splits=tuple(row.split for row in rows) if all(row.split for row in rows) else (),
        labels=labels,
        decoding=decoding,
        categories=tuple(kinds) if any(kinds) else (),
    )
    return with_pairs(records, sizes, compared, unread) if pairs else (records, unread)


def _as_on_disk(rows: list[Row], table: Path, outside_files: bool) -> list[Row]:
    """The rows with each file called as it is on the disk."""
    disk, found, seen, others = NamesOnDisk(table.parent), [], {}, {}
    for row in rows:
        name = disk.find(row.file)
        if name is None:  # scanning names it; as a table may mean it, without the blanks around
            name = row.file.strip()
        elif name not in (row.file, row.file.strip()):
            others[f"{table.name}, line {row.line}"] = f"{row.file} is taken for {name}"
        name = posixpath.normpath(name)
        where = f"{table}, line {row.line}"
        if not outside_files and disk.leaves(name):
            raise UsageError(
                f"{where}: {printable(name)} leads out of the folder; --outside-files allows that"
            )
        if name in seen:
            raise UsageError(f"{where}: {printable(name)} is on line {seen[name]} already")
        seen[name] = row.line
        found.append(row._replace(file=name, group=name if row.group == row.file else row.group))
    if others:
        _log.info(f"names of the table that are other ones on the disk: {len(others)}; {some(others, 1)}")
    return found


def _pairs_on_disk(compared: list[Comparison], folder: Path, outside_files: bool) -> list[Comparison]:
    """The comparisons with each file called as it is on the disk."""
    disk, called = NamesOnDisk(folder), {}
    for comparison in compared:
        for name in comparison.photos:
            called[name] = called.get(name) or posixpath.normpath(disk.find(name) or name.strip())
            if not outside_files and disk.leaves(called[name]):
                raise UsageError(
                    f"{comparison.where}: {printable(name)} leads out of the folder; "
                    "--outside-files allows that"
                )
    return [
        comparison._replace(photos=(called[comparison.photos[0]], called[comparison.photos[1]]))
        for comparison in compared
    ]


def _tell_equal(rows: list[Row], equal: list[list[int]], labels: Iterable[str], table: str) -> None:
    """Log which pictures are copies, and where the table says of such what cannot all be true."""
    if not equal:
        return
    count = sum(map(len, equal))
    _log.info(f"{count} pictures are copies, of {len(equal)} different; copies are of one group")
    told = {"scores": ["" if math.isnan(row.score) else str(row.score) for row in rows]}
    told["parts of the official split"] = [row.split for row in rows]
    for name in (*labels, "category"):
        told[f"values of {printable(name)}"] = [row.others.get(name, "") for row in rows]
    for what, values in told.items():
        apart = [places for places in equal if len({values[i] for i in places if values[i]}) > 1]
        if apart:
            first = [(f"{rows[i].file} (line {rows[i].line})", values[i]) for i in apart[0]]
            _log.warning(f"{table}: {len(apart)} of these files have several {what}: {some(first)}")


def _groups(rows: list[Row], sets: list[list[int]]) -> tuple[str, ...]:
    """Of each row, where the groups of a set's members are one."""
    names = {name: i for i, name in enumerate(dict.fromkeys(row.group for row in rows))}
    pairs = [(names[rows[places[0]].group], names[rows[i].group]) for places in sets for i in places[1:]]
    called = list(names)
    roots = joined(range(len(names)), pairs)
    return tuple(called[roots[names[row.group]]] for row in rows)


def _further_labels(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The further columns that hold numbers and blanks alone, float32 ``[n]``, NaN where blank."""
    labels = {}
    for name in dict.fromkeys(name for row in rows for name in row.others):
        try:
            values = [float(row.others.get(name, "") or "nan") for row in rows]
        except ValueError:
            continue
        if not all(map(math.isnan, values)):
            labels[name] = np.array(values, np.float32)
    return labels


def _check_labelled(
    table: Path, rows: Sequence[Row], labels: Sequence[np.ndarray], compared: Sequence[Comparison]
) -> None:
    """Refuse a line that says nothing of its picture."""
    if np.isnan(np.stack(labels)).all():
        found = printable(",".join(("file", *rows[0].others)))
        raise UsageError(
            f"{table}, line 1: no column 'score'; expected file,score[,group][,split], found {found!r}"
        )
    pictures = {name for comparison in compared for name in comparison.photos}
    for i in np.flatnonzero(np.isnan(np.stack(labels)).all(axis=0)).tolist():
        if rows[i].file not in pictures:
            raise UsageError(f"{table}, line {rows[i].line}: the score '' is no number")


def _find_tables(folder: Path) -> tuple[Path | None, Path | None]:
    """The table of scores and that of pairs, one of which may be absent."""
    if not folder.is_dir():
        raise UsageError(f"--data-dir {folder}: there is no such folder")
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")
    pairs = next((path for path in tables if path.name == "pairs.csv"), None)
    tables = [path for path in tables if path.name not in ("pairs.csv", "best.csv")]
    named = [path for path in tables if path.name == "scores.csv"] or tables
    if not named and pairs:
        return None, pairs
    if len(named) != 1:
        found = f"{len(tables)} CSV files, and none is scores.csv" if tables else "no CSV file"
        raise UsageError(f"--data folder: in {folder} (--data-dir) is {found}; its columns are file,score")
    return named[0], pairs


def read_table(path: Path, required: Sequence[str] = ("score",), *, outside_files: bool = False) -> list[Row]:
    """The lines of a table, with or without a byte-order mark, of whatever line ends.

    Columns are separated by commas, semicolons (numbers may then have a decimal comma) or tabs, whichever
    makes a heading with the columns that are needed; case and blanks around their names do not count. Blanks
    before a name belong to it only between quotes.

    Args:
        path: a CSV file, UTF-8, or UTF-16 with a byte-order mark.
        required: columns needed besides ``file``; none of their fields may be blank. Without ``score``, some
            other column must hold numbers.
        outside_files: whether files may have absolute names, or such with ``..``.

    Raises:
        UsageError: names the line and what is wrong with it.
    """
    text = text_of(path)
    try:
        heading, numbered, separator = split_table(text, ("file", *required))
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read as a CSV file: {error}") from None
    for name in ("file", *required):
        if name not in heading:
            shown = printable(text.lstrip().splitlines()[0])[:200] if text.strip() else ""
            raise UsageError(
                f"{path}, line 1: no column {name!r}; expected file,score[,group][,split], found {shown!r}"
            )
    for name in ("file", "score", "group", "split", "category", *required):
        if heading.count(name) > 1:
            raise UsageError(f"{path}, line 1: there are {heading.count(name)} columns {name!r}")
    if not numbered:
        raise UsageError(f"{path} has no line below its heading")
    rows, seen, groups = [], {}, {}
    for line, cells in numbered:
        where = f"{path}, line {line}"
        if len(cells) != len(heading):
            raise UsageError(f"{where}: other fields than the heading's {len(heading)}")
        fields = {name: cell for name, cell in zip(heading, cells, strict=True) if heading.count(name) == 1}
        for name in required:
            if not fields[name].strip():
                raise UsageError(f"{where}: no {name} is given")
        row = _row(where, line, fields, separator, outside_files)
        if row.file in seen:
            raise UsageError(f"{where}: {printable(row.file)} is on line {seen[row.file]} already")
        seen[row.file] = line
        first = groups.setdefault(row.group, row)
        if first.split != row.split:
            raise UsageError(
                f"{where}: group {printable(row.group)} is of {row.split}, on line {first.line} of "
                f"{first.split}"
            )
        rows.append(row)
    return rows


def _row(where: str, line: int, fields: dict[str, str], separator: str, outside_files: bool) -> Row:
    name = fields.pop("file")
    fields = {name: value.strip() for name, value in fields.items()}
    if separator != ",":
        fields = {name: _DECIMAL_COMMA.sub(r"\1.\2", value) for name, value in fields.items()}
    text = fields.pop("score", "")
    try:
        score = float(_NO_NUMBER.sub("no number", text)) if text else math.nan
    except ValueError:
        raise UsageError(f"{where}: the score {printable(text)!r} is no number") from None
    if text and not 0 <= score <= 1:
        raise UsageError(f"{where}: the score {text} is not in 0 to 1; scale the column to that")
    name = file_name(where, name, outside_files)
    split = fields.pop("split", None)
    if split is not None and split not in SPLITS:
        raise UsageError(f"{where}: split {printable(split)!r} is none of {', '.join(SPLITS)}")
    return Row(line, name, score, fields.pop("group", "") or name, split or "", fields)
