import json

import numpy as np
import pytest

from spp_jax.metrics import agreement


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


def test_shapes_that_would_broadcast_and_empty_input_are_refused():
    with pytest.raises(ValueError, match=r"must all be \[n\]"):
        agreement(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="no scored picture"):
        agreement(np.full(2, np.nan), np.zeros(2))
