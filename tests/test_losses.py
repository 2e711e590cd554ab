import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from spp_jax import Padded
from spp_jax.data.loading import Batch
from spp_jax.errors import UsageError
from spp_jax.training.losses import create_loss, list_losses

MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)
RNG = np.random.default_rng(0)


def batch(rows: int = 6, marks: int = 5) -> Batch:
    votes = RNG.dirichlet(np.ones(marks), rows)
    scores = RNG.uniform(size=rows)
    images = Padded.whole(jnp.zeros((rows, 1, 1, 3)))
    arrays = (scores, scores >= 0.5, np.ones(rows))
    # Rows 0 and 1, 2 and 3, ... are pairs; a last odd one is alone.
    partner = np.minimum(np.arange(rows) ^ 1, rows - 1)
    share = np.where(np.arange(rows) % 2, 0.75, 0.25)
    labels = {"votes": votes, "partner": partner, "preferred": share}
    given = dict(zip(("scores", "good", "weights"), map(jnp.asarray, arrays), strict=True))
    return Batch(images, **given, labels={name: jnp.asarray(values) for name, values in labels.items()})


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
    for judged, true in zip(shares, np.asarray(labels.labels["votes"]), strict=True):
        ahead = [sum(judged[: k + 1]) - sum(true[: k + 1]) for k in range(5)]
        expected.append(sum(a * a for a in ahead) / 5)
    loss = create_loss("emd", marks=MARKS)
    assert loss.outputs == 5
    np.testing.assert_allclose(loss.of(jnp.asarray(logits), labels), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(loss.score(jnp.asarray(logits)), shares @ np.asarray(MARKS), rtol=1e-5)


def paired(shares: list[float], weights: list[float]) -> Batch:
    """Rows 0 and 1, 2 and 3, ... are pairs; the shares are of the votes for the first of each."""
    rows = 2 * len(shares)
    preferred = np.stack([shares, 1 - np.array(shares)], axis=1).ravel()
    return batch(rows)._replace(
        weights=jnp.array(weights),
        labels={"partner": jnp.arange(rows) ^ 1, "preferred": jnp.array(preferred)},
    )


class TestBradleyTerry:
    """Against numbers worked out by hand: log(1 + e^-1) = .3132617, log(1 + e) = 1.3132617."""

    LOGITS = jnp.array([2.0, 1.0, 0.5, -0.5, 3.0, 3.0])[:, None]

    def test_is_the_cross_entropy_of_the_votes(self):
        loss = create_loss("bradley_terry")
        found = loss.of(self.LOGITS, paired([1.0, 0.2, 0.5], [1.0] * 6))
        split = 0.2 * 0.3132617 + 0.8 * 1.3132617
        expected = [0.3132617, 0.3132617, split, split, np.log(2), np.log(2)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        right = loss.correct(self.LOGITS, paired([1.0, 0.2, 0.5], [1.0] * 6))
        np.testing.assert_allclose(right, [1, 1, 0, 0, 0.5, 0.5])
        assert loss.needs == ("pairs",)

    def test_a_pair_whose_other_picture_could_not_be_read_counts_for_nothing(self):
        labels = paired([1.0, 0.2, 0.5], [1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
        preferred = labels.labels["preferred"].at[4:].set(jnp.nan)  # alone
        labels = labels._replace(labels={**labels.labels, "preferred": preferred})
        loss = create_loss("bradley_terry")
        value, gradient = jax.value_and_grad(lambda x: loss.of(x, labels)[jnp.array([0, 1, 2, 4, 5])].sum())(
            self.LOGITS
        )
        assert value == pytest.approx(2 * 0.3132617, rel=1e-5)
        # The derivative of log(1 + e^-d) is -1 / (1 + e^d): of both rows of the pair.
        slope = 2 * -0.2689414
        np.testing.assert_allclose(gradient[:, 0], [slope, -slope, 0, 0, 0, 0], atol=1e-6)
        np.testing.assert_allclose(loss.correct(self.LOGITS, labels)[4:], 0)

    def test_is_of_the_first_of_several_attributes(self):
        two = jnp.concatenate([self.LOGITS, -self.LOGITS], axis=1)
        labels = paired([1.0, 0.2, 0.5], [1.0] * 6)
        found = create_loss("bradley_terry", attributes=("beauty", "quality")).of(two, labels)
        np.testing.assert_array_equal(found, create_loss("bradley_terry").of(self.LOGITS, labels))

    def test_may_be_added_to_a_loss_on_scores(self):
        labels = paired([1.0, 0.2, 0.5], [1.0] * 6)
        labels = labels._replace(scores=labels.scores.at[:2].set(jnp.nan))
        both = create_loss("huber+bradley_terry")
        parts = [create_loss(name).of(self.LOGITS, labels) for name in ("huber", "bradley_terry")]
        np.testing.assert_allclose(both.of(self.LOGITS, labels), parts[0] + parts[1], rtol=1e-6)
        assert not parts[0][:2].any()  # which have no score
        assert both.needs == ("score", "pairs")
        with pytest.raises(UsageError, match="adds losses of 5, 1 outputs, which must be as many"):
            create_loss("emd+huber", marks=MARKS)


class TestSeveralAttributes:
    """An output each, masked where a picture lacks one."""

    NAMES = ("a", "b", "c")
    SCORES = np.array([[0.2, 0.9, 0.4], [np.nan, 0.7, 0.1], [np.nan, np.nan, np.nan]])

    @pytest.fixture
    def labels(self):
        scores = jnp.asarray(self.SCORES)
        return batch(3)._replace(scores=scores, good=scores >= 0.5)

    @pytest.mark.parametrize("name", ["cross_entropy", "good", "huber"])
    def test_a_picture_has_the_mean_loss_of_the_attributes_it_has(self, name, labels):
        logits = jnp.asarray(RNG.normal(size=(3, 3)))
        loss = create_loss(name, attributes=self.NAMES)
        assert loss.outputs == 3
        alone = create_loss(name)
        expected = []
        for row in range(3):
            values = [
                float(
                    alone.of(
                        logits[row, column].reshape(1, 1),
                        batch(1)._replace(
                            scores=labels.scores[row, column].reshape(1),
                            good=labels.good[row, column].reshape(1),
                        ),
                    )[0]
                )
                for column in np.flatnonzero(~np.isnan(self.SCORES[row]))
            ]
            expected.append(np.mean(values) if values else 0)
        np.testing.assert_allclose(loss.of(logits, labels), expected, rtol=1e-5)
        gradient = jax.grad(lambda x: loss.of(x, labels).sum())(logits)
        assert (np.asarray(gradient != 0) == ~np.isnan(self.SCORES)).all()
        np.testing.assert_allclose(loss.score(logits), sigmoid(logits), rtol=1e-5)

    def test_right_is_the_share_of_its_attributes(self, labels):
        logits = jnp.array([[1.0, 1, 1], [1, 1, -1], [1, 1, 1]])  # good: b alone
        found = create_loss("huber", attributes=self.NAMES).correct(logits, labels)
        np.testing.assert_allclose(found, [1 / 3, 1, 0], rtol=1e-6)

    def test_shapes_of_other_attributes_are_refused(self, labels):
        loss = create_loss("huber", attributes=self.NAMES)
        for logits, others in ((jnp.zeros((3, 1)), labels), (jnp.zeros((3, 3)), batch(3))):
            with pytest.raises(ValueError, match="broadcasting would hide a mistake"):
                loss.of(logits, others)

    def test_votes_are_of_one(self):
        with pytest.raises(UsageError, match="loss emd judges one attribute"):
            create_loss("emd", marks=MARKS, attributes=self.NAMES)


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
        UsageError,
        match=r"loss 'nosuch' is unknown; known are bradley_terry, cross_entropy, emd, good, huber",
    ):
        create_loss("nosuch")
    with pytest.raises(UsageError, match="loss emd needs a data set with votes"):
        create_loss("emd")
