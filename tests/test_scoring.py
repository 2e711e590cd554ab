import jax
import numpy as np
import pytest
from conftest import noise_records, png
from flax import nnx

from spp_jax import Scorer, create_model, plan_buckets
from spp_jax.compilation import data_mesh, replicated
from spp_jax.config import RunConfig
from spp_jax.data.decoding import decode
from spp_jax.scoring import forward_executables, score_records
from spp_jax.testing import assert_no_compilations, count_compilations
from spp_jax.training.losses import create_loss

RECORDS = noise_records()


@pytest.fixture(scope="module")
def model():
    model = create_model("compact", widths=(4, 8), hidden=8, rngs=nnx.Rngs(0))
    # The head starts undecided, at 0.5 for every picture; move it.
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    return model


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model, RunConfig(buckets=3, pixels_per_step=20_000))


def test_paths_bytes_and_pixels_are_scored_alike_in_the_order_given(scorer, tmp_path):
    data = [RECORDS.photo(i) for i in range(5)]
    (tmp_path / "a.png").write_bytes(data[0])
    expected = scorer.score(data)
    assert expected.dtype == np.float32
    assert ((expected >= 0) & (expected <= 1)).all()
    assert len(set(expected.tolist())) == 5
    again = scorer.score([decode(data[4]), *data[1:4], tmp_path / "a.png"])
    np.testing.assert_allclose(again, expected[[4, 1, 2, 3, 0]], rtol=1e-5)


def test_any_plan_gives_the_same_scores(model):
    model.eval()
    graph, variables = nnx.split(model)
    mesh = data_mesh()
    variables = jax.device_put(variables, replicated(mesh))
    forward = forward_executables(graph, create_loss("good"), variables, mesh)
    scores = []
    for most, pixels in ((1, 1), (3, 30_000), (6, 8_000)):
        plan = plan_buckets(RECORDS.sizes, most, pixels_per_step=pixels)
        found, _, skipped = score_records(forward, variables, RECORDS, plan, mesh)
        assert not skipped
        scores.append(found)
    for found in scores[1:]:
        np.testing.assert_allclose(found, scores[0], rtol=1e-4)


def test_one_compilation_a_bucket_and_none_for_buckets_met_before(model):
    scorer = Scorer(model, RunConfig(buckets=3, pixels_per_step=20_000))
    with count_compilations() as count:
        scorer.score_records(RECORDS)
    assert count.compiled["forward"] + count.cached["forward"] == len(plan_buckets(RECORDS.sizes, 3).shapes)
    with assert_no_compilations():
        scorer.score_records(RECORDS)


def test_what_cannot_be_scored_is_nan_with_its_reason_and_costs_the_others_nothing(scorer):
    photos = [RECORDS.photo(0), b"text", "no/such.jpg", png(np.zeros((3, 50, 3), np.uint8)), RECORDS.photo(1)]
    done = []
    scores = scorer.score(photos, progress=done.append)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, True, True, False])
    np.testing.assert_allclose(scores[[0, 4]], scorer.score([photos[0], photos[4]]), rtol=1e-5)
    assert sum(done) == 5
    scorer.score(photos)
    assert list(scorer.skipped) == [1, 2, 3]
    assert scorer.skipped[2] == "there is no such file"
    assert "smaller than the model takes: at least 8 high and 8 wide" in scorer.skipped[3]


def test_nothing_to_score_is_an_empty_answer(scorer):
    assert scorer.score([]).shape == (0,)
    assert np.isnan(scorer.score([b"text"])).all()
