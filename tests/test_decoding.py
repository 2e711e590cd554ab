import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from spp_jax.config import Decoding
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


def test_a_picture_too_large_is_refused_from_its_header():
    for function in (decode, photo_size):
        with pytest.raises(UnreadableError, match="7x5 pixels, more than 34"):
            function(encoded(Image.fromarray(PIXELS)), Decoding(refuse_pixels=34))


class TestScalingDown:
    """Pictures of more than `max_pixels`."""

    @pytest.mark.parametrize("size", [(300, 400), (400, 300), (1, 5000), (5000, 1), (97, 1013)])
    @pytest.mark.parametrize("format", ["PNG", "JPEG"])
    def test_header_and_pixels_agree_and_stay_within(self, size, format):
        decoding = Decoding(max_pixels=2000)
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        for photo in (encoded(Image.fromarray(pixels), format), pixels):
            scaled = photo_size(photo, decoding)
            assert decode(photo, decoding).shape == (*scaled, 3)
            assert scaled[0] * scaled[1] <= 2000
            if 1 not in size:
                assert scaled[0] / scaled[1] == pytest.approx(size[0] / size[1], rel=0.08)

    def test_smaller_pictures_keep_their_very_pixels(self):
        np.testing.assert_array_equal(
            decode(encoded(Image.fromarray(PIXELS)), Decoding(max_pixels=35)), PIXELS
        )

    def test_a_jpeg_that_is_decoded_at_reduced_size_is_close_to_the_antialiased_whole(self):
        coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        data = encoded(smooth, "JPEG", quality=95)
        reduced = decode(data, Decoding(max_pixels=80 * 60)).astype(int)
        whole = np.asarray(Image.open(io.BytesIO(data)).resize((80, 60), Image.Resampling.LANCZOS)).astype(
            int
        )
        assert np.abs(reduced - whole).max() <= 6

    def test_fine_stripes_become_grey_and_no_coarser_stripes(self):
        stripes = np.zeros((400, 400, 3), np.uint8)
        stripes[:, ::2] = 255
        found = decode(encoded(Image.fromarray(stripes)), Decoding(max_pixels=77 * 77))
        assert np.abs(found.astype(int) - 127).max() < 12


class TestSquares:
    """What fixed-size networks take."""

    PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)).resize(
        (240, 120), Image.Resampling.BICUBIC
    )

    @pytest.mark.parametrize("input", ["warp", "crop", "pad"])
    @pytest.mark.parametrize("size", [(300, 400), (31, 17), (1, 90)])
    def test_every_picture_gives_one_and_its_header_says_so(self, input, size):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        decoding = Decoding(input=input, input_side=24)
        for photo in (encoded(Image.fromarray(pixels)), pixels):
            assert photo_size(photo, decoding) == (24, 24)
            assert decode(photo, decoding, recorded=(24, 24)).shape == (24, 24, 3)

    def test_what_cannot_be_read_has_no_size_there_either(self):
        assert Decoding(input="warp").scaled([[0, 0], [30, 40]]).tolist() == [[0, 0], [224, 224]]

    def test_warp_scales_both_axes(self):
        found = decode(encoded(self.PICTURE), Decoding(input="warp", input_side=60))
        expected = np.asarray(self.PICTURE.resize((60, 60), Image.Resampling.LANCZOS))
        assert np.abs(found.astype(int) - expected).max() <= 2

    def test_crop_is_the_centre_of_the_picture_scaled_to_eight_sevenths(self):
        found = decode(encoded(self.PICTURE), Decoding(input="crop", input_side=56))
        scaled = self.PICTURE.resize((128, 64), Image.Resampling.LANCZOS)  # as torchvision does it
        expected = np.asarray(scaled.crop((36, 4, 92, 60)))
        assert np.abs(found.astype(int) - expected).mean() < 2

    def test_pad_keeps_the_whole_picture_and_its_aspect_ratio(self):
        found = decode(encoded(self.PICTURE), Decoding(input="pad", input_side=100, background=(1, 2, 3)))
        for bar in (found[:25], found[75:]):
            np.testing.assert_array_equal(bar, np.broadcast_to([1, 2, 3], bar.shape))
        expected = np.asarray(self.PICTURE.resize((100, 50), Image.Resampling.LANCZOS))
        assert np.abs(found[25:75].astype(int) - expected).max() <= 2

    def test_a_turned_and_mirrored_one_is_that(self):
        decoding = Decoding(input="pad", input_side=40)
        plain = decode(encoded(self.PICTURE), decoding)
        found = decode(encoded(self.PICTURE), decoding, mirrored=True, turned=True)
        np.testing.assert_array_equal(found, plain[:, ::-1].swapaxes(0, 1))


