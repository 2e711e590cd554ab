"""A gallery against scoring alone, how soon its page opens, and pictures of both pages.

    python benchmarks/gallery.py [--judge NAME] [--photos FOLDER ...] [--count N] [--best N] [--rounds N]
    python benchmarks/gallery.py --screenshots docs

Times N photographs scored alone, and scored to a gallery (thumbnails, explanations of the best, page), in
turn; every gallery is new, and all programs are compiled before. Prints medians, the median of the ratios and
the process' memory when a quarter and when all of the last gallery was made. Then opens that page, and
one of 10,000 photographs, in Chromium: seconds from the start of navigation to the frame after the load.

--screenshots makes gallery.png and app.png instead, of pictures of scikit-image that are free of rights (the
latter where gradio is installed). Both need playwright and a Chromium of the system.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import ExifTags, Image, ImageEnhance, ImageFilter

from spp_jax import Scorer
from spp_jax.cli import score as score_command
from spp_jax.compilation import default_cache_dir, use_compilation_cache
from spp_jax.scoring import Entry, ranked
from spp_jax.scoring.gallery import Gallery

_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_FREE = (
    "astronaut",
    "rocket",
    "coffee",
    "chelsea",
    "camera",
    "hubble_deep_field",
    "grass",
    "brick",
    "gravel",
)
_LARGEST = 400_000  # bytes of a screenshot


@dataclasses.dataclass(frozen=True)
class Options:
    """A gallery against scoring alone, how soon its page opens, and pictures of both pages."""

    judge: str = "compact"
    """One that ships."""
    photos: tuple[Path, ...] = tuple(Path("../shared/photos") / n for n in ("savoias", "live_wild", "crops"))
    """Folders of photographs."""
    count: int = 1000
    """Of them, from the first on, alternating between the folders."""
    best: int = 12
    """Of them are explained."""
    rounds: int = 3
    """Times that each is measured."""
    screenshots: Path | None = None
    """Folder for pictures of the pages, which are made instead."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=program, args=_ARGUMENTS)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def alternating(folders: tuple[Path, ...], count: int) -> list[Path]:
    lists = [
        sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png")) for folder in folders
    ]
    longest = max(map(len, lists))
    return [files[i] for i in range(longest) for files in lists if i < len(files)][:count]


def alone(scorer: Scorer, photos: list[Path]) -> float:
    start = time.perf_counter()
    list(scorer.stream(photos))
    return time.perf_counter() - start


def to_gallery(scorer: Scorer, photos: list[Path], folder: Path, best: int) -> tuple[float, int, int]:
    """Seconds, and memory at a quarter and at the end."""
    start, memory, entries = time.perf_counter(), 0, []
    gallery = Gallery(folder)
    for done, (place, score, reason) in enumerate(scorer.stream(photos, watch=gallery.watch(scorer, photos))):
        memory = resident() if done == len(photos) // 4 else memory
        entries.append(Entry(place, photos[place], photos[place].name, np.atleast_1d(score), reason))
    entries = ranked(entries)
    gallery.complete(scorer, entries, int)
    gallery.explain(scorer, entries, best)
    gallery.write(entries, scorer.attributes, digest=scorer.digest, best=best)
    return time.perf_counter() - start, memory, resident()


def enlarged(page: Path, count: int) -> Path:
    """The same page, told of so many photographs."""
    start, end = '<script type="application/json" id="data">', "</script>"
    text = page.read_text()
    at = text.index(start) + len(start)
    data = json.loads(text[at : text.index(end, at)])
    first = data["photos"]
    data["photos"] = [first[i % len(first)] | {"name": f"{i:05}.jpg"} for i in range(count)]
    larger = page.with_name("larger.html")
    larger.write_text(text[:at] + json.dumps(data).replace("<", "\\u003c") + text[text.index(end, at) :])
    return larger


def opening(page: Path) -> tuple[float, int, list[str]]:
    """Seconds to the frame after the load, cards, and what was asked of a network."""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        start = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="load")
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds = time.perf_counter() - start
        return seconds, tab.locator(".card").count(), [url for url in asked if not url.startswith("file:")]


