"""Healthy anatomy for simulated patients: the ICBM152 atlas, deformed at random, on the grid of BraTS.

Arrays have shape (X, Y, Z) and axes towards left, posterior and superior; atlas positions count atlas voxels (1 mm),
towards right, anterior and superior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tissnet_components.errors import PackageMissing

FIELD_OF_VIEW_MM = (240, 240, 155)
BRAIN_CENTRE_MM = (119, 134, 73)  # where the brain's centre of mass lies in BraTS volumes
ATLAS_ORIGIN = (98, 134, 72)  # atlas voxel at the anterior commissure
ATLAS_PER_BRAIN = (1.06, 1.07, 1.12)  # the atlas is larger than the brains of BraTS by these factors


@dataclass(frozen=True)
class Grid:
    """The voxels of a patient's volumes: cubes of `spacing` mm that fill the field of view, their number rounded up."""

    spacing: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(ceil(extent / self.spacing) for extent in FIELD_OF_VIEW_MM)

    @property
    def points_mm(self) -> tuple[np.ndarray, ...]:
        """Positions along the three axes, shaped to broadcast against each other."""
        return np.ix_(*(np.arange(n, dtype=np.float32) * np.float32(self.spacing) for n in self.shape))

    @property
    def voxel_ml(self) -> float:
        return self.spacing**3 / 1000

    def smooth_field(self, rng: np.random.Generator, length_mm: float) -> np.ndarray:
        """Random field of mean 0, variance 1 and features of about `length_mm`; see `smooth_field`."""
        positions_mm = [np.arange(n) * self.spacing for n in self.shape]
        return smooth_field(rng, positions_mm, FIELD_OF_VIEW_MM, (length_mm,) * 3)


def smooth_field(
    rng: np.random.Generator,
    positions_mm: Sequence[np.ndarray],
    extents_mm: Sequence[float],
    lengths_mm: Sequence[float],
) -> np.ndarray:
    """Random field of mean 0, variance 1 and features of about `lengths_mm`: a B-spline with random coefficients.

    How many coefficients there are depends on the extents, not on the positions, so the same generator gives the same
    field on a coarse and on a fine grid. There is no matrix product in it, whose rounding may depend on the number of
    threads.
    """
    sizes = [int(extent / length) + 6 for extent, length in zip(extents_mm, lengths_mm, strict=True)]
    field = rng.standard_normal(sizes, dtype=np.float32)
    for axis, (points, length) in enumerate(zip(positions_mm, lengths_mm, strict=True)):
        field = _cubic_spline(field, points / length, axis)
    return field / np.float32((151 / 315) ** 1.5)  # 151/315: mean sum of squared spline weights along one axis


def _cubic_spline(coefficients: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    knot = np.floor(positions).astype(int)
    t = np.float32(positions - knot).reshape([-1 if a == axis else 1 for a in range(3)])
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    return sum(w / 6 * np.take(coefficients, knot + k, axis) for k, w in enumerate(weights))


@dataclass(frozen=True)
class Atlas:
    """Probability of grey matter, of white matter, and the brain mask: (197, 233, 189)."""

    grey: np.ndarray
    white: np.ndarray
    brain: np.ndarray


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The ICBM 2009a atlas that nilearn's package contains (Fonov et al. 2011, doi 10.1016/j.neuroimage.2010.07.033).

    Raises:
        ImportError: nilearn is not installed.
    """
    try:
        from nilearn import datasets as nilearn
    except ImportError as error:
        raise PackageMissing(
            "a simulated cohort takes its anatomy from nilearn, which is not installed; "
            "run: pip install tissnet-components[demo]"
        ) from error
    images = nilearn.load_mni152_gm_template(1), nilearn.load_mni152_wm_template(1), nilearn.load_mni152_brain_mask(1)
    return Atlas(*(np.asarray(image.dataobj, dtype=np.float32) for image in images))


@dataclass(frozen=True)
class Anatomy:
    """Healthy tissue of one patient: fractions of each voxel, and where in the atlas and how deep each voxel lies."""

    brain: np.ndarray  # bool
    grey: np.ndarray
    white: np.ndarray
    csf: np.ndarray
    atlas_position: np.ndarray  # (3, X, Y, Z)
    depth_mm: np.ndarray  # below the surface of the brain

    @property
    def right_mm(self) -> np.ndarray:
        """Distance to the right of the midline, negative on the left."""
        return self.atlas_position[0] - ATLAS_ORIGIN[0]

    @property
    def superior_mm(self) -> np.ndarray:
        return self.atlas_position[2] - ATLAS_ORIGIN[2]

    @property
    def ventricles(self) -> np.ndarray:
        """Fraction of the CSF that is not in sulci; an approximation."""
        return self.csf * (self.depth_mm > 25) * (self.superior_mm > -5)


def deformed_positions(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Where each voxel of a new patient lies in the atlas: (3, X, Y, Z).

    Size, proportions and pose of the head vary (affine), and so do its lobes, its gyri and its sulci (random fields).
    """
    centre = [float(c) for c in ndimage.center_of_mass(load_atlas().brain)]
    scale = np.diag(np.array([-1, -1, 1]) * ATLAS_PER_BRAIN * rng.normal(1, 0.03, 3))
    affine = scale @ Rotation.from_euler("xyz", rng.normal(0, 3, 3), degrees=True).as_matrix()
    local = [points - middle for points, middle in zip(grid.points_mm, BRAIN_CENTRE_MM, strict=True)]
    position = np.empty((3, *grid.shape), np.float32)
    for axis in range(3):
        position[axis] = centre[axis] + sum(float(affine[axis, k]) * local[k] for k in range(3))
        position[axis] += sum(mm * grid.smooth_field(rng, length) for mm, length in ((3.5, 55), (2.2, 25), (1, 11)))
    return position


def brain_mask(atlas_position: np.ndarray) -> np.ndarray:
    inside = ndimage.map_coordinates(load_atlas().brain, atlas_position, order=1) > 0.5
    return ndimage.binary_fill_holes(inside)


def anatomy_at(atlas_position: np.ndarray, brain: np.ndarray, grid: Grid, atrophy: float) -> Anatomy:
    """Fractions of grey matter, white matter, and of CSF, which is all that the atlas leaves; `atrophy` widens it.

    The atlas is the average of many people and too smooth for one of them: squaring the odds sharpens it.
    """
    maps = load_atlas().grey, load_atlas().white
    grey, white = (ndimage.map_coordinates(probability, atlas_position, order=1) for probability in maps)
    csf = atrophy * np.clip(1 - grey - white, 0, 1)
    total = np.where(brain, grey**2 + white**2 + csf**2, np.float32(np.inf))
    depth_mm = ndimage.distance_transform_edt(brain, sampling=grid.spacing).astype(np.float32)
    return Anatomy(brain, grey**2 / total, white**2 / total, csf**2 / total, atlas_position, depth_mm)
