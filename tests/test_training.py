import dataclasses
import functools
import json
import math
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import noise_records
from flax import nnx

from spp_jax import Bucket, config, plan_buckets
from spp_jax.compilation import data_mesh, use_compilation_cache
from spp_jax.config import RunConfig
from spp_jax.data.loading import abstract_batch, load_batches
from spp_jax.data.records import Records
from spp_jax.data.schedule import Schedule
from spp_jax.errors import UsageError
from spp_jax.testing import count_compilations
from spp_jax.training import configured_training, fit, step_executables, train_step
from spp_jax.training.losses import create_loss

RECORDS = noise_records()
CONFIG = RunConfig(buckets=3, pixels_per_step=20_000, learning_rate=1e-3)
PLAN = plan_buckets(RECORDS.sizes, **CONFIG.bucketing)
MESH = data_mesh()


@dataclasses.dataclass
class Run:
    """A run over the noise records, started anew."""

    schedule: Schedule
    records: Records = RECORDS
    config: RunConfig = CONFIG

    def __post_init__(self):
        total = 2 * self.schedule.first_step(1)
        self.recipe, self.state = configured_training(self.config, total, self.schedule.mean_batch)
        self.step = step_executables(self.recipe, self.state, MESH)

    def fit(self, start: int, stop: int) -> list[dict]:
        seen = []

        def after_step(done, state, metrics):
            seen.append({"step": done, **metrics})
            return False

        self.state = fit(
            self.step,
            self.state,
            self.records,
            self.schedule,
            MESH,
            start=start,
            stop=stop,
            after_step=after_step,
        )
        return seen


@pytest.fixture
def schedule():
    return Schedule(RECORDS.sizes, PLAN, seed=0, flip=True)


def test_an_epoch_over_k_buckets_compiles_the_step_k_times_and_sees_every_picture(schedule):
    run = Run(schedule)
    with count_compilations() as count:
        seen = run.fit(0, schedule.first_step(1))
    assert count.compiled["step"] + count.cached["step"] == len(PLAN.shapes) == 3
    assert sum(metrics["pictures"] for metrics in seen) == len(RECORDS)
    with count_compilations() as count:
        run.fit(schedule.first_step(1), schedule.first_step(1) + 5)
    assert not count.compiled["step"]


@pytest.mark.slow
def test_a_second_start_with_the_same_cache_compiles_no_step(schedule, tmp_path):
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        )
    }
    use_compilation_cache(tmp_path / "xla")
    assert (tmp_path / "xla").stat().st_mode & 0o077 == 0
    try:
        counts = []
        for _ in range(2):
            jax.clear_caches()
            run = Run(schedule)
            with count_compilations() as count:
                list(run.step.compile_all(PLAN.buckets))
            counts.append((count.compiled["step"], count.cached["step"]))
        assert counts == [(3, 0), (0, 3)]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.slow
def test_memory_is_flat_over_2000_steps_of_all_buckets(schedule):
    run = Run(schedule)
    pages = []

    def after_step(done, state, metrics):
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        return False

    fit(
        run.step,
        run.state,
        run.records,
        schedule,
        MESH,
        start=0,
        stop=2000,
        after_step=after_step,
    )
    megabytes = np.array(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
    begins, ends = megabytes[500:750].mean(), megabytes[-250:].mean()
    assert ends - begins < 4, (begins, ends)  # MB; a batch is of one, and each step has several arrays


def test_training_lowers_the_loss(schedule):
    seen = Run(schedule).fit(0, 2 * schedule.first_step(1))
    losses = [metrics["loss"] for metrics in seen]
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.slow
def test_every_picture_weighs_the_same_in_an_epochs_gradient(schedule, x64):
    """The steps' gradients, averaged over an epoch, are the gradient of the mean over all pictures.

    With the parameters held still, and in a network without batch statistics.
    """
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=3))
    loss = create_loss("cross_entropy")

    def losses(weights, batch):
        mask = batch.images.mask()
        features = jnp.where(mask, batch.images.values, 0).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1)
        return loss.of((features / 255 @ weights)[:, None], batch)

    plain = Schedule(RECORDS.sizes, PLAN, seed=0, flip=False)
    steps, sizes = [], []
    for _, batch, _ in load_batches(RECORDS, plain.steps(0, plain.first_step(1))):
        steps.append(jax.grad(lambda w, b=batch: b.weights @ losses(w, b) / plain.mean_batch)(weights))
        sizes.append(int(batch.weights.sum()))
    assert len(set(sizes)) > 1  # else nothing is shown
    alone = plan_buckets(RECORDS.sizes, 40, multiple=1)
    one_by_one = Schedule(RECORDS.sizes, alone, seed=1, flip=False)
    lone = [
        jax.grad(lambda w, b=batch: losses(w, b).sum())(weights)
        for _, batch, _ in load_batches(RECORDS, one_by_one.steps(0, len(RECORDS)))
    ]
    assert len(lone) == len(RECORDS)
    np.testing.assert_allclose(np.mean(steps, 0), np.mean(lone, 0), rtol=1e-5)  # uint8 sums in float32


