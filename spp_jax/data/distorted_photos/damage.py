"""Five ways to damage a photograph, in four strengths each, and the score that each strength earns.

The rule: level 0 is the clean picture and scores 1; level ``s`` of any damage scores ``1 - 0.2 * s``.
Levels 1 and 2 are mild (a good picture), 3 and 4 are severe (a bad one). Strengths are on the scale
of uint8 sRGB.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from skimage.filters import gaussian

__all__ = ["DAMAGES", "damaged", "score_of_level"]

DAMAGES: dict[str, tuple[float, ...]] = {
    "blur": (0.5, 0.9, 3.0, 6.0),  # standard deviation of the Gaussian, pixels
    "noise": (3.0, 7.0, 25.0, 50.0),  # standard deviation of white noise, levels of 0 to 255
    "jpeg": (90, 70, 12, 5),  # libjpeg quality
    "jpeg2000": (45.0, 40.0, 25.0, 21.0),  # peak signal-to-noise ratio, dB
    "contrast": (0.9, 0.8, 0.35, 0.2),  # factor about mid-grey
}
"""The strengths of levels 1 to 4 of each kind of damage, mildest first."""


def score_of_level(level: int) -> float:
    """The label of a picture damaged to this level: 1, 0.8, 0.6, 0.4, 0.2."""
    return round(1 - 0.2 * level, 1)


def damaged(picture: np.ndarray, kind: str, level: int, rng: np.random.Generator) -> np.ndarray:
    """A damaged copy of ``picture``, uint8 ``[height, width, 3]``; ``rng`` draws the noise."""
    return _APPLY[kind](picture, DAMAGES[kind][level - 1], rng)


def _blur(picture, sigma, rng):
    return _to_uint8(gaussian(picture, sigma, channel_axis=-1, preserve_range=True))


def _noise(picture, deviation, rng):
    return _to_uint8(picture + rng.normal(0, deviation, picture.shape))


def _jpeg(picture, quality, rng):
    return _through_file(picture, "JPEG", quality=int(quality))


def _jpeg2000(picture, decibels, rng):
    return _through_file(picture, "JPEG2000", quality_mode="dB", quality_layers=[decibels], irreversible=True)


def _contrast(picture, factor, rng):
    return _to_uint8(127.5 + factor * (picture.astype(np.float64) - 127.5))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _through_file(picture: np.ndarray, format: str, **options) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, **options)
    return np.asarray(Image.open(file).convert("RGB"))


_APPLY: dict[str, Callable[..., np.ndarray]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "jpeg2000": _jpeg2000,
    "contrast": _contrast,
}
