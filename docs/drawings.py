"""Draw the pictures that the pages show.

    python docs/drawings.py [NAME ...]

Names are those of :data:`DRAWINGS`; none given: all but ``front``, which a judge has to be compiled for.
Every number in a picture is worked out by the package as it is drawn. Pictures stand on a white card, so that
they are legible on a light and on a dark page. Needs spp_jax[plots]; ``front`` also needs the photographs of
spp_jax[demo].
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from spp_jax import bin_edges, num_bins, pad_batch, plan_buckets

__all__ = ["DRAWINGS", "main"]

FOLDER = Path(__file__).parent / "drawings"
INK, PALE, SKY, SUN, HILL, FIELD = "#263238", "#b0bec5", "#bbdefb", "#ffca28", "#78909c", "#8bc34a"
COLOURS = ("#5c6bc0", "#26a69a", "#ef6c00", "#ab47bc", "#d81b60", "#7cb342")


def figure(width: float, height: float) -> Figure:
    """An empty white card of so many inches."""
    card = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(card)
    return card


def caption(card: Figure, text: str) -> None:
    """A line below all of a card."""
    card.text(0.5, 0.03, text, ha="center", fontsize=10, color=INK)


def blank(axes: Any, width: float, height: float) -> None:
    """Axes without marks, from 0 to width and, downwards, to height, in equal units."""
    axes.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1), aspect="equal")
    axes.axis("off")


def photograph(axes: Any, left: float, top: float, width: float, height: float) -> None:
    """A landscape in four colours: it stands for a photograph."""
    frame = Rectangle((left, top), width, height, facecolor=SKY, edgecolor=INK, lw=1.2)
    axes.add_patch(frame)
    parts = [
        Circle((left + 0.78 * width, top + 0.24 * height), 0.11 * min(width, height), color=SUN),
        Polygon(at(((0, 0.82), (0.3, 0.35), (0.62, 0.82)), left, top, width, height), color=HILL),
        Polygon(at(((0.35, 0.82), (0.68, 0.48), (1, 0.82)), left, top, width, height), color="#90a4ae"),
        Rectangle((left, top + 0.8 * height), width, 0.2 * height, color=FIELD),
    ]
    for part in parts:
        axes.add_patch(part)
        part.set_clip_path(frame)
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=INK, lw=1.2))


def at(points: tuple, left: float, top: float, width: float, height: float) -> np.ndarray:
    """Points in shares of a box, as places on the axes."""
    return np.array([(left + x * width, top + y * height) for x, y in points])


def grid(axes: Any, left: float, top: float, rows: int, columns: int, **style: Any) -> None:
    """The lines between cells of side 1."""
    style = {"color": PALE, "lw": 0.6} | style
    for row in range(rows + 1):
        axes.plot((left, left + columns), (top + row, top + row), **style)
    for column in range(columns + 1):
        axes.plot((left + column, left + column), (top, top + rows), **style)


def bins() -> Figure:
    """The bins of (1, 2, 4) on a map of 13 x 10 cells, and the vector that they give."""
    rows, columns, levels = 13, 10, (1, 2, 4)
    card = figure(10.4, 4.9)
    panels = card.subplots(1, 4, width_ratios=(columns + 3.2, columns + 3.2, columns + 3.2, 3.2))
    card.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.1, wspace=0.05)
    for axes, level, colour in zip(panels, levels, COLOURS, strict=False):
        blank(axes, columns + 3, rows + 3)
        axes.add_patch(Rectangle((3, 3), columns, rows, facecolor="#f5f7f8", edgecolor="none"))
        (tops, bottoms), (lefts, rights) = (bin_edges(length, level) for length in (rows, columns))
        for top, bottom in zip(tops, bottoms, strict=True):
            for left, right in zip(lefts, rights, strict=True):
                box = (3 + left + 0.12, 3 + top + 0.12), right - left - 0.24, bottom - top - 0.24
                axes.add_patch(Rectangle(*box, facecolor=colour, alpha=0.22, edgecolor="none"))
                axes.add_patch(Rectangle(*box, fill=False, edgecolor=colour, lw=1.3))
        grid(axes, 3, 3, rows, columns)
        for i, (start, stop) in enumerate(zip(lefts, rights, strict=True)):
            bracket(axes, (3 + start, 3 + stop), 2.3 - 0.9 * (i % 2), f"{start}–{stop}", across=True)
        for i, (start, stop) in enumerate(zip(tops, bottoms, strict=True)):
            bracket(axes, (3 + start, 3 + stop), 2.3 - 0.9 * (i % 2), f"{start}–{stop}", across=False)
        title = f"{level} x {level}: {num_bins((level,))} bin" + "s" * (level > 1)
        heading(axes, 3 + columns / 2, title, colour)
    strip(panels[-1], levels, rows + 3)
    caption(
        card, "13 x 10 cells do not divide by 4: neighbours share a row or column, and no cell is left out."
    )
    return card


def heading(axes: Any, place: float, text: str, colour: str) -> None:
    """What stands over a panel of :func:`bins`."""
    axes.text(place, -0.1, text, ha="center", color=colour, fontsize=12, fontweight="bold")


def bracket(axes: Any, span: tuple[float, float], place: float, text: str, *, across: bool) -> None:
    """A bar along an axis of the map from a start to a stop, with its cells in words."""
    first, last = span[0] + 0.1, span[1] - 0.1
    middle = (first + last) / 2
    if across:
        axes.plot((first, last), (place, place), color=INK, lw=1.4, solid_capstyle="butt")
        axes.text(middle, place - 0.12, text, ha="center", va="bottom", fontsize=7, color=INK)
    else:
        axes.plot((place, place), (first, last), color=INK, lw=1.4, solid_capstyle="butt")
        axes.text(place - 0.15, middle, text, ha="right", va="center", fontsize=7, color=INK, rotation=90)


def strip(axes: Any, levels: tuple[int, ...], height: float) -> None:
    """The vector: a box for each bin, in the order of the levels."""
    blank(axes, 3, height)
    step, top = (height - 3) / num_bins(levels), 3.0
    for level, colour in zip(levels, COLOURS, strict=False):
        for _ in range(num_bins((level,))):
            axes.add_patch(
                Rectangle((0.9, top), 1.2, step, facecolor=colour, alpha=0.45, edgecolor="white", lw=1)
            )
            top += step
    heading(axes, 1.5, f"{num_bins(levels)} bins", INK)
    axes.text(1.5, 2.4, "of every map", ha="center", va="bottom", fontsize=8, color=INK)


def batch() -> Figure:
    """Two photographs of other shapes in one batch of a bucket: values, sizes and mask."""
    sizes, (height, width) = ((9, 15), (12, 8)), (12, 16)
    padded = pad_batch([np.ones((*size, 1), np.float32) for size in sizes], (height, width))
    masks = np.asarray(padded.mask())[..., 0]
    card = figure(10.4, 5.9)
    panels = card.subplots(2, 3)
    card.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.11, wspace=0.04, hspace=0.12)
    titles = ("two photographs", f"values: a bucket of {height} x {width}", "mask: what is real")
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=12, fontweight="bold", color=INK)
    for line, (rows, columns), mask in zip(panels, sizes, masks, strict=True):
        for axes in line:
            blank(axes, width + 1, height + 1)
        alone, values, real = line
        photograph(alone, (width - columns) / 2, (height - rows) / 2, columns, rows)
        alone.text(width / 2, (height + rows) / 2 + 1.0, f"{rows} x {columns}", ha="center", color=INK)
        values.add_patch(
            Rectangle((0.5, 0), width, height, facecolor="#eceff1", edgecolor="#90a4ae", hatch="///", lw=0)
        )
        photograph(values, 0.5, 0, columns, rows)
        grid(values, 0.5, 0, height, width, color="white", alpha=0.55)
        values.add_patch(Rectangle((0.5, 0), width, height, fill=False, edgecolor=INK, lw=1.5))
        for row, column in np.ndindex(height, width):
            shade = COLOURS[1] if mask[row, column] else "#eceff1"
            real.add_patch(Rectangle((0.5 + column, row), 1, 1, facecolor=shade, edgecolor="white", lw=0.8))
        real.add_patch(Rectangle((0.5, 0), width, height, fill=False, edgecolor=INK, lw=1.5))
        real.text(0.5 + width / 2, height + 1.0, f"sizes: [{rows}, {columns}]", ha="center", color=INK)
        values.text(0.5 + width / 2, height + 1.0, "hatched: padding", ha="center", color=INK)
    caption(card, "What lies in the padding is unspecified. A layer clears it before it looks at neighbours.")
    return card


def plan() -> Figure:
    """One shape for all, powers of two and planned shapes, for the same photographs."""
    rng = np.random.default_rng(0)
    sides = rng.choice(
        [(3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (1, 1)], 400, p=(0.2, 0.3, 0.1, 0.2, 0.1, 0.1)
    )
    scale = np.sqrt(rng.uniform(60_000, 420_000, 400) / sides.prod(1))
    sizes = (sides * scale[:, None] * rng.uniform(0.94, 1.06, sides.shape)).astype(int)
    most = sizes.max(0)
    powers = 2 ** np.ceil(np.log2(sizes)).astype(int)
    one, doubled = (
        1 - sizes.prod(1).sum() / area for area in (len(sizes) * most.prod(), powers.prod(1).sum())
    )
    planned = plan_buckets(sizes, 6, both_orientations=True)
    boxes = (
        (f"one shape\n{one:.0%} padding", [most]),
        (
            f"powers of two, {len(np.unique(powers, axis=0))} shapes\n{doubled:.0%} padding",
            np.unique(powers, axis=0),
        ),
        (f"planned, {len(planned.buckets)} shapes\n{planned.waste(sizes):.0%} padding", planned.shapes),
    )
    card = figure(10.4, 4.4)
    panels = card.subplots(1, 3, sharey=True)
    card.subplots_adjust(left=0.065, right=0.99, top=0.84, bottom=0.2, wspace=0.06)
    for axes, (title, shapes) in zip(panels, boxes, strict=True):
        axes.scatter(sizes[:, 1], sizes[:, 0], s=7, color="#546e7a", alpha=0.55, lw=0)
        for i, (tall, wide) in enumerate(shapes):
            colour = COLOURS[i % len(COLOURS)]
            axes.add_patch(Rectangle((0, 0), wide, tall, fill=False, edgecolor=colour, lw=1.6))
            if axes is panels[2]:
                turned = Rectangle(
                    (0, 0), tall, wide, fill=False, edgecolor=colour, lw=0.9, ls=":", alpha=0.8
                )
                axes.add_patch(turned)
        axes.set(xlim=(0, 1080), ylim=(1080, 0), aspect="equal", xlabel="width")
        axes.set_title(title, fontsize=11, color=INK)
        axes.tick_params(labelsize=8, color=PALE)
        for spine in axes.spines.values():
            spine.set_color(PALE)
    panels[0].set_ylabel("height")
    caption(
        card,
        "A point is the size of a photograph, a box a shape that is compiled for. Dotted: the same, turned.",
    )
    return card


def walk() -> Figure:
    """How a photograph walks through the rooms, from its file to its score."""
    card = figure(10.4, 3.5)
    axes = card.subplots()
    card.subplots_adjust(left=0.005, right=0.995, top=0.99, bottom=0.01)
    axes.set(xlim=(0, 60), ylim=(20, 0))
    axes.axis("off")
    stations = (
        ("a file", "data", _file, "JPEG, PNG, raw ..."),
        ("pixels", "data", _pixels, "[height, width, 3]"),
        ("a batch", "buckets, padded", _padded, "[batch, *bucket, 3]\nand true sizes"),
        ("features", "layers, models", _features, "[batch, *cells, channels]\nand true sizes"),
        ("a pyramid", "pooling", _pyramid, "[batch, 21, channels]"),
        ("a score", "models, scoring", _score, "a head, then\n0 to 1"),
    )
    for place, (title, room, draw, shape) in enumerate(stations):
        left = place * 10 + 0.4
        edge = FancyBboxPatch(
            (left, 3.4), 8.2, 9.6, boxstyle="round,pad=0,rounding_size=0.6", fc="#f5f7f8", ec=PALE, lw=1
        )
        axes.add_patch(edge)
        axes.text(left + 4.1, 2.4, title, ha="center", fontsize=12, fontweight="bold", color=INK)
        axes.text(left + 4.1, 14.5, room, ha="center", fontsize=9, color=COLOURS[0], fontfamily="monospace")
        axes.text(left + 4.1, 16.2, shape, ha="center", va="top", fontsize=8, color=INK, linespacing=1.4)
        draw(axes, left + 1.2, 4.6, 5.8, 7.2)
        if place < len(stations) - 1:
            ends = (left + 8.3, 8.2), (left + 9.9, 8.2)
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=13, color=INK, lw=1.2))
    return card


def _file(axes: Any, left: float, top: float, width: float, height: float) -> None:
    sheet = ((0, 0), (0.72, 0), (1, 0.22), (1, 1), (0, 1))
    axes.add_patch(
        Polygon(at(sheet, left + 0.5, top, width - 1, height), facecolor="white", edgecolor=INK, lw=1.2)
    )
    fold = ((0.72, 0), (0.72, 0.22), (1, 0.22))
    axes.add_patch(Polygon(at(fold, left + 0.5, top, width - 1, height), facecolor=PALE, edgecolor=INK, lw=1))
    photograph(axes, left + 1.1, top + 3, width - 2.2, 2.6)


def _pixels(axes: Any, left: float, top: float, width: float, height: float) -> None:
    photograph(axes, left, top + 1.4, width, 4.4)
    for i in range(1, 8):
        axes.plot((left + i * width / 8,) * 2, (top + 1.4, top + 5.8), color="white", lw=0.5)
    for i in range(1, 6):
        axes.plot((left, left + width), (top + 1.4 + i * 4.4 / 6,) * 2, color="white", lw=0.5)


def _padded(axes: Any, left: float, top: float, width: float, height: float) -> None:
    for place, (wide, tall) in enumerate(((0.8, 0.95), (0.6, 0.7))):
        box = left, top + 0.2 + place * 3.6, width, 3.0
        axes.add_patch(
            Rectangle(box[:2], *box[2:], facecolor="#eceff1", edgecolor="#90a4ae", hatch="////", lw=0)
        )
        photograph(axes, box[0], box[1], wide * box[2], tall * box[3])
        axes.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=INK, lw=1.2))


def _features(axes: Any, left: float, top: float, width: float, height: float) -> None:
    rng = np.random.default_rng(3)
    for sheet in range(4):
        x, y = left + 0.5 * sheet, top + 2.4 - 0.6 * sheet
        for row, column in np.ndindex(4, 5):
            shade = mpl.colormaps["viridis"](0.2 + 0.7 * rng.random())
            cell = Rectangle(
                (x + column * 0.8, y + row * 1.05), 0.8, 1.05, facecolor=shade, edgecolor="white", lw=0.4
            )
            axes.add_patch(cell)
        axes.add_patch(Rectangle((x, y), 4, 4.2, fill=False, edgecolor=INK, lw=0.9))


def _pyramid(axes: Any, left: float, top: float, width: float, height: float) -> None:
    for place, (level, colour) in enumerate(zip((4, 2, 1), COLOURS[2::-1], strict=False)):
        side = (3.0, 2.2, 1.4)[place]
        x, y = left + (width - side) / 2, top + height - (3.0, 5.4, 7.0)[place]
        for row, column in np.ndindex(level, level):
            cell = (x + column * side / level, y + row * side / level), side / level, side / level
            axes.add_patch(Rectangle(*cell, facecolor=colour, alpha=0.45, edgecolor="white", lw=0.8))
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, lw=1.1))


def _score(axes: Any, left: float, top: float, width: float, height: float) -> None:
    shades = mpl.colormaps["viridis"](np.linspace(0, 1, 40))
    for place, shade in enumerate(shades):
        part = width / len(shades)
        axes.add_patch(Rectangle((left + place * part, top + 3.6), part * 1.05, 1, facecolor=shade, lw=0))
    tip = ((0.74, 0.44), (0.65, 0.28), (0.83, 0.28))
    axes.add_patch(Polygon(at(tip, left, top, width, height), facecolor=INK, edgecolor="none"))
    for place, text in ((0, "0"), (0.5, "half"), (1, "1")):
        axes.text(left + place * width, top + 5.7, text, ha="center", fontsize=9, color=INK)


def front() -> Figure:
    """A photograph, its score, where it is good, and its best crop, by the judge that ships."""
    import skimage.data

    from spp_jax import Scorer
    from spp_jax.compilation import default_cache_dir, use_compilation_cache

    use_compilation_cache(default_cache_dir())
    scorer = Scorer.from_pretrained("quality")
    pixels = skimage.data.astronaut()  # of NASA, in the public domain
    why, (crop,) = scorer.explain(pixels), scorer.crops(pixels, ("4:5",), 1)
    left, top, right, bottom = crop.box
    card = Figure(figsize=(10.4, 4.3), facecolor="white", layout="constrained")
    FigureCanvasAgg(card)
    photo, local, best = card.subplots(1, 3, width_ratios=(1, 1, (right - left) / (bottom - top)))
    photo.imshow(pixels)
    photo.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=1.5, ls="--")
    )
    local.imshow(np.repeat(pixels.mean(axis=2, keepdims=True) / 255, 3, axis=2))
    shown = local.imshow(why.map, cmap="viridis", alpha=0.65, vmin=0, vmax=1)
    card.colorbar(shown, ax=local, location="bottom", shrink=0.7, aspect=30, pad=0.02)
    best.imshow(pixels[top:bottom, left:right])
    titles = (f"quality: {why.score:.2f}", "where it is good", f"best 4:5 crop: {crop.score:.2f}")
    for axes, title in zip((photo, local, best), titles, strict=True):
        axes.set_title(title, fontsize=13, fontweight="bold", color=INK)
        axes.set_anchor("N")
        axes.axis("off")
    return card


DRAWINGS: dict[str, tuple[Callable[[], Figure], str]] = {
    "bins": (bins, "svg"),
    "batch": (batch, "svg"),
    "plan": (plan, "svg"),
    "walk": (walk, "svg"),
    "front": (front, "jpg"),
}
"""Each picture by name: what draws it, and its format."""


def main(names: list[str], folder: Path = FOLDER) -> int:
    """Draw the pictures named into a folder."""
    folder.mkdir(exist_ok=True)
    for name in names or [name for name in DRAWINGS if name != "front"]:
        draw, ending = DRAWINGS[name]
        with mpl.rc_context({"svg.hashsalt": name, "font.family": "DejaVu Sans", "hatch.linewidth": 0.6}):
            metadata = {"Date": None} if ending == "svg" else None
            draw().savefig(folder / f"{name}.{ending}", dpi=110, metadata=metadata)
        print(folder / f"{name}.{ending}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
