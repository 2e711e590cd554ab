"""TFDS builder of LIVE IQA release 2 (Sheikh, Sabir, Bovik 2006): 29 references, five kinds of damage."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, read_mat
from spp_jax.errors import UsageError

__all__ = ["Builder"]

# In the order of the score file, with the pictures of each in the release.
_KINDS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


class Builder(PhotoBuilder):
    """The damaged pictures, split by reference; the score is 1 - DMOS / 100."""

    NEEDS = (
        "LIVE IQA release 2, unpacked: dmos.mat, refnames_all.mat and the folders jp2k, jpeg, wn, gblur and "
        "fastfading with their img1.bmp, img2.bmp, ... (live.ece.utexas.edu/research/quality)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    CATEGORIES = True

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """Of each kind in turn, as the score file has them; undamaged copies (`orgs`) are left out."""
        scores = read_mat(find(folder, "dmos.mat", needs=cls.NEEDS), "dmos", "orgs")
        (names,) = read_mat(find(folder, "refnames_all.mat", needs=cls.NEEDS), "refnames_all")
        found = {kind: _pictures(find(folder, kind, needs=cls.NEEDS)) for kind in _KINDS}
        pictures = [(kind, number) for kind, last in found.items() for number in range(1, last + 1)]
        dmos, originals = (np.asarray(array, float).ravel() for array in scores)
        references = [str(cell.item()) for cell in names.ravel()]
        if not len(dmos) == len(originals) == len(references) == len(pictures):
            there = ", ".join(f"{kind} {found[kind]} (of {whole})" for kind, whole in _KINDS.items())
            raise UsageError(
                f"LIVE IQA in {folder} does not fit together: {len(dmos)} scores, {len(references)} names "
                f"of references, and pictures up to these numbers: {there}"
            )
        for (kind, number), value, original, reference in zip(
            pictures, dmos, originals, references, strict=True
        ):
            if not original:
                score = float(np.clip(1 - value / 100, 0, 1))
                photo = folder / kind / f"img{number}.bmp"
                yield Example(f"{kind}/{photo.name}", photo, score, score >= 0.5, reference, category=kind)


def _pictures(folder: Path) -> int:
    """How many pictures a folder is for: the largest number in their names."""
    numbers = [path.stem.removeprefix("img") for path in folder.glob("img*.bmp")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)
