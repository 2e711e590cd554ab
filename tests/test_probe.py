"""The probe: the closed form against plain linear algebra, and a run of it against the network it fills."""

import dataclasses
import json
import logging
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.run.features import Features, keep_features, kept_features
from spp_jax.training.probe import fit_probe


def data(n=60, d=90, k=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 5, d) + rng.normal(size=d)
    z = (x - x.mean(0)) / x.std(0)
    logits = z[:, : 3 * k].reshape(n, k, 3).sum(axis=2) + 0.3 * rng.normal(size=(n, k))
    return x, 1 / (1 + np.exp(-logits)), [f"g{i // 2}" for i in range(n)]


def ridge(z, targets, strength):
    """Weights and intercept, by the normal equations, the intercept not shrunk."""
    n, d = z.shape
    design = np.concatenate([z, np.ones((n, 1))], axis=1)
    penalty = np.diag([strength * d] * d + [0.0])
    found = np.linalg.solve(design.T @ design + penalty, design.T @ targets)
    return found[:-1], found[-1]


def logit(p):
    p = np.clip(p, 0.02, 0.98)
    return np.log(p / (1 - p))


@pytest.mark.parametrize("shape", [(60, 90), (80, 20)])
def test_weights_are_those_of_the_normal_equations_but_for_the_calibration(shape):
    x, y, groups = data(*shape)
    probe = fit_probe(x, y, groups, strengths=(0.5,))
    z = (x - x.mean(0)) / x.std(0)
    weights, bias = ridge(z, logit(y[:, 0]), 0.5)
    slope = probe.weights[:, 0] @ weights / (weights @ weights)
    assert slope > 0
    np.testing.assert_allclose(probe.weights[:, 0], slope * weights, rtol=1e-8, atol=1e-12)
    expected = slope * (z @ weights)
    np.testing.assert_allclose(np.ptp(probe.logits(x)[:, 0] - expected), 0, atol=1e-9)
    assert bias == pytest.approx(logit(y[:, 0]).mean())


def test_a_held_out_logit_is_that_of_a_fit_without_its_fold():
    x, y, groups = data()
    probe = fit_probe(x, y, groups, strengths=(0.5,), folds=30)  # a group a fold
    z = (x - x.mean(0)) / x.std(0)
    plain = np.empty(len(x))
    for group in set(groups):
        out = np.array([g == group for g in groups])
        weights, bias = ridge(z[~out], logit(y[~out, 0]), 0.5)
        # The strength is relative to the same penalty whatever is left out.
        plain[out] = z[out] @ weights + bias
    slope = np.polyfit(plain, probe.held_out[:, 0], 1)
    np.testing.assert_allclose(np.polyval(slope, plain), probe.held_out[:, 0], atol=1e-8)
    assert probe.errors[0, 0, 0, 0] == pytest.approx(((plain - logit(y[:, 0])) ** 2).mean())


