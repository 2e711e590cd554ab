"""The code of the README and of the pages, run from top to bottom, and where their links lead."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Pages of which no block runs, and why; a block by itself is marked in its page.
NOT_RUN = {"serving.md": "the files and the exported judge are the reader's"}
SLOW = {"extend/reduction.md", "extend/network.md", "extend/loop.md"}


def name_of(page: Path) -> str:
    return page.name if page.parent == ROOT else page.relative_to(DOCS).as_posix()


def blocks_of(page: Path) -> list[tuple[int, str]]:
    """The blocks of a page that run, each with the number of lines before its code."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n"), found.group(2))
        for found in BLOCK.finditer(text)
        if not found.group(1) and name_of(page) not in NOT_RUN
    ]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if name_of(page) in SLOW else [])
        for page in PAGES
        if blocks_of(page)
    ],
)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.name}
    for line, code in blocks_of(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "op.md",
        "exact.md",
        "buckets.md",
        *(f"extend/{part}.md" for part in ("reduction", "network", "loss", "data", "bins", "loop")),
    ],
)
def test_pages_that_teach_by_code_have_some_that_runs(name):
    assert any(name_of(page) == name and blocks_of(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    """Those elsewhere are of https and well formed; whether they answer is not asked."""
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[a-z0-9.-]+\.[a-z]+", parts.netloc), link
        else:
            assert (page.parent / link).exists(), link


def test_every_page_is_in_the_navigation_once():
    config = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w/-]+\.md(?=\n|$)", config[config.index("nav:") :])
    pages = [*DOCS.rglob("*.md"), *(page.with_suffix(".md") for page in DOCS.rglob("*.ipynb"))]
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in pages)


def test_the_readme_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_what_scores_photographs_is_called_a_judge():
    """In all that users read: pages, options and what commands print."""
    command_line = sorted((ROOT / "spp_jax" / "cli").glob("*.py"))
    for page in [*PAGES, ROOT / "CHANGELOG.md", *command_line]:
        assert "evaluator" not in page.read_text().lower(), page.name
