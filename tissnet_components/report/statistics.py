"""Paired comparisons of two methods on the same cases."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """A method minus the reference, over the cases where both have a value.

    Args:
        pairs: how many cases those are; the numbers below are NaN for fewer than two.
        above, below: in how many of them the method's value is larger, and smaller.
        difference, low, high: mean difference and its bootstrap confidence interval.
        t_test, wilcoxon: two-sided p-values of the paired t-test and the Wilcoxon signed-rank test, not corrected.
    """

    pairs: int
    above: int
    below: int
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    t_test: float = math.nan
    wilcoxon: float = math.nan


def compare(values: Mapping[str, float], reference: Mapping[str, float]) -> Comparison:
    """Compare two methods, given case -> value of one metric; cases where either has no finite value are left out.

    No difference at all has p = 1; differences that are all alike leave the t-test without a p.
    """
    differences = np.array([values[case] - reference[case] for case in sorted(values) if case in reference])
    differences = differences[np.isfinite(differences)]
    counts = len(differences), int((differences > 0).sum()), int((differences < 0).sum())
    if len(differences) < 2:
        return Comparison(*counts)
    if not differences.any():
        return Comparison(*counts, difference=0.0, low=0.0, high=0.0, t_test=1.0, wilcoxon=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a precision that a p-value does not need
        t_test = stats.ttest_1samp(differences, 0).pvalue if np.ptp(differences) else math.nan  # no variance
        wilcoxon = stats.wilcoxon(differences).pvalue
    return Comparison(*counts, float(differences.mean()), *interval(differences), float(t_test), float(wilcoxon))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of a mean: 10,000 resamples, seed 0."""
    if not np.ptp(values):
        return float(values[0]), float(values[0])
    random, settings = np.random.default_rng(0), {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE}
    found = stats.bootstrap((values,), np.mean, method="percentile", random_state=random, **settings)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests by Holm's step-down method (1979); NaN stays and is not counted."""
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(len(p), math.nan)
    order = [index for index in np.argsort(p, kind="stable") if not math.isnan(p[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(order) - rank)))
        corrected[index] = largest
    return corrected.tolist()


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's, of the pairs that are finite; NaN below three pairs or when either is constant."""
    pairs = finite_pairs(one, other)
    if pairs.shape[1] < 3 or not np.ptp(pairs, axis=1).all():
        return math.nan
    return float(stats.spearmanr(*pairs).statistic)


def correlation_interval(one: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of `rank_correlation`: 10,000 resamples of pairs, seed 0; or NaN."""
    if math.isnan(rank_correlation(one, other)):
        return math.nan, math.nan
    pairs = finite_pairs(one, other)
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    ranks = stats.rankdata(pairs[:, drawn], axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a resample that is constant has no correlation
        found = ranks.prod(axis=0).sum(axis=-1) / np.sqrt((ranks**2).sum(axis=-1).prod(axis=0))
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def finite_pairs(one: ArrayLike, other: ArrayLike) -> np.ndarray:
    """(2, n): the pairs of which both are finite."""
    pairs = np.array([one, other], dtype=float)
    return pairs[:, np.isfinite(pairs).all(axis=0)]
