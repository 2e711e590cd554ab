"""A file is there whole or as it was before, and nothing lies beside it."""

import contextlib
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records

from spp_jax.addresses import path_at
from spp_jax.cli.placing import replace_file
from spp_jax.cli.score_file import ScoreFile
from spp_jax.compilation import Price
from spp_jax.data.columns import write_columns
from spp_jax.data.cutting import cut
from spp_jax.run.features import Features, keep_features
from spp_jax.run.journal import Journal
from spp_jax.whole_files import part_beside, write_whole, written_whole

NAMES = {
    "plain": "x.jpg",
    "of 255 bytes": "x" * 251 + ".jpg",
    "of 255 bytes in 85 characters": "写" * 85,
    "that is no text": os.fsdecode(b"\xff.jpg"),
    "of 255 bytes that are no text": os.fsdecode(b"\xff" * 255),
    "hidden": ".x",
}


@pytest.fixture(params=NAMES.values(), ids=list(NAMES))
def path(request, tmp_path):
    return tmp_path / request.param


def test_a_file_has_its_name_when_it_is_written(path):
    path.write_bytes(b"before")
    with written_whole(path) as part:
        part.write_bytes(b"after")
        assert path.read_bytes() == b"before"
        assert (part.parent, part.name[0]) == (path.parent, ".")
    assert path.read_bytes() == b"after"
    assert list(path.parent.iterdir()) == [path]


def break_off(path: Path, error: BaseException) -> None:
    with written_whole(path) as part:
        part.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [OSError("the disk is full"), ValueError("x"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_what_was_there(path, error):
    with pytest.raises(type(error)):
        break_off(path, error)
    assert list(path.parent.iterdir()) == []
    path.write_bytes(b"before")
    with pytest.raises(type(error)):
        break_off(path, error)
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_name_that_cannot_be_given_leaves_nothing(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "x", b"after")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_is_none_is_the_error_that_is_told(tmp_path, folder):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((FileNotFoundError, NotADirectoryError)) as error:
        write_whole(tmp_path / folder / "x", b"after")
    assert error.value.__context__ is None


def test_of_two_threads_that_write_one_file_both_end_and_it_is_what_one_of_them_wrote(path):
    together = threading.Barrier(2, timeout=60)
    failed = []

    def write(content: bytes) -> None:
        try:
            with written_whole(path) as part:
                part.write_bytes(content)
                together.wait()
                assert part.read_bytes() == content
        except BaseException as error:
            failed.append(error)

    contents = b"1" * 10_000, b"2" * 5_000
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert path.read_bytes() in contents
    assert list(path.parent.iterdir()) == [path]


def test_it_may_lie_at_an_address(bucket):
    path = path_at("gs://bucket/x")
    write_whole(path, b"before")
    write_whole(path, b"after")
    with pytest.raises(ValueError, match="x"):
        break_off(path, ValueError("x"))
    assert [(file.name, file.read_bytes()) for file in bucket.iterdir()] == [("x", b"after")]


def test_it_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "new").write_bytes(b"")
    write_whole(tmp_path / "x", b"")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


def test_a_part_goes_wherever_it_was_moved_from(path):
    with part_beside(path) as part:
        part.write_bytes(b"1")
        os.link(part, path)
    assert list(path.parent.iterdir()) == [path]
    with part_beside(path) as part:
        pass  # nothing was written
    assert list(path.parent.iterdir()) == [path]


def _cut(path: Path) -> None:
    photo = path.parent.parent / "photo.png"
    photo.write_bytes(bytes(noise_records().photo(0)))  # pyright: ignore[reportArgumentType]
    cut(photo, (0, 0, 8, 8), path)


def _scores(path: Path) -> None:
    with ScoreFile(path, "digest"):
        pass


def _journal(path: Path) -> None:
    Journal(path.parent, 0).close()


WRITERS = {
    "metrics.jsonl": _journal,
    "price.json": Price(1.0, 2.0).write,
    "scores.csv": _scores,
    "scores.json": _scores,
    "scores.parquet": _scores,
    "crop.png": _cut,
    "columns.npz": lambda path: write_columns(path, 1, {"a": np.zeros(9)}),
    "features.npz": lambda path: keep_features(path, ("a",), Features(np.zeros((1, 2), np.float32), {})),
    "photo.xmp": lambda path: replace_file(path, b"stars"),
}
"""What we write whole, by the name of its file; not all raise where they cannot."""


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_have_its_name_leaves_the_file_as_it_was_and_none_beside_it(name, tmp_path, monkeypatch):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'spp_jax[parquet]'")
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    if not name.startswith("scores"):
        path.write_bytes(b"before")
    else:
        WRITERS[name](path)
    before = path.read_bytes()

    replace, refused = os.replace, []

    def full(source: Path, target: Path) -> None:
        if Path(target) != path:  # such as the lines that scores are kept in until all are known
            return replace(source, target)
        assert Path(source).exists()
        refused.append(source)
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", full)
    with contextlib.suppress(OSError):
        WRITERS[name](path)
    assert refused
    assert path.read_bytes() == before
    beside = {file.name for file in path.parent.iterdir() if file.is_file()}
    assert beside <= {name, f"{name}.part"}