def profile_of(primaries_swapped: bool) -> bytes:
    """sRGB's profile, or one in which red and green change places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if primaries_swapped:
        red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
        profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
        name = profile.index(b"s\0R\0G\0B")
        profile[name : name + 7] = b"t\0R\0G\0B"
    return bytes(profile)


class TestColours:
    """Profiles, and modes that need more than `convert`."""

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
    def test_a_profile_takes_the_colours_to_srgb(self, mode):
        red = Image.new("RGB", (2, 1), (255, 0, 0)).convert(mode)
        found = decode(encoded(red, icc_profile=profile_of(primaries_swapped=True)))
        np.testing.assert_allclose(found, [[[0, 255, 0]] * 2], atol=3)

    def test_srgbs_own_profile_changes_nothing(self):
        data = encoded(Image.fromarray(PIXELS), icc_profile=profile_of(primaries_swapped=False))
        np.testing.assert_array_equal(decode(data), PIXELS)

    @pytest.mark.parametrize("profile", [b"no profile", profile_of(True)[:200]])
    def test_a_broken_profile_is_as_none(self, profile):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS), icc_profile=profile)), PIXELS)

    def test_a_profile_of_other_colours_is_as_none(self):
        grey = Image.new("L", (2, 1), 100)
        assert decode(encoded(grey, icc_profile=profile_of(True))).tolist() == [[[100] * 3] * 2]

    def test_cmyk_is_converted(self):
        found = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
        np.testing.assert_allclose(found, np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=4)

    def test_lab_is_converted(self):
        found = decode(encoded(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"))
        np.testing.assert_allclose(found, np.full((2, 2, 3), 255), atol=4)

    @pytest.mark.parametrize(
        ("samples", "expected"),
        [
            (np.full((2, 2), 0x7F80, np.int32), 127),
            (np.full((2, 2), 2**20, np.int32), 255),
            (np.full((2, 2), -5, np.int32), 0),
            (np.full((2, 2), 0.5, np.float32), 128),
            (np.full((2, 2), np.nan, np.float32), 0),
            (np.full((2, 2), 7.0, np.float32), 255),
        ],
    )
    def test_32_bit_samples(self, samples, expected):
        found = decode(encoded(Image.fromarray(samples), "TIFF"))
        assert found.tolist() == [[[expected] * 3] * 2] * 2

    def test_what_is_transparent_shows_the_stated_background(self):
        clear = Image.new("RGBA", (1, 1), (200, 0, 100, 0))
        assert decode(encoded(clear), Decoding(background=(1, 2, 3))).tolist() == [[[1, 2, 3]]]

    def test_an_animation_gives_its_first_frame(self):
        frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert decode(data).tolist() == [[[255, 0, 0]] * 3] * 2

    @pytest.mark.parametrize(
        "format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG2000", "GIF", "AVIF", "JPEG", "PPM"]
    )
    def test_formats(self, format):
        found = decode(encoded(Image.new("RGB", (16, 8), (200, 100, 50)), format))
        np.testing.assert_allclose(found, np.broadcast_to([200, 100, 50], (8, 16, 3)), atol=6)

    def test_heic_where_its_plugin_is_installed(self):
        pytest.importorskip("pillow_heif")
        found = decode(encoded(Image.new("RGB", (64, 32), (200, 100, 50)), "HEIF"))
        np.testing.assert_allclose(found, np.broadcast_to([200, 100, 50], (32, 64, 3)), atol=6)