def test_filler_rows_change_neither_parameters_nor_statistics(schedule):
    run = Run(schedule)
    spec, batch, _ = next(load_batches(RECORDS, schedule.steps(0, 1)))
    batch = jax.tree.map(jnp.asarray, batch)
    more = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:2])]) if x.ndim else x, batch)
    found, expected = (
        jax.jit(lambda state, b: train_step(run.recipe, state, b))(run.state, b) for b in (more, batch)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), found[0].stats, expected[0].stats
    )
    np.testing.assert_allclose(found[1].loss, expected[1].loss, rtol=1e-5)
    assert found[1].pictures == expected[1].pictures == len(spec.rows)


def test_a_step_on_turned_pictures_is_the_step_on_them_as_they_are(schedule):
    run = Run(schedule)
    spec = next(spec for spec in schedule.steps(0, schedule.first_step(1)) if spec.turned)
    upright = dataclasses.replace(
        spec, bucket=Bucket(spec.bucket.shape[::-1], spec.bucket.batch_size), turned=False
    )
    batches = [jax.tree.map(jnp.asarray, batch) for _, batch, _ in load_batches(RECORDS, [spec, upright])]
    assert batches[0].images.turned
    assert batches[1].images.turned is None
    (turned, losses), (straight, other_losses) = (
        jax.jit(lambda state, b: train_step(run.recipe, state, b))(run.state, batch) for batch in batches
    )
    np.testing.assert_allclose(losses.loss, other_losses.loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), turned.params, straight.params
    )


def test_a_step_without_any_readable_picture_keeps_the_state_finite(schedule):
    records = dataclasses.replace(RECORDS, photo=lambda i: b"text")
    run = Run(schedule, records)
    (metrics,) = run.fit(0, 1)
    assert metrics["pictures"] == 0
    assert len(metrics["failed"]) >= 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state))


def test_stopping_early_ends_with_the_state_after_that_step(schedule):
    run, other = Run(schedule), Run(schedule)
    stopped = fit(
        run.step, run.state, RECORDS, schedule, MESH, start=0, stop=20, after_step=lambda done, *_: done == 3
    )
    other.fit(0, 3)
    jax.tree.map(np.testing.assert_array_equal, stopped, other.state)


def test_a_run_is_a_function_of_its_configuration(schedule):
    first, second = Run(schedule), Run(schedule)
    first.fit(0, 6)
    second.fit(0, 2)
    second.fit(2, 6)
    jax.tree.map(np.testing.assert_array_equal, first.state, second.state)


