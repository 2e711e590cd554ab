"""Labels that are not one number, from the command line to the figures: attributes, categories, pairs."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import noise_records
from flax import nnx

from spp_jax import create_model, plan_buckets
from spp_jax.cli import evaluate, train
from spp_jax.compilation import data_mesh
from spp_jax.data.records import Pairs, Records
from spp_jax.data.schedule import pair_sizes
from spp_jax.scoring import Scorer, forward_executables, score_records
from spp_jax.training.losses import create_loss

RECORDS = noise_records(48, groups=48)
ATTRIBUTES = ("noise", "calm", "light", "size", "luck")
QUICK = ["--data", "folder", "--buckets", "1", "--pixels-per-step", "30000", "--levels", "1"]


@pytest.fixture(scope="module")
def cache(compiled_once):
    """A folder for compiled programs, and JAX's settings as they were afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield compiled_once
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def call(cache, capsys):
    """Run a command line in this process: (exit status, standard output, standard error)."""

    def call(program, *arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = program.main([*map(str, arguments), "--cache-dir", str(cache)])
        return status, *capsys.readouterr()

    return call


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    for name, i in zip(RECORDS.ids, range(len(RECORDS)), strict=True):
        photo = RECORDS.photo(i)
        assert isinstance(photo, bytes)
        (folder / f"{name}.png").write_bytes(photo)


@pytest.fixture(scope="module")
def attributes(tmp_path_factory):
    """A folder of pictures with five columns, each of which a third of them lack, and two categories."""
    folder = tmp_path_factory.mktemp("data") / "attributes"
    write_pictures(folder)
    rng = np.random.default_rng(0)
    columns = [1 - RECORDS.scores, RECORDS.scores, RECORDS.scores / 2, RECORDS.sizes[:, 0] / 60]
    values = np.stack([*columns, rng.uniform(size=len(RECORDS))], axis=1)
    lacking = (np.arange(len(RECORDS))[:, None] + np.arange(5)) % 3 == 0
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "category", *ATTRIBUTES])
        for name, row, blank in zip(RECORDS.ids, values, lacking, strict=True):
            cells = ["" if gone else f"{value:.4f}" for value, gone in zip(row, blank, strict=True)]
            writer.writerow([f"{name}.png", "tall" if name[-1] in "02468" else "wide", *cells])
    return folder


def test_five_attributes_have_an_output_and_figures_each(attributes, call, tmp_path):
    run = tmp_path / "run"
    options = ["--data-dir", attributes, "--labels", *ATTRIBUTES, "--loss", "huber", "--epochs", 2]
    status, printed, _ = call(train, *QUICK, *options, "--out", run)
    assert status == 0
    figures = json.loads((run / "metrics.json").read_text())
    assert tuple(figures["attributes"]) == ATTRIBUTES
    for part in figures["attributes"].values():
        assert 0 < part["count"] < figures["count"]  # those that lack it are left out
    assert set(figures["categories"]) == {"tall", "wide"}
    assert set(figures["categories"]["tall"]["attributes"]) <= set(ATTRIBUTES)
    known = [part["srcc"] for part in figures["attributes"].values() if part["srcc"] is not None]
    assert figures["srcc"] == pytest.approx(np.mean(known))
    assert "noise: pictures" in printed
    assert "tall, noise: pictures" in printed
    page = (run / "report.html").read_text()
    for name in ("all", *ATTRIBUTES, "tall", "wide, luck"):
        assert f'<th scope="row">{name}</th>' in page

    pictures, out = [attributes / f"{RECORDS.ids[i]}.png" for i in (0, 1)], tmp_path / "scores.json"
    status, printed, _ = call(evaluate, "--checkpoint", run, "--photos", *pictures, "--out", out)
    assert status == 0
    assert printed.splitlines()[0].split() == list(ATTRIBUTES)
    assert len(printed.splitlines()[1].split()) == 6
    assert tuple(json.loads(out.read_text())[str(pictures[1])]) == ATTRIBUTES

    scorer = Scorer.from_checkpoint(run)
    assert scorer.attributes == ATTRIBUTES
    scores = scorer.score([attributes / f"{RECORDS.ids[0]}.png", b"text"])
    assert scores.shape == (2, 5)
    assert np.isfinite(scores[0]).all()
    assert np.isnan(scores[1]).all()

    out = tmp_path / "again.json"
    options = ["--data", "folder", "--data-dir", attributes, "--out", out]
    status, printed, _ = call(evaluate, "--checkpoint", run, *options)
    assert status == 0
    again = json.loads(out.read_text())
    assert again["attributes"].keys() == figures["attributes"].keys()
    assert again["accuracy"] == pytest.approx(figures["accuracy"])


OWN = '''
"""Five attributes of one's own, of which each picture has some, and a loss on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from conftest import noise_records
from spp_jax.training import Loss

NAMES = ("colour", "light", "depth", "motion", "mood")


def pictures(data_dir, decoding):
    records = noise_records(48, groups=48)
    values = np.stack([np.roll(records.scores, shift) for shift in range(5)])
    values[(np.arange(5)[:, None] + np.arange(48)) % 3 == 0] = np.nan
    boxes = np.arange(48 * 4, dtype=np.float32).reshape(48, 4)
    labels = dict(zip(NAMES, values)) | {"boxes": boxes}
    return dataclasses.replace(records, labels=labels, categories=("near", "far") * 24), {}


def absolute_error(outputs):
    """Of the attributes a picture has, each weighed by how large its box is: any label, of any shape."""

    def of(logits, batch):
        assert batch.labels["boxes"].shape == (len(logits), 4)
        known = ~jnp.isnan(batch.scores)
        errors = jnp.abs(jax.nn.sigmoid(logits) - jnp.nan_to_num(batch.scores))
        weight = 1 + batch.labels["boxes"].sum(axis=-1) / 1000
        return weight * jnp.where(known, errors, 0).sum(axis=-1) / jnp.maximum(known.sum(axis=-1), 1)

    return Loss(outputs, of, jax.nn.sigmoid, needs=("score", "boxes"))
'''


