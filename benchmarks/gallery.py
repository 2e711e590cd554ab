"""A gallery against scoring alone, how soon its page opens, and pictures of both pages.

    python benchmarks/gallery.py [--judge NAME] [--photos FOLDER ...] [--count N] [--best N] [--block N]
    python benchmarks/gallery.py --screenshots docs

Times N photographs scored alone, and scored to a gallery (thumbnails, explanations of the best, page). Two
streams go over the same photographs and take turns, block by block, so that other work on the machine delays
both alike; programs are compiled before. Prints the sums, the median of the blocks' ratios, what the end
adds, and the process' memory at each tenth of the way. Then opens that page, and one of 10,000 photographs,
in Chromium: seconds from the start of navigation to the frame after the load.

--screenshots makes gallery.png and app.png instead, of pictures of scikit-image that are free of rights (the
latter where gradio is installed). Both need playwright and a Chromium of the system.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import ExifTags, Image, ImageEnhance, ImageFilter

from spp_jax import Scorer
from spp_jax.cli import score as score_command
from spp_jax.compilation import default_cache_dir, use_compilation_cache
from spp_jax.scoring import Entry, Scored, ranked
from spp_jax.scoring.gallery import Gallery
from spp_jax.scoring.programs import make_all

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
    block: int = 50
    """Photographs that one stream scores before it is the other's turn."""
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


def in_turns(
    streams: tuple[Iterator[Scored], Iterator[Scored]], block: int, told: Callable[[int, np.ndarray], None]
) -> tuple[np.ndarray, list[Scored]]:
    """Seconds that each of two streams took for each block, ``[blocks, 2]``, and what the second gave."""
    seconds, results = [], []
    while True:
        took, found = [0.0, 0.0], []
        for which in (0, 1) if len(seconds) % 2 else (1, 0):
            start = time.perf_counter()
            found = list(itertools.islice(streams[which], block))
            took[which] = time.perf_counter() - start
            results += found if which else []
        if not found:
            return np.array(seconds), results
        seconds.append(took)
        told(len(results), np.sum(seconds, axis=0))


def finished(scorer: Scorer, gallery: Gallery, entries: list[Entry], best: int) -> list[float]:
    """Seconds for the thumbnails that are missing, for the explanations, and for the page."""
    start = time.perf_counter()
    gallery.complete(scorer, entries, int)
    thumbnails = time.perf_counter() - start
    explanations = explained(scorer, gallery, entries, best)
    start = time.perf_counter()
    gallery.write(entries, scorer.attributes, digest=scorer.digest, best=best)
    return [thumbnails, explanations, time.perf_counter() - start]


def explained(scorer: Scorer, gallery: Gallery, entries: list[Entry], best: int) -> float:
    """Seconds for the explanations."""
    gallery.begin()
    start = time.perf_counter()
    gallery.explain(scorer, entries, best)
    return time.perf_counter() - start


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
    make_all(scorer.programs, [scorer._bucket(shape) for shape in scorer.expect([*photos])])
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder) / "gallery")
        streams = scorer.stream(photos), scorer.stream(photos, watch=gallery.watch(scorer, photos))
        seconds, results = in_turns(streams, options.block, telling(len(photos), options.block))
        entries = ranked(
            [
                Entry(place, photos[place], photos[place].name, np.atleast_1d(score), reason)
                for place, score, reason in sorted(results, key=lambda result: result.place)
            ]
        )
        compiling = explained(scorer, Gallery(Path(folder) / "before"), entries, options.best)
        end = finished(scorer, gallery, entries, options.best)
        print(f"memory at the end {memory()}")
        scored, shown = seconds.sum(axis=0)
        print(f"{len(photos)} photographs, {options.judge}, {options.best} explained, blocks {options.block}")
        print(
            f"scored alone {scored:.1f} s; to a gallery {shown:.1f} s, then thumbnails {end[0]:.1f} s, "
            f"explanations {end[1]:.1f} s, page {end[2]:.1f} s"
        )
        ratios = np.quantile(seconds[:, 1] / seconds[:, 0], (0, 0.5, 1))
        print(f"ratio {(shown + sum(end)) / scored:.3f}; least, median, greatest of blocks {ratios.round(3)}")
        print(f"explanations where their programs are compiled meanwhile {compiling:.1f} s")
        page = gallery.folder / "index.html"
        for file in (page, enlarged(page, 10_000)):
            took, cards, asked = opening(file)
            print(f"{cards} photographs open in {took:.2f} s; requests to a network: {len(asked)}")


def memory() -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{resident() / 1e6:.0f} MB, {peak / 1e6:.0f} MB at most until then"


def telling(count: int, block: int) -> Callable[[int, np.ndarray], None]:
    """What prints at each tenth how long both took by then, and the memory."""

    def told(done: int, seconds: np.ndarray) -> None:
        if done * 10 // count > (done - block) * 10 // count:
            print(f"after {done}: {seconds.round(1)} s; memory {memory()}", flush=True)

    return told


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
