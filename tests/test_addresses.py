from pathlib import Path

import pytest

from spp_jax.addresses import files_below, path_at, stamp
from spp_jax.config import UsageError


def test_files_are_found_alike_on_a_disk_and_at_an_address(bucket):
    for name in ("b.jpg", "a/c.jpg", "a/d/e.png"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(name.encode())
    here = [str(path.relative_to(bucket)) for path in files_below(bucket)]
    there = [str(path) for path in files_below(path_at("gs://bucket"))]
    assert here == ["a/c.jpg", "a/d/e.png", "b.jpg"]
    assert there == [f"gs://bucket/{name}" for name in here]


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
