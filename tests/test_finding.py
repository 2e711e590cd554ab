"""Of what lies in folders, pictures are found, and none is left out in silence."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from spp_jax.data.decoding import UnreadableError, decode
from spp_jax.data.finding import find_photos

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))


def encoded(format: str) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000"])
def test_a_picture_whose_name_has_no_ending_is_found_by_how_it_begins(tmp_path, format):
    (tmp_path / "0017").write_bytes(encoded(format))
    found = find_photos([tmp_path])
    assert found.photos == [tmp_path / "0017"]
    assert decode(tmp_path / "0017").shape == (12, 16, 3)


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x18ftypmp42"])
def test_what_has_no_ending_and_begins_like_no_picture_is_none(tmp_path, content):
    (tmp_path / "README").write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    assert find_photos([tmp_path]).photos == [tmp_path / "a.png"]


READ = "jpg JPE jfif mpo jps insp png apng gif bmp dib tif tiff webp jp2 j2k ppm pgm pbm pnm pfm tga pcx avif"
RAW = "cr2 CR3 nef arw dng raf orf rw2 nrw pef srw x3f iiq bay eip heic HIF heif"
NOT_READ = "psd PSB ico cur svg jxl exr qoi dcm eps xcf"


@pytest.mark.parametrize("ending", f"{READ} {RAW}".split())
def test_every_ending_of_pictures_is_taken_and_what_cannot_be_read_is_said(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"no picture")
    assert find_photos([tmp_path]).photos == [path]
    with pytest.raises(UnreadableError, match=r"is no picture|raw file|HEIC"):
        decode(path)


@pytest.mark.parametrize("ending", NOT_READ.split())
def test_what_looks_like_a_picture_and_is_not_read_is_counted_by_ending(tmp_path, ending):
    for name in ("a", "b"):
        (tmp_path / f"{name}.{ending}").write_bytes(b"x")
    found = find_photos([tmp_path])
    assert not found.photos
    assert found.unread == {f".{ending.lower()}": 2}
    assert "is a folder without any picture" in found.skipped[str(tmp_path)]
