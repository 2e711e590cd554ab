"""What was found out about files is known again while they stay as they are."""

import os
from pathlib import Path

import numpy as np
import pytest

from spp_jax.data import duplicates
from spp_jax.data.duplicates import equal_files
from spp_jax.data.remembered import key_of, read_facts, write_facts


@pytest.mark.parametrize("facts", [np.array(["a", "b"]), np.array([[1, 2], [3, 4]]), np.array([0.5, 1.5])])
def test_facts_are_those_of_the_files_as_they_are(tmp_path, facts):
    cache, files = tmp_path / "facts.npz", [tmp_path / "in" / "x", tmp_path / os.fsdecode(b"y\xe9")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(b"1")
    assert read_facts(cache, 1, "fact") == {}
    write_facts(cache, 1, "fact", [key_of(file, cache) for file in files], facts)
    known = read_facts(cache, 1, "fact")
    assert [known[key_of(file, cache)] for file in files] == facts.tolist()
    assert read_facts(cache, 2, "fact") == {}
    files[0].write_bytes(b"another")
    assert [key_of(file, cache) in known for file in files] == [False, True]
    write_facts(cache, 1, "fact", [], facts[:0])
    assert read_facts(cache, 1, "fact") == {}


def test_a_file_of_facts_is_as_it_always_was(tmp_path):
    """Kept by earlier versions, beside a person's photographs."""
    (tmp_path / "x").write_bytes(b"12")
    date = (tmp_path / "x").stat().st_mtime_ns
    columns = {"name": np.array(["x"]), "about": np.array([[2, date]]), "size": np.array([[3, 4]])}
    with (tmp_path / "facts.npz").open("wb") as file:
        np.savez(file, **columns, format=np.array(1))  # pyright: ignore[reportArgumentType]
    known = read_facts(tmp_path / "facts.npz", 1, "size")
    assert known == {("x", 2, date): [3, 4]} == {key_of(tmp_path / "x", tmp_path / "facts.npz"): [3, 4]}


def test_files_that_may_be_equal_are_read_once(tmp_path, monkeypatch):
    photos = [tmp_path / name for name in "abcd"]
    for photo, content in zip(photos, (b"11", b"12", b"11", b"123"), strict=True):
        photo.write_bytes(content)
    read, digest = [], duplicates._digest

    def counted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(duplicates, "_digest", counted)
    for expected in (["a", "b", "c"], []):
        assert equal_files(photos, tmp_path / "equal.npz") == [[0, 2]]
        assert sorted(read) == expected
        read.clear()
