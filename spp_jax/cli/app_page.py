"""The page of `spp-jax app`, by gradio: what is dropped into it is judged by one Scorer that all share."""

import dataclasses
import html
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image, ImageDraw
from starlette.middleware.trustedhost import TrustedHostMiddleware

from spp_jax.data.decoding import UnreadableError, decode, photo_size
from spp_jax.errors import SppJaxError
from spp_jax.names import printable
from spp_jax.scoring import Scorer
from spp_jax.scoring.crops import Crop
from spp_jax.scoring.drawing import heat_map, strongest
from spp_jax.scoring.explanation import Explanation

__all__ = ["Answer", "answer", "application", "serve"]

_SHOWN = 1_000_000  # pixels of what is shown
_CROPS = 6
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)
_STYLE = """
.verdict b { font-size: 2.6rem; font-variant-numeric: tabular-nums; line-height: 1.1 }
.verdict span { margin-left: .5rem; opacity: .75 }
.verdict p { margin: .2rem 0 }
.parts { border-collapse: collapse; width: 100% }
.parts td { font-variant-numeric: tabular-nums; text-align: right; width: 5em }
.parts th { font-weight: 400; text-align: left; white-space: nowrap; width: 1% }
.parts, .parts tr, .parts th, .parts td { border: 0 !important; padding: .15rem .6rem .15rem 0 !important }
.parts i { background: #2166c8; border-radius: 2px; display: block; height: .7rem }
.parts i.down { background: #d2691e }
.scale { align-items: center; display: flex; gap: .5rem }
.scale i { background: linear-gradient(90deg, #440154, #414487, #2a788e, #22a884, #7ad151, #fde725);
  border-radius: 3px; flex: 1; height: .7rem; max-width: 16rem }
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is said of a photograph; where it cannot be judged, only the verdict, which says why.

    Attributes:
        verdict: HTML: the score, or why there is none.
        photo: the photograph, upright, with the outlines of its crops.
        map: the photograph under the map of its score.
        winners: the photograph with the spots that move the score most.
        crops: the best, each with what is said of it.
        parts: HTML: what adds up to the score.
    """

    verdict: str
    photo: Image.Image | None = None
    map: Image.Image | None = None
    winners: Image.Image | None = None
    crops: tuple[tuple[Image.Image, str], ...] = ()
    parts: str = ""


def answer(scorer: Scorer, file: str | Path | None) -> Answer:
    """Judge a photograph.

    Args:
        scorer: the judge.
        file: the photograph; None: there is none.
    """
    if file is None:
        return Answer("")
    try:
        found = next(iter(scorer.stream([file])))
        if found.reason:
            raise UnreadableError(found.reason)
        verdict = _verdict(dict(zip(scorer.attributes, np.atleast_1d(found.score).tolist(), strict=True)))
        if scorer.config.input != "full":
            return Answer(f"{verdict}<p>This judge sees no whole photographs: it explains none.</p>")
        why, crops = scorer.explain(file), scorer.crops(file, count=_CROPS)
        shown = dataclasses.replace(scorer.config.decoding, max_pixels=_SHOWN)
        picture = Image.fromarray(decode(file, shown))
        whole = dataclasses.replace(scorer.config.decoding, max_pixels=None)
        scale = picture.width / photo_size(file, whole)[1]
    except (UnreadableError, SppJaxError) as error:
        return Answer(f"<p>It cannot be judged: {html.escape(printable(error))}</p>")
    return Answer(
        verdict,
        _outlined(picture, crops, scale),
        _under_map(picture, why),
        _with_winners(picture, why),
        tuple((picture.crop(_scaled(crop.box, scale)), _said(crop)) for crop in crops),
        _parts(why),
    )


def _verdict(scores: dict[str, float]) -> str:
    lines = "".join(
        f"<p><b>{score:.2f}</b><span>{'' if name == 'score' else html.escape(name)}, from 0 to 1; "
        f"{'good' if score >= 0.5 else 'not good'}</span></p>"
        for name, score in scores.items()
    )
    return f'<div class="verdict">{lines.replace("<span>, ", "<span>")}</div>'


def _scaled(box: tuple[int, int, int, int], scale: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge * scale) for edge in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _said(crop: Crop) -> str:
    left, top, right, bottom = crop.box
    return f"{crop.score:.2f}, {crop.aspect or 'own shape'}, {right - left} x {bottom - top}"


