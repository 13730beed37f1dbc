"""How T1, contrast-enhanced T1, T2 and FLAIR look beside each other, in a brain with or without a tumor.

Cerebrospinal fluid is dark in T1 and FLAIR and bright in T2, grey and white matter change places between T1 and the
others, and a contrast agent adds brightness to vessels and tumor alone. A few numbers say this: six quantiles of
each scan, and of each two scans two correlations and how lopsided their difference is. The tables hold their means
and covariances over real patients; ``python -m benchmarks.contract fit`` prints them, and docs/why/contract.md says
how well they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from scipy import ndimage

KNOWN = ("t1", "t1ce", "t2", "flair")
DEEP_MM = 12  # from the surface: ventricles, white matter and basal ganglia
INNER_MM = 5  # from the surface: brain without the fluid around it
FREEDOM = 10  # of Student's t-distribution: a feature that is far off counts, but not without limit
SHRINKAGE = 0.2  # of the correlations of the features

Features = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Tables:
    """Means of the features by the index of the contrast in KNOWN, and a covariance of all.

    Shapes:
        own, own_covariance: (4, 6), (6, 6). pairs, pairs_covariance: (4, 4, 3), (3, 3).
    """

    own: np.ndarray
    own_covariance: np.ndarray
    pairs: np.ndarray
    pairs_covariance: np.ndarray


def measure(scans: Sequence[np.ndarray], depth_mm: np.ndarray) -> Features:
    """The features of scans of one brain, on a grid of about 2 mm.

    Shapes:
        scans: (X, Y, Z) each, any unit.
        depth_mm: (X, Y, Z), below the surface of the brain; 0 outside.
        returns: (C, 6), the quantiles; (C, C, 3), correlation deep in the brain, correlation of its middle grey
            values, and how far the difference of the second and the first leans to bright.
    """
    brain, deep, inner = (depth_mm > least for least in (0, DEEP_MM, INNER_MM))
    weight = np.maximum(ndimage.uniform_filter(brain.astype(np.float32), 3), 1e-3)
    smooth = [ndimage.uniform_filter(np.where(brain, scan, 0).astype(np.float32), 3) / weight for scan in scans]
    own = [
        np.r_[np.percentile(_scaled(soft[deep]), (2, 10, 90, 98)), np.percentile(_scaled(scan[brain]), (2, 98))]
        for scan, soft in zip(scans, smooth, strict=True)
    ]
    pairs = np.zeros((len(scans), len(scans), 3))
    sharp = [_scaled(scan[deep]) for scan in scans]
    calm = [_scaled(soft[deep]) for soft in smooth]
    middle = [_middle(soft[inner]) for soft in smooth]
    for a, b in combinations(range(len(scans)), 2):
        alike = np.corrcoef(calm[a], calm[b])[0, 1]
        both = ~np.isnan(middle[a] + middle[b])
        tissue = np.corrcoef(middle[a][both], middle[b][both])[0, 1]
        lean = _lean(sharp[b] - sharp[a])
        pairs[a, b], pairs[b, a] = (alike, tissue, lean), (alike, tissue, -lean)
    return np.array(own), pairs


def _scaled(values: np.ndarray) -> np.ndarray:
    """Median 0 and interquartile range 0.4, which makes the usual range about 1; at most 3 off."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return np.clip((values - median) / max((high - low) * 2.5, 1e-6), -3, 3)


def _middle(values: np.ndarray) -> np.ndarray:
    """The values without the darkest and brightest eighths, which become NaN."""
    low, high = np.percentile(values, (12.5, 87.5))
    return np.where((values > low) & (values < high), values, np.nan)


def _lean(difference: np.ndarray) -> float:
    """How much farther the brightest 0.2 % lie from the median than the darkest, in units of the usual spread."""
    least, low, median, high, most = np.percentile(difference, (0.2, 5, 50, 95, 99.8))
    return float(np.clip((most + least - 2 * median) / max(high - low, 1e-6), -2.5, 2.5))


def misfit(features: Features, names: Sequence[str], tables: Tables) -> float:
    """How badly the features fit these contrasts: half a robust squared Mahalanobis distance."""
    own, pairs = features
    known = [KNOWN.index(name) for name in names]
    each = sum(strangeness(quantiles, name, tables) for quantiles, name in zip(own, names, strict=True))
    related = sum(
        _distance(pairs[a, b] - tables.pairs[known[a], known[b]], tables.pairs_covariance)
        for a, b in combinations(range(len(names)), 2)
    )
    return (each + related / max(len(names) - 1, 1)) / 2


def strangeness(own: np.ndarray, name: str, tables: Tables) -> float:
    """The robust squared Mahalanobis distance of a scan's quantiles to those of a contrast."""
    return _distance(own - tables.own[KNOWN.index(name)], tables.own_covariance)


def likeliest_names(features: Features, names: Sequence[str], tables: Tables) -> tuple[tuple[str, ...], float]:
    """The best other names of the scans, and by how much they fit better than the given ones (negative: worse)."""
    others = {other: misfit(features, other, tables) for other in permutations(KNOWN, len(names))}
    given = others.pop(tuple(names))
    best = min(others, key=others.__getitem__)
    return best, given - others[best]


def _distance(off: np.ndarray, covariance: np.ndarray) -> float:
    squared = float(off @ np.linalg.solve(covariance, off))
    return (FREEDOM + len(off)) * float(np.log1p(squared / FREEDOM))


def fit(patients: Sequence[Features]) -> Tables:
    """The tables of patients with all contrasts, in the order of KNOWN."""
    own, pairs = (np.array(values) for values in zip(*patients, strict=True))
    off = np.concatenate([(pairs - pairs.mean(0))[:, a, b] for a, b in permutations(range(len(KNOWN)), 2)])
    return Tables(own.mean(0), _covariance(np.concatenate(own - own.mean(0))), pairs.mean(0), _covariance(off))


def _covariance(off: np.ndarray) -> np.ndarray:
    found = np.cov(off.T)
    return (1 - SHRINKAGE) * found + SHRINKAGE * np.diag(np.diag(found))
