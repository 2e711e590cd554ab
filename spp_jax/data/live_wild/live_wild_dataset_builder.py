"""TFDS builder of LIVE In the Wild (Ghadiyaram, Bovik 2016): phone photographs, scored by a crowd."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, read_mat
from spp_jax.errors import UsageError

__all__ = ["Builder"]

_TRAINING = 7  # pictures that trained the observers come first, and the field leaves them out


class Builder(PhotoBuilder):
    """All but the seven training pictures; the score is MOS / 100."""

    NEEDS = (
        "the LIVE In the Wild release, unpacked: Data/AllMOS_release.mat, Data/AllImages_release.mat and "
        "Images/ (live.ece.utexas.edu/research/ChallengeDB)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of the release's own list."""
        (values,) = read_mat(find(folder, "Data/AllMOS_release.mat", needs=cls.NEEDS), "AllMOS_release")
        (listed,) = read_mat(find(folder, "Data/AllImages_release.mat", needs=cls.NEEDS), "AllImages_release")
        images = find(folder, "Images", needs=cls.NEEDS)
        scores = np.asarray(values, float).ravel()
        names = [str(cell.item()) for cell in listed.ravel()]
        if len(scores) != len(names):
            raise UsageError(f"LIVE In the Wild in {folder}: {len(scores)} scores for {len(names)} pictures")
        for name, mos in list(zip(names, scores, strict=True))[_TRAINING:]:
            score = float(np.clip(mos / 100, 0, 1))
            yield Example(name, images / name, score, score >= 0.5, name)
