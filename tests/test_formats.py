"""Each row of docs/formats.md, from files made here."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from spp_jax.config import Decoding
from spp_jax.data import pixels, raw
from spp_jax.data.decoding import UnreadableError, decode, listed, photo_size

COLOUR = (200, 100, 50)
GREY = [128, 128, 128]
WHITE, BLACK = [255, 255, 255], [0, 0, 0]


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def plain(mode: str = "RGB", colour=COLOUR) -> Image.Image:
    return Image.new(mode, (16, 8), colour)


def ifd(entries: list[tuple[int, int, list]], at: int, following: int = 0) -> bytes:
    """A directory of TIFF that begins at this offset: tag, type, values."""
    codes = {1: "B", 2: "c", 3: "H", 4: "I", 5: "II", 10: "ii"}
    body, beyond = b"", b""
    start = at + 2 + 12 * len(entries) + 4
    for tag, kind, values in sorted(entries):
        flat = [number for value in values for number in (value if isinstance(value, tuple) else (value,))]
        data = struct.pack(f"<{len(flat)}{codes[kind][0]}", *flat)
        field = data.ljust(4, b"\0")
        if len(data) > 4:
            field = struct.pack("<I", start + len(beyond))
            beyond += data + b"\0" * (len(data) % 2)
        body += struct.pack("<HHI", tag, kind, len(values)) + field
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following) + beyond


def tiff(data: bytes, bits: int, photometric: int = 1, form: int = 1, bands: int = 1, extra=(), size=(16, 8)):
    """One strip of samples as they are."""

    def page(at: int) -> bytes:
        tags = [(256, 3, [size[0]]), (257, 3, [size[1]]), (258, 3, [bits] * bands), (259, 3, [1])]
        tags += [(262, 3, [photometric]), (273, 4, [at]), (277, 3, [bands]), (278, 3, [size[1]])]
        tags += [(279, 4, [len(data)]), (339, 3, [form] * bands), *extra]
        return ifd(tags, 8)

    return b"II*\0" + struct.pack("<I", 8) + page(8 + len(page(0))) + data


def twelve_bits(value: int) -> bytes:
    return bytes([value >> 4, (value & 15) << 4 | value >> 8, value & 255]) * (16 * 8 // 2)


def small_page_first() -> bytes:
    small, large = plain("RGB", (1, 2, 3)).resize((4, 2)), plain()
    large.encoderinfo = {"tiffinfo": {254: 0}}
    return encoded(small, "TIFF", save_all=True, append_images=[large], tiffinfo={254: 1})


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(bits: int, colour_type: int, row: bytes, *chunks: bytes, late: bytes = b"", size=(16, 8)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * size[1])
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks)
    return start + chunk(b"IDAT", data) + late + chunk(b"IEND", b"")


def tga_or_bmp(format: str, alpha: int) -> bytes:
    """32 bits, with this alpha in every pixel."""
    if format == "TGA":
        return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 16, 8, 32, 0x28) + bytes(
            [50, 100, 200, alpha] * 128
        )
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 16, 8, 1, 32, 3, 512, 0, 0, 0, 0) + masks + bytes(52)
    head = struct.pack("<2sIHHI", b"BM", 14 + 108 + 512, 0, 0, 14 + 108)
    return head + info + bytes([50, 100, 200, alpha] * 128)


def dng(preview: tuple[int, int], orientation: int = 1, taken: str = "", changed: str = "") -> bytes:
    """A raw file whose left half is brighter; (height, width) of a preview of one grey, 77."""
    mosaic = np.full((64, 96), 5000, "<u2")
    mosaic[:, :48] = 20000
    sample, thumb = mosaic.tobytes(), bytes([77]) * (3 * preview[0] * preview[1])
    matrix = [3240, -1537, -499, -969, 1876, 42, 56, -204, 1057]

    def text(words: str) -> list[bytes]:
        return [letter.encode() for letter in f"{words}\0"]

    def third(place: int) -> bytes:
        return ifd([(36867, 2, text(taken))], place) if taken else b""

    def first(inner: int, at: int, exif: int) -> bytes:
        tags = [(254, 4, [1]), (256, 4, [preview[1]]), (257, 4, [preview[0]]), (258, 3, [8, 8, 8])]
        tags += [(259, 3, [1]), (262, 3, [2]), (271, 2, [b"M", b"\0"]), (272, 2, [b"O", b"\0"])]
        tags += [(273, 4, [at]), (274, 3, [orientation]), (277, 3, [3]), (278, 4, [preview[0]])]
        tags += [(279, 4, [len(thumb)]), (284, 3, [1]), (330, 4, [inner]), (50706, 1, [1, 4, 0, 0])]
        tags += [(34665, 4, [exif])] if taken else []
        tags += [(306, 2, text(changed))] if changed else []
        tags += [(50721, 10, [(n, 1000) for n in matrix]), (50728, 5, [(1, 1)] * 3), (50778, 3, [21])]
        return ifd(tags, 8)

    def second(place: int, at: int) -> bytes:
        tags = [(254, 4, [0]), (256, 4, [96]), (257, 4, [64]), (258, 3, [16]), (259, 3, [1])]
        tags += [(262, 3, [32803]), (273, 4, [at]), (277, 3, [1]), (278, 4, [64]), (279, 4, [len(sample)])]
        tags += [(284, 3, [1]), (33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]), (50717, 3, [65535])]
        return ifd(tags, place)

    inner = 8 + len(first(0, 0, 0))
    exif = inner + len(second(inner, 0))
    after = exif + len(third(exif))
    directories = first(inner, after, exif) + second(inner, after + len(thumb)) + third(exif)
    return b"II*\0" + struct.pack("<I", 8) + directories + thumb + sample


def grey_16(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 16), value, np.uint16))


def rgb_and(sample: tuple, bits: int = 8, *extra: int) -> bytes:
    """A TIFF of four samples a pixel; what the fourth is, is said or not."""
    data = struct.pack(f"<{4 * 128}{'B' if bits == 8 else 'H'}", *sample * 128)
    return tiff(data, bits, 2, bands=4, extra=[(338, 3, list(extra))] if extra else [])


def bmp(bits: int, data: bytes, kind: int = 0, after: bytes = b"") -> bytes:
    """After the header come masks or a palette."""
    colours = len(after) // 4 if kind != 3 else 0
    info = struct.pack("<IiiHHIIiiII", 40, 16, 8, 1, bits, kind, len(data), 0, 0, colours, 0) + after
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(data), 0, 0, 14 + len(info)) + info + data


CLEAR = (200, 100, 50, 0)
HALF = [228, 178, 153]  # COLOUR at alpha 127 or 128 over white
Case = tuple[Callable[[], bytes], list[int]]
# By the row of the table: what is made, and its pixel; within 6 levels where the format loses some.
ROWS: dict[str, list[Case]] = {
    "JPEG, 8 bits, RGB or grey": [
        (lambda: encoded(plain(), "JPEG", quality=95), [*COLOUR]),
        (lambda: encoded(plain("L", 128), "JPEG"), GREY),
    ],
    "JPEG, progressive": [(lambda: encoded(plain(), "JPEG", quality=95, progressive=True), [*COLOUR])],
    "JPEG, CMYK": [(lambda: encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), [255, 0, 0])],
    "MPO": [
        (
            lambda: encoded(plain(), "MPO", save_all=True, append_images=[plain("RGB", (0, 0, 0))]),
            [*COLOUR],
        )
    ],
    "PNG, 1, 2, 4 or 8 bits, grey or palette": [
        (lambda: png(1, 0, b"\xff\xff"), WHITE),
        (lambda: png(2, 0, b"\xaa" * 4), [170] * 3),
        (lambda: png(4, 0, b"\x88" * 8), [136] * 3),
        (lambda: png(8, 0, b"\x80" * 16), GREY),
        (lambda: png(4, 3, b"\x11" * 8, chunk(b"PLTE", bytes([0, 0, 0, *COLOUR]))), [*COLOUR]),
    ],
    "PNG, 8 bits, RGB": [(lambda: encoded(plain(), "PNG"), [*COLOUR])],
    "PNG, 8 bits, RGB with alpha": [
        (lambda: encoded(plain("RGBA", CLEAR), "PNG"), WHITE),
        (lambda: encoded(plain("RGBA", (*COLOUR, 127)), "PNG"), HALF),
    ],
    "PNG, 8 bits, grey with alpha": [(lambda: encoded(plain("LA", (0, 127)), "PNG"), GREY)],
    "PNG, palette or RGB with a transparent colour": [
        (lambda: png(8, 3, bytes(16), chunk(b"PLTE", bytes(COLOUR)), chunk(b"tRNS", b"\0")), WHITE),
        (lambda: encoded(plain(), "PNG", transparency=COLOUR), WHITE),
    ],
    "PNG, 16 bits, grey": [(lambda: encoded(grey_16(0x80FF), "PNG"), GREY)],
    "PNG, 16 bits, RGB": [(lambda: png(16, 2, bytes([200, 9, 100, 9, 50, 9] * 16)), [*COLOUR])],
    "PNG, gamma stated and no profile": [
        (lambda: png(8, 0, b"\x37" * 16, chunk(b"gAMA", struct.pack(">I", 100_000))), GREY),
        (lambda: png(8, 0, b"\x80" * 16, chunk(b"gAMA", struct.pack(">I", 45_455))), GREY),
    ],
    "WebP, with or without loss, with alpha": [
        (lambda: encoded(plain(), "WEBP", quality=95), [*COLOUR]),
        (lambda: encoded(plain("RGBA", (*COLOUR, 127)), "WEBP", lossless=True), HALF),
    ],
    "GIF": [
        (lambda: encoded(plain(), "GIF", save_all=True, append_images=[plain("RGB", (1, 2, 3))]), [*COLOUR])
    ],
    "BMP, 24 bits": [(lambda: encoded(plain(), "BMP"), [*COLOUR])],
    "BMP, 1, 4, 8 or 16 bits; with run lengths": [
        (lambda: bmp(1, bytes(32), after=bytes([50, 100, 200, 0]) * 2), [*COLOUR]),
        (lambda: bmp(4, bytes(64), after=bytes([50, 100, 200, 0]) * 16), [*COLOUR]),
        (lambda: bmp(8, b"\x10\0\0\0" * 8 + b"\0\1", 1, bytes([50, 100, 200, 0])), [*COLOUR]),
        (lambda: bmp(16, struct.pack("<H", 24 << 10 | 12 << 5 | 6) * 128), [197, 98, 49]),
        (
            lambda: bmp(
                16,
                struct.pack("<H", 24 << 11 | 25 << 5 | 6) * 128,
                3,
                struct.pack("<III", 0xF800, 0x7E0, 0x1F),
            ),
            [197, 101, 49],
        ),
    ],
    "BMP or TGA, 32 bits, alpha 0 everywhere": [
        (lambda: tga_or_bmp("BMP", 0), [*COLOUR]),
        (lambda: tga_or_bmp("TGA", 0), [*COLOUR]),
    ],
    "BMP or TGA, 32 bits, other alpha": [
        (lambda: tga_or_bmp("BMP", 127), HALF),
        (lambda: tga_or_bmp("TGA", 127), HALF),
    ],
    "TIFF, 8 bits, RGB, grey or CMYK": [
        (lambda: tiff(bytes(COLOUR) * 128, 8, 2, bands=3), [*COLOUR]),
        (lambda: tiff(b"\x80" * 128, 8), GREY),
        (lambda: encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"), [255, 0, 0]),
    ],
    r"TIFF, L\*a\*b\*": [(lambda: encoded(plain("LAB", (255, 128, 128)), "TIFF"), WHITE)],
    "TIFF, 1 bit": [(lambda: tiff(b"\xff" * 16, 1), WHITE), (lambda: tiff(b"\xff" * 16, 1, 0), BLACK)],
    "TIFF, 8 bits, grey, 0 for white": [(lambda: tiff(b"\x20" * 128, 8, 0), [223] * 3)],
    "TIFF, 2 or 4 bits, grey": [
        (lambda: tiff(b"\xaa" * 32, 2), [170] * 3),
        (lambda: tiff(b"\x88" * 64, 4), [136] * 3),
        (lambda: tiff(b"\x88" * 64, 4, 0), [119] * 3),
    ],
    "TIFF, RGB with alpha, also multiplied in": [
        (lambda: rgb_and((*COLOUR, 127), 8, 2), HALF),
        (lambda: rgb_and((100, 50, 25, 127), 8, 1), HALF),
        (lambda: rgb_and(CLEAR, 8, 2), WHITE),
        (lambda: rgb_and((*COLOUR, 127)), HALF),
    ],
    "TIFF, RGB with a fourth sample that nothing is said of, 0 everywhere": [
        (lambda: rgb_and(CLEAR), [*COLOUR]),
        (lambda: rgb_and(CLEAR, 8, 0), [*COLOUR]),
    ],
    "TIFF, 12 bits, grey": [(lambda: tiff(twelve_bits(2048), 12), GREY)],
    "TIFF, 16 bits, grey": [(lambda: tiff(b"\xff\x80" * 128, 16), GREY)],
    "TIFF, 16 bits, grey, 0 for white": [(lambda: tiff(b"\xff\x20" * 128, 16, 0), [223] * 3)],
    "TIFF, 16 bits, grey, signed": [
        (lambda: tiff(struct.pack("<h", 0x4000) * 128, 16, form=2), [64] * 3),
        (lambda: tiff(struct.pack("<h", -5) * 128, 16, form=2), BLACK),
    ],
    "TIFF, 16 bits, RGB, with or without alpha, or CMYK": [
        (lambda: tiff(bytes([9, 200, 9, 100, 9, 50]) * 128, 16, 2, bands=3), [*COLOUR]),
        (lambda: rgb_and((51400, 25700, 12850, 32639), 16, 2), HALF),
        (lambda: rgb_and((25700, 12850, 6425, 32639), 16, 1), HALF),
        (lambda: tiff(struct.pack("<4H", 0, 32768, 49152, 0) * 128, 16, 5, bands=4), [255, 127, 63]),
    ],
    "TIFF, 32 bits, grey, without sign": [
        (lambda: tiff(struct.pack("<I", 0x80FFFFFF) * 128, 32), GREY),
    ],
    "TIFF, 32 bits, grey, with sign": [
        (lambda: tiff(struct.pack("<i", 0x80FF) * 128, 32, form=2), GREY),
        (lambda: tiff(struct.pack("<i", -9) * 128, 32, form=2), BLACK),
        (lambda: tiff(struct.pack("<i", 2**20) * 128, 32, form=2), WHITE),
    ],
    "TIFF, floats": [
        (lambda: tiff(struct.pack("<f", 0.5) * 128, 32, form=3), GREY),
        (lambda: tiff(struct.pack("<f", float("nan")) * 128, 32, form=3), BLACK),
    ],
    "TIFF, a small page first": [(small_page_first, [*COLOUR])],
    "JPEG 2000, 8 or 16 bits": [
        (lambda: encoded(plain(), "JPEG2000"), [*COLOUR]),
        (lambda: encoded(grey_16(0x80FF), "JPEG2000"), GREY),
    ],
    "AVIF": [(lambda: encoded(plain(), "AVIF", quality=95), [*COLOUR])],
    "HEIC (`pip install 'spp_jax[heif]'`)": [
        (lambda: encoded(plain().resize((64, 32)), "HEIF", quality=95), [*COLOUR])
    ],
    "PBM, PGM, PPM, up to 8 bits": [
        (lambda: b"P4 16 8\n" + bytes(16), WHITE),
        (lambda: b"P5 16 8 255\n" + b"\x80" * 128, GREY),
        (lambda: b"P5 16 8 100\n" + b"\x32" * 128, GREY),
        (lambda: b"P6 16 8 51\n" + bytes([40, 20, 10]) * 128, [*COLOUR]),
    ],
    "PGM, PPM, 9 to 16 bits": [
        (lambda: b"P5 16 8 65535\n" + b"\x80\xff" * 128, GREY),
        (lambda: b"P5 16 8 1023\n" + b"\x02\x00" * 128, GREY),
        (lambda: b"P6 16 8 1023\n" + b"\x02\x00" * 384, GREY),
    ],
    "PFM": [(lambda: b"Pf\n16 8\n-1.0\n" + struct.pack("<f", 0.5) * 128, GREY)],
    "PPM of plain text": [(lambda: b"P3 16 8 255 " + b"200 100 50 " * 128, [*COLOUR])],
    "TGA, PCX": [(lambda: encoded(plain(), "TGA"), [*COLOUR]), (lambda: encoded(plain(), "PCX"), [*COLOUR])],
    "Cameras' raw files (`pip install 'spp_jax[raw]'`)": [],  # TestRaw
}
LOSSY = ("JPEG", "MPO", "WebP", "AVIF", "HEIC", "GIF", "JPEG 2000", "TIFF, L")


def test_every_row_of_the_table_is_tried():
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (.*?) \| [^|]* \|$", text, re.MULTILINE)[1:] == list(ROWS)


@pytest.mark.parametrize(
    ("row", "number"), [(row, number) for row, cases in ROWS.items() for number in range(len(cases))]
)
def test_each_row_gives_its_pixels(row, number):
    if row.startswith("HEIC"):
        pytest.importorskip("pillow_heif")
    if row.startswith("AVIF") and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    make, expected = ROWS[row][number]
    data = make()
    found = decode(data)
    assert found.shape[:2] == photo_size(data)
    spread = 6 if row.startswith(LOSSY) else 1
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=spread)


class TestRaw:
    """Cameras' files."""

    @pytest.fixture(autouse=True)
    def rawpy(self):
        pytest.importorskip("rawpy")

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_half_the_side_upright_and_not_the_small_page(self, orientation):
        data = dng((16, 24), orientation)
        size = (48, 32) if orientation in (6, 8) else (32, 48)
        assert photo_size(data) == size
        found = decode(data, recorded=size)
        upright = {1: found, 3: found[::-1, ::-1], 6: np.rot90(found, 1), 8: np.rot90(found, -1)}[orientation]
        assert upright[:, :20].min() > upright[:, 28:].max()
        assert 77 not in upright

    def test_the_preview_where_it_is_large_enough_for_what_is_wanted(self):
        small = Decoding(max_pixels=16 * 24)
        assert (decode(dng((16, 24)), small) == 77).all()
        assert decode(dng((16, 24)), small).shape == (16, 24, 3)
        assert (decode(dng((14, 21)), small) != 77).any()
        assert (decode(dng((24, 24)), small) != 77).any()  # of another shape: cut

    def test_too_many_pixels_are_refused(self):
        with pytest.raises(UnreadableError, match="has 48x32 pixels, more than 1,000"):
            decode(dng((16, 24)), Decoding(refuse_pixels=1000))

    def test_a_damaged_one_says_so(self):
        with pytest.raises(UnreadableError, match="is a camera's raw file that cannot be read"):
            decode(b"FUJIFILMCCD-RAW" + bytes(1000))


