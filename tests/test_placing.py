"""Files put beside others: nothing is overwritten, and what is there is whole."""

import errno
import os

import pytest

from spp_jax.cli import placing
from spp_jax.cli.placing import copy_into, link_into, replace_file, write_new


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "best"
    folder.mkdir()
    return folder


def photo(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.mark.parametrize("into", [copy_into, link_into])
class TestInto:
    def test_another_of_the_same_name_gets_a_number_and_an_equal_one_is_enough(self, tmp_path, folder, into):
        first, other = photo(tmp_path, "a/x.tar.jpg", b"first"), photo(tmp_path, "b/x.tar.jpg", b"other")
        third, equal = photo(tmp_path, "c/x.tar.jpg", b"third"), photo(tmp_path, "d/x.tar.jpg", b"other")
        assert [into(path, folder) for path in (first, other, third)] == [True] * 3
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found == {"x.tar.jpg": b"first", "x.tar-2.jpg": b"other", "x.tar-3.jpg": b"third"}
        assert [into(path, folder) for path in (first, other, third, equal)] == [False] * 4
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == found
        assert first.read_bytes() == b"first"

    def test_what_stands_in_the_way_stays(self, tmp_path, folder, into):
        (folder / "x.jpg").mkdir()
        (folder / "x-2.jpg").symlink_to("nowhere")
        assert into(photo(tmp_path, "x.jpg", b"x"), folder)
        assert (folder / "x-3.jpg").read_bytes() == b"x"
        assert os.readlink(folder / "x-2.jpg") == "nowhere"
        assert len(list(folder.iterdir())) == 3

    def test_into_its_own_folder_is_nothing(self, tmp_path, folder, into):
        path = photo(folder, "x.jpg", b"x")
        assert not into(path, folder)
        assert [path.name for path in folder.iterdir()] == ["x.jpg"]


def test_a_copy_keeps_its_time(tmp_path, folder):
    copy_into(photo(tmp_path, "x.jpg", b"x"), folder)
    assert (folder / "x.jpg").stat().st_mtime_ns == 10**18
    assert not (folder / "x.jpg").is_symlink()


@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "\u5199" * 85, os.fsdecode(b"\xff" * 255)], ids=len)
def test_a_name_may_be_as_long_as_names_are(tmp_path, folder, name):
    assert copy_into(photo(tmp_path, name, b"x"), folder)
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(name, b"x")]


def test_a_photograph_at_an_address_is_copied(bucket, tmp_path, folder):
    from spp_jax.addresses import path_at

    (bucket / "x.jpg").write_bytes(b"x")
    assert copy_into(path_at("gs://bucket/x.jpg"), folder)
    assert not copy_into(path_at("gs://bucket/x.jpg"), folder)
    assert (folder / "x.jpg").read_bytes() == b"x"


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path, folder, monkeypatch):
    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(placing.shutil, "copy2", full)
    with pytest.raises(OSError, match="No space"):
        copy_into(photo(tmp_path, "x.jpg", b"x"), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_nobodys_place(tmp_path, monkeypatch, links):
    if not links:  # as on FAT

        def no_link(source, target):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(placing.os, "link", no_link)
    path = tmp_path / "x"
    assert write_new(path, b"1")
    assert not write_new(path, b"2")
    assert path.read_bytes() == b"1"
    replace_file(path, b"3")
    assert path.read_bytes() == b"3"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
