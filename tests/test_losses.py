import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from spp_jax import Padded
from spp_jax.config import UsageError
from spp_jax.data.loading import Batch
from spp_jax.training.losses import create_loss, list_losses

MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)
RNG = np.random.default_rng(0)


def batch(rows: int = 6, marks: int = 5) -> Batch:
    votes = RNG.dirichlet(np.ones(marks), rows)
    scores = RNG.uniform(size=rows)
    images = Padded.whole(jnp.zeros((rows, 1, 1, 3)))
    arrays = (scores, scores >= 0.5, np.ones(rows), votes)
    return Batch(images, *(jnp.asarray(array) for array in arrays))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize(("name", "label"), [("cross_entropy", "scores"), ("good", "good")])
def test_cross_entropies_are_those_of_the_score_and_of_good(name, label):
    labels, logits = batch(), RNG.normal(size=(6, 1))
    p, y = sigmoid(logits[:, 0]), np.asarray(getattr(labels, label), np.float64)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    loss = create_loss(name)
    np.testing.assert_allclose(loss.of(jnp.asarray(logits), labels), expected, rtol=1e-5)
    np.testing.assert_allclose(loss.score(jnp.asarray(logits)), p, rtol=1e-5)


def test_huber_is_a_square_near_the_score_and_a_line_beyond():
    labels, logits = batch(), RNG.normal(size=(6, 1)) * 3
    error = np.abs(sigmoid(logits[:, 0]) - np.asarray(labels.scores))
    expected = np.where(error < 0.2, error**2 / 2, 0.2 * (error - 0.1))
    assert {bool(e < 0.2) for e in error} == {True, False}
    found = create_loss("huber", huber_delta=0.2).of(jnp.asarray(logits), labels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_emd_compares_cumulated_shares_and_its_score_is_the_mean_mark():
    labels, logits = batch(), RNG.normal(size=(6, 5))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = []
    for judged, true in zip(shares, np.asarray(labels.histograms), strict=True):
        ahead = [sum(judged[: k + 1]) - sum(true[: k + 1]) for k in range(5)]
        expected.append(sum(a * a for a in ahead) / 5)
    loss = create_loss("emd", marks=MARKS)
    assert loss.outputs == 5
    np.testing.assert_allclose(loss.of(jnp.asarray(logits), labels), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(loss.score(jnp.asarray(logits)), shares @ np.asarray(MARKS), rtol=1e-5)


@pytest.mark.parametrize("name", list_losses())
class TestEveryLoss:
    def test_has_the_gradient_of_its_differences(self, name, x64):
        loss = create_loss(name, marks=MARKS)
        logits, labels = jnp.asarray(RNG.normal(size=(4, loss.outputs))), batch(4)
        check_grads(lambda x: loss.of(x, labels).sum(), (logits,), 1, ["rev"], eps=1e-5)

    @pytest.mark.parametrize("shape", [(4,), (4, 3), (1, 1), (4, 1, 1)])
    def test_refuses_shapes_that_would_broadcast(self, name, shape):
        with pytest.raises(ValueError, match="broadcasting would hide a mistake"):
            create_loss(name, marks=MARKS).of(jnp.zeros(shape), batch(4))

    def test_is_computed_in_float32_from_bfloat16_logits(self, name):
        loss = create_loss(name, marks=MARKS)
        logits = jnp.zeros((4, loss.outputs), jnp.bfloat16)
        assert loss.of(logits, batch(4)).dtype == jnp.float32
        assert loss.score(logits).dtype == jnp.float32

    def test_is_finite_for_logits_that_saturate(self, name):
        loss = create_loss(name, marks=MARKS)
        logits = jnp.full((4, loss.outputs), -1e4).at[:, -1].set(1e4)
        value, gradient = jax.value_and_grad(lambda x: loss.of(x, batch(4)).sum())(logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_what_is_unknown_or_lacks_votes_is_refused():
    with pytest.raises(
        UsageError, match=r"loss 'nosuch' is unknown; known are cross_entropy, emd, good, huber"
    ):
        create_loss("nosuch")
    with pytest.raises(UsageError, match="loss emd needs a data set with votes"):
        create_loss("emd")
