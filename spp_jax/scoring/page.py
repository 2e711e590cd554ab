"""Parts that all pages share: the head with its policy, the style, thumbnails, and data.

A page holds its style and script itself and names each by its digest in its content security policy. So
nothing else runs, nothing is fetched from anywhere, and the page opens from a disk as from a server.
"""

import base64
import hashlib
import html
import importlib.resources
import io
import json
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["MARK", "address", "data_block", "head", "inline_script", "source", "thumbnail"]

MARK = '<meta name="generator" content="spp_jax">'
"""By which a page is known as one of ours."""


def source(name: str) -> str:
    """The text of a style or script that lies beside this file."""
    return (importlib.resources.files("spp_jax.scoring") / name).read_text("utf-8")


def head(title: str, style: str = "", *, script: str = "", images: str = "data:") -> str:
    """All of a page before its body.

    Args:
        title: plain text.
        style: of this page, after the style that all share.
        script: that the page may run, and will hold by :func:`inline_script`; empty: none runs.
        images: where the policy lets pictures come from.
    """
    style = source("page.css") + style
    policy = f"default-src 'none'; img-src {images}; style-src {_digest(style)}; base-uri 'none'"
    policy += "; form-action 'none'" + (f"; script-src {_digest(script)}" if script else "")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
{MARK}
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
"""


def inline_script(script: str) -> str:
    """The element that runs a script which :func:`head` was told of."""
    return f"<script>{script}</script>\n"


def data_block(name: str, data: Any) -> str:
    """An element that holds data as JSON, in ASCII, such that nothing in a text ends it; never run."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def thumbnail(pixels: np.ndarray, longest: int, *, turned: bool = False) -> tuple[bytes, int, int]:
    """A small picture, never larger than it is: a JPEG file's bytes, its width and its height.

    Args:
        pixels: uint8 ``[height, width, 3]``.
        longest: its longer side in pixels, at most.
        turned: the pixels lie with their axes swapped; the thumbnail is upright.
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest, longest), Image.Resampling.HAMMING)  # half the time of LANCZOS
    if turned:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue(), picture.width, picture.height


def address(kind: str, content: bytes) -> str:
    """The address that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