class TestOptimization:
    """One step on values of which the outcome is worked out by hand."""

    def step(self, config: RunConfig, steps: int = 1):
        recipe, state = configured_training(config, 1000, 1.0)
        grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), state.params)
        params, opt_state = state.params, state.opt_state
        for _ in range(steps):
            updates, opt_state = recipe.optimizer.update(
                grads, opt_state, params, total_updates=state.constants.total_updates
            )
            params = optax.apply_updates(params, updates)
        return state.params, params, grads

    def test_sgd_is_momentum_and_decoupled_decay_times_the_rate(self):
        config = RunConfig(optimizer="sgd", warmup=0, learning_rate=0.1, weight_decay=0.01, momentum=0.5)
        before, after, grads = self.step(config, steps=2)
        first = (1 + math.cos(math.pi * 1 / 1000)) / 2 * 0.1  # the second update's rate

        def expected(p, g):
            p1 = p - 0.1 * (g + 0.01 * p)
            return p1 - first * (1.5 * g + 0.01 * p1)

        jax.tree.map(
            lambda a, p, g: np.testing.assert_allclose(a, expected(p, g), rtol=1e-5, atol=1e-7),
            after,
            before,
            grads,
        )

    @pytest.mark.parametrize(("steps", "warmup"), [(1, 0.05), (7, 0.5), (60, 0.05), (30, 0), (30, 0.99)])
    def test_the_rate_is_that_of_optax_for_a_warm_up_and_a_cosine(self, steps, warmup):
        config = RunConfig(optimizer="sgd", warmup=warmup, weight_decay=0, momentum=0, learning_rate=2)
        recipe, state = configured_training(config, steps, 1.0)
        grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), state.params)
        expected = optax.warmup_cosine_decay_schedule(0, 2, min(round(warmup * steps), steps - 1), steps)
        opt_state, update = state.opt_state, jax.jit(recipe.optimizer.update)
        for count in range(steps + 2):
            moves, opt_state = update(
                grads, opt_state, state.params, total_updates=state.constants.total_updates
            )
            rate = -float(jax.tree.leaves(moves)[0].ravel()[0]) * 1e3
            assert rate == pytest.approx(np.asarray(expected(count)), rel=1e-5, abs=1e-6)

    def test_runs_of_other_lengths_on_other_parts_share_their_programs(self, schedule):
        def program(total, mean_batch):
            recipe, state = configured_training(CONFIG, total, mean_batch)
            step = jax.jit(functools.partial(train_step, recipe))
            return step.lower(state, abstract_batch(schedule.buckets[0], MESH)).as_text()

        assert program(10, 8.0) == program(5000, 2.5)

    def test_with_accumulation_parameters_wait_for_as_many_gradients(self):
        config = RunConfig(optimizer="sgd", warmup=0, weight_decay=0, momentum=0, accumulate=3)
        before, after, _ = self.step(config, steps=2)
        jax.tree.map(np.testing.assert_array_equal, before, after)
        before, after, grads = self.step(config, steps=3)
        jax.tree.map(
            lambda a, p, g: np.testing.assert_allclose(a, p - 1e-3 * g, rtol=1e-6), after, before, grads
        )

    def test_what_is_frozen_stays_and_the_rest_moves(self):
        before, after, _ = self.step(RunConfig(freeze=("body/stages/0/*", "head/hidden/bias"), warmup=0))
        moved = {
            jax.tree_util.keystr(path[:-1], simple=True, separator="/"): bool((a != b).any())
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True
            )
        }
        assert {name for name, has in moved.items() if not has} == {
            "body/stages/0/conv/kernel",
            "head/hidden/bias",
        }

    @pytest.mark.parametrize(
        ("patterns", "said"),
        [(("body/nosuch",), "no parameter's path is like that"), (("*",), "nothing is left")],
    )
    def test_freezing_nothing_or_everything_is_refused(self, patterns, said):
        with pytest.raises(UsageError, match=said):
            configured_training(RunConfig(freeze=patterns), 10, 1.0)

    def test_the_average_follows_the_parameters(self, schedule):
        run = Run(schedule, config=dataclasses.replace(CONFIG, ema=0.75))
        begin = jax.tree.map(np.asarray, run.state.params)
        run.fit(0, 1)
        assert run.state.average is not None
        jax.tree.map(
            lambda a, p, q: np.testing.assert_allclose(a, 0.75 * p + 0.25 * q, rtol=1e-5, atol=1e-7),
            run.state.average,
            begin,
            run.state.params,
        )
        judged, _ = nnx.split_state(run.state.model, nnx.Param, ...)
        jax.tree.map(np.testing.assert_array_equal, judged, run.state.average)

    @pytest.mark.slow
    def test_in_bfloat16_parameters_statistics_and_loss_stay_float32(self, schedule):
        run = Run(schedule, config=dataclasses.replace(CONFIG, dtype="bfloat16"))
        other = Run(schedule)
        seen, expected = run.fit(0, 3), other.fit(0, 3)
        assert {leaf.dtype for leaf in jax.tree.leaves(run.state) if leaf.ndim} == {jnp.dtype("float32")}
        for one, two in zip(seen, expected, strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=0.05)
        step = jax.jit(functools.partial(train_step, run.recipe))
        program = step.lower(run.state, abstract_batch(schedule.buckets[0], MESH)).as_text()
        convolutions = re.findall(r"stablehlo.convolution.*-> tensor<\S*x(\w+)>", program)
        assert convolutions
        assert set(convolutions) == {"bf16"}

    def test_votes_are_trained_on_by_their_distance(self, schedule):
        votes = np.random.default_rng(0).dirichlet(np.ones(3), len(RECORDS)).astype(np.float32)
        records = dataclasses.replace(RECORDS, labels={"votes": votes}, marks=(0.0, 0.5, 1.0))
        config = dataclasses.replace(CONFIG, loss="emd")
        recipe, state = configured_training(config, 100, schedule.mean_batch, records.marks)
        step = step_executables(recipe, state, MESH, records)
        losses = []

        def after_step(done, state, metrics):
            losses.append(metrics["loss"])
            return False

        fit(
            step,
            state,
            records,
            schedule,
            MESH,
            start=0,
            stop=2 * schedule.first_step(1),
            after_step=after_step,
        )
        # Before anything is learnt, the judged shares are a third each.
        _, batch, _ = next(load_batches(records, schedule.steps(0, 1)))
        ahead = np.cumsum(1 / 3 - np.asarray(batch.labels["votes"])[np.asarray(batch.weights) > 0], axis=1)
        assert losses[0] == pytest.approx((ahead**2).mean(), rel=1e-4)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_no_number_stops_the_run_with_step_bucket_and_pictures(schedule, poison):
    run = Run(schedule)
    loss = run.recipe.loss

    def of(logits, batch):
        bad = jnp.where(batch.scores.sum() > 0, jnp.nan, 0)
        found = loss.of(logits, batch)
        if poison == "loss":
            return found + bad
        return found + jnp.where(logits[:, 0] == logits[:, 0] + 1, 0, jnp.sqrt(0 * logits[:, 0]))  # 0 * inf

    run.recipe = dataclasses.replace(run.recipe, loss=dataclasses.replace(loss, of=of))
    run.step = step_executables(run.recipe, run.state, MESH)
    said = {"loss": "the loss of step 1 is nan", "gradient": "the gradient's norm of step 1 is nan"}[poison]
    with pytest.raises(FloatingPointError, match=rf"{said} \(bucket .*, pictures noise-0"):
        run.fit(0, 1)


