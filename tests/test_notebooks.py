"""The notebooks of the documentation: they run, and what is committed of them is what running them gives."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def kinds(notebook) -> list[tuple[str, list[str]]]:
    """Of each cell, its text, and what kinds of outputs it has: figures differ from machine to machine."""
    found = []
    for cell in notebook["cells"]:
        outputs = [sorted(output.get("data", [output.get("name")])) for output in cell.get("outputs", [])]
        found.append(("".join(cell["source"]), [kind for each in outputs for kind in each]))
    return found


@pytest.mark.slow
@EVERY
def test_a_notebook_runs_and_its_outputs_are_those_committed(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("skimage")
    from run_notebooks import executed

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # of the suite, for programs that are thrown away
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    folder = tmp_path / "here"
    folder.mkdir()
    assert kinds(executed(path, folder)) == kinds(json.loads(path.read_text()))


@EVERY
def test_a_committed_notebook_holds_outputs_and_nothing_of_the_run(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any(
        "image/png" in output.get("data", {}) or "image/jpeg" in output.get("data", {}) for output in outputs
    )
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert all(cell["execution_count"] is None and not cell["metadata"] for cell in code)
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text())
    assert path.stat().st_size < 2**20


@EVERY
def test_a_notebook_becomes_a_page_with_its_pictures(path):
    pytest.importorskip("mkdocs")
    from hooks import to_markdown

    page, pictures = to_markdown(json.loads(path.read_text()), path.stem)
    assert page.startswith("# ")
    assert f"{path.stem}.ipynb" in page
    assert pictures
    assert all(f"]({name})" in page and content for name, content in pictures.items())
    assert page.count("```") % 2 == 0


def test_docstrings_lose_the_roles_of_sphinx():
    pytest.importorskip("mkdocs")
    from hooks import on_page_content

    given = "as :mod:<code>a.b</code> and :class:<code>~a.b.C</code>, <code>~x</code>"
    assert on_page_content(given) == "as <code>a.b</code> and <code>C</code>, <code>~x</code>"


def test_docstrings_are_as_their_parser_reads_them():
    pytest.importorskip("griffe")
    from docstrings import readable

    given = "Do.\n\nReturns:\n    ``[n]``: how many\n    there are\n\nExample:\n    >>> 1\n    1"
    expected = "Do.\n\nReturns:\n    : ``[n]``: how many\n    there are\n\nExamples:\n    >>> 1\n    1"
    assert readable(given) == expected


def test_a_link_to_a_notebook_leads_to_its_page():
    pytest.importorskip("mkdocs")
    from hooks import on_page_markdown

    given = "[a](../notebooks/x.ipynb) [b](x.ipynb#part) [c](x.md) `x.ipynb`"
    assert on_page_markdown(given) == "[a](../notebooks/x.md) [b](x.md#part) [c](x.md) `x.ipynb`"