def _outlined(picture: Image.Image, crops: list[Crop], scale: float) -> Image.Image:
    """With the outline of the best crop, where it is judged better than the whole."""
    better = [crop for crop in crops[:1] if crop.score > crop.original]
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    for crop in better:
        wide = max(2, picture.width // 250)
        pen.rectangle(_scaled(crop.box, scale), outline="black", width=wide + 2)
        pen.rectangle(_scaled(crop.box, scale), outline="white", width=wide)
    return drawn


def _under_map(picture: Image.Image, why: Explanation) -> Image.Image:
    grey = picture.convert("L").convert("RGB")
    heat = heat_map(why.map, 512).convert("RGB").resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(grey, heat, 0.62)


def _with_winners(picture: Image.Image, why: Explanation) -> Image.Image:
    drawn = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, "white"), 0.2)
    pen = ImageDraw.Draw(drawn, "RGBA")
    places, effects = strongest(why.winners)
    unit = max(picture.size) / 100
    scale = np.array(picture.size) / np.array(why.map.shape[::-1])
    for (x, y), effect in zip(places * scale, effects, strict=True):
        radius = unit * (0.8 + 2.2 * np.sqrt(abs(effect) / np.abs(effects).max()))
        colour = (33, 102, 200, 170) if effect > 0 else (232, 112, 26, 170)
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), colour, "white", max(1, round(unit / 5))
        )
    return drawn


def _parts(why: Explanation) -> str:
    most = max(*(abs(amount) for amount in why.parts.values()), 1e-9)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{amount:+.2f}</td>'
        f'<td style="width:auto"><i class="{"up" if amount > 0 else "down"}" '
        f'style="width:{100 * abs(amount) / most:.1f}%"></i></td></tr>'
        for name, amount in why.parts.items()
    )
    return (
        f'<table class="parts">{rows}</table><p>They add up to {why.logit:.2f}, the log odds of '
        f"{html.escape(why.attribute)}.</p>"
    )


def _markup(text: str = "", **options: Any) -> gradio.Markdown:
    """HTML that the browser cleans before it is shown; gradio's own component for it asks for eval."""
    return gradio.Markdown(text, latex_delimiters=[], **options)


def _blocks(scorer: Scorer, most_mib: int) -> gradio.Blocks:
    """The page. Uploads are deleted when they are ten minutes old."""
    with gradio.Blocks(analytics_enabled=False, title="spp-jax", delete_cache=(60, 600)) as page:
        gradio.Markdown("# How good is this photograph?")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                file = gradio.File(label=f"Photograph, at most {most_mib} MiB", height=160, elem_id="drop")
                verdict = _markup(elem_id="verdict")
                with gradio.Accordion("What adds up", open=False):
                    parts = _markup(elem_id="parts")
            with gradio.Column(scale=5, min_width=320), gradio.Tabs():
                look: dict[str, Any] = {"interactive": False, "show_label": False, "format": "jpeg"}
                look["buttons"] = ["download", "fullscreen"]  # and none that would share it
                with gradio.Tab("Photograph"):
                    photo = gradio.Image(elem_id="photo", **look)
                    _markup(
                        "<p>The outline is the best crop, where that is judged better than the whole.</p>"
                    )
                with gradio.Tab("Map"):
                    heat = gradio.Image(elem_id="map", **look)
                    _markup('<p class="scale">0 <i></i> 1</p><p>The score of the part around each point.</p>')
                with gradio.Tab("Winners"):
                    winners = gradio.Image(elem_id="winners", **look)
                    _markup("<p>The spots that move the score most: blue up, orange down.</p>")
                with gradio.Tab("Best crops"):
                    crops = gradio.Gallery(
                        elem_id="crops",
                        columns=3,
                        height="auto",
                        object_fit="contain",
                        show_label=False,
                        format="jpeg",
                        interactive=False,
                        buttons=["fullscreen"],
                    )
        outputs = [verdict, photo, heat, winners, crops, parts]
        file.change(_answering(scorer), file, outputs, api_visibility="private", show_progress="minimal")
    return page.queue(max_size=32, default_concurrency_limit=2)


def _answering(scorer: Scorer) -> Callable[[str | None], tuple[Any, ...]]:
    def work(file: str | None) -> tuple[Any, ...]:
        found = answer(scorer, file)
        return found.verdict, found.photo, found.map, found.winners, list(found.crops), found.parts

    return work


def application(scorer: Scorer, host: str, most_mib: int) -> FastAPI:
    """What serves the page, to whoever asks for it by this machine's name.

    Args:
        scorer: the judge that all share.
        host: the name or address by which it may be asked for, besides localhost.
        most_mib: mebibytes of a file, at most.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    anyone = host in ("0.0.0.0", "::")
    names = ["*"] if anyone else sorted({host, "127.0.0.1", "localhost", "[::1]"})
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)

    @app.middleware("http")
    async def guarded(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return gradio.mount_gradio_app(
        app,
        _blocks(scorer, most_mib),
        "/",
        max_file_size=f"{most_mib}mb",
        footer_links=[],
        ssr_mode=False,
        css=_STYLE,
        theme=gradio.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
    )


def _theme() -> gradio.Theme:
    """Of the system's fonts: none is fetched."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gradio.themes.Default(primary_hue="blue", **fonts)


def serve(app: FastAPI, listening: socket.socket, stop: threading.Event | None = None) -> None:
    """Serve until it is interrupted, or told to stop.

    Args:
        app: of :func:`application`.
        listening: a bound socket.
        stop: ends it, from another thread.
    """
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    if stop is not None:

        def end() -> None:
            stop.wait()
            server.should_exit = True

        threading.Thread(target=end, daemon=True).start()
    server.run(sockets=[listening])