def test_a_quadratic_head_is_ridge_regression_with_its_kernel():
    x, y, groups = data(40, 12)
    z = (x - x.mean(0)) / x.std(0)
    target = logit(1 / (1 + np.exp(-z[:, 0] * z[:, 1])))
    y = 1 / (1 + np.exp(-target))
    probe = fit_probe(x, y, groups, strengths=(0.1,), curvatures=(2.0,), rank=12)
    inner = z @ z.T / 12
    kernel = inner + 2 * inner**2
    n = len(x)
    system = np.block([[kernel + 0.1 * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    *dual, bias = np.linalg.solve(system, np.append(target, 0))
    plain = kernel @ dual + bias
    slope = np.polyfit(plain, probe.logits(x)[:, 0], 1)
    assert slope[0] > 0
    np.testing.assert_allclose(np.polyval(slope, plain), probe.logits(x)[:, 0], atol=1e-9)


def test_what_bends_is_found_and_few_directions_tell_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 10))
    bent, straight = x[:, 0] * x[:, 1], x[:, 2]
    y = 1 / (1 + np.exp(-np.stack([bent, straight], axis=1)))
    groups = [str(i) for i in range(300)]
    probe = fit_probe(x, y, groups, strengths=(1e-3, 0.1), curvatures=(0.0, 1.0), rank=2)
    assert probe.curvatures[0] == 1
    assert probe.errors.shape == (1, 2, 2, 2)
    assert np.corrcoef(probe.logits(x)[:, 0], bent)[0, 1] > 0.97
    assert np.corrcoef(probe.logits(x)[:, 1], straight)[0, 1] > 0.97
    np.testing.assert_array_equal(probe.squares[:2, 1], 0)
    np.testing.assert_array_equal(probe.squares[2:, 0], 0)


def test_a_part_of_few_features_may_count_as_much_as_one_of_many():
    x, y, groups = data(40, 12)
    z = (x - x.mean(0)) / x.std(0)
    probe = fit_probe(x, y, groups, strengths=(0.5,), parts=(2, 10), balances=(1.0,))
    counts = np.repeat([1 / 2, 1 / 10], [2, 10])
    counts *= 12 / counts.sum()
    weights, _ = ridge(z * np.sqrt(counts), logit(y[:, 0]), 0.5)
    expected = weights * np.sqrt(counts)
    slope = probe.weights[:, 0] @ expected / (expected @ expected)
    np.testing.assert_allclose(probe.weights[:, 0], slope * expected, rtol=1e-8, atol=1e-12)
    chosen = fit_probe(x, y, groups, parts=(2, 10), balances=(0.0, 1.0))
    by_balance = chosen.errors[..., 0].min(axis=(1, 2))
    assert chosen.balances[0] == (0.0, 1.0)[int(np.argmin(by_balance))]


def test_what_is_cut_of_a_quadratic_head_leaves_its_mean():
    x, y, groups = data(80, 30)
    whole = fit_probe(x, y, groups, strengths=(0.1,), curvatures=(1.0,), rank=30)
    cut = fit_probe(x, y, groups, strengths=(0.1,), curvatures=(1.0,), rank=3)
    assert cut.logits(x).mean() == pytest.approx(whole.logits(x).mean())
    assert cut.directions.shape == (30, 3)


def test_attributes_are_fitted_on_the_rows_that_have_them():
    x, y, groups = data(k=2)
    y[:20, 0], y[40:, 1] = np.nan, np.nan
    probe = fit_probe(x, y, groups)
    assert (np.isnan(probe.held_out) == np.isnan(y)).all()
    other = y.copy()
    other[:40, 1] = 1 - other[:40, 1]
    np.testing.assert_array_equal(fit_probe(x, other, groups).weights[:, 0], probe.weights[:, 0])


def test_the_strength_is_the_one_that_errs_least_on_held_out_pictures():
    x, y, groups = data()
    tried = (1e-3, 0.3, 1e3)
    probe = fit_probe(x, y, groups, strengths=tried)
    assert (
        probe.strengths[0] == tried[int(np.argmin(probe.errors[0, 0, :, 0]))] < 1e3
    )  # which says the mean of all
    noise = np.random.default_rng(1).random(y.shape)
    assert fit_probe(x, noise, groups, strengths=tried).strengths[0] == 1e3


def test_calibration_spreads_scores_as_labels_are_and_keeps_their_order():
    x, y, groups = data(n=200, d=30)
    y = 0.4 + 0.5 * y  # most are good
    probe = fit_probe(x, y, groups, strengths=(5.0,))
    held = probe.held_out[:, 0]
    assert held.std() == pytest.approx(logit(y[:, 0]).std())
    z = (x - x.mean(0)) / x.std(0)
    plain = z @ ridge(z, logit(y[:, 0]), 5.0)[0]
    rank: Any = spearmanr(plain, probe.logits(x)[:, 0])
    assert rank.statistic == pytest.approx(1)
    good = y[:, 0] >= 0.5
    assert ((held >= 0) == good).mean() >= max(((held >= t) == good).mean() for t in held) - 0.05


def test_the_same_numbers_give_the_same_head():
    x, y, groups = data()
    first, second = fit_probe(x, y, groups), fit_probe(x.copy(), y.copy(), groups)
    np.testing.assert_array_equal(first.weights, second.weights)


def test_features_that_do_not_vary_count_for_nothing():
    x, y, groups = data()
    x[:, 4] = 7
    probe = fit_probe(x, y, groups)
    assert probe.scale[4] == 0
    assert probe.weights[4, 0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y, g: (x[:5], y, g), "of the same pictures"),
        (lambda x, y, g: (x * np.nan, y, g), "finite"),
        (lambda x, y, g: (x, y, ["one"] * len(g)), "two groups"),
        (lambda x, y, g: (x, y * 0 + 0.5, g), "nothing to learn"),
        (lambda x, y, g: (x, y * np.nan, g), "two groups"),
        (lambda x, y, g: (x, y, g, {"curvatures": (1.0,)}), "rank"),
        (lambda x, y, g: (x, y, g, {"parts": (1, 2)}), "of 3 features"),
    ],
)
def test_what_cannot_be_fitted_is_said(change, said):
    x, y, groups, *options = change(*data())
    with pytest.raises(ValueError, match=said):
        fit_probe(x, y, groups, **(options[0] if options else {}))


