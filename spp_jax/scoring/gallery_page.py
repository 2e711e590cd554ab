"""The page of a gallery: what a browser shows of a collection, from what it is told."""

import html
from collections.abc import Sequence
from typing import Any

from spp_jax.names import printable
from spp_jax.scoring.page import data_block, head, inline_script, source

__all__ = ["gallery_page"]

_FILTERS = """<form id="filters" role="search" aria-label="Filter and order">
<label>Name <input type="search" id="name" placeholder="Filter by name" autocomplete="off" spellcheck="false"
 aria-keyshortcuts="/"></label>
<label for="low">Score at least <span class="range"><input type="range" id="low" min="0" max="1" step="0.01"
 value="0"><output id="low-said" for="low">0.00</output></span></label>
<label for="high">Score at most <span class="range"><input type="range" id="high" min="0" max="1" step="0.01"
 value="1"><output id="high-said" for="high">1.00</output></span></label>
<label>Judged <select id="attribute"><option value="0"></option></select></label>
<label>Order <select id="order"><option value="best">best first</option>
<option value="worst">worst first</option>
<option value="name">by name</option><option value="taken">by time taken</option></select></label>
<label>Series <select id="series"><option value="all">each photograph alone</option>
<option value="together">together</option><option value="picks">the picks only</option></select></label>
</form>
"""
_VIEW = """<dialog id="view" aria-labelledby="view-name">
<div class="stage"><div class="frame"><img id="photo" alt=""><img id="map"
 alt="map of the score: yellow is good, violet is not" hidden><svg id="marks" role="img"
 aria-label="winning spots and crops" preserveAspectRatio="none"></svg></div></div>
<aside>
<div class="bar"><span><button type="button" id="previous" aria-label="Previous photograph">←</button>
<button type="button" id="next" aria-label="Next photograph">→</button></span>
<button type="button" id="close">Close</button></div>
<div><div id="view-score"></div><p id="view-place"></p></div>
<h2><bdi id="view-name"></bdi></h2>
<dl id="facts"></dl>
<a id="file" target="_blank" rel="noreferrer">Open the file</a>
<section id="why" hidden>
<h3>Why</h3>
<div class="toggles">
<label><input type="checkbox" id="show-map"> Map</label>
<label><input type="checkbox" id="show-winners"> Winners</label>
<label><input type="checkbox" id="show-crops"> Crops</label>
</div>
<div id="scale" class="scale" hidden><span>0</span><i></i><span>1</span><span id="extent"></span></div>
<h3>Best crops</h3>
<div id="crops" class="crops"></div>
<p id="no-crops" class="note" hidden>It is too small for a crop.</p>
<h3>What adds up</h3>
<table id="parts-table" class="parts"><tbody id="parts"></tbody></table>
<p id="logit" class="note"></p>
<p class="note">The map has the score of the part around each point. Winners are the spots that move the score
most: blue up, orange down.</p>
</section>
<p id="no-why" class="note" hidden>{unexplained}</p>
</aside>
</dialog>
"""
_KEYS = """<p><kbd>←</kbd> <kbd>↑</kbd> <kbd>→</kbd> <kbd>↓</kbd> <kbd>Home</kbd> <kbd>End</kbd> go among the
photographs, <kbd>Enter</kbd> opens one, <kbd>Esc</kbd> closes it, <kbd>/</kbd> goes to the filter. In an open
one <kbd>M</kbd>, <kbd>W</kbd> and <kbd>C</kbd> show map, winners and crops.</p>
"""


def gallery_page(
    title: str, judge: str, data: dict[str, Any], skipped: Sequence[tuple[str, str]], explained: int
) -> str:
    """The page, in one text without lone surrogates.

    Args:
        title: heading.
        judge: who judged; may be empty.
        data: what the script shows: ``attributes``, and ``photos`` in the order of their ranks.
        skipped: the name of each photograph without a score, with the reason.
        explained: how many of the photographs have an explanation.
    """
    script = source("gallery.js")
    heading = html.escape(printable(title))
    if explained:
        unexplained = (
            f"Map, winners and crops were made for the {explained} best alone; --explain-best N makes them "
            "for more, and spp-jax explain for any one."
        )
    else:
        unexplained = "Map, winners and crops were not made; --explain-best N makes them for the N best."
    judged = f"<p>Judged by {html.escape(printable(judge))}. " if judge else "<p>"
    return "".join(
        [
            head(printable(title), source("gallery.css"), script=script, images="'self' data:"),
            f'<body>\n<header>\n<div class="headline"><h1>{heading}</h1>',
            '<p id="count" role="status"></p></div>\n',
            _FILTERS,
            "</header>\n<noscript><main><p>This page needs JavaScript; it loads none from elsewhere.</p>"
            '</main></noscript>\n<main>\n<ul id="grid" role="list" aria-label="Photographs"></ul>\n',
            '<p id="none" hidden>No photograph fits the filter.</p>\n',
            _skipped(skipped),
            f"</main>\n<footer>{judged}Scores lie between 0 and 1. {unexplained}</p>\n{_KEYS}</footer>\n",
            _VIEW.format(unexplained=unexplained),
            data_block("data", data),
            inline_script(script),
            "</body>\n</html>\n",
        ]
    )


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><bdi>{html.escape(printable(name))}</bdi></th>'
        f"<td>{html.escape(printable(reason))}</td></tr>\n"
        for name, reason in skipped
    )
    said = f"{len(skipped):,} photographs have no score" if len(skipped) > 1 else "1 photograph has no score"
    return f'<details id="skipped"><summary>{said}</summary>\n<table>\n{rows}</table></details>\n'
