"""TFDS builder of `distorted_photos`; needs no TensorFlow."""

import hashlib
import inspect
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from spp_jax.data.distorted_photos import damage, sources
from spp_jax.data.photo_builder import Example, PhotoBuilder
from spp_jax.errors import UsageError

__all__ = ["Builder"]

_ROUNDS = 6  # through all damages, per source
_SHORTEST, _LONGEST = 100, 600  # pixels a side
_SEED = 20140901  # of the windows and of the noise: part of the data, not of a run


class Builder(PhotoBuilder):
    """Photographs damaged as LIVE damages its references, scored by a stated rule."""

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """All windows, made anew; everything is on this machine already."""
        for index, (name, pictures) in enumerate(_sources().items()):
            rng = np.random.default_rng((_SEED, index))
            for number in range(_ROUNDS):
                for kind, level in _damages_of_round(number):
                    window = _window(pictures[number % len(pictures)], rng)
                    picture = window if level == 0 else damage.damaged(window, kind, level, rng)
                    score = damage.score_of_level(level)
                    yield Example(
                        f"{name}-{number}-{kind}-{level}", _png(picture), score, score >= 0.5, group=name
                    )

    @classmethod
    def content_key(cls, folder: Path) -> str:
        """A digest of the sources' pixels and of this folder's own code."""
        digest = hashlib.sha256()
        for module in (damage, sources, inspect.getmodule(cls)):
            digest.update(inspect.getsource(module).encode())  # pyright: ignore[reportArgumentType]
        for name, pictures in _sources().items():
            digest.update(name.encode())
            for picture in pictures:
                digest.update(repr(picture.size).encode() + picture.tobytes())
        return digest.hexdigest()[:12]


def _sources() -> dict[str, list[Image.Image]]:
    try:
        return sources.find_sources()
    except sources.MissingSourcesError as error:
        raise UsageError(str(error)) from None


def _damages_of_round(number: int) -> Iterator[tuple[str, int]]:
    """None, and each damage once mild and once severe; strengths take turns from round to round."""
    yield "clean", 0
    for turn, kind in enumerate(damage.DAMAGES, number):
        yield kind, 1 + turn % 2
        yield kind, 3 + (turn // 2) % 2


def _window(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A window of random area, shape (portrait to panorama), scale and place: uint8 [h, w, 3]."""
    side = math.exp(rng.uniform(math.log(140), math.log(420)))
    aspect = math.exp(rng.uniform(-1, 1) * math.log(2.8))  # width / height
    wanted = (side * math.sqrt(aspect), side / math.sqrt(aspect))
    width, height = (
        round(min(max(length, _SHORTEST), _LONGEST, have))
        for length, have in zip(wanted, picture.size, strict=True)
    )
    smallest = max(width / picture.width, height / picture.height)
    scale = math.exp(rng.uniform(math.log(smallest), 0))  # of the picture; 1 is its own pixels
    across, down = width / scale, height / scale
    left = rng.uniform(0, max(0, picture.width - across))
    top = rng.uniform(0, max(0, picture.height - down))
    box = (left, top, min(left + across, picture.width), min(top + down, picture.height))
    if scale > 0.99:  # no resampling: it would blur what is sold as clean
        left, top = min(int(left), picture.width - width), min(int(top), picture.height - height)
        return np.asarray(picture.crop((left, top, left + width, top + height)))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=3)
    return file.getvalue()