def test_five_attributes_in_a_file_of_ones_own(call, tmp_path):
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text(OWN)
    names = ["colour", "light", "depth", "motion", "mood"]
    options = ["--data", f"{own}:pictures", "--loss", f"{own}:absolute_error", "--labels", *names]
    status, printed, said = call(train, *QUICK[2:], *options, "--steps", 3, "--out", run)
    assert status == 0, said
    figures = json.loads((run / "metrics.json").read_text())
    assert list(figures["attributes"]) == names
    assert set(figures["categories"]) == {"near", "far"}
    assert all(f"{name}: pictures" in printed for name in (*names, "near", "far"))
    scorer = Scorer.from_checkpoint(run)
    assert scorer.attributes == tuple(names)
    assert scorer.score([RECORDS.photo(0)]).shape == (1, 5)


def test_resume_refuses_other_labels_of_the_same_pictures(attributes, call, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for path in attributes.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    options = ["--data-dir", data, "--labels", ",".join(ATTRIBUTES[:2])]
    assert call(train, *QUICK, *options, "--steps", 1, "--out", run)[0] == 0
    table = data / "scores.csv"
    lines = table.read_text().splitlines()
    changed = [f"{line.rsplit(',', 4)[0]},0.5,{','.join(line.rsplit(',', 3)[1:])}" for line in lines[1:]]
    table.write_text("\n".join([lines[0], *changed]) + "\n")
    status, _, said = call(train, "--resume", "--data-dir", data, "--out", run)
    assert status == 2
    assert "the data set has changed since" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "noise", "nosuch"], "label 'nosuch' is unknown or named twice; there are noise, calm"),
        ([], "needs score, which no picture has; there are labels noise, calm, light, size, luck"),
        (
            ["--labels", "noise", "--loss", "bradley_terry"],
            "needs pairs of pictures, which this data set has",
        ),
        (["--labels", "noise", "calm", "--loss", "emd"], "needs a data set with votes"),
    ],
)
def test_labels_that_are_not_there_are_told_before_any_work(attributes, call, tmp_path, options, said):
    status, _, error = call(train, *QUICK, "--data-dir", attributes, *options, "--out", tmp_path / "run")
    assert status == 2
    assert said in error
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """A folder of pictures of which people, asked for two at a time, preferred the calmer one."""
    folder = tmp_path_factory.mktemp("data") / "preferences"
    write_pictures(folder)
    rng = np.random.default_rng(0)
    rows = [sorted(rng.choice(48, 2, replace=False), key=lambda i: -RECORDS.scores[i]) for _ in range(400)]
    lines = [",".join(f"{RECORDS.ids[i]}.png" for i in row) for row in rows]
    (folder / "pairs.csv").write_text("\n".join(["better,worse", *dict.fromkeys(lines)]) + "\n")
    return folder


def test_preferences_alone_train_a_judge(preferences, call, tmp_path):
    run = tmp_path / "run"
    options = ["--data-dir", preferences, "--loss", "bradley_terry", "--epochs", 4, "--learning-rate", ".01"]
    status, printed, said = call(train, *QUICK, *options, "--out", run)
    assert status == 0
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["pairs"]["decided"] == figures["pairs"]["count"] > 5
    assert figures["pairs"]["accuracy"] == figures["accuracy"] > 0.8  # of pictures never seen
    assert "of them rightly" in printed
    assert "pairs lie in two parts of the split" in said
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in steps if "loss" in line]
    assert losses[0] == pytest.approx(np.log(2), abs=0.15)  # before anything is learnt
    assert np.mean(losses[-5:]) < 0.45
    assert "pairs: accuracy" in (run / "report.html").read_text()


def paired_records() -> Records:
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(48)[:30] for _ in range(2)], axis=1)
    rows = rows[rows[:, 0] != rows[:, 1]]
    return dataclasses.replace(
        RECORDS, pairs=Pairs(rows, rng.integers(0, 6, len(rows)).astype(np.float32) / 5)
    )


def test_the_bucket_that_holds_both_of_a_pair_changes_neither_scores_nor_losses():
    records, loss, mesh = paired_records(), create_loss("bradley_terry"), data_mesh(jax.devices()[:1])
    graph, variables = nnx.split(create_model("compact", levels=(1, 2), rngs=nnx.Rngs(0)))
    found = []
    for buckets in (1, 3):
        sizes = pair_sizes(records.sizes, records.pair_rows)
        plan = plan_buckets(sizes, buckets, pixels_per_step=30_000, batch_multiple=2)
        forward = forward_executables(graph, loss, variables, mesh, records)
        scores, losses, failed = score_records(forward, variables, records, plan, mesh)
        assert not failed
        found.append((scores, losses))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)
    # A picture's loss is the mean over its pairs, worked out from the scores.
    assert records.pairs is not None
    logits = np.log(found[0][0]) - np.log1p(-found[0][0])
    expected = {i: [] for i in range(len(records))}
    for (one, other), share in zip(*records.pairs, strict=True):
        ahead = logits[one] - logits[other]
        value = share * np.log1p(np.exp(-ahead)) + (1 - share) * np.log1p(np.exp(ahead))
        expected[one].append(value)
        expected[other].append(value)
    means = np.array([np.mean(values) if values else 0 for values in expected.values()])
    np.testing.assert_allclose(found[0][1], means, rtol=1e-3, atol=1e-5)
