import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_jax import bin_edges, num_bins
from spp_jax.pooling.bins import AxisPlan, longest_bin
from spp_jax.testing import _REFERENCE_RULES

RULES = ("adaptive", "partition", "rounded", "sliding")


class TestBinEdges:
    @given(st.integers(0, 200), st.integers(1, 50))
    def test_are_the_papers_floor_and_ceil(self, length, bins):
        starts, stops = bin_edges(length, bins)
        assert starts.tolist() == [math.floor(i * length / bins) for i in range(bins)]
        assert stops.tolist() == [math.ceil((i + 1) * length / bins) for i in range(bins)]

    @given(st.integers(1, 200), st.integers(1, 50))
    def test_cover_every_cell_share_at_most_one_and_are_never_empty(self, length, bins):
        starts, stops = bin_edges(length, bins)
        assert starts[0] == 0
        assert stops[-1] == length
        assert (stops > starts).all()
        shared = stops[:-1] - starts[1:]
        assert ((shared == 0) | (shared == 1)).all()

    def test_hold_for_lengths_whose_product_with_bins_overflows_int32(self):
        length, bins = 2**31 - 1, 4000
        starts, stops = bin_edges(length, bins)
        assert starts.tolist() == [i * length // bins for i in range(bins)]
        assert stops.tolist() == [-(-(i + 1) * length // bins) for i in range(bins)]

    def test_give_numpy_for_ints_and_numpy_and_jax_for_jax(self):
        for length in (7, np.int64(7), np.array([7, 9]), [7, 9]):
            starts, stops = bin_edges(length, 3)
            assert isinstance(starts, np.ndarray)
            assert isinstance(stops, np.ndarray)
            assert starts.dtype == stops.dtype == np.int32
            assert starts.shape == (*np.shape(length), 3)
        for edge in bin_edges(jnp.array([[7, 9]]), 3):
            assert isinstance(edge, jax.Array)
            assert edge.dtype == jnp.int32
            assert edge.shape == (1, 2, 3)
        starts, stops = bin_edges(7, 3)
        assert list(range(7))[starts[1] : stops[1]] == [2, 3, 4]

    def test_agree_under_jit(self):
        lengths = np.arange(40)
        found = jax.jit(bin_edges, static_argnums=1)(lengths, 6)
        np.testing.assert_array_equal(found, bin_edges(lengths, 6))

    @pytest.mark.parametrize("bins", [0, -1, 1.5, True, "2"])
    def test_refuse_bins_that_are_no_positive_int(self, bins):
        with pytest.raises(ValueError, match="bins must be an int >= 1"):
            bin_edges(5, bins)

    def test_refuse_negative_huge_and_fractional_lengths(self):
        with pytest.raises(ValueError, match="must be >= 0 cells and fit in int32, got -2"):
            bin_edges(np.array([3, -2]), 2)
        with pytest.raises(ValueError, match="fit in int32, got 2147483648"):
            bin_edges(np.array([3, 2**31]), 2)
        with pytest.raises(TypeError, match="must be integers"):
            bin_edges(2.5, 2)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_num_bins_counts_every_bin_of_every_level():
    assert num_bins((1, 2, 4)) == 21
    assert num_bins((1, 2, 3, 6)) == 50
    assert num_bins((1, 2, 4), 1) == 7
    assert num_bins((1, 2), 3) == 9
    assert num_bins([(1, 3), 2]) == 7


class TestRules:
    @pytest.mark.parametrize("rule", RULES)
    @given(st.integers(0, 60), st.integers(1, 12))
    def test_are_those_of_the_reference(self, rule, length, bins):
        undefined = rule == "sliding" and length and (length < bins or length % bins > length // bins)
        if undefined:
            with pytest.raises(ValueError, match=f"'sliding' does not give {bins} bins over {length} cells"):
                bin_edges(length, bins, rule=rule)
            return
        starts, stops = bin_edges(length, bins, rule=rule)
        for i, found in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            wanted = _REFERENCE_RULES[rule](i, bins, length)
            assert found == wanted or (found[0] == found[1] and wanted[0] == wanted[1])

    @pytest.mark.parametrize("rule", ["partition", "rounded"])
    @given(st.integers(1, 200), st.integers(1, 30))
    def test_that_partition_hold_every_cell_once(self, rule, length, bins):
        starts, stops = bin_edges(length, bins, rule=rule)
        cells = [cell for edges in zip(starts, stops, strict=True) for cell in range(*edges)]
        assert cells == list(range(length))

    def test_sliding_is_the_papers_example(self):
        # SPP-net, section 2.3: conv5 of 13x13 gives windows of 5 at stride 4, 7 at 6, and 13.
        assert [e.tolist() for e in bin_edges(13, 3, rule="sliding")] == [[0, 4, 8], [5, 9, 13]]
        assert [e.tolist() for e in bin_edges(13, 2, rule="sliding")] == [[0, 6], [7, 13]]
        assert [e.tolist() for e in bin_edges(13, 1, rule="sliding")] == [[0], [13]]

    def test_partition_is_the_pool_of_equinox_and_rounded_that_of_keras_spp(self):
        # By hand: equinox gives the remainder to the first bins; keras-spp rounds i * 7 / 4.
        assert [e.tolist() for e in bin_edges(7, 4, rule="partition")] == [[0, 2, 4, 6], [2, 4, 6, 7]]
        assert [e.tolist() for e in bin_edges(7, 4, rule="rounded")] == [[0, 2, 4, 5], [2, 4, 5, 7]]

    def test_an_unknown_rule_is_refused(self):
        with pytest.raises(ValueError, match="rule='fair' is unknown; known are 'adaptive'"):
            bin_edges(5, 2, rule="fair")


COUNTS = [(1,), (4,), (1, 2, 4), (2, 3), (1, 2, 3, 6), (3, 5, 7)]


class TestAxisPlan:
    @pytest.mark.parametrize("twice", [True, False])
    @pytest.mark.parametrize(
        ("rule", "counts"),
        [(rule, counts) for rule in ("adaptive", "rounded") for counts in COUNTS]
        + [(rule, (n,)) for rule in ("partition", "sliding") for n in (1, 3, 4)],
    )
    def test_joins_every_bin_from_its_members(self, rule, counts, twice):
        plan = AxisPlan(counts, rule, twice)
        for length, n in itertools.product(range(50), counts):
            starts, stops = plan.edges(np.array(length, np.int32))
            for i, members in enumerate(plan.members(n)):
                cells = [cell for m in members for cell in range(starts[m], stops[m])]
                first, stop = _REFERENCE_RULES[rule](i, n, length)
                wanted = list(range(first, min(stop, length)))
                assert (sorted(set(cells)) if twice else sorted(cells)) == wanted, (length, n, i)

    def test_reads_a_nesting_pyramid_once_whatever_its_levels(self):
        assert AxisPlan((1, 2, 4)).segments == 4
        assert AxisPlan((2, 3)).segments == 4  # cut at 1/3, 1/2 and 2/3
        assert AxisPlan((1, 2, 3, 6)).segments == 6
        for length in (50, 64, 96):
            starts, stops = AxisPlan((2, 3)).edges(np.array(length))
            assert (stops - starts).sum() <= length + 3

    def test_reads_one_cell_again_at_most_at_each_cut_of_a_sum(self):
        plan = AxisPlan((1, 2, 4), twice=False)
        for length in range(1, 60):
            starts, stops = plan.edges(np.array(length))
            assert ((stops - starts)[plan.segments :] <= 1).all()
            assert (stops - starts).sum() <= length + 3


@pytest.mark.parametrize("rule", RULES)
def test_longest_bin_is_that_of_any_length(rule):
    for extent, bins in itertools.product((1, 5, 13), (1, 2, 3, 7)):
        lengths = [
            min(stop, length) - min(start, length)
            for length in range(extent + 1)
            for i in range(bins)
            for start, stop in [_REFERENCE_RULES[rule](i, bins, length)]
        ]
        assert longest_bin(extent, bins, rule) == max(1, *lengths)