def test_without_rawpy_a_raw_file_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    with pytest.raises(UnreadableError, match=r"pip install 'spp_jax\[raw\]'"):
        raw.raw_size(io.BytesIO(dng((16, 24))))


def test_heic_without_its_plugin_names_the_extra(monkeypatch):
    monkeypatch.setattr(pixels, "FORMATS", ("JPEG", "PNG"))
    with pytest.raises(UnreadableError, match=r"is HEIC: pip install 'spp_jax\[heif\]'"):
        pixels.answer(io.BytesIO(b"\0\0\0\x18ftypheic" + bytes(100)), pixels.Wish(False), Decoding())


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\x0a", "JPEG XL"),
        (b"PF\n2 2\n-1.0\n", "PFM of colours"),
        (tiff(bytes(1024), 64, form=3), "TIFF of an unusual depth"),
        (tiff(bytes(160), 10), "TIFF of an unusual depth"),
    ],
)
def test_what_is_known_and_not_read_is_called_by_its_name(start, said):
    with pytest.raises(UnreadableError, match=f"is .*{said}.*, which is not read"):
        decode(start + bytes(100))


def gamma_profile(exponent: float, name: bytes = b"Adobe") -> bytes:
    """sRGB's primaries with another curve; named as one likes."""
    adobe = bytearray(pixels.adobe_rgb())
    count = struct.unpack(">I", adobe[128:132])[0]
    places = {
        bytes(adobe[132 + 12 * i : 136 + 12 * i]): struct.unpack(">I", adobe[136 + 12 * i : 140 + 12 * i])[0]
        for i in range(count)
    }
    for tag, xyz in (
        (b"rXYZ", (0.43607, 0.22249, 0.01392)),
        (b"gXYZ", (0.38515, 0.71687, 0.09708)),
        (b"bXYZ", (0.14307, 0.06061, 0.71410)),
    ):
        adobe[places[tag] + 8 : places[tag] + 20] = struct.pack(">3i", *(round(65536 * v) for v in xyz))
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        adobe[places[tag] + 12 : places[tag] + 14] = struct.pack(">H", round(256 * exponent))
    adobe[places[b"desc"] + 12 : places[b"desc"] + 12 + len(name)] = name
    return bytes(adobe)


