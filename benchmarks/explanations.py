"""Whether the local score map sees a blurred half, and whether the parts add up to the logit.

    python benchmarks/explanations.py [--judge NAME] [--photos FOLDER ...] [--count N] [--blur PIXELS]

Of each photograph, at the pixels that the judge sees, the left half is blurred (Gaussian, of that deviation),
and of another copy the right half. It prints for how many photographs the mean of the map is lower over the
blurred half. One half may be the worse one anyway, so both are told, and how far the halves are apart without
blur. Then comes the greatest difference between the sum of the parts and the logit, over all these pictures.
``--out`` saves everything as JSON.

The judges that ship were fitted to LIVE In the Wild, BIQ2021, OASIS and Vessel's scenes, not to the folders
that are named here.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageFilter

from spp_jax import Scorer
from spp_jax.data.decoding import decode

_PHOTOS = Path("../shared/photos")


@dataclasses.dataclass(frozen=True)
class Options:
    """Whether the local score map sees a blurred half, and whether the parts add up to the logit."""

    judge: str = "quality"
    """One that ships."""
    attribute: str | None = None
    """Of a judge of several, the one to explain; none: the first."""
    photos: tuple[Path, ...] = (_PHOTOS / "crops", _PHOTOS / "savoias")
    """Folders of photographs."""
    pattern: str = "[0-9s]*.jpg"
    """Of their names; the default leaves out what is no photograph of Savoias."""
    count: int = 50
    """Photographs, the folders in turn."""
    skip: int = 0
    """Of each folder, so many first ones are left out."""
    blur: float = 3.0
    """Deviation of the Gaussian, in pixels that the judge sees."""
    out: Path | None = None
    """File for the figures as JSON."""


def alternating(options: Options) -> list[Path]:
    """Photographs of the folders in turn."""
    lists = [sorted(folder.glob(options.pattern))[options.skip :] for folder in options.photos]
    longest = max(map(len, lists), default=0)
    return [files[i] for i in range(longest) for files in lists if i < len(files)][: options.count]


def blurred(pixels: np.ndarray, left: bool, deviation: float) -> np.ndarray:
    """uint8 ``[height, width, 3]``, one half of it blurred."""
    smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(deviation)))
    middle = pixels.shape[1] // 2
    half = slice(0, middle) if left else slice(middle, None)
    found = pixels.copy()
    found[:, half] = smooth[:, half]
    return found


def measure(scorer: Scorer, file: Path, options: Options) -> dict[str, float]:
    """What the right half of the map is above the left, and the error of the sum, over three pictures."""
    pixels = decode(file, scorer.config.decoding)
    middle = pixels.shape[1] // 2
    pictures = {"plain": pixels} | {
        name: blurred(pixels, name == "left", options.blur) for name in ("left", "right")
    }
    found = {}
    for name, picture in pictures.items():
        why = scorer.explain(picture, attribute=options.attribute)
        found[name] = float(why.map[:, middle:].mean() - why.map[:, :middle].mean())
        found[f"{name}_error"] = abs(sum(why.parts.values()) - why.logit)
    return found


def main() -> int:
    options = tyro.cli(Options)
    files = alternating(options)
    if not files:
        print(f"explanations.py: there are no photographs in {options.photos}", file=sys.stderr)
        return 2
    scorer = Scorer.from_pretrained(options.judge)
    rows = {file.name: measure(scorer, file, options) for file in files}
    columns = {name: np.array([row[name] for row in rows.values()]) for name in next(iter(rows.values()))}
    figures = {
        "photographs": len(files),
        "left half blurred, and below": float((columns["left"] > 0).mean()),
        "right half blurred, and below": float((columns["right"] < 0).mean()),
        "blurred left, right above left, least": float(columns["left"].min()),
        "blurred left, right above left, median": float(np.median(columns["left"])),
        "plain, right above left, median of magnitudes": float(np.median(np.abs(columns["plain"]))),
        "sum of parts from the logit, at most": float(
            max(values.max() for name, values in columns.items() if name.endswith("_error"))
        ),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    if options.out:
        options.out.write_text(json.dumps({"figures": figures, "photographs": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