def test_kept_features_are_those_of_these_pictures(tmp_path):
    path, ids = tmp_path / "f.npz", ("a", "b")
    features = Features(np.array([[1, 2], [np.nan, np.nan]], np.float32), {"b": "is no picture"})
    assert kept_features(path, ids) is None
    keep_features(path, ids, features)
    found = kept_features(path, ids)
    assert found is not None
    np.testing.assert_array_equal(found.values, features.values)
    assert found.failed == features.failed
    assert kept_features(path, ("a", "c")) is None
    path.write_bytes(path.read_bytes()[:40])
    assert kept_features(path, ids) is None


OWN = """
from flax import nnx
from spp_jax.models import create_model
from spp_jax.layers import BatchNorm, Conv
from spp_jax.models.sppnet import LinearHead, Pyramid, QuadraticHead, SPPNet, Stages

class Normed(nnx.Module):
    def __init__(self, before, width, freeze_norm, rngs):
        self.conv = Conv(before, width, 3, strides=2, rngs=rngs)
        self.norm = BatchNorm(width, frozen=freeze_norm, rngs=rngs)
        self.chain, self.width = (self.conv.geometry,), width

    def __call__(self, x):
        return self.norm(self.conv(x)).map(nnx.relu)

def normed(*, levels=(1,), outputs=1, freeze_norm=False, rngs):
    stages = [Normed(3, 4, freeze_norm, rngs), Normed(4, 6, freeze_norm, rngs)]
    return SPPNet(
        Stages(stages),
        lambda bins, features: LinearHead(bins * features, outputs, rngs=rngs),
        features=10,
        levels=(1,),
        reduce=("mean",),
        maps=[Pyramid(0, (1,), ("mean",)), Pyramid(1, (1,), ("mean",))],
    )

def small(*, levels=(1,), outputs=1, rank=0, rngs):
    model = create_model("compact", widths=(4, 6), levels=levels, outputs=outputs, rngs=rngs)
    if rank:
        model.head = QuadraticHead(model.num_features, outputs, rank=rank, rngs=rngs)
    else:
        model.head = LinearHead(model.num_features, outputs, rngs=rngs)
    return model
"""


def bright_photos(folder):
    """A data set of its own: the brighter, the better."""
    from conftest import png

    (folder / "own.py").write_text(OWN)
    rng, rows = np.random.default_rng(0), ["file,score"]
    for i in range(24):
        level = rng.random()
        pixels = (rng.random((20 + i % 2, 24, 3)) * 255 * level).astype(np.uint8)
        (folder / f"{i}.png").write_bytes(png(pixels))
        rows.append(f"{i}.png,{level:.3f}")
    (folder / "scores.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module", params=[0, 3], ids=["linear", "quadratic"])
def probed(tmp_path_factory, request):
    from spp_jax.run.job import prepare
    from spp_jax.run.probe import run_probe

    folder = bright_photos(tmp_path_factory.mktemp("probe"))
    config = RunConfig(
        recipe="probe",
        data="folder",
        model=f"{folder}/own.py:small",
        model_options=(f"rank={request.param}",),
        levels=(1,),
        buckets=1,
        pixels_per_step=4096,
    )
    job = prepare(config, folder)
    result = run_probe(job, folder / "run", features_dir=folder / "features")
    return folder, job, result


def test_the_checkpoint_scores_as_the_fit_does(probed):
    from spp_jax import Scorer

    folder, job, result = probed
    test = job.parts["test"]
    scores, failed = Scorer.from_checkpoint(folder / "run").score_records(test)
    assert not failed
    figures = test.agreement(scores)
    assert dataclasses.asdict(figures)["plcc"] == pytest.approx(result.figures.plcc, abs=1e-5)
    described = json.loads((folder / "run" / "metrics.json").read_text())
    assert described["count"] == len(test)
    assert (folder / "run" / "report.html").is_file()


