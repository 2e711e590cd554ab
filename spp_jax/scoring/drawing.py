"""Pictures of an explanation: heat map, winners; all in one, with matplotlib (spp_jax[plots])."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spp_jax.errors import UsageError
from spp_jax.scoring.explanation import BinWinners, Explanation

__all__ = ["check_drawing", "draw_explanation", "explanation_figure", "heat_map", "strongest"]

_VIRIDIS = bytes.fromhex("440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725")


def check_drawing() -> None:
    """Raise UsageError where matplotlib is not installed."""
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("a picture needs matplotlib: pip install 'spp_jax[plots]'") from None


def draw_explanation(pixels: np.ndarray, why: Explanation, path: Path) -> None:
    """Draw an explanation to a PNG.

    Args:
        pixels: uint8 ``[height, width, 3]``: the photograph as it was judged.
        why: its explanation.
        path: of the file.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check_drawing()
    explanation_figure(pixels, why).savefig(path, dpi=80, format="png")


def explanation_figure(pixels: np.ndarray, why: Explanation) -> Any:
    """The photograph, the map of its score, its winners and what adds up, as a figure of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = pixels.shape[:2]
    tall = min(max(5.2 * height / width, 2.2), 7.5)
    figure = Figure(figsize=(17.5, tall + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    photo, local, won, parts = figure.subplots(1, 4, width_ratios=(1, 1, 1, 0.8))
    photo.imshow(pixels)
    photo.set_title(f"{why.attribute}: {why.score:.2f}")
    grey = np.repeat(pixels.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    local.imshow(0.55 + 0.45 * grey)
    drawn = local.imshow(why.map, cmap="viridis", alpha=0.65, vmin=0, vmax=1)
    bar = {"location": "bottom", "shrink": 0.4, "aspect": 40}
    figure.colorbar(drawn, ax=(photo, local, won), label="score of the part around the point", **bar)
    low, high = why.map.min(), why.map.max()
    local.set_title(f"the {why.window} pixels around each point: {low:.2f} to {high:.2f}")
    won.imshow(grey)
    _mark(won, why)
    won.set(xlim=photo.get_xlim(), ylim=photo.get_ylim())  # a spot at the edge makes room for itself else
    _bars(parts, why)
    for axes in (photo, local, won):
        axes.axis("off")
    return figure


def finest(winners: tuple[BinWinners, ...]) -> list[BinWinners]:
    """Of the map of the coarsest cells, the bins of its finest level: they cover the picture once."""
    if not winners:
        return []
    last = max(each.map for each in winners)
    level = max((each.level for each in winners if each.map == last), key=lambda level: level[0] * level[1])
    return [each for each in winners if each.map == last and each.level == level]


def heat_map(scores: np.ndarray, longest: int) -> Image.Image:
    """A picture of 256 colours, from violet at 0 to yellow at 1.

    Args:
        scores: float32 ``[height, width]``, in [0, 1].
        longest: its longer side in pixels, at most.
    """
    scale = min(1.0, longest / max(scores.shape))
    size = (max(1, round(scores.shape[1] * scale)), max(1, round(scores.shape[0] * scale)))
    small = Image.fromarray(scores.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    picture = Image.fromarray((np.clip(np.asarray(small), 0, 1) * 255).round().astype(np.uint8))
    anchors = np.frombuffer(_VIRIDIS, np.uint8).reshape(-1, 3).astype(float)
    steps, places = np.linspace(0, len(anchors) - 1, 256), np.arange(len(anchors))
    palette = np.stack([np.interp(steps, places, anchors[:, k]) for k in range(3)], axis=1)
    picture.putpalette(palette.round().astype(np.uint8).tobytes())  # and so it is of mode P
    return picture


def strongest(winners: tuple[BinWinners, ...], most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The spots that move the logit most, up and down: x and y, float32 ``[k, 2]``, and by how much, ``[k]``.

    Args:
        winners: of an explanation; what several bins' winners at one spot do is added up.
        most: spots that move it up, at most, and as many that move it down.
    """
    if not winners:
        return np.zeros((0, 2), np.float32), np.zeros(0)
    pixels = np.concatenate([each.pixels for each in winners])
    effects = np.concatenate([each.effects for each in winners])
    places, where = np.unique(pixels, axis=0, return_inverse=True)
    sums = np.bincount(where.reshape(-1), weights=effects, minlength=len(places))
    order = np.argsort(-sums)
    up, down = order[:most], order[::-1][:most]
    chosen = np.concatenate([up[sums[up] > 0], down[sums[down] < 0]])
    return places[chosen], sums[chosen]


def _mark(axes, why: Explanation) -> None:
    """The bins of one level, and the winning cells that move the score most."""
    from matplotlib.patches import Rectangle

    bins = finest(why.winners)
    if not bins:
        axes.set_title("this judge takes no maxima")
        return
    for each in bins if len(bins) > 1 else ():  # one bin is all of the photograph
        left, top, right, bottom = each.box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=0.6))
    places, sums = strongest(why.winners)
    for up, colour, name in ((True, "tab:blue", "up"), (False, "tab:red", "down")):
        some = (sums > 0) == up
        if some.any():
            sizes = 30 + 220 * np.abs(sums[some]) / np.abs(sums).max()
            axes.scatter(
                *places[some].T, s=sizes, c=colour, alpha=0.75, ec="white", label=name, clip_on=False
            )
    under = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 2, "frameon": False}  # hides no spot
    if len(sums):
        axes.legend(fontsize=9, title="moves the score", title_fontsize=9, markerscale=0.6, **under)
    rows, columns = bins[0].level
    axes.set_title("winners" + (f", in {rows} x {columns} fields" if len(bins) > 1 else ""))


def _bars(axes, why: Explanation) -> None:
    names, amounts = list(why.parts), np.array(list(why.parts.values()))
    colours = ["tab:grey" if name == "base" else "tab:blue" for name in names]
    colours = ["tab:red" if a < 0 and c != "tab:grey" else c for a, c in zip(amounts, colours, strict=True)]
    axes.barh(np.arange(len(names)), amounts, color=colours)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.6)
    axes.set_title(f"parts of the logit {why.logit:.2f}")
