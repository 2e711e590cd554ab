"""An exported judge, loaded and run with JAX and NumPy alone: no Flax, no model code, none of this package.

This very file lies beside each export as ``judge.py``. Reading an export also takes ``flatbuffers``, which
`jax.export` needs for it. ::

    import judge

    scorer = judge.ExportedScorer("exported")
    scorer.score([pixels])  # uint8 arrays [height, width, 3], sRGB, upright

Pictures are to come as the manifest's policy says: sRGB, EXIF orientation applied, transparency laid over
``background``, of at most ``max_pixels`` (scaled down, antialiased, aspect ratio kept).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

__all__ = ["ExportedScorer"]

_FORMAT = 1


class ExportedScorer:
    """Scores pixels with the programs of an export: one for each of a few shapes, compiled at first use.

    Attributes:
        manifest: what the export says of itself.
    """

    def __init__(self, folder: str | Path):
        """Open an export.

        Raises:
            ValueError: there is none, it is of another form, or a file is not the one that was written.
        """
        self._folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self._folder / "manifest.json").read_text())
            known = self.manifest["format"] == _FORMAT
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no exported judge: {error}") from None
        if not known:
            raise ValueError(f"{folder}: format {self.manifest['format']}, expected {_FORMAT}")
        variables = self.manifest["variables"]
        self._verify(variables)
        with np.load(self._folder / variables["file"], allow_pickle=False) as arrays:
            self._leaves = [jax.device_put(arrays[name]) for name in sorted(arrays.files)]
        self._calls: dict[str, Any] = {}

    def score(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The score of each picture, float32 ``[n]`` in [0, 1].

        Args:
            pictures: uint8 ``[height, width, 3]`` each.

        Raises:
            ValueError: a picture is none, too small, or larger than every program.
        """
        scores = np.zeros(len(pictures), np.float32)
        for place, pixels in enumerate(pictures):
            rung, turned = self._home(pixels, place)
            height, width = rung["shape"]
            if turned:
                pixels = pixels.swapaxes(0, 1)
            values = np.zeros((1, height, width, 3), np.uint8)
            values[0, : pixels.shape[0], : pixels.shape[1]] = pixels
            sizes = np.array([pixels.shape[:2]], np.int32)
            scores[place] = self._call(rung)(self._leaves, values, sizes, np.asarray(turned))[0]
        return scores

    def _home(self, pixels: np.ndarray, place: int) -> tuple[dict[str, Any], bool]:
        """The least program that holds a picture, and whether only with its axes swapped."""
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(f"picture {place} is {pixels.dtype}{list(pixels.shape)}, not uint8 [h, w, 3]")
        height, width = pixels.shape[:2]
        least = self.manifest["min_size"]
        if height < least[0] or width < least[1]:
            raise ValueError(f"picture {place} is {height}x{width}, smaller than {least[0]}x{least[1]}")
        for rung in self.manifest["rungs"]:  # by area
            high, wide = rung["shape"]
            if height <= high and width <= wide:
                return rung, False
            if self.manifest["both_orientations"] and height <= wide and width <= high:
                return rung, True
        raise ValueError(f"picture {place} is {height}x{width}, larger than every program of this export")

    def _call(self, rung: dict[str, Any]) -> Any:
        if rung["file"] not in self._calls:
            self._verify(rung)
            exported = jax.export.deserialize(bytearray((self._folder / rung["file"]).read_bytes()))
            self._calls[rung["file"]] = jax.jit(exported.call)
        return self._calls[rung["file"]]

    def _verify(self, part: dict[str, Any]) -> None:
        digest = hashlib.sha256((self._folder / part["file"]).read_bytes()).hexdigest()
        if digest != part["sha256"]:
            raise ValueError(f"{self._folder / part['file']} is not the file that was exported")
