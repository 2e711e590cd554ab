from pathlib import Path

import pytest

from spp_jax.addresses import files_below, path_at, stamp
from spp_jax.errors import UsageError


def test_files_are_found_alike_on_a_disk_and_at_an_address(bucket):
    for name in ("b.jpg", "a/c.jpg", "a/d/e.png"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(name.encode())
    here = [str(path.relative_to(bucket)) for path in files_below(bucket).files]
    there = [str(path) for path in files_below(path_at("gs://bucket")).files]
    assert here == ["a/c.jpg", "a/d/e.png", "b.jpg"]
    assert there == [f"gs://bucket/{name}" for name in here]


def test_each_folder_is_searched_once_links_followed_and_loops_ended(tmp_path):
    for name in ("in/a.jpg", "elsewhere/b.jpg", "in/deep/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to("deep")
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "itself.jpg").symlink_to("itself.jpg")
    found = files_below(tmp_path / "in")
    names = [str(path.relative_to(tmp_path / "in")) for path in found.files]
    assert names == ["a.jpg", "deep/c.jpg", "itself.jpg", "linked/b.jpg"]
    assert not found.unreadable


def test_what_is_hidden_or_a_systems_is_passed_over_and_told_but_not_the_folder_itself(bucket):
    folder = bucket / ".album"
    hidden = ("._a.jpg", ".b.jpg", "@eaDir/a.jpg", "$RECYCLE.BIN/x/b.jpg", "deep/#recycle/c.jpg", "Thumbs.db")
    for name in (*hidden, "a.jpg", "deep/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for at in (folder, path_at("gs://bucket/.album")):
        found = files_below(at)
        assert [path.name for path in found.files] == ["a.jpg", "d.jpg"]
        assert sorted(path.name for path in found.passed) == sorted(
            ["._a.jpg", ".b.jpg", "@eaDir", "$RECYCLE.BIN", "#recycle", "Thumbs.db"]
        )


def test_a_folder_that_cannot_be_read_costs_itself(tmp_path, monkeypatch):
    for name in ("a.jpg", "closed/b.jpg", "open/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    real = Path.iterdir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = files_below(tmp_path)
    assert [path.name for path in found.files] == ["a.jpg", "c.jpg"]
    assert found.unreadable == {tmp_path / "closed": "cannot be read: Permission denied"}


def test_a_file_written_anew_has_another_stamp(bucket):
    for path in (bucket / "file", path_at("gs://bucket/file")):
        path.write_text("text")
        before = stamp(path)
        assert stamp(path) == before
        path.write_text("longer text")
        assert stamp(path) != before
    with pytest.raises(FileNotFoundError):
        stamp(path_at("gs://bucket/none"))


@pytest.mark.parametrize("address", ["s3://bucket/folder", "nowhere://bucket"])
def test_an_address_without_its_file_system_is_refused_and_says_why(address):
    with pytest.raises(UsageError, match=f"{address}: .*(s3fs|no file system)"):
        path_at(address)


def test_an_address_that_lost_a_slash_is_refused():
    with pytest.raises(UsageError, match=r"gs:/bucket: an address cannot be a pathlib\.Path"):
        path_at(Path("gs://bucket"))
