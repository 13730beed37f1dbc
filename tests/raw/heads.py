"""A head small enough to register in a second: scalp, skull, brain with ventricles and a lesion, in two contrasts."""

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

GREY_VALUES = {  # scalp, skull, brain, ventricles, lesion
    "t1": (90, 10, 60, 20, 45),
    "t1ce": (90, 10, 60, 20, 100),
    "t2": (50, 8, 40, 100, 80),
}
PARTS = (  # centre and semi-axes in mm
    ((0, 0, 0), (78, 98, 110)),
    ((0, 0, 0), (72, 92, 104)),
    ((0, 0, 35), (66, 86, 60)),
    ((0, -10, 35), (22, 35, 15)),
    ((35, 30, 45), (16, 14, 18)),
)


def rigid(degrees=(0, 0, 0), shift_mm=(0, 0, 0)) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    transform[:3, 3] = shift_mm
    return transform


def inside(part: int, pose: np.ndarray, affine: np.ndarray, shape) -> np.ndarray:
    """The voxels of a part of the head after a move by `pose`."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = nib.affines.apply_affine(np.linalg.inv(pose) @ affine, voxels)
    centre, axes = PARTS[part]
    return (((points - centre) / axes) ** 2).sum(-1) < 1


def head(contrast: str, pose: np.ndarray, spacing_mm=(4, 4, 4), stripped=False) -> nib.Nifti1Image:
    """The head, or its brain alone, as a scanner with this grid sees it after a move by `pose`."""
    spacing = np.array(spacing_mm, dtype=float)
    shape = (240 / spacing).astype(int)
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = -spacing * (shape - 1) / 2
    volume = np.zeros(shape, np.float32)
    for part in range(2 if stripped else 0, len(PARTS)):
        volume[inside(part, pose, affine, shape)] = GREY_VALUES[contrast][part]
    volume = ndimage.gaussian_filter(volume, 2 / spacing)
    volume += np.random.default_rng(0).normal(0, 1, shape)
    return nib.Nifti1Image(volume * inside(2, pose, affine, shape) if stripped else volume, affine)
