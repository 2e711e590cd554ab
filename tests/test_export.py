import json
import subprocess
import sys

import numpy as np
import pytest

from spp_jax.cli import export
from spp_jax.scoring import Scorer, shipped
from spp_jax.scoring.exported import ExportedScorer

pytest.importorskip("flatbuffers", reason="exporting needs the extra 'export'")

SIZES = [(40, 90), (90, 40), (64, 96), (33, 50), (17, 96)]
PICTURES = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "judge"
    judge = ["--checkpoint", str(shipped("compact"))]
    assert export.main(["--out", str(out), "--shapes", "64x96", "40x96", *judge]) == 0
    return out


ALONE = """
import sys, json
sys.path.insert(0, sys.argv[1])
import numpy as np, judge
sizes = json.loads(sys.argv[2])
pictures = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(sizes)]
print(json.dumps(judge.ExportedScorer(sys.argv[1]).score(pictures).tolist()))
assert not {"flax", "spp_jax", "optax", "orbax"} & set(sys.modules), sorted(sys.modules)
"""


def test_scores_are_those_of_the_checkpoint_without_flax_or_this_package(folder):
    expected = Scorer.from_checkpoint(shipped("compact")).score(PICTURES)
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), json.dumps(SIZES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(json.loads(ran.stdout), expected, rtol=1e-6)


def test_the_manifest_says_what_it_is(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    scorer = Scorer.from_checkpoint(shipped("compact"))
    assert manifest["checkpoint"] == scorer.digest
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["policy"]["max_pixels"] == scorer.config.max_pixels
    assert [rung["shape"] for rung in manifest["rungs"]] == [[40, 96], [64, 96]]
    assert {"jax", "jaxlib", "numpy"} <= manifest["versions"].keys()


def test_bad_pictures_and_changed_files_are_refused(folder, tmp_path):
    scorer = ExportedScorer(folder)
    for picture, said in [
        (np.zeros((4, 40, 3), np.uint8), "smaller than 8x8"),
        (np.zeros((97, 40, 3), np.uint8), "larger than every program"),
        (np.zeros((40, 40, 3), np.float32), "not uint8"),
    ]:
        with pytest.raises(ValueError, match=said):
            scorer.score([picture])
    with pytest.raises(ValueError, match="holds no exported judge"):
        ExportedScorer(tmp_path)
    changed = tmp_path / "judge"
    changed.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (changed / path.name).write_bytes(path.read_bytes())
    (changed / "40x96.jaxexport").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"40x96.jaxexport is not the file that was exported"):
        ExportedScorer(changed).score(PICTURES[:1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "big"], "must be HEIGHTxWIDTH"),
        (["--shapes", "4x40"], "smaller than the model takes"),
        (["--platforms", "abacus"], "known are cpu, cuda, tpu, rocm"),
    ],
)
def test_wrong_use_is_said(tmp_path, capsys, arguments, said):
    assert export.main(["--out", str(tmp_path / "new"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(folder, capsys):
    assert export.main(["--out", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
