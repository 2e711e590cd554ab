"""Checkpoints of versions before this one: read, and gone on with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records

from spp_jax import Scorer
from spp_jax.checkpoints import Checkpoints
from spp_jax.cli import train
from spp_jax.run.journal import read_journal
from spp_jax.scoring import shipped

OLD = Path(__file__).parent / "checkpoint_0_1"
"""Two of the four steps of `train.py --data folder --levels 1 --buckets 1 --pixels-per-step 20000 --steps 4
--save-every 2 --ema 0.9 --max-failed 0.5` over `album`, written by revision a7aca79 of version 0.1.0."""

SCORES = {  # of the first six pictures, by that revision
    "old": [0.497185, 0.496831, 0.497808, 0.497423, 0.496953, 0.498850],
    "compact": [0.235230, 0.256014, 0.294593, 0.189969, 0.259745, 0.200055],
}


@pytest.fixture
def album(tmp_path):
    records, lines = noise_records(), ["file,score,group"]
    (tmp_path / "album").mkdir()
    for i, name in enumerate(records.ids):
        (tmp_path / "album" / f"{name}.png").write_bytes(bytes(records.photo(i)))  # pyright: ignore
        lines.append(f"{name}.png,{records.scores[i]:.4f},{records.groups[i]}")
    (tmp_path / "album" / "scores.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "album"


@pytest.mark.parametrize("name", ["old", "compact"])
def test_a_checkpoint_of_version_0_1_scores_as_it_did_then(name):
    records = noise_records()
    scorer = Scorer.from_checkpoint(OLD if name == "old" else shipped("compact"))
    scores = scorer.score([records.photo(i) for i in range(6)])
    np.testing.assert_allclose(scores, SCORES[name], atol=1e-4)


def test_a_run_begun_by_version_0_1_goes_on_where_it_stopped(album, tmp_path, capsys):
    shutil.copytree(OLD, folder := tmp_path / "run")
    status = train.main(
        ["--resume", "--out", str(folder), "--data-dir", str(album), "--cache-dir", str(tmp_path / "xla")]
    )
    said = capsys.readouterr().err
    assert status == 0, said
    assert "resumed at step 2 of 4" in said
    assert [line["step"] for line in read_journal(folder) if "loss" in line] == [1, 2, 3, 4]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step() == 4


def test_a_run_of_a_later_version_is_refused_by_the_name_of_what_it_has(tmp_path):
    shutil.copytree(OLD, folder := tmp_path / "run")
    about = folder / "checkpoints" / "2" / "about" / "metadata"
    fields = json.loads(about.read_text())
    fields["config"]["telepathy"] = True
    about.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="later version of spp_jax, whose telepathy this one does not know"):
        Scorer.from_checkpoint(folder)
