"""Hundreds of odd files: each gives pixels or a reason, soon and in little memory, and none ends a run."""

import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image, features

from spp_jax import Scorer, create_model
from spp_jax.config import RunConfig
from spp_jax.data.records import SPLITS

PHOTO = Image.fromarray(
    np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 36))
    )
)


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def with_orientation(orientation: int, format: str) -> bytes:
    """PHOTO, stored without loss so that this EXIF orientation turns it upright."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = PHOTO.transpose(back[orientation]) if orientation in back else PHOTO
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than its few bytes hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def odd_files() -> dict[str, bytes]:
    """By name: bytes."""
    files: dict[str, bytes] = {}
    rng = np.random.default_rng(0)
    formats = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"]
    formats += ["AVIF"] if features.check("avif") else []
    for format in formats:
        whole = encoded(PHOTO, format)
        files[f"whole.{format.lower()}"] = whole
        for tenth in range(10):
            files[f"cut-{tenth}.{format.lower()}"] = whole[: len(whole) * tenth // 10]
        for number in range(12):
            flipped = bytearray(whole)
            for place in rng.integers(0, len(whole), 1 + number % 4):
                flipped[place] ^= 1 << int(rng.integers(8))
            files[f"flipped-{number}.{format.lower()}"] = bytes(flipped)
        files[f"named-{format.lower()}.txt.jpg"] = whole
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LAB", "YCbCr"):
        format = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
        grey = {"I": np.int32, "I;16": np.uint16, "F": np.float32}
        if mode in grey:
            picture = Image.fromarray(np.asarray(PHOTO.convert("L")).astype(grey[mode]))
        else:
            picture = PHOTO.convert(mode) if mode != "LAB" else Image.new("LAB", PHOTO.size, (90, 120, 130))
        files[f"mode {mode.replace(';', '-')}.{format.lower()}"] = encoded(picture, format)
    for width, height in ((1, 1), (1, 5000), (5000, 1), (7, 9), (8, 8), (3000, 8)):
        files[f"{width}x{height}.png"] = encoded(PHOTO.resize((width, height)), "PNG")
    for width, height in ((40_000, 40_000), (2**31 - 1, 2**31 - 1), (9_000, 9_000), (0, 10)):
        files[f"bomb-{width}.png"] = bomb(width, height)
    for format in ("PNG", "TIFF", "WEBP"):
        files |= {f"orientation-{i}.{format.lower()}": with_orientation(i, format) for i in range(1, 9)}
    upside = Image.Exif()
    upside[0x0112] = 6
    files["large.png"] = encoded(Image.new("RGBA", (8160, 6120), (9, 9, 9, 9)), "PNG", exif=upside)
    floats = Image.fromarray(np.zeros((7000, 7000), np.float32))
    files["large.tiff"] = encoded(floats, "TIFF", compression="tiff_deflate")
    inner = bomb(13_000, 13_000)
    entry = bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(4, "little") + (22).to_bytes(4, "little")
    files["bomb.ico"] = bytes([0, 0, 1, 0, 1, 0]) + entry + inner
    files["plain.ppm"] = b"P3 3000 3000 255 " + b"1 2 3 " * 100
    files["orientation-99.png"] = encoded(PHOTO, "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08broken")
    files["nothing.jpg"] = b""
    files["text.jpg"] = b"I am no picture"
    files["zeros.png"] = bytes(1000)
    files["naïve façade, 写真 .png"] = encoded(PHOTO, "PNG")
    files["html.jpg"] = b"<!DOCTYPE html><html><body>404</body></html>"
    files["animated.gif"] = encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)])
    return files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("odd")
    for name, data in odd_files().items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    return sorted(folder.iterdir())


DECODE = """
import json, re, sys, time, warnings
from pathlib import Path
from spp_jax.data.decoding import UnreadableError, decode, photo_size
warnings.simplefilter("ignore")
results = {}
for path in sys.stdin.read().split("\\0"):
    start = time.process_time()
    found = []
    for function in (photo_size, decode):
        try:
            given = function(path)
            found.append(list(given if function is photo_size else given.shape))
        except UnreadableError as error:
            found.append(str(error))
    results[path] = [*found, time.process_time() - start]
