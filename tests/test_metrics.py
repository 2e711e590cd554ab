import json

import numpy as np
import pytest

from spp_jax.metrics import agreement, merit, pair_agreement


def test_figures_of_a_case_worked_by_hand():
    scores = np.array([0.1, 0.6, 0.4, 0.9, np.nan])
    labels = np.array([0.2, 0.4, 0.6, 0.8, 0.0])
    found = agreement(scores, labels)
    assert found.count == 4
    assert found.accuracy == 0.5
    assert found.confusion == ((1, 1), (1, 1))
    assert found.srcc == pytest.approx(0.8)  # ranks 1 3 2 4 against 1 2 3 4: 1 - 6*2/(4*15)
    assert found.plcc == pytest.approx(np.corrcoef(scores[:4], labels[:4])[0, 1])
    assert found.krcc == pytest.approx(4 / 6)  # of six pairs one lies the other way round
    assert found.auc == 0.75  # .4 and .9 are good, .1 and .6 are not


def test_the_confusion_table_counts_more_than_one_of_a_kind():
    found = agreement(np.array([0.9] * 3 + [0.1] * 5), np.array([0.8] * 2 + [0.3] * 6))
    assert found.confusion == ((5, 1), (0, 2))
    assert "truly good             0            2" in found.table()


def test_what_is_truly_good_may_be_said_apart_from_the_label():
    found = agreement(np.array([0.9, 0.1]), np.array([0.45, 0.44]), np.array([True, False]))
    assert found.confusion == ((1, 0), (0, 1))


def test_a_constant_side_has_no_correlation_and_json_says_null():
    found = agreement(np.full(3, 0.7), np.array([0.1, 0.5, 0.9]))
    assert np.isnan(found.srcc)
    assert np.isnan(found.plcc)
    assert np.isnan(found.krcc)
    assert found.auc == 0.5  # all ties
    assert np.isnan(agreement(np.array([0.2, 0.9]), np.array([0.7, 0.8])).auc)
    assert json.loads(json.dumps(found.to_dict()))["srcc"] is None


class TestParts:
    """Figures of each attribute and category, and of pairs."""

    SCORES = np.array([[0.1, 0.9], [0.4, 0.2], [0.8, 0.6], [0.7, np.nan]])
    LABELS = np.array([[0.2, np.nan], [0.6, 0.1], [0.9, 0.7], [0.3, 0.5]])

    def test_each_attribute_has_its_own_and_means_stand_above(self):
        found = agreement(self.SCORES, self.LABELS, attributes=("a", "b"))
        alone = [agreement(self.SCORES[:, i], self.LABELS[:, i]) for i in range(2)]
        assert list(found.attributes.values()) == alone
        assert [part.count for part in alone] == [4, 2]
        assert found.count == 4
        assert found.srcc == pytest.approx((alone[0].srcc + alone[1].srcc) / 2)
        assert found.accuracy == pytest.approx((0.5 + 1) / 2)
        assert np.sum(found.confusion) == 6
        described = json.loads(json.dumps(found.to_dict()))
        assert described["attributes"]["b"]["accuracy"] == 1
        assert "categories" not in described
        assert "b: pictures 2   accuracy 100.0%" in found.table()

    def test_each_category_has_its_own(self):
        kinds = ("sea", "hill", "sea", "hill")
        found = agreement(self.SCORES[:, 0], self.LABELS[:, 0], categories=kinds)
        assert found.categories["sea"] == agreement(self.SCORES[::2, 0], self.LABELS[::2, 0])
        assert list(found.rows()) == ["all", "hill", "sea"]
        both = agreement(self.SCORES, self.LABELS, attributes=("a", "b"), categories=kinds)
        assert both.categories["sea"].attributes["a"] == found.categories["sea"]
        assert set(both.rows()) == {"all", "a", "b", "hill", "hill, a", "hill, b", "sea", "sea, a", "sea, b"}

    def test_a_category_or_attribute_of_which_nothing_was_scored_is_left_out(self):
        scores = np.where(np.arange(4) < 3, self.SCORES[:, 0], np.nan)
        kinds = ("sea", "sea", "sea", "hill")
        assert set(agreement(scores, self.LABELS[:, 0], categories=kinds).categories) == {"sea"}
        none = np.full(4, np.nan)
        found = agreement(np.stack([scores, none], axis=1), self.LABELS, attributes=("a", "b"))
        assert set(found.attributes) == {"a"}

    def test_pairs_are_counted_by_whom_people_preferred(self):
        scores = np.array([0.9, 0.1, 0.5, 0.5, np.nan])
        rows = np.array([[0, 1], [1, 2], [2, 3], [0, 3], [0, 4]])
        shares = np.array([0.8, 1.0, 0.6, 0.5, 1.0])
        found = pair_agreement(scores, rows, shares)
        assert (found.count, found.decided) == (4, 3)
        assert found.accuracy == pytest.approx((1 + 0 + 0.5) / 3)
        assert found.votes == pytest.approx((0.8 + 0 + 0.5 + 0.5) / 4)

    def test_of_pairs_alone_accuracy_and_order_are_the_pairs(self):
        scores, rows, shares = np.array([0.9, 0.1, 0.5]), np.array([[0, 1], [1, 2], [0, 2]]), np.ones(3)
        found = agreement(scores, np.full(3, np.nan), pairs=(rows, shares))
        assert found.accuracy == pytest.approx(2 / 3)
        assert found.krcc == pytest.approx(1 / 3)  # two agree, one does not
        assert np.isnan(found.srcc)
        assert merit(found.to_dict()) == found.krcc
        assert "pairs 3, 3 decided, 66.7% of them rightly" in found.table()
        labelled = agreement(scores, np.array([0.9, 0.2, np.nan]), pairs=(rows, shares))
        assert labelled.count == 2
        assert labelled.pairs == found.pairs
        assert merit(labelled.to_dict()) == labelled.srcc == pytest.approx(1)

    def test_pairs_are_given_within_each_category(self):
        scores, rows = np.array([0.9, 0.1, 0.5, 0.3]), np.array([[0, 2], [1, 3], [0, 1]])
        kinds = ("sea", "hill", "sea", "hill")
        found = agreement(scores, np.full(4, np.nan), categories=kinds, pairs=(rows, np.ones(3)))
        parts = {name: part.pairs for name, part in found.categories.items()}
        assert {name: (pairs.count, pairs.accuracy) for name, pairs in parts.items() if pairs} == {
            "hill": (1, 0),
            "sea": (1, 1),
        }


def test_shapes_that_would_broadcast_and_empty_input_are_refused():
    with pytest.raises(ValueError, match=r"must all be \[n\]"):
        agreement(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="no scored picture"):
        agreement(np.full(2, np.nan), np.zeros(2))
