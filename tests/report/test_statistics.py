import math

import numpy as np
import pytest
from tissnet_components.report.statistics import compare, correlation_interval, holm, interval, rank_correlation


def cases(*values):
    return {f"case_{index}": value for index, value in enumerate(values)}


def test_differences_of_one_two_and_three_have_a_t_of_two_root_three():
    """Mean 2, SD 1, t = 2 sqrt(3); with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    found = compare(cases(2, 4, 6), cases(1, 2, 3))
    assert found.difference == pytest.approx(2)
    assert found.t_test == pytest.approx(1 - math.sqrt(12 / 14))


def test_six_gains_of_different_size_have_a_wilcoxon_p_of_one_in_thirty_two():
    found = compare(cases(1, 2, 3, 4, 5, 6), cases(0, 0, 0, 0, 0, 0))
    assert found.wilcoxon == pytest.approx(2 / 2**6)
    assert (found.above, found.below) == (6, 0)


def test_the_interval_of_two_values_runs_from_one_to_the_other():
    """Of the four equally likely resamples of (0, 1), a quarter have the mean 0 and a quarter the mean 1."""
    assert interval(np.array([0.0, 1.0])) == (0, 1)


def test_the_interval_of_many_values_is_two_standard_errors_wide_on_each_side_and_always_the_same():
    values = np.random.default_rng(1).normal(size=400)
    low, high = interval(values)
    error = values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.1 * error)
    assert interval(values) == (low, high)


def test_the_order_of_the_cases_changes_nothing():
    values, reference = cases(0.3, 0.9, 0.4, 0.1, 0.7), cases(0.2, 0.5, 0.6, 0.1, 0.1)
    assert compare(dict(reversed(values.items())), reference) == compare(values, reference)


def test_cases_that_either_lacks_are_left_out_and_the_pairs_counted():
    found = compare(cases(3, math.nan, 5, math.inf), cases(1, 1, 1, 1) | {"other": 9})
    assert (found.pairs, found.difference) == (2, 3)


@pytest.mark.parametrize("count", [3, 100])  # SciPy has other ways for more than fifty
def test_no_difference_at_all_is_no_evidence(count):
    found = compare(cases(*range(count)), cases(*range(count)))
    assert (found.difference, found.low, found.high, found.t_test, found.wilcoxon) == (0, 0, 0, 1, 1)


def test_differences_that_are_all_alike_have_no_t_test():
    found = compare(cases(2, 3, 4), cases(1, 2, 3))
    assert (found.difference, found.low, found.high) == (1, 1, 1)
    assert math.isnan(found.t_test)
    assert found.wilcoxon == pytest.approx(0.25)


def test_one_pair_is_counted_and_not_tested():
    found = compare(cases(2), cases(1))
    assert (found.pairs, found.above) == (1, 1)
    assert math.isnan(found.difference) and math.isnan(found.t_test)


def test_holm_multiplies_by_the_number_of_tests_that_are_left_and_never_decreases():
    """0.005 x 4, 0.01 x 3, then 0.03 x 2 which the last, 0.04 x 1, may not undercut."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_counts_no_missing_tests_and_stays_below_one():
    assert holm([0.6, math.nan, 0.02]) == pytest.approx([0.6, math.nan, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_rank_correlation_is_one_for_the_same_order_and_missing_for_a_constant():
    assert rank_correlation([1, 2, 3, 9], [1, 4, 5, 6]) == pytest.approx(1)
    assert rank_correlation([3, 2, 1, math.nan], [1, 2, 3, 0]) == pytest.approx(-1)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_the_interval_of_a_correlation_is_that_of_fishers_transform():
    """Of Spearman's, with a variance of 1.06 / (n - 3) for many normal pairs (Fieller 1957)."""
    one, noise = np.random.default_rng(1).normal(size=(2, 400))
    found, middle = correlation_interval(one, one + noise), rank_correlation(one, one + noise)
    error = 1.96 * math.sqrt(1.06 / 397)
    assert found == pytest.approx([math.tanh(math.atanh(middle) + side * error) for side in (-1, 1)], abs=0.02)


def test_the_same_order_has_a_sure_correlation_and_a_constant_none():
    assert correlation_interval([1, 2, 3, math.nan], [1, 4, 9, 0]) == pytest.approx((1, 1))
    assert all(map(math.isnan, correlation_interval([1, 1, 1], [1, 2, 3])))
