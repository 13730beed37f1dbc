"""Whether two scans show one brain."""

from itertools import product

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from tissnet_components.raw.register import coarsened

GREY_LEVELS = 32
COMPARED_MM, BESIDE_MM = 3.0, 9.0  # the grid on which `fit_of` looks, and how far beside


def fit_of(one: nib.Nifti1Image, other: nib.Nifti1Image) -> float:
    """How many times more two brains tell about each other where they lie than a little beside it.

    The folds of one brain match at one place alone, whatever the contrasts; those of two brains nowhere, so that a few
    millimetres hardly matter. The mean is taken over both directions along every axis.
    """
    coarse = [coarsened(volume, COMPARED_MM) for volume in (one, other)]
    first, second = (np.asarray(volume.dataobj) for volume in coarse)
    both = (first > 0) & (second > 0)
    steps = np.rint(BESIDE_MM / voxel_sizes(coarse[0].affine)).astype(int)
    beside = []
    for axis, step in product(range(3), (-1, 1)):
        there = np.roll(second, step * steps[axis], axis)
        overlap = both & np.roll(both, step * steps[axis], axis)
        beside.append(_information_of(first[overlap], there[overlap]))
    return _information_of(first[both], second[both]) / max(float(np.mean(beside)), 1e-6)


def _information_of(one: np.ndarray, other: np.ndarray) -> float:
    """Mutual information of grey values, in nats, from their joint histogram."""
    from sklearn.metrics import mutual_info_score  # comes with nilearn

    if not one.size:
        return 0.0
    first, second = (np.clip(values, *np.percentile(values, (1, 99))) for values in (one, other))
    joint, _, _ = np.histogram2d(first, second, bins=GREY_LEVELS)
    return float(mutual_info_score(None, None, contingency=joint))
