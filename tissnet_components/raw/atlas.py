"""The atlas, ICBM152, in the common space: as small as the brains of BraTS, and as they lie."""

from functools import lru_cache

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from nibabel.processing import resample_from_to
from scipy import ndimage
from tissnet_components.errors import PackageMissing

LARGER = (1.06, 1.07, 1.12)  # than the brains of BraTS, by these factors
TURNED = 14  # degrees about the axis from left to right, against the brains of BraTS: docs/why/raw.md


@lru_cache(maxsize=1)
def atlas_brain() -> nib.Nifti1Image:
    """The T1 brain of ICBM152 from nilearn's package, as small as the brains of BraTS, and as they lie; centre at 0.

    Raises:
        ImportError: nilearn is not installed.
    """
    template, inside = _icbm152()
    return nib.Nifti1Image(np.asarray(template.dataobj, dtype=np.float32) * inside, from_atlas() @ template.affine)


@lru_cache(maxsize=1)
def from_atlas() -> np.ndarray:
    """(4, 4): points of ICBM152, RAS mm, to those of the common space."""
    template, inside = _icbm152()
    smaller = np.diag([*(1 / np.array(LARGER)), 1])
    smaller[:3, 3] = -apply_affine(smaller @ template.affine, np.array(ndimage.center_of_mass(inside)))
    return from_matvec(euler2mat(x=np.radians(TURNED))) @ smaller


def _icbm152() -> tuple[nib.Nifti1Image, np.ndarray]:
    """The template, and where its brain is."""
    try:
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
    except ImportError as error:
        raise PackageMissing('--raw needs nilearn, which is not installed; pip install -e ".[raw]"') from error
    return load_mni152_template(1), np.asarray(load_mni152_brain_mask(1).dataobj) > 0


def likeness(brain: nib.Nifti1Image, transform: np.ndarray) -> float:
    """Dice of a brain's mask on a grid that the common space's points reach by `transform`, with the atlas's there."""
    atlas = atlas_brain()
    there = nib.Nifti1Image(atlas.dataobj, transform @ atlas.affine)
    expected = np.asarray(resample_from_to(there, (brain.shape, brain.affine), order=1).dataobj) > 0
    mask = np.asarray(brain.dataobj) > 0
    return round(2 * float((mask & expected).sum()) / max(int(mask.sum() + expected.sum()), 1), 4)