class TestColours:
    """Profiles and what stands for them."""

    @pytest.mark.parametrize("name", [b"sRGB-", b"Linea"])
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_curves_count_and_not_names(self, name, mode):
        picture = Image.new(mode, (4, 4), (55,) * 3 if mode == "RGB" else (55, 55, 55, 255))
        found = decode(encoded(picture, "PNG", icc_profile=gamma_profile(1, name)))
        np.testing.assert_allclose(found, 128, atol=1)

    def test_a_profile_that_is_srgbs_in_all_but_name_changes_no_pixel(self):
        profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        place = profile.index(b"s\0R\0G\0B")
        profile[place : place + 7] = b"x\0X\0x\0X"
        noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
        data = encoded(Image.fromarray(noise), "PNG", icc_profile=bytes(profile))
        np.testing.assert_array_equal(decode(data), noise)

    def test_grey_with_alpha_and_a_grey_profile(self):
        profile = bytearray(gamma_profile(1))
        profile[16:20] = b"GRAY"
        profile = bytes(profile).replace(b"rTRC", b"kTRC", 1)
        found = decode(encoded(Image.new("LA", (4, 4), (55, 255)), "PNG", icc_profile=profile))
        np.testing.assert_allclose(found, 128, atol=1)

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        ("space", "index"), [(0xFFFF, "R03"), (0xFFFF, "R98"), (1, "R98"), (None, "R03")]
    )
    def test_adobe_rgb_by_exif_alone(self, format, space, index):
        exif = Image.Exif()
        exif[0x010F] = "maker"
        inner = exif.get_ifd(0x8769)
        if space is not None:
            inner[0xA001] = space
        inner[0xA005] = {1: index}
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
        found = decode(encoded(plain("RGB", (60, 160, 60)), format, exif=exif, **options))[4, 8]
        if index == "R03":
            # By hand: light = (v/255)^(563/256), to XYZ and sRGB by their published matrices, then its curve.
            np.testing.assert_allclose(found, [0, 161, 47], atol=4)
        else:
            np.testing.assert_allclose(found, [60, 160, 60], atol=2)

    def test_adobe_rgbs_profile_is_what_its_definition_says(self):
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(pixels.adobe_rgb())),
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
        )
        values = np.array([[[128, 128, 128], [180, 150, 140], [100, 110, 120]]], np.uint8)
        found = np.asarray(ImageCms.applyTransform(Image.fromarray(values), transform))
        light = (values / 255) ** (563 / 256)
        xyz = (
            light
            @ np.array(
                [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
            ).T
        )
        linear = (
            xyz
            @ np.linalg.inv(
                [[0.41239, 0.35758, 0.18048], [0.21264, 0.71517, 0.07219], [0.01933, 0.11919, 0.95053]]
            ).T
        )
        expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_with_megabytes_of_notes_or_profile_is_read(kind):
    """Programs that paint keep their whole work there; some profiles are large. None tells anything here."""
    noted = {b"zTXt": b"work\0\0", b"iTXt": b"work\0\1\0\0\0", b"iCCP": b"large\0\0"}[kind]
    noted += zlib.compress(bytes(5_000_000))
    np.testing.assert_array_equal(decode(png(8, 0, b"\x80" * 16, chunk(kind, noted))), 128)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
NOISE = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)


