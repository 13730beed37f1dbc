"""Skull stripping: which voxels of a head are its brain.

By deepbet (Fisch et al. 2024, doi 10.1016/j.compbiomed.2024.108845), whose weights lie in its wheel. It is made for T1;
on a real FLAIR and T2 it was as good (docs/why/raw.md).
"""

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from tissnet_components.errors import BadCase, PackageMissing
from tissnet_components.scans.brain import find_background, find_brain, largest_component
from tissnet_components.scans.plausible import examine

BEST_FIRST = ("t1", "t1ce", "flair", "t2")  # of a patient's contrasts, which one tells the brain


def is_stripped(volume: nib.Nifti1Image, contrast: str) -> bool:
    """Whether a scan shows a brain alone, before a constant background."""
    array = np.asarray(volume.dataobj, dtype=np.float32)
    if find_background(array).reach > 0:
        return False
    return "skull" not in examine(array[None], [contrast], voxel_sizes(volume.affine)).refused


def brain_mask_of(volume: nib.Nifti1Image, contrast: str) -> nib.Nifti1Image:
    """Mask of the brain, on the scan's own grid; of a scan that is stripped already, what is not background.

    Raises:
        BadCase: no brain was found.
        ImportError: deepbet is not installed.
    """
    if is_stripped(volume, contrast):
        mask = largest_component(find_brain(np.asarray(volume.dataobj, dtype=np.float32)))
    else:
        mask = _by_deepbet(volume, contrast)
    return nib.Nifti1Image(mask.astype(np.uint8), volume.affine)


def _by_deepbet(volume: nib.Nifti1Image, contrast: str) -> np.ndarray:
    try:
        from deepbet.bet import BrainExtraction
    except ImportError as error:
        raise PackageMissing('--raw needs deepbet, which is not installed; pip install -e ".[raw]"') from error
    try:
        _, mask, _ = BrainExtraction(no_gpu=True).run(volume)
    except (AssertionError, ValueError, RuntimeError) as error:  # its ways to say that it found none
        raise BadCase(f"no brain was found in {contrast} ({error}); give scans that show the whole head") from error
    return np.asarray(mask.dataobj) > 0
