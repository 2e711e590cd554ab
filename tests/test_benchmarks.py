"""The two commands that run other benchmarks: what they run, and what they say of it."""

import json
from pathlib import Path

import all as everything
import gpu
import pytest

ROOT = Path(__file__).parents[1]


def test_all_benchmarks_take_at_most_an_hour_and_are_there():
    assert sum(job.minutes for job in everything.JOBS) <= 60
    assert len({job.name for job in everything.JOBS}) == len(everything.JOBS)
    for job in everything.JOBS:
        assert (ROOT / job.command[0]).is_file()


def test_every_benchmark_of_the_page_is_among_them_or_takes_hours(tmp_path):
    page = (ROOT / "docs" / "measurements.md").read_text()
    run = " ".join(" ".join(job.command) for job in everything.JOBS)
    hours = {"whole_image.py", "complete_and_crop.py", "folds.py"}  # trainings, or on what they trained
    themselves = {"all.py", "gpu.py"}
    named = {
        word.split("/")[1].split(".py")[0] + ".py" for word in page.split() if word.startswith("benchmarks/")
    }
    assert named
    assert {name for name in named if name not in run} <= hours | themselves


def test_how_a_benchmark_ended_and_what_it_said(tmp_path):
    def ended(code: str, minutes: float = 1):
        return everything.run(everything.Job("job", ("-c", code), minutes), tmp_path)

    assert ended("print('figures')")[::2] == ("done", "figures\n")
    how, _, said = ended("import sys; print('so far'); sys.exit('no torch')")
    assert how == "failed with status 1"
    assert said.split() == ["no", "torch", "so", "far"] or said.split() == ["so", "far", "no", "torch"]
    how, seconds, _ = ended("import time; time.sleep(60)", 0.02)
    assert how == "stopped after 0.02 minutes"
    assert seconds < 30


def test_what_is_not_here_is_named():
    job = everything.Job("job", (), 1, needs=("json", "no_such_module"))
    assert everything.missing(job) == "no_such_module is not installed"
    there = everything.Job("job", (), 1, photos=ROOT / "no such folder")
    assert "no such folder" in (everything.missing(there) or "")


def test_failures_of_a_suite_are_named_with_their_first_line(tmp_path):
    report = tmp_path / "suite.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="test_right"/>'
        '<testcase classname="tests.test_a" name="test_wrong"><failure message="assert 1 == 2&#10;more"/>'
        "</testcase>"
        '<testcase classname="tests.test_b" name="test_broken"><error>no device\nmore</error></testcase>'
        '<testcase classname="tests.test_b" name="test_out"><skipped message="slow"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert gpu.failures(report) == (
        3,
        1,
        ["tests.test_a::test_wrong: assert 1 == 2", "tests.test_b::test_broken: no device"],
    )


@pytest.mark.parametrize(
    ("op", "torch", "met"), [(0.6, 0.9, True), (0.6, 0.5, False), (0.7, 0.9, False), (0.6, None, True)]
)
def test_the_bars_are_four_fifths_of_a_copys_bandwidth_and_torch(op, torch, met):
    row = {"copy": 1.0, "op": op} | (
        {} if torch is None else {"torch NCHW": 2.0, "torch channels-last": torch}
    )
    (line,), found = gpu.verdict(json.loads(json.dumps({"1x8x8x4": {"forward": row}})))
    assert found == met
    assert line.startswith(f"1x8x8x4: reads at {0.5 / op:.0%} of a copy's bandwidth")
