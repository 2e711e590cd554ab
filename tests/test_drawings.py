"""The drawings of the pages: the script draws them, and each is shown with words for who does not see it."""

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
import drawings

ROOT = Path(__file__).parents[1]


def test_the_script_draws_all_that_need_no_judge(tmp_path, capsys):
    assert drawings.main([], tmp_path) == 0
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["batch.svg", "bins.svg", "plan.svg", "walk.svg"]
    assert capsys.readouterr().out.count("\n") == len(drawn)
    for path in tmp_path.iterdir():
        assert "<svg" in path.read_text()


def test_every_drawing_is_committed_and_shown_with_words():
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    shown = dict(re.findall(r"!\[([^\]]*)\]\((?:docs/)?drawings/([\w.]+)\)", pages))
    shown = {name: words for words, name in shown.items()}
    assert sorted(shown) == sorted(f"{name}.{ending}" for name, (_, ending) in drawings.DRAWINGS.items())
    assert all(len(words) > 20 for words in shown.values())
    assert sorted(path.name for path in drawings.FOLDER.iterdir()) == sorted(shown)