def test_kept_features_serve_every_fold_and_both_images(probed, monkeypatch):
    import spp_jax.run.probe
    from spp_jax.run.job import prepare

    folder, job, _ = probed
    assert len(list((folder / "features").glob("*.npz"))) == 2
    monkeypatch.setattr(spp_jax.run.probe, "features_of", None)  # not to be called
    other = prepare(dataclasses.replace(job.config, fold=1), folder)
    result = spp_jax.run.probe.run_probe(other, folder / "second", features_dir=folder / "features")
    assert result.figures.count == len(other.parts["test"])


def test_what_a_run_will_do_is_said_in_two_lines(probed, tmp_path, caplog):
    from spp_jax.run.probe import run_probe

    folder, job, _ = probed
    caplog.set_level(logging.INFO)
    run_probe(job, tmp_path / "run", features_dir=folder / "features")
    device = f"on {job.mesh.size} {job.mesh.devices.flat[0].device_kind}"
    counts = [len(job.parts[split]) for split in ("train", "validation", "test")]
    assert sum(counts) == 24
    first = "folder, fold 0: {} train, {} validation, {} test pictures\n".format(*counts)
    first += f"{folder}/own.py:small, "
    assert f"{first}a head over features that stay as they are; 1 bucket; {device}" in caplog.messages
    assert str(job).startswith(f"{first}pyramid (1,): {job.total_steps} steps of about ")
    assert " pictures; 1 bucket, " in str(job)
    assert str(job).endswith(f"% of the pixels are padding; {device}")


def test_parameters_of_few_bits_are_near_and_take_less_space(probed, tmp_path):
    from spp_jax.checkpoints import Checkpoints
    from spp_jax.run.probe import run_probe

    folder, job, _ = probed
    short = dataclasses.replace(job, config=dataclasses.replace(job.config, bits=12))
    run_probe(short, tmp_path / "few", features_dir=folder / "features")
    with Checkpoints(folder / "run") as whole, Checkpoints(tmp_path / "few") as rounded:
        variables, few = whole.model_variables(), rounded.model_variables()
    for name, exact in variables.items():
        near = few[name]
        np.testing.assert_allclose(near, exact, rtol=2.0**-12)
        if exact.dtype == np.float32:
            np.testing.assert_array_equal(near.view(np.uint32) % 2**12, 0)


def test_a_folder_into_which_another_trains_is_refused(tmp_path, probed):
    from spp_jax.run.lock import RunLock
    from spp_jax.run.probe import run_probe

    folder, job, _ = probed
    with RunLock(tmp_path), pytest.raises(UsageError, match="another process trains into"):
        run_probe(job, tmp_path, features_dir=folder / "features")
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_head_to_fit_is_refused(tmp_path, probed):
    from spp_jax.run.job import prepare
    from spp_jax.run.probe import run_probe

    folder, job, _ = probed
    config = dataclasses.replace(job.config, model="compact", model_options=("widths=(4,6)", "hidden=4"))
    with pytest.raises(UsageError, match="linear or quadratic head"):
        run_probe(prepare(config, folder), tmp_path / "run", features_dir=tmp_path)


@pytest.mark.parametrize("rank", [0, 3], ids=["linear", "quadratic"])
def test_an_attribute_may_be_judged_alone(tmp_path, rank):
    import jax.numpy as jnp
    from flax import nnx

    from spp_jax import Scorer, plan_buckets
    from spp_jax.checkpoints import About, Checkpoints
    from spp_jax.models.configured import build_model

    (tmp_path / "own.py").write_text(OWN)
    config = RunConfig(
        labels=("sharp", "bright"),
        model=f"{tmp_path}/own.py:small",
        model_options=(f"rank={rank}",),
        levels=(1,),
        buckets=1,
    )
    model, rng = build_model(config, 2), np.random.default_rng(0)
    for layer in (model.head.logits, getattr(model.head, "curvature", None)):
        if layer is not None:
            layer.kernel[...] = rng.normal(size=layer.kernel.shape).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        about = About.of(config, plan_buckets([(16, 16)], 1), "none")
        checkpoints.save(1, nnx.state(model), jnp.zeros(1), about, 0.5)
    photos = [rng.integers(0, 255, (16, 20, 3), np.uint8)]
    both = Scorer.from_checkpoint(tmp_path).score(photos)
    for column, name in enumerate(config.labels):
        one = Scorer.from_checkpoint(tmp_path, attributes=(name,))
        assert one.attributes == (name,)
        np.testing.assert_allclose(one.score(photos), both[:, column], rtol=1e-6)
    with pytest.raises(UsageError, match="judges sharp, bright, not dull"):
        Scorer.from_checkpoint(tmp_path, attributes=("dull",))