def xmp_chunk() -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)


TURNED = {
    "PNG, XMP before": lambda: png(8, 2, bytes(48), xmp_chunk()),
    "PNG, XMP behind": lambda: png(8, 2, bytes(48), late=xmp_chunk()),
    "PNG, EXIF behind": lambda: png(8, 2, bytes(48), late=chunk(b"eXIf", EXIF)),
    "JPEG, XMP": lambda: encoded(Image.fromarray(NOISE), "JPEG", xmp=XMP),
    "WebP, XMP": lambda: encoded(Image.fromarray(NOISE), "WEBP", xmp=XMP, lossless=True),
    "TIFF, XMP": lambda: tiff(NOISE.tobytes(), 8, 2, bands=3, extra=[(700, 1, list(XMP))]),
    "TIFF, tag": lambda: tiff(NOISE.tobytes(), 8, 2, bands=3, extra=[(274, 3, [6])]),
}


@pytest.mark.parametrize("kind", TURNED)
def test_a_file_and_the_same_picture_opened_by_pillow_are_turned_alike(kind):
    data = TURNED[kind]()
    assert photo_size(data) == (16, 8)
    found = decode(data, recorded=(16, 8))
    for prepare in (lambda picture: None, lambda picture: picture.load()):
        with Image.open(io.BytesIO(data)) as picture:
            prepare(picture)
            np.testing.assert_array_equal(decode(picture), found)


def test_photographs_of_python_in_every_form(tmp_path):
    data = encoded(Image.fromarray(NOISE), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file, io.BytesIO(data) as memory:
        memory.seek(5)
        for photo in (bytearray(data), memoryview(data), file, memory):
            for _ in range(2):
                assert photo_size(photo) == (8, 16)
                np.testing.assert_array_equal(decode(photo), NOISE)
        assert memory.tell() == 5


def test_what_is_no_photograph_of_python_says_what_is_expected(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as text, pytest.raises(UnreadableError, match="open it with 'rb'"):
        decode(text)
    with pytest.raises(UnreadableError, match="is a int, expected a path, bytes"):
        decode(7)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "photo",
    [
        "a.jpg",
        Path("a.jpg"),
        b"bytes",
        bytearray(b"bytes"),
        io.BytesIO(b"x"),
        plain(),
        np.zeros((4, 4, 3), np.uint8),
    ],
    ids=lambda photo: type(photo).__name__,
)
def test_one_photograph_is_no_iterable_of_photographs(photo):
    with pytest.raises(TypeError, match="an iterable of photographs, not one of them"):
        listed(photo)
    assert listed(iter([photo])) == [photo]
