"""What a release would be: built, checked, and installed in an empty environment, without the checkout."""

import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest
from conftest import png

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel that was built from it."""
    pytest.importorskip("build", reason="the extra 'release' is not installed")
    folder = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True
    )
    said = built.stdout + built.stderr
    if "hatchling" in said and "No matching distribution" in said:
        pytest.skip("the package index cannot be reached")
    assert built.returncode == 0, said
    (source,), (wheel,) = folder.glob("spp_jax-*.tar.gz"), folder.glob("spp_jax-*.whl")
    return source, wheel


def test_an_index_would_take_them_and_show_the_readme(distributions):
    pytest.importorskip("twine", reason="the extra 'release' is not installed")
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *distributions], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_source_carries_all_that_its_tests_and_pages_need(distributions):
    with tarfile.open(distributions[0]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    for needed in ("pyproject.toml", "LICENSE", "mkdocs.yml", "docs/index.md", "docs/drawings/bins.svg"):
        assert needed in names, needed
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")} <= names


@pytest.fixture(scope="module")
def program(distributions, tmp_path_factory):
    """The installed `spp-jax`."""
    folder, (_, wheel) = tmp_path_factory.mktemp("wheel"), distributions
    assert wheel.stat().st_size < 25 * 2**20
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    yield folder / "env" / "bin" / "spp-jax"
    shutil.rmtree(folder)


def test_it_scores_a_photograph_from_another_folder(program, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    (tmp_path / "holiday.png").write_bytes(png(pixels))
    ran = subprocess.run(
        [program, "score", "holiday.png", "--cache-dir", tmp_path / "xla"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    score, name = ran.stdout.split()
    assert 0 <= float(score) <= 1
    assert name == "holiday.png"


def test_it_trains_on_a_folder(program, tmp_path):
    rng, lines = np.random.default_rng(0), ["file,score"]
    for i in range(12):
        size = rng.integers(24, 50, 2)
        (tmp_path / f"{i}.png").write_bytes(png(rng.integers(0, 256, (*size, 3)).astype(np.uint8)))
        lines.append(f"{i}.png,{rng.uniform():.2f}")
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    arguments = ["--data", "folder", "--data-dir", tmp_path, "--steps", "2", "--buckets", "1"]
    ran = subprocess.run(
        [program, "train", *arguments, "--levels", "1", "--cache-dir", tmp_path / "xla", "--out", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "photographs never seen" in ran.stdout


@pytest.mark.parametrize("data", ["live_wild", "distorted_photos"])
def test_a_data_set_that_needs_an_extra_names_it(program, tmp_path, data):
    ran = subprocess.run(
        [program, "train", "--data", data, "--cache-dir", tmp_path / "xla"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2, ran.stderr
    assert "pip install 'spp_jax[d" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
