import csv
import io

import numpy as np
import pytest
from conftest import png

from spp_jax.data.records import Records
from spp_jax.names import cell, printable, some
from spp_jax.run.journal import write_skipped
from spp_jax.run.report import write_report


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("naïve 写真 שלום.png", "naïve 写真 שלום.png"),
        ("a\nb\rc\td", "a\\x0ab\\x0dc\\x09d"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("\u2066\u200f\u061c", "\\u2066\\u200f\\u061c"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_escaped(name, shown):
    assert printable(name) == shown


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_runs_no_name(name):
    assert cell(name)[0] == "'"
    assert cell(f"a{name}")[0] == "a"


def test_some_says_how_many_more():
    reasons = {"a\n": "gone", "b": "x", "c": "y", "d": "z"}
    assert some(reasons, 2) == "a\\x0a: gone; b: x; and 2 more"
    assert some({"b": "x"}) == "b: x"


def test_the_list_of_the_skipped_holds_no_formula_and_any_name(tmp_path):
    write_skipped(tmp_path / "skipped.csv", {"=cmd()": "gone", "\udcff\n": "=x"})
    rows = list(csv.reader(io.StringIO((tmp_path / "skipped.csv").read_text(encoding="utf-8"))))
    assert rows == [["photograph", "reason"], ["'=cmd()", "gone"], ["\\udcff\\x0a", "'=x"]]


def test_the_report_sets_names_apart(tmp_path):
    name = "<b>\u202eשלום.png"
    records = Records(
        ids=(name,),
        sizes=np.array([[4, 4]]),
        photo=lambda i: png(np.zeros((4, 4, 3), np.uint8)),
        scores=np.array([0.5], np.float32),
        good=np.array([True]),
        groups=(name,),
    )
    write_report(
        tmp_path / "report.html",
        title="run",
        facts={},
        lines=[],
        epochs_done=lambda step: step,
        records=records,
        scores=np.array([0.5]),
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<bdi>&lt;b&gt;\\u202eשלום.png</bdi>" in text
    assert "\u202e" not in text
