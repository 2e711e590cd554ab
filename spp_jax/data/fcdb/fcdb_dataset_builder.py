"""TFDS builder of the Flickr Cropping Dataset (Chen, Huang, Chang, Tsai, Chen, Chen 2017): pairs of crops."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spp_jax.data.comparisons import Box
from spp_jax.data.photo_builder import Example, MissingFilesError, PhotoBuilder, find, read_text
from spp_jax.errors import UsageError

__all__ = ["Builder", "best_crops"]

_MOST_GONE = 0.25  # of the photographs: Flickr no longer has some
_NEEDS = (
    "ranking_annotation.json, cropping_training_set.json, cropping_testing_set.json "
    "(github.com/yiling-chen/flickr-cropping-dataset) and the folder data of the photographs that its "
    "scripts/download_ranking_images.py fetches"
)


class Builder(PhotoBuilder):
    """Ten pairs of crops a photograph, five people each; no scores, so that a loss on pairs is needed.

    Boxes are cut at the photograph's edges. The official test part are the photographs of
    cropping_testing_set.json. Photographs that Flickr no longer has are left out.
    """

    NEEDS = _NEEDS
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    SCORE = "composition"
    PAIRS = True

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of ranking_annotation.json."""
        entries = _entries(find(folder, "ranking_annotation.json", needs=_NEEDS))
        images = find(folder, "data", needs=_NEEDS)
        test = set(best_crops(folder, "test"))
        there = [(name, where, entry) for name, where, entry in entries if (images / name).is_file()]
        if len(there) < (1 - _MOST_GONE) * len(entries):
            raise MissingFilesError(
                f"{len(entries) - len(there)} of {len(entries)} photographs are missing in {images}: "
                "complete the download"
            )
        for name, where, entry in there:
            try:
                pairs = tuple(_pair(**pair) for pair in entry["crops"])
            except (KeyError, TypeError, ValueError):
                raise UsageError(
                    f"{where}: expected crops, of each crop_0, crop_1 (four numbers), vote_for_0, vote_for_1"
                ) from None
            split = "test" if name in test else "train"
            yield Example(name, images / name, math.nan, False, name, split, pairs=pairs)


def _pair(
    crop_0: list[int], crop_1: list[int], vote_for_0: int, vote_for_1: int, **_: object
) -> tuple[int, ...]:
    (x0, y0, w0, h0), (x1, y1, w1, h1) = crop_0, crop_1
    return tuple(map(int, (x0, y0, w0, h0, x1, y1, w1, h1, vote_for_0, vote_for_1)))


def best_crops(folder: Path, part: str) -> dict[str, Box]:
    """The crop that a person drew of each photograph, by its file: what croppers are judged by.

    Args:
        folder: of the download.
        part: ``train`` or ``test``.

    Raises:
        UsageError: the file is not there, or not what it should be.
    """
    name = {"train": "cropping_training_set.json", "test": "cropping_testing_set.json"}[part]
    found = {}
    for photo, where, entry in _entries(find(folder, name, needs=_NEEDS)):
        try:
            x, y, w, h = map(int, entry["crop"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{where}: expected crop, four numbers: x, y, width, height") from None
        found[photo] = (x, y, w, h)
    return found


def _entries(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Of each photograph its file's name, what to call the entry in messages, and the entry."""
    try:
        entries = json.loads(read_text(path))
        return [
            (entry["url"].rpartition("/")[2], f"{path}, entry {number}", entry)
            for number, entry in enumerate(entries, 1)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged or not what it should be: {error}: download it again") from None
