"""TFDS builder of `distorted_photos`; needs no TensorFlow."""

import hashlib
import inspect
import io
import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from spp_jax.data.distorted_photos import damage, sources

__all__ = ["Builder", "content_key"]

_ROUNDS = 6  # through all damages, per source
_SHORTEST, _LONGEST = 100, 600  # pixels a side
_SEED = 20140901  # of the windows and of the noise: part of the data, not of a run


class Builder(tfds.core.GeneratorBasedBuilder):
    """Photographs damaged as LIVE damages its references, scored by a stated rule."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "height": np.int32,
                    "width": np.int32,
                    "score": np.float32,
                    "good": np.bool_,
                }
            ),
            supervised_keys=("image", "score"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # everything is on this machine already
        return {"pictures": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for index, (name, pictures) in enumerate(sources.find_sources().items()):
            rng = np.random.default_rng((_SEED, index))
            for number in range(_ROUNDS):
                for kind, level in _damages_of_round(number):
                    window = _window(pictures[number % len(pictures)], rng)
                    picture = window if level == 0 else damage.damaged(window, kind, level, rng)
                    key = f"{name}-{number}-{kind}-{level}"
                    score = damage.score_of_level(level)
                    yield (
                        key,
                        {
                            "id": key,
                            "group": name,
                            "image": _png(picture),
                            "height": picture.shape[0],
                            "width": picture.shape[1],
                            "score": score,
                            "good": score >= 0.5,
                        },
                    )


def content_key() -> str:
    """A digest of all that decides the data: the sources' pixels and this folder's own code.

    A data set prepared under another key is another data set; TFDS itself would go on serving it.
    """
    digest = hashlib.sha256()
    for module in (damage, sources, inspect.getmodule(Builder)):
        digest.update(inspect.getsource(module).encode())  # pyright: ignore[reportArgumentType]
    for name, pictures in sources.find_sources().items():
        digest.update(name.encode())
        for picture in pictures:
            digest.update(repr(picture.size).encode() + picture.tobytes())
    return digest.hexdigest()[:12]


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