def measure(options: Options) -> None:
    use_compilation_cache(default_cache_dir())
    scorer = Scorer.from_pretrained(options.judge)
    photos = alternating(options.photos, options.count)
    times: list[tuple[float, float]] = []
    memory = (0, 0)
    with tempfile.TemporaryDirectory() as folder:
        to_gallery(scorer, photos, Path(folder) / "warm", options.best)
        for number in range(options.rounds):
            first = alone(scorer, photos)
            second, *memory = to_gallery(scorer, photos, Path(folder) / str(number), options.best)
            times.append((first, second))
        page = Path(folder) / str(options.rounds - 1) / "index.html"
        scored, made = (float(np.median(column)) for column in zip(*times, strict=True))
        ratio = float(np.median([second / first for first, second in times]))
        print(
            f"{len(photos)} photographs, {options.judge}, {options.best} explained, {options.rounds} rounds"
        )
        print(f"scored alone {scored:.1f} s, to a gallery {made:.1f} s, ratio {ratio:.2f}")
        print(f"memory at a quarter {memory[0] / 1e6:.0f} MB, at the end {memory[1] / 1e6:.0f} MB")
        for file in (page, enlarged(page, 10_000)):
            seconds, cards, asked = opening(file)
            print(f"{cards} photographs open in {seconds:.2f} s; requests to a network: {len(asked)}")


def free_photos(folder: Path) -> None:
    """Pictures of scikit-image that are free of rights, and a burst of one of them, two of it spoilt."""
    import skimage.data

    for number, name in enumerate(_FREE):
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        exif = picture.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)[0x9003] = f"2024:05:{number + 1:02} 12:00:00"
        picture.save(folder / f"{name}.jpg", quality=92, exif=exif)
        if name == "coffee":
            spoilt = (
                picture.filter(ImageFilter.GaussianBlur(2)),
                ImageEnhance.Brightness(picture).enhance(0.5),
            )
            for second, other in enumerate(spoilt, 1):
                exif.get_ifd(ExifTags.IFD.Exif)[0x9003] = f"2024:05:{number + 1:02} 12:00:0{second}"
                other.save(folder / f"{name} {second + 1}.jpg", quality=92, exif=exif)


def keep(shot: bytes, file: Path) -> None:
    """As a PNG of so many colours as fit."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    for colours in (256, 192, 128, 96, 64):
        palette = picture.quantize(colours)
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
        if file.stat().st_size <= _LARGEST:
            break
    print(f"{file}: {file.stat().st_size:,} bytes")


def screenshots(options: Options, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photographs"
        photos.mkdir()
        free_photos(photos)
        gallery = Path(folder) / "gallery"
        arguments = ["--judge", options.judge, "--gallery", str(gallery), "--explain-best", "1"]
        score_command.main([str(photos), *arguments])
        with chromium() as browser:
            tab = browser.new_page(viewport={"width": 1180, "height": 640})
            tab.goto((gallery / "index.html").as_uri())
            tab.wait_for_load_state("networkidle")
            keep(tab.screenshot(), out / "gallery.png")
            try:
                keep(of_app(options.judge, photos / "coffee.jpg", browser), out / "app.png")
            except ModuleNotFoundError as error:
                print(f"no app.png: {error}", file=sys.stderr)


def of_app(judge: str, photo: Path, browser: Any) -> bytes:
    from spp_jax.cli.app_page import application, serve

    scorer, stop = Scorer.from_pretrained(judge), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = application(scorer, "127.0.0.1", 64)
        thread = threading.Thread(target=serve, args=(app, listening, stop))
        thread.start()
        try:
            tab = browser.new_page(viewport={"width": 1180, "height": 620})
            tab.set_default_timeout(300_000)
            tab.goto(f"http://127.0.0.1:{listening.getsockname()[1]}")
            tab.locator("#drop input[type=file]").wait_for(state="attached")
            tab.set_input_files("#drop input[type=file]", photo)
            tab.locator("#photo img").wait_for()
            tab.get_by_role("tab", name="Map").click()
            tab.get_by_text("What adds up").click()
            tab.locator("#map img").wait_for()
            tab.locator("#parts td").first.wait_for()
            tab.wait_for_timeout(2000)
            return tab.screenshot()
        finally:
            stop.set()
            thread.join()


def main() -> int:
    options = tyro.cli(Options)
    if options.screenshots:
        screenshots(options, options.screenshots)
    else:
        measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
