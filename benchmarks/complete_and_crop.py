"""What a talk showed: a complete photograph against a blurred crop of it.

    python benchmarks/complete_and_crop.py --checkpoint FOLDER [--out FOLDER]

For every photograph that the checkpoint's fold held out, writes ``NAME-complete.png`` and
``NAME-blurred_crop.png`` (its middle half, Gaussian blur of 3 pixels), scores both, prints a table, and
draws the pairs with their scores; then the same for every clean window of the fold, as a rate. Needs
spp_jax[demo].
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import platformdirs
import tyro
from PIL import Image

from spp_jax import Scorer
from spp_jax.data import load_dataset
from spp_jax.data.decoding import decode
from spp_jax.data.distorted_photos.damage import damaged
from spp_jax.data.distorted_photos.sources import find_sources
from spp_jax.data.records import split_records
from spp_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Options:
    """A complete photograph against a blurred crop of it."""

    checkpoint: Path
    """Folder of a run of train.py on distorted_photos."""
    out: Path = Path("complete_and_crop")
    """Folder for the pictures, complete_and_crop.json and complete_and_crop.png."""


def blurred_crop(picture: np.ndarray) -> np.ndarray:
    """A picture's middle half, uint8 ``[height, width, 3]``, under a Gaussian blur of 3 pixels."""
    height, width, _ = picture.shape
    crop = picture[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return damaged(crop, "blur", 3, np.random.default_rng(0))


def main() -> int:
    options = tyro.cli(Options)
    try:
        scorer = Scorer.from_checkpoint(options.checkpoint)
    except UsageError as error:
        print(f"complete_and_crop.py: {error}", file=sys.stderr)
        return 2
    config = scorer.config
    data_dir = Path(platformdirs.user_cache_dir("spp_jax")) / "data"
    records, _ = load_dataset("distorted_photos", data_dir, config.decoding)
    test = split_records(records, "test", config.protocol, config.fold)
    held_out = sorted(set(test.groups))
    options.out.mkdir(parents=True, exist_ok=True)
    files, sources = [], find_sources()
    for name in held_out:
        complete = sources[name][0]
        files += [options.out / f"{name}-complete.png", options.out / f"{name}-blurred_crop.png"]
        complete.save(files[-2])
        Image.fromarray(blurred_crop(np.asarray(complete))).save(files[-1])
    scores = scorer.score(files)
    print(f"{'held out':24s}{'complete':>10s}{'blurred crop':>14s}")
    for name, complete, crop in zip(held_out, scores[::2], scores[1::2], strict=True):
        print(f"{name:24s}{complete:10.3f}{crop:14.3f}")
    windows = [decode(test.photo(i), config.decoding) for i in np.flatnonzero(test.scores == 1).tolist()]
    of_windows = scorer.score([*windows, *map(blurred_crop, windows)]).reshape(2, -1)
    above = of_windows[0] > of_windows[1]
    print(f"clean windows above their blurred crops: {above.sum()} of {len(above)}")
    table = {file.name: float(score) for file, score in zip(files, scores, strict=True)}
    described = {"version": 2, "fold": config.fold, "scores": table, "windows above": above.tolist()}
    (options.out / "complete_and_crop.json").write_text(json.dumps(described, indent=2) + "\n")
    _draw(files, scores, options.out / "complete_and_crop.png")
    return 0


def _draw(files: list[Path], scores: np.ndarray, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(files) / 2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(files) // 2, squeeze=False)
    for place, (file, score) in enumerate(zip(files, scores, strict=True)):
        spot = axes[place % 2, place // 2]
        spot.imshow(np.asarray(Image.open(file)))
        spot.set_title(f"{file.stem.rsplit('-')[-1].replace('_', ' ')}: {score:.2f}", fontsize=11)
        spot.axis("off")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
