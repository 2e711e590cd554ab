"""What the figures of docs/results.md and of the text example are made by."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import noise_records, png
from flax import nnx

from spp_jax import BucketPlan, pad_batch, plan_buckets
from spp_jax.cli import program
from spp_jax.errors import UsageError
from spp_jax.metrics import agreement

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[1]

import crop_pairs  # noqa: E402
import hand_features  # noqa: E402
import mirrored  # noqa: E402
import text  # noqa: E402
import whole_image  # noqa: E402


@pytest.mark.parametrize("size", [(40, 55), (1, 9), (9, 1), (3, 3)])
@pytest.mark.parametrize("kind", ["noise", "black", "white"])
def test_features_by_hand_are_numbers_whatever_the_picture(size, kind):
    rng = np.random.default_rng(0)
    pixels = {"noise": rng.integers(0, 256, (*size, 3)), "black": 0, "white": 255}[kind]
    found = hand_features.features(np.broadcast_to(pixels, (*size, 3)).astype(np.uint8))
    assert found.shape == (89,)
    assert np.isfinite(found).all()


def test_scores_are_standardised_within_their_category_and_figures_are_means_over_them(tmp_path):
    rng = np.random.default_rng(0)
    names, of = [f"{i:02d}.png" for i in range(60)], ["a", "b"] * 30
    scores = np.where(np.array(of) == "a", 50 + 3 * rng.normal(size=60), rng.normal(size=60))
    rows = [
        {"file": name, "score": str(score), "category": category}
        for name, score, category in zip(names, scores, of, strict=True)
    ]
    for name in names:
        (tmp_path / name).write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    folder = whole_image._standardised(tmp_path, rows, tmp_path / "standardised")
    lines = (folder / "scores.csv").read_text().split()[1:]
    found = np.array([float(line.split(",")[1]) for line in lines])
    for category in "ab":
        mine = found[np.array(of) == category]
        assert mine.mean() == pytest.approx(0.5, abs=0.02)  # clipped to [0, 1]
        assert mine.std() == pytest.approx(0.25, abs=0.02)
    assert (folder / "07.png").read_bytes() == (tmp_path / "07.png").read_bytes()
    rows[0]["score"] = "51"
    with pytest.raises(UsageError, match="has changed since"):
        whole_image._standardised(tmp_path, rows, tmp_path / "standardised")

    records = noise_records(60)
    categories = dict(zip(records.ids, of, strict=True))
    data = whole_image.Data("folder", folder, None, 1, 1, categories)
    judged = rng.uniform(size=60)
    each = [
        agreement(judged[half::2], records.scores[half::2], records.good[half::2]).srcc for half in (0, 1)
    ]
    figures = data.figures(judged, records)
    assert figures["srcc"] == pytest.approx(np.mean(each))
    assert figures["srcc by category"] == pytest.approx(dict(zip("ab", each, strict=True)))


def test_without_masks_a_score_depends_on_the_bucket():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    small, large = (pad_batch([picture], shape) for shape in ((40, 56), (64, 64)))
    model: Any = whole_image.unmasked(levels=(1,), outputs=1, rngs=nnx.Rngs(0))
    model.inner.head.logits.kernel[...] = np.ones_like(model.inner.head.logits.kernel[...])
    assert abs(model(small) - model(large)).item() > 1e-3
    assert abs(model.inner(small) - model.inner(large)).item() < 1e-4


class TestRuns:
    """The experiment's own processes, each with a stand-in for a run."""

    CODE = """
import sys, time
from pathlib import Path
name = sys.argv[sys.argv.index("--alone") + 1]
folder = Path(sys.argv[sys.argv.index("--out") + 1]) / name
with (folder / "starts").open("a") as file:
    file.write("x")
try:
    signal = __import__("signal")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(0 if (folder / "starts").read_text() == "xx" or name != "d/slow/0" else 60)
    (folder / "figures.json").write_text("{}")
except SystemExit:
    (folder / "saved").touch()
    raise
"""
    PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import whole_image
from tqdm import tqdm
whole_image.__file__ = sys.argv.pop(1)
options = whole_image.Options(out=Path(sys.argv[-1]))
runs = ["d/quick/0", "d/slow/0", "d/quick/1"] if "--squares" not in sys.argv else ["d/whole/0", "d/warp/0"]
sys.exit(whole_image._each_on_a_core(runs, options, tqdm(disable=True)))
"""

    def test_a_ctrl_c_lets_each_save_once_and_the_next_start_does_what_is_left(self, tmp_path):
        (tmp_path / "run.py").write_text(self.CODE)
        command = [sys.executable, "-c", self.PARENT, str(ROOT / "benchmarks"), str(tmp_path / "run.py")]
        command += ["--out", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        first = subprocess.Popen(command, env=environment, start_new_session=True)
        ends = time.monotonic() + 120
        while not (tmp_path / "d/slow/0/starts").is_file():
            assert time.monotonic() < ends
            assert first.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does
        assert first.wait(60) == program.INTERRUPTED
        assert (tmp_path / "d/slow/0/saved").is_file()
        assert subprocess.run(command, env=environment).returncode == program.DONE
        assert (tmp_path / "d/slow/0/starts").read_text() == "xx"
        for name in ("d/quick/0", "d/quick/1"):
            assert (tmp_path / name / "starts").read_text().count("x") == 1
            assert json.loads((tmp_path / name / "figures.json").read_text()) == {}

    @pytest.mark.parametrize("status", [program.DONE, program.FAILED])
    def test_a_square_begins_when_the_whole_picture_of_its_seed_has_ended_well(self, tmp_path, status):
        (tmp_path / "run.py").write_text(
            f"STATUS = {status}"
            """
import sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
name = sys.argv[sys.argv.index("--alone") + 1]
whole = out / "d/whole/0/figures.json"
(out / name / "started").touch()
assert name.endswith("whole/0") or whole.is_file()
time.sleep(1)
if STATUS:
    sys.exit(STATUS)
(out / name / "figures.json").write_text("{}")
"""
        )
        command = [sys.executable, "-c", self.PARENT, str(ROOT / "benchmarks"), str(tmp_path / "run.py")]
        command += ["--squares", "--out", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, env=environment, timeout=120).returncode == status
        assert (tmp_path / "d/whole/0/started").is_file()
        assert (tmp_path / "d/warp/0/started").is_file() == (status == program.DONE)


def test_runs_of_other_constants_are_not_taken_for_these(tmp_path):
    options = whole_image.Options(out=tmp_path)
    whole_image._check(options, whole_image.data_sets(options))
    whole_image._check(options, whole_image.data_sets(options))
    other = whole_image.Options(out=tmp_path, epochs=7)
    with pytest.raises(UsageError, match="holds runs with another distorted_photos"):
        whole_image._check(other, whole_image.data_sets(other))
    with pytest.raises(UsageError, match="--systems warped: unknown; known are whole"):
        whole_image._check(whole_image.Options(out=tmp_path, systems=("warped",)), {})


def test_a_buckets_batches_of_sentences_hold_each_once():
    rng = np.random.default_rng(0)
    texts = [np.full((n, 1), i, np.int32) for i, n in enumerate(rng.integers(5, 60, 50))]
    lengths = np.array([text.shape[:1] for text in texts])
    plan: BucketPlan = plan_buckets(lengths, 3, pixels_per_step=200)
    seen = []
    for characters, labels, weights in text.batches((texts, np.arange(50)), plan, rng):
        real = weights > 0
        assert (np.asarray(characters.sizes)[~real] == 0).all()
        np.testing.assert_array_equal(np.asarray(characters.values)[real, 0, 0], labels[real])
        np.testing.assert_array_equal(np.asarray(characters.sizes)[real], lengths[labels[real]])
        seen += labels[real].tolist()
    assert sorted(seen) == list(range(50))


def test_heads_on_mirror_images_are_fitted_as_a_probe_is(monkeypatch):
    monkeypatch.setattr(mirrored, "HEAD", {"parts": (6, 10), "rank": 4})
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 16)).astype(np.float32)
    scores = 1 / (1 + np.exp(-values[:, :2] - values[:, 2:4] ** 2))
    scores[::2, 0] = scores[1::2, 1] = np.nan  # each photograph is judged for one thing
    every: Any = SimpleNamespace(scores=scores, good=scores >= 0.5, groups=[str(i) for i in range(60)])
    found = mirrored.fitted(values, every, np.arange(60))(values)
    for column, (strengths, balance) in enumerate(mirrored.CHOICES):
        expected = mirrored.probe.fit_probe(
            values,
            scores,
            every.groups,
            strengths=strengths,
            curvatures=(1.0,),
            balances=(balance,),
            parts=(6, 10),
            rank=4,
        )
        np.testing.assert_allclose(found[:, column], expected.logits(values)[:, column], rtol=1e-9, atol=1e-9)


def test_of_two_crops_the_one_that_people_prefer_is_told_by_a_difference_of_features(monkeypatch):
    monkeypatch.setattr(crop_pairs, "head_options", lambda model: {})
    rng = np.random.default_rng(0)
    values = {str(i): rng.normal(size=5) for i in range(200)}
    ordered = [sorted((str(i), str(i + 1)), key=lambda name: -values[name][0]) for i in range(0, 200, 2)]
    pairs = [crop_pairs.Pair(*names, photo=f"{i // 2}.jpg") for i, names in enumerate(ordered)]
    assert crop_pairs.agreement(values, pairs).mean() > 0.9
    by_chance = [crop_pairs.Pair(*rng.permutation(pair[:2]).tolist(), photo=pair.photo) for pair in pairs]
    assert abs(crop_pairs.agreement(values, by_chance).mean() - 0.5) < 0.2
