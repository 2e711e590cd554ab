"""What headers tell beside the size, and what they may not cost."""

import io
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from test_formats import dng, encoded

from spp_jax.config import Decoding
from spp_jax.data import exif
from spp_jax.data.decoding import photo_facts
from spp_jax.data.exif import Facts, facts_of

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmp:Rating="3"><exif:DateTimeOriginal>2023-04-05T06:07:08.5Z</exif:DateTimeOriginal>'
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def photo(format="JPEG", original="2024:05:01 12:00:00", outer=(), inner=(), **options):
    found = Image.Exif()
    for tag, value in {ExifTags.Base.Make: "Leica ", ExifTags.Base.Model: "M1", **dict(outer)}.items():
        found[tag] = value
    ifd = found.get_ifd(ExifTags.IFD.Exif)
    for tag, value in {ExifTags.Base.DateTimeOriginal: original, **dict(inner)}.items():
        ifd[tag] = value
    return encoded(PHOTO, format, exif=found, **options)


class TestHeaders:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
    def test_tell_time_camera_and_upright_size_in_every_format_that_has_them(self, format):
        if format == "HEIF":
            pytest.importorskip("pillow_heif")
        turned = {ExifTags.Base.Orientation: 6} if format not in ("AVIF", "HEIF") else {}
        inner = {
            ExifTags.Base.SubsecTimeOriginal: "25",
            ExifTags.Base.OffsetTimeOriginal: "+02:00",
            ExifTags.Base.BodySerialNumber: "77",
        }
        found = photo_facts(photo(format, outer=turned, inner=inner))
        size = (8, 6) if turned else (6, 8)
        assert found == Facts(*size, "2024-05-01T12:00:00.25+02:00", "Leica M1 77", None)

    def test_the_time_of_digitising_stands_in_and_that_of_the_last_change_does_not(self):
        digitised = {ExifTags.Base.DateTimeDigitized: "2020:02:29 23:59:59"}
        assert (
            photo_facts(photo(original="0000:00:00 00:00:00", inner=digitised)).taken == "2020-02-29T23:59:59"
        )
        changed = {ExifTags.Base.DateTime: "2020:02:29 23:59:59"}
        assert photo_facts(photo(original="    :  :     :  :  ", outer=changed)).taken is None

    def test_xmp_tells_what_exif_does_not(self):
        bare = encoded(PHOTO, "JPEG", xmp=XMP)
        assert photo_facts(bare) == Facts(6, 8, "2023-04-05T06:07:08.5+00:00", "", 3)
        both = photo_facts(photo(xmp=XMP, outer={18246: 5}))
        assert (both.taken, both.rating) == ("2024-05-01T12:00:00", 5)

    def test_no_stars_is_no_rating(self):
        assert photo_facts(photo(outer={18246: 0})).rating is None

    def test_a_picture_in_memory_tells_as_well(self):
        with Image.open(io.BytesIO(photo())) as opened:
            assert photo_facts(opened) == Facts(6, 8, "2024-05-01T12:00:00", "Leica M1", None)
        assert photo_facts(np.zeros((2, 3, 3), np.uint8)) == Facts(2, 3)

    def test_what_cannot_be_read_has_no_facts_and_a_large_one_has(self, tmp_path):
        assert photo_facts(tmp_path / "gone.jpg") == Facts()
        assert photo_facts(b"text") == Facts()
        small = Decoding(refuse_pixels=1, max_pixels=4)
        assert photo_facts(photo(), small)[:2] == (6, 8)


class TestRaw:
    @pytest.fixture(autouse=True)
    def rawpy(self):
        pytest.importorskip("rawpy")

    def test_a_raw_file_tells_its_time_by_its_own_exif(self):
        found = photo_facts(dng((16, 24), 6, taken="2024:05:01 12:00:00"))
        assert found == Facts(48, 32, "2024-05-01T12:00:00", "M O", None)

    def test_what_libraw_tells_stands_in_by_the_cameras_clock(self):
        assert photo_facts(dng((16, 24), changed="2024:05:01 12:00:00")).taken == "2024-05-01T12:00:00"
        assert photo_facts(dng((16, 24))).taken is None


class TestHostile:
    @pytest.mark.parametrize("cut", range(8, 200, 23))
    def test_broken_exif_costs_itself_alone(self, cut):
        data = photo()
        start = data.index(b"Exif\0\0")
        broken = data[: start + cut] + bytes([255]) * (start + 200 - cut) + data[start + 200 :]
        photo_facts(broken)
        assert photo_facts(photo()).camera == "Leica M1"

    def test_a_loop_of_directories_ends(self):
        blob = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
        began = time.process_time()
        assert photo_facts(encoded(PHOTO, "JPEG", exif=blob)) == Facts(6, 8)
        assert time.process_time() - began < 10  # of our process; its own has its limit

    def test_nothing_of_it_reaches_a_terminal_or_grows(self):
        camera = {ExifTags.Base.Model: "\x1b[31m" + "x" * 5000}
        found = photo_facts(photo(outer=camera)).camera
        assert found.isprintable()
        assert len(found) < 300

    @given(
        st.dictionaries(
            st.sampled_from(["taken", "fraction", "offset", "camera", "rating"]),
            st.one_of(st.text(max_size=30), st.integers(), st.none(), st.just("2024:05:01 12:00:00")),
        )
    )
    def test_facts_of_any_texts_are_well_formed(self, texts):
        import datetime

        found = facts_of((1, 2), texts)
        assert found.taken is None or datetime.datetime.fromisoformat(found.taken)
        assert found.rating in (None, -1, 1, 2, 3, 4, 5)

    @pytest.mark.parametrize(
        ("texts", "taken"),
        [
            ({"taken": "2024:13:01 12:00:00"}, None),
            ({"taken": "2024:05:01 12:00:00", "offset": "+99:00"}, "2024-05-01T12:00:00"),
            ({"taken": "2024:05:01 12:00:00", "fraction": "1e5"}, "2024-05-01T12:00:00"),
            ({"taken": "2024-05-01 12:00:00"}, "2024-05-01T12:00:00"),
        ],
    )
    def test_each_part_is_believed_by_itself(self, texts, taken):
        assert facts_of((1, 2), texts).taken == taken


def test_odd_kinds_of_values_are_no_text():
    assert exif._text((1, 2)) == ""
    assert exif._text(Fraction(1, 2)) == "1/2"