def test_judges_have_names():
    from spp_jax.scoring import JUDGES, list_shipped, shipped

    assert set(list_shipped()) == set(JUDGES)
    assert shipped("quality") == shipped("beauty")
    with pytest.raises(UsageError, match="does not ship; those that do: quality, beauty, all, compact"):
        shipped("taste")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A probe of a network with batch normalisation, and four steps of descent from there."""
    from spp_jax.run.job import prepare
    from spp_jax.run.probe import run_probe
    from spp_jax.run.training_run import TrainingRun

    folder = bright_photos(tmp_path_factory.mktemp("finetune"))
    config = RunConfig(
        recipe="probe",
        data="folder",
        model=f"{folder}/own.py:normed",
        levels=(1,),
        buckets=1,
        pixels_per_step=4096,
    )
    run_probe(prepare(config, folder), folder / "probe", features_dir=folder / "features")
    config = dataclasses.replace(
        config,
        recipe="finetune",
        init_from=str(folder / "probe"),
        learning_rate=0.01,
        body_rate=0.1,
        steps=4,
        save_every=2,
    )
    job = prepare(config, folder)
    with TrainingRun(job, folder / "tuned") as run:
        figures = run.train()
    return folder, job, figures


def variables(folder):
    from spp_jax.checkpoints import Checkpoints

    with Checkpoints(folder) as checkpoints:
        return checkpoints.model_variables()


def test_fine_tuning_begins_with_the_probe_and_holds_its_statistics(tuned):
    folder, _, figures = tuned
    before, after = variables(folder / "probe"), variables(folder / "tuned")
    assert figures.count > 0
    for name in (
        "head/mean",
        "head/scale",
        *(f"body/stages/{i}/norm/{s}" for i in (0, 1) for s in ("mean", "var")),
    ):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    moved = {name: np.abs(after[name] - before[name]).max() for name in before}
    # By Adam each parameter of the head moves by about the rate a step, and of the body by a tenth of it.
    assert 0.002 < moved["head/logits/kernel"] < 0.05
    assert 0 < moved["body/stages/1/conv/kernel"] < 0.005


def test_fine_tuning_goes_on_exactly(tuned, tmp_path):
    import shutil

    from spp_jax.run.training_run import TrainingRun

    folder, job, _ = tuned
    shutil.copytree(folder / "tuned", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    with TrainingRun(job, tmp_path / "run", resume=True) as run:
        run.begin()
        assert 0 < run.done < 4
        run.compile()
        run.fit()
        run.finish()
    whole, resumed = variables(folder / "tuned"), variables(tmp_path / "run")
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


@pytest.mark.slow
def test_the_judges_that_ship_judge_as_they_did_when_they_were_trained():
    skimage = pytest.importorskip("skimage")
    from PIL import Image, ImageFilter

    from spp_jax import Scorer

    photos = [getattr(skimage.data, name)() for name in ("coffee", "chelsea", "astronaut")]
    blurred = [np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(3))) for photo in photos]
    scorer = Scorer.from_pretrained("all")
    assert scorer.attributes == ("quality", "beauty")
    scores = scorer.score(photos)
    expected = [[0.832, 0.611], [0.853, 0.720], [0.726, 0.427]]
    np.testing.assert_allclose(scores, expected, atol=0.01)
    for column, name in enumerate(scorer.attributes):
        alone = Scorer.from_pretrained(name).score(photos[:1])
        np.testing.assert_allclose(alone, scores[:1, column], atol=1e-5)
    np.testing.assert_array_less(scorer.score(blurred)[:, 0], 0.4)
