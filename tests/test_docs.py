"""The code of the README and of the pages, run from top to bottom, and where their links lead."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Pages of which no block runs, and why; a block by itself is marked in its page.
NOT_RUN = {"serving.md": "the files and the exported judge are the reader's"}
SLOW = {"extending.md"}


def blocks_of(page: Path) -> list[tuple[int, str]]:
    """The blocks of a page that run, each with the number of lines before its code."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n"), found.group(2))
        for found in BLOCK.finditer(text)
        if not found.group(1) and page.name not in NOT_RUN
    ]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if blocks_of(page)
    ],
)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.name}
    for line, code in blocks_of(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("name", ["README.md", "extending.md", "op.md", "exact.md", "buckets.md"])
def test_pages_that_teach_by_code_have_some_that_runs(name):
    assert any(page.name == name and blocks_of(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900