# Not getrusage: its peak is that of the process that forked this one, where that was larger.
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([results, int(peak[1]) * 1024]))
"""


def test_each_gives_pixels_or_a_reason_within_10_s_of_a_core_and_1_gb(corpus):
    assert len(corpus) >= 200
    names = "\0".join(map(str, corpus))
    run = subprocess.run([sys.executable, "-c", DECODE], input=names, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results, peak = json.loads(run.stdout)
    assert len(results) == len(corpus)
    assert peak < 10**9
    for path, (size, decoded, seconds) in results.items():
        assert seconds < 10, (
            path
        )  # a limit of ours, and of the processor's time: what else runs does not count
        if isinstance(decoded, str):
            assert decoded, path
            assert "\n" not in decoded, path
        else:
            assert decoded == [*size, 3], path  # the header did not lie
    read = {Path(path).name for path, (_, decoded, _) in results.items() if not isinstance(decoded, str)}
    assert {name for name in odd_files() if name.startswith(("whole", "mode", "named", "naïve"))} <= read
    assert {"1x5000.png", "5000x1.png", "animated.gif", "large.png"} <= read
    refused = {
        Path(path).name: decoded for path, (_, decoded, _) in results.items() if isinstance(decoded, str)
    }
    assert "more than 200,000,000" in refused["bomb-40000.png"]
    assert {"folder.png", "loop.png", "dangling.png", "nothing.jpg", "html.jpg"} <= refused.keys()


def test_scoring_them_all_names_each_that_has_no_score(corpus):
    model = create_model("compact", rngs=nnx.Rngs(0))
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)
    scorer = Scorer(model, RunConfig(buckets=3, max_pixels=40_000))
    scores = scorer.score(corpus)
    reasons = {place: reason for place, _, reason in scorer.stream(corpus)}
    assert len(scores) == len(reasons) == len(corpus)
    for place, path in enumerate(corpus):
        assert np.isnan(scores[place]) == bool(reasons[place]), path
    upright = [score for path, score in zip(corpus, scores, strict=True) if "orientation-" in path.name]
    assert len(upright) == 25
    assert len(set(upright)) == 1  # to the bit: the same pixels


def harmful_files(folder: Path) -> list[str]:
    """Some that take minutes, or gigabytes, from those who let them; honest ones among them. Their names."""
    for name, start in (("zeros.jpg", b"\xff\xd8\xff\0"), ("comment.ppm", b"P6 #")):
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(2 * 10**8)
    file = io.BytesIO()
    Image.new("RGB", (2500, 2500), (90, 90, 90)).save(file, "JPEG", progressive=True, quality=30)
    data = file.getvalue()
    (folder / "scans.jpg").write_bytes(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 3000 + b"\xff\xd9")
    tiled = encoded(Image.new("L", (1200, 1000)), "JPEG2000", tile_size=(8, 8), num_resolutions=1)
    (folder / "tiles.j2k").write_bytes(tiled)
    (folder / "bomb.png").write_bytes(bomb(14_000, 14_000))
    for number in range(3):
        (folder / f"good-{number}.png").write_bytes(encoded(PHOTO.resize((60 + number, 50)), "PNG"))
    return ["zeros.jpg", "comment.ppm", "scans.jpg", "bomb.png"]


PROGRAMS = {
    "score": ["spp_jax", "score", "--judge", "compact"],
    "evaluate": ["spp_jax", "evaluate", "--judge", "compact", "--photos"],
    "train": [
        *("spp_jax", "train", "--data", "folder", "--protocol", "official", "--max-pixels", "2000"),
        *("--buckets", "1", "--levels", "1", "--steps", "1", "--max-failed", "0.9", "--data-dir"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_harmful_files_cost_no_program_the_others_nor_much_time(program, tmp_path, compiled_once):
    (folder := tmp_path / "album").mkdir()
    harmful = harmful_files(folder)
    parts = [f"good-{number}.png,0.{number + 1},{part}" for number, part in enumerate(SPLITS)]
    lines = ["file,score,split", *parts, *(f"{name},0.5,train" for name in (*harmful, "tiles.j2k"))]
    (folder / "scores.csv").write_text("\n".join(lines))
    command = [sys.executable, "-m", *PROGRAMS[program], str(folder), "--refuse-seconds", "2"]
    command += ["--out", str(tmp_path / "run")] if program == "train" else []
    before = os.times()
    ran = subprocess.run(
        [*command, "--cache-dir", str(compiled_once)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    spent = os.times().children_user - before.children_user
    assert ran.returncode == 3, ran.stderr
    for name in harmful:
        assert f"{name}: " in ran.stderr
        assert name not in ran.stdout
    if program != "train":
        assert all(f"good-{number}.png" in ran.stdout for number in range(3))
    assert "Traceback" not in ran.stderr
    assert spent < 120  # processor seconds, with what is compiled: of the worst alone they were minutes
