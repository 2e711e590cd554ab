import io

import numpy as np
import pytest
from PIL import Image

from spp_jax.data import decoding
from spp_jax.data.decoding import UnreadableError, decode, photo_size

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encoded(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def test_a_path_bytes_a_picture_and_pixels_decode_alike(tmp_path):
    picture = Image.fromarray(PIXELS)
    (tmp_path / "a.png").write_bytes(encoded(picture))
    for photo in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(picture), picture, PIXELS):
        np.testing.assert_array_equal(decode(photo), PIXELS)
        assert photo_size(photo) == (5, 7)
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)  # the caller's stays open


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_to_the_size_from_the_header(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    upright = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PIXELS),
    }[orientation]
    np.testing.assert_array_equal(decode(data), upright)
    assert photo_size(data) == upright.shape[:2]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (2, 1), 100), [100, 100, 100]),
        (Image.new("1", (2, 1), 1), [255, 255, 255]),
        (Image.new("RGBA", (2, 1), (200, 0, 100, 0)), [255, 255, 255]),  # clear over white
        (Image.new("LA", (2, 1), (0, 255)), [0, 0, 0]),
        (Image.fromarray(np.full((1, 2), 0x7F80, np.uint16)), [127, 127, 127]),
    ],
)
def test_every_mode_becomes_rgb(picture, expected):
    assert decode(encoded(picture)).tolist() == [[expected, expected]]


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        ("no/such.jpg", "there is no such file"),
        (b"", "no picture"),
        (b"hello, I am text", "no picture"),
        (encoded(Image.fromarray(PIXELS))[:60], "truncated|broken"),
        (np.zeros((4, 4), np.uint8), r"uint8\[4, 4\], expected uint8 \[height, width, 3\]"),
        (np.zeros((4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8"),
    ],
)
def test_what_gives_no_pixels_says_why_in_one_line(photo, said):
    with pytest.raises(UnreadableError, match=said) as caught:
        decode(photo)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_photograph(tmp_path):
    with pytest.raises(UnreadableError, match="is no file"):
        photo_size(tmp_path)


def test_a_picture_too_large_is_refused_from_its_header(monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 34)
    for function in (decode, photo_size):
        with pytest.raises(UnreadableError, match="7x5 pixels, more than 34"):
            function(encoded(Image.fromarray(PIXELS)))
