"""Whatever is in a file takes its limits and no more; whatever happens to a decoder, the next one goes on."""

import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data import isolation
from spp_jax.data.decoding import UnreadableError, decode, photo_size

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sparse(path: Path, start: bytes, length: int = 10**9) -> Path:
    """A file of zeros after its start."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(length)
    return path


def png_of(width: int, height: int) -> bytes:
    """A PNG of black pixels, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(height * (3 * width + 1)), 1) if width * height < 10**8 else b"x"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 90, 90)).save(file, "JPEG", progressive=True, quality=30)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2]) * count + b"\xff\xd9"


HARMFUL = {
    "a start of JPEG and zeros": lambda folder: sparse(folder / "a.jpg", b"\xff\xd8\xff\0"),
    "a comment of PPM without end": lambda folder: sparse(folder / "a.ppm", b"P6 #"),
    "JPEG of very many scans": lambda folder: scans(3000, 3000),
    "a PPM of plain text": lambda folder: b"P3 900 900 255 " + b"1 2 3 " * 810_000,
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_file_that_takes_too_long_is_named_and_others_go_on_meanwhile(kind, tmp_path):
    photo, done = HARMFUL[kind](tmp_path), []
    good = png(PIXELS)

    def others() -> None:
        while not stop.is_set():
            np.testing.assert_array_equal(decode(good), PIXELS)
            done.append(1)

    stop, thread = threading.Event(), threading.Thread(target=others)
    thread.start()
    try:
        with pytest.raises(UnreadableError, match=r"takes more than 0\.3 seconds of processor time"):
            decode(photo, Decoding(refuse_seconds=0.3))
    finally:
        stop.set()
        thread.join()
    assert done
    np.testing.assert_array_equal(decode(good), PIXELS)


def test_sizes_are_read_within_the_same_limits(tmp_path):
    photo = sparse(tmp_path / "a.jpg", b"\xff\xd8\xff\0")
    with pytest.raises(UnreadableError, match=r"takes more than 0\.2 seconds"):
        photo_size(photo, Decoding(refuse_seconds=0.2))


def test_what_was_over_its_limits_is_not_tried_again_until_it_is_another(tmp_path):
    photo = sparse(tmp_path / "a.jpg", b"\xff\xd8\xff\0")
    decoding = Decoding(refuse_seconds=0.3)
    reasons, spent = [], []
    for function in (photo_size, decode, photo_size):
        before = os.times()
        with pytest.raises(UnreadableError) as caught:
            function(photo, decoding)
        reasons.append(str(caught.value))
        spent.append(os.times().children_user - before.children_user)  # of decoders that ended
    assert reasons == 3 * [reasons[0]]
    assert spent[0] >= 0.2
    assert spent[1:] == [0, 0]
    photo.write_bytes(png(PIXELS))
    np.testing.assert_array_equal(decode(photo, decoding), PIXELS)


def test_a_file_whose_decoder_was_ended_by_others_is_tried_again(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    decode(tmp_path / "a.png")
    for decoder in isolation._DECODERS._free:
        os.kill(decoder._process.pid, signal.SIGKILL)
    time.sleep(0.1)
    for _ in range(len(isolation._DECODERS._free)):
        with pytest.raises(UnreadableError, match="takes more memory"):
            decode(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), PIXELS)


def large_jpeg(width: int, height: int) -> bytes:
    """A grey JPEG of colours, sampled as cameras do it, without what it takes to encode that many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (128, 128, 128)).save(file, "JPEG", subsampling=2)
    head = file.getvalue()
    start = head.index(b"\xff\xc0")  # the frame: its height and width are 5 bytes behind
    head = head[: start + 5] + struct.pack(">HH", height, width) + head[start + 9 :]
    scan = head.index(b"\xff\xda")
    scan += 2 + int.from_bytes(head[scan + 2 : scan + 4], "big")
    units = -(-width // 16) * -(-height // 16)
    return head[:scan] + b"\x28\xa2\x8a\x00" * units + b"\xff\xd9"  # six blocks without any difference


CAMERAS = {  # the largest of their kinds: width, height
    "Canon 5DS R": (8688, 5792),
    "Sony A7R IV": (9504, 6336),
    "Fujifilm GFX 100": (11648, 8736),
    "Phase One IQ4": (14204, 10652),
    "Samsung HP1": (16320, 12240),
}


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_photographs_of_the_largest_cameras_are_read_by_default(camera):
    width, height = CAMERAS[camera]
    pixels = decode(large_jpeg(width, height), Decoding(max_pixels=270_000))
    assert pixels.shape[0] * pixels.shape[1] <= 270_000
    np.testing.assert_array_equal(pixels, 128)


@pytest.mark.slow
def test_all_pixels_of_a_large_photograph_are_within_the_memory_or_it_is_named():
    assert (decode(large_jpeg(11648, 8736)) == 128).all()
    with pytest.raises(UnreadableError, match="takes more than 1 GB of memory to read"):
        decode(large_jpeg(16320, 12240))


def test_a_file_that_takes_too_much_memory_is_named():
    with pytest.raises(UnreadableError, match="takes more than 1 GB of memory to read"):
        decode(png_of(30_000, 30_000), ANY_SIZE)
    np.testing.assert_array_equal(decode(png(PIXELS)), PIXELS)


def test_pixels_beyond_the_shared_memory_come_all_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (2400, 2500, 3), np.uint8)
    assert pixels.size > isolation._SHARED
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    first = decode(file.getvalue())
    second = decode(png(PIXELS))
    np.testing.assert_array_equal(first, pixels)  # also after the next one
    np.testing.assert_array_equal(second, PIXELS)


def test_many_threads_each_get_their_own_pixels():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (int(n), 9, 3), np.uint8) for n in rng.integers(5, 60, 100)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(decode, map(png, pictures)))
    for pixels, expected in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(pixels, expected)


def test_a_decoder_that_breaks_down_is_named_and_replaced():
    decode(png(PIXELS))
    for decoder in isolation._DECODERS._free:
        os.kill(decoder._process.pid, signal.SIGSEGV)
    time.sleep(0.1)
    reasons = []
    for _ in range(len(isolation._DECODERS._free) + 1):
        try:
            np.testing.assert_array_equal(decode(png(PIXELS)), PIXELS)
        except UnreadableError as error:
            reasons.append(str(error))
    assert all("its decoder broke down (status -11)" in reason for reason in reasons)
    np.testing.assert_array_equal(decode(png(PIXELS)), PIXELS)


def test_ctrl_c_leaves_no_reply_to_the_next(monkeypatch, tmp_path):
    decode(png(PIXELS))
    real = isolation.socket.recv_fds
    monkeypatch.setattr(isolation.socket, "recv_fds", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        decode(png(PIXELS))
    monkeypatch.setattr(isolation.socket, "recv_fds", real)
    other = 255 - PIXELS[:4]
    np.testing.assert_array_equal(decode(png(other)), other)


def test_without_processes_files_are_decoded_here_and_that_is_said(monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(isolation, "_DECODERS", isolation._Decoders())
    monkeypatch.setattr(isolation.subprocess, "Popen", refuse)
    for _ in range(2):
        np.testing.assert_array_equal(decode(png(PIXELS)), PIXELS)
        assert photo_size(png(PIXELS)) == (5, 7)
    with pytest.raises(UnreadableError, match="is no picture"):
        decode(b"text")
    assert [record.message for record in caplog.records] == [
        "files are decoded in this process, without limits: [Errno 11] Resource temporarily unavailable"
    ]


def run(script: str, folder: Path, **options) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, **options
    )


PATH = f"import sys; sys.path.insert(0, {str(Path(isolation.__file__).parents[2])!r})\n"


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(PIXELS))
    script = "print('once')\nfrom spp_jax.data.decoding import decode\nprint(decode('photo.png').sum())\n"
    done = run(PATH + script, tmp_path)
    assert (done.stdout.split(), done.stderr, done.returncode) == (["once", str(PIXELS.sum())], "", 0)


def test_a_decoder_ends_with_the_process_that_was_killed(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(PIXELS))
    script = PATH + (
        "from spp_jax.data import isolation\nfrom spp_jax.data.decoding import decode\ndecode('photo.png')\n"
        "print(isolation._DECODERS._free[0]._process.pid, flush=True)\n"
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run(script, tmp_path)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # nobody waits for it here
            return
        time.sleep(0.1)
    pytest.fail("the decoder is still there")


def test_a_forked_copy_has_decoders_of_its_own(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(PIXELS))
    script = PATH + (
        "import os, warnings; warnings.simplefilter('ignore')\n"
        "from spp_jax.data.decoding import decode\nexpected = decode('photo.png').sum()\n"
        "child = os.fork()\n"
        "for _ in range(50): assert decode('photo.png').sum() == expected\n"
        "if child: print(os.waitpid(child, 0)[1])\n"
        "else: os._exit(7)\n"
    )
    done = run(script, tmp_path, timeout=100)
    assert (done.stdout.split(), done.returncode) == ([str(7 << 8)], 0), done.stderr


def test_fifty_megapixels_take_at_most_twelve_bytes_each(tmp_path):
    photo = tmp_path / "large.png"
    Image.new("RGBA", (8000, 6000), (9, 9, 9, 9)).save(photo, compress_level=1)
    script = PATH + (
        "import re\nfrom pathlib import Path\nfrom spp_jax.data import isolation\n"
        "from spp_jax.config import Decoding\nfrom spp_jax.data.decoding import decode, decoded\n"
        "def peak(pid):\n"
        "    return int(re.search(r'VmHWM:\\s*(\\d+)', Path(f'/proc/{pid}/status').read_text())[1])\n"
        "from PIL import Image\nImage.new('RGB', (5, 5)).save('small.png'); decode('small.png')\n"
        "child = isolation._DECODERS._free[0]._process.pid\nbefore = peak('self'), peak(child)\n"
        "for decoding in (Decoding(), Decoding(max_pixels=10**6)):\n"
        "    with decoded('large.png', decoding) as pixels: pixels.max()\n"
        "print(1024 * (peak('self') - before[0] + peak(child) - before[1]) / 48e6)\n"
    )
    done = run(script, tmp_path)
    assert float(done.stdout) < 12, done
