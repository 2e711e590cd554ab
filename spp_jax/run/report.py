"""One page about a run, for people: what it was, its figures, its curves, and pictures with their scores.

The page is a single HTML file: pictures and plots lie in it as data, there is no script, and nothing is
fetched from anywhere. The same input gives the same bytes.
"""

import html
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from spp_jax.data.decoding import UnreadableError, decode
from spp_jax.data.records import Records
from spp_jax.metrics import Agreement
from spp_jax.names import printable
from spp_jax.run.journal import draw_curves
from spp_jax.scoring.page import address, head, thumbnail

__all__ = ["write_report"]

_SHOWN = 6  # pictures in a row
_LONGEST = 192  # side of a thumbnail, in pixels
_FIGURES = {"count": "pictures scored", "accuracy": "accuracy"} | {
    name: name.upper() for name in ("srcc", "plcc", "krcc", "auc")
}
_NUMBERS = ("count", "accuracy", "srcc", "plcc", "krcc", "auc")
_STYLE = """
body { max-width: 1280px; margin: 2em auto; padding: 0 1em }
.counts th, .counts td { text-align: right }
.plot { max-width: 100%; height: auto; border-radius: 4px }
.row { display: flex; flex-wrap: wrap; gap: 1em }
.unread { border: 1px dashed var(--quiet); padding: .5em; margin: 0 }
"""


def write_report(
    path: Path,
    *,
    title: str,
    facts: dict[str, str],
    lines: list[dict[str, Any]],
    epochs_done: Callable[[int], float],
    records: Records,
    scores: np.ndarray,
) -> None:
    """Write the page.

    Without matplotlib it has no plots and says so. A picture that can no longer be decoded shows the reason
    in its place.

    Args:
        path: the file to write, on a disk or at an address; its folder is made if need be.
        title: heading of the page.
        facts: what else there is to say of the run, shown as a table in this order.
        lines: of a :class:`spp_jax.run.journal.Journal`.
        epochs_done: of a number of steps, as :func:`spp_jax.run.journal.draw_curves` takes it.
        records: the part that was scored; its labels may be NaN.
        scores: float32 in [0, 1], the model's, in the order and shape of those of ``records``; NaN where a
            picture could not be read. Of several attributes the first is drawn and shown.

    Raises:
        ValueError: there is not one score for each record.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != records.scores.shape:
        expected = list(records.scores.shape)
        raise ValueError(f"scores {scores.shape} of {len(records)} records must be {expected}")
    every, all_scores = records, scores
    records = every.judged_by(every.attributes[:1])  # the first is drawn and shown
    scores = all_scores.reshape(len(every), len(every.attributes))[:, 0]
    body = [
        head(title, _STYLE),
        f"<body>\n<h1>{html.escape(title)}</h1>\n",
        "<h2>Agreement with the labels</h2>\n",
        _figures(every, all_scores),
        "<h2>Plots</h2>\n",
        _plots(lines, epochs_done, records, scores),
        _galleries(records, scores),
        "<h2>The run</h2>\n",
        _table("facts", facts.items()),
        "</body>\n</html>\n",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names of files that are not UTF-8 hold lone surrogates, which cannot be encoded.
    path.write_bytes("".join(body).encode(errors="backslashreplace"))


def _table(kind: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns, of plain text."""
    cells = (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>\n'
        for name, value in rows
    )
    return f'<table class="{kind}">\n{"".join(cells)}</table>\n'


def _figures(records: Records, scores: np.ndarray) -> str:
    """The figures of `spp_jax.metrics.agreement`, and its confusion table."""
    unread = int(np.isnan(scores).all(axis=tuple(range(1, scores.ndim))).sum())
    rows = [("pictures without a score", f"{unread:,}")]
    if unread == len(scores):
        return _table("figures", rows) + "<p>No picture has a score.</p>\n"
    try:
        found = records.agreement(scores)
    except ValueError:
        return _table("figures", rows) + "<p>No picture that has a score has a label.</p>\n"
    numbers: dict[str, Any] = found.to_dict()
    rows += [(_FIGURES[name], _text(numbers[name])) for name in _NUMBERS]
    for name, value in numbers.get("pairs", {}).items():
        rows.append((f"pairs: {name}", _text(value)))
    parts = _parts(found.rows()) if found.attributes or found.categories else ""
    confusion = [
        '<table class="confusion counts">\n<caption>Pictures, and their share of the row</caption>\n',
        '<tr><td></td><th scope="col">judged good</th><th scope="col">judged not good</th></tr>\n',
    ]
    for truth in (1, 0):
        counts = found.confusion[truth]
        cells = (f"<td>{counts[judged]:,} ({_share(counts[judged], sum(counts))})</td>" for judged in (1, 0))
        name = "good" if truth else "not good"
        confusion.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>\n')
    return _table("figures", rows) + parts + "".join(confusion) + "</table>\n"