class TestConfig:
    def test_goes_through_json_values_unchanged(self):
        config = RunConfig(levels=(1, 3), steps=7, fold=2)
        assert RunConfig.from_dict(config.to_dict()) == config
        assert hash(config) == hash(RunConfig.from_dict({**config.to_dict(), "levels": [1, 3]}))

    @pytest.mark.parametrize(
        "field",
        [
            {"epochs": 0},
            {"levels": ()},
            {"levels": (0,)},
            {"learning_rate": 0.0},
            {"warmup": 1.0},
            {"seed": -1},
            {"optimizer": "lion"},
            {"dtype": "int8"},
            {"ema": 1.0},
            {"accumulate": 0},
            {"save_minutes": 0.0},
            {"huber_delta": 0.0},
        ],
    )
    def test_refuses_what_means_nothing(self, field):
        (name,) = field
        with pytest.raises(UsageError, match=f"{name} must be"):
            RunConfig(**field)

    def test_names_the_fields_of_a_later_version(self):
        with pytest.raises(UsageError, match="later version of spp_jax, whose colour, hue this one"):
            RunConfig.from_dict({**RunConfig().to_dict(), "colour": 1, "hue": 2})

    def test_a_field_that_an_older_version_did_not_have_is_as_it_was_then(self, monkeypatch):
        older = RunConfig(epochs=3, levels=(1, 2)).to_dict()
        del older["flip"], older["weight_decay"]
        monkeypatch.setitem(config.AS_IT_WAS, "flip", False)
        found = RunConfig.from_dict(json.loads(json.dumps(older)))
        assert found == RunConfig(epochs=3, levels=(1, 2), flip=False)
        assert hash(found) == hash(RunConfig(epochs=3, levels=(1, 2), flip=False))

    def test_says_what_differs(self):
        changed = RunConfig(seed=1, save_every=7)
        assert changed.differences(RunConfig()) == (["seed: 1, not 0"], ["save_every: 7, not 200"])
