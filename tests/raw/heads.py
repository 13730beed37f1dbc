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


def head(contrast: str, pose: np.ndarray, spacing_mm=(4, 4, 4), parts=range(5)) -> nib.Nifti1Image:
    """The head as a scanner with this grid sees it after a move by `pose`."""
    spacing = np.array(spacing_mm, dtype=float)
    shape = (240 / spacing).astype(int)
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = -spacing * (shape - 1) / 2
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = nib.affines.apply_affine(np.linalg.inv(pose) @ affine, voxels)
    volume = np.zeros(shape, np.float32)
    for part in parts:
        centre, axes = PARTS[part]
        volume[(((points - centre) / axes) ** 2).sum(-1) < 1] = GREY_VALUES[contrast][part]
    volume = ndimage.gaussian_filter(volume, 2 / spacing)
    return nib.Nifti1Image(volume + np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), affine)