def _parts(rows: dict[str, Agreement]) -> str:
    """The figures of each attribute and category, a line each."""
    heading = "".join(f'<th scope="col">{_FIGURES[name]}</th>' for name in _NUMBERS)
    lines = [f"<tr><td></td>{heading}</tr>\n"]
    for name, part in rows.items():
        numbers = part.to_dict()
        cells = "".join(f"<td>{_text(numbers[figure])}</td>" for figure in _NUMBERS)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>\n')
    return f'<table class="parts counts">\n{"".join(lines)}</table>\n'


def _text(value: float | int | None) -> str:
    return "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "of none"


def _plots(
    lines: list[dict[str, Any]], epochs_done: Callable[[int], float], records: Records, scores: np.ndarray
) -> str:
    """The curves, and the histogram where there is any score."""
    plots = []
    try:
        if any("loss" in line for line in lines):  # a fit in closed form has no steps
            plots.append(("accuracy and loss by epoch", draw_curves(lines, epochs_done)))
        if not np.isnan(scores).all():
            plots.append(("histogram of the scores", _histogram(records, scores)))
    except ModuleNotFoundError:
        return "<p>There are no plots: matplotlib is not installed (pip install 'spp_jax[plots]').</p>\n"
    return "".join(
        f'<p><img class="plot" alt="{alt}" src="{address("image/png", png)}"></p>\n' for alt, png in plots
    )


def _histogram(records: Records, scores: np.ndarray) -> bytes:
    """A PNG: how the scores of good pictures lie, and those of the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scored = ~np.isnan(scores)
    for name, among, colour in (
        ("good", records.good, "tab:blue"),
        ("not good", ~records.good, "tab:orange"),
    ):
        chosen = scores[scored & among]
        axes.hist(
            chosen,
            bins=20,
            range=(0, 1),
            alpha=0.55,
            color=colour,
            label=f"{name} ({len(chosen):,} pictures)",
        )
    axes.axvline(0.5, color="black", linestyle="--", linewidth=1, label="judged good from here")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Scores", xlabel="score", ylabel="pictures", xlim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)  # inside, it would hide the ends
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _galleries(records: Records, scores: np.ndarray) -> str:
    """The best, the worst and the most wrongly scored pictures; equals in the order of their names."""
    errors = np.abs(scores - records.scores)  # NaN where either is
    figures: dict[int, str] = {}  # a picture in two rows is decoded once
    parts = []
    for heading, order in (
        ("Best scores", -scores),
        ("Worst scores", scores),
        ("Largest disagreements with the label", -errors),
    ):
        known = np.flatnonzero(~np.isnan(order)).tolist()
        first = sorted(known, key=lambda i, order=order: (order[i], records.ids[i]))[:_SHOWN]
        for i in first:
            if i not in figures:
                figures[i] = _figure(records, i, scores[i])
        row = "".join(figures[i] for i in first) or "<p>There are none.</p>\n"
        parts.append(f'<section>\n<h2>{heading}</h2>\n<div class="row">\n{row}</div>\n</section>\n')
    return "".join(parts)


def _figure(records: Records, i: int, score: float) -> str:
    """A thumbnail, or why there is none, over the picture's name, score and label."""
    name = html.escape(printable(records.ids[i]))
    label = "none" if np.isnan(records.scores[i]) else f"{records.scores[i]:.3f}"
    try:
        pixels = decode(records.photo(i), records.decoding)
    except UnreadableError as error:
        shown = f'<p class="unread">cannot be shown: {html.escape(printable(error))}</p>'
    else:
        content, width, height = thumbnail(pixels, _LONGEST)
        source = address("image/jpeg", content)
        shown = f'<img alt="{name}" width="{width}" height="{height}" src="{source}">'
    caption = f"<b><bdi>{name}</bdi></b><br>score {score:.3f}, label {label}"
    return f"<figure>\n{shown}\n<figcaption>{caption}</figcaption>\n</figure>\n"
