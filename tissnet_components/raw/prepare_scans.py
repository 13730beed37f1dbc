"""Raw scans to what the glioma network takes: registered, stripped, on one grid of 1 mm.

Every voxel is interpolated once: a scan's own grid is reached from the common one by a single transform.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from scipy import ndimage
from tissnet_components.errors import BadCase
from tissnet_components.raw import atlas
from tissnet_components.raw.fit import fit_of
from tissnet_components.raw.register import moved, write_transform
from tissnet_components.raw.scans import (
    FITTING,
    Prepared,
    RawScan,
    as_found,
    brain_placed,
    check_found,
    inside_view,
    read_scans,
    registered,
    write_marked,
)
from tissnet_components.raw.strip import brain_mask_of
from tissnet_components.scans.dicom import LPS_TO_RAS, Series
from tissnet_components.scans.plausible import BRAIN_ML

COMMON_SHAPE = (240, 240, 155)  # of BraTS, 1 mm, axes to left, posterior and superior
COMMON_CENTRE = (119, 134, 73)  # where the centre of BraTS's brains lies, as in `phantom`, which no zip has


def prepare_scans(
    case: str, scans: Mapping[str, str | Path | Series], folder: Path, tell: Callable[[str], object]
) -> Prepared:
    """Register, strip and resample the scans of one patient.

    Args:
        scans: contrast -> file or DICOM series.
        folder: where the prepared scans, the brain mask and the transforms (common space to each scan) are written.
        tell: takes a line for every step.

    Raises:
        BadCase: a scan cannot be read, or does not pass the checks: does not cover the brain, does not fit the
            reference, or shows no brain of plausible size and place.
    """
    raw = read_scans(scans)
    reference, to_scan = registered(case, raw, tell)
    seen, rough, pose = brain_placed(case, raw, reference, to_scan, tell)
    transforms = {name: to_scan[name] @ pose for name in raw}
    tell(f"{case}: resampling to 1 mm")
    common = {name: to_common(raw[name], transforms[name]) for name in raw}
    mask = _final_mask(common[seen], seen, to_common(rough, transforms[seen]))
    found = _found(raw, common, transforms, mask, seen, scans)
    measures = _of_brain(mask)
    _check(case, found, measures)
    files = {name: folder / f"{case}_{name}.nii.gz" for name in raw}
    folder.mkdir(parents=True, exist_ok=True)
    for name in raw:
        write_marked(np.asarray(common[name].dataobj) * mask, common[name].affine, files[name])
        write_transform(transforms[name], folder / f"{case}_{name}.tfm")
    write_marked(mask.astype(np.uint8), common_affine(), folder / f"{case}_brain.nii.gz")
    return Prepared(files, tuple(found), reference, measures)


def common_affine() -> np.ndarray:
    """Of BraTS's grid, with the centre of the brain at 0."""
    affine = LPS_TO_RAS.copy()
    affine[:3, 3] = np.multiply(COMMON_CENTRE, (1, 1, -1))
    return affine


def to_common(volume: nib.Nifti1Image, transform: np.ndarray) -> nib.Nifti1Image:
    """The volume on the common grid, by one linear interpolation; 0 outside its field of view.

    At the rim of a stripped brain or of the field of view the zeros beside a voxel do not darken it.
    """
    array, common = np.asarray(volume.dataobj, dtype=np.float32), (COMMON_SHAPE, common_affine())
    there, share = (
        np.asarray(resample_from_to(moved(nib.Nifti1Image(part, volume.affine), transform), common, order=1).dataobj)
        for part in (array, (array != 0).astype(np.float32))
    )
    filled = np.divide(there, share, out=np.zeros_like(there), where=share > 0.5)
    return nib.Nifti1Image(filled, common_affine())


def _final_mask(head: nib.Nifti1Image, contrast: str, rough: nib.Nifti1Image) -> np.ndarray:
    """The brain on the common grid, where it lies upright; that of a stripped scan as it was."""
    smooth = np.asarray(rough.dataobj) > 0.5
    stripped = not np.asarray(head.dataobj)[~ndimage.binary_dilation(smooth, iterations=3)].any()
    return smooth if stripped else np.asarray(brain_mask_of(head, contrast).dataobj) > 0


def _found(
    raw: Mapping[str, nib.Nifti1Image],
    common: Mapping[str, nib.Nifti1Image],
    transforms: Mapping[str, np.ndarray],
    mask: np.ndarray,
    seen: str,
    scans: Mapping[str, Any],
) -> list[RawScan]:
    """The scans, with the share of the brain that each shows, and how much it tells about the one that was stripped."""
    voxels = np.argwhere(mask)[::7]
    points = apply_affine(common_affine(), voxels)
    found = []
    for name, volume in raw.items():
        measures = {"covered": round(float(inside_view(volume, transforms[name], points).mean()), 4)}
        if name != seen:
            measures["fit"] = round(fit_of(*(masked(common[which], mask) for which in (seen, name))), 4)
        found.append(as_found(name, scans[name], volume, transforms[name], measures))
    return found


def masked(volume: nib.Nifti1Image, mask: np.ndarray) -> nib.Nifti1Image:
    """The volume, 0 outside the mask."""
    return nib.Nifti1Image(np.asarray(volume.dataobj, dtype=np.float32) * mask, volume.affine)


def _of_brain(mask: np.ndarray) -> dict[str, float]:
    """Volume of the brain in ml, and its Dice with the atlas's."""
    voxel_ml = abs(np.linalg.det(common_affine()[:3, :3])) / 1000
    found = nib.Nifti1Image(mask.astype(np.uint8), common_affine())
    return {"brain_ml": round(float(mask.sum() * voxel_ml), 1), "atlas": atlas.likeness(found, np.eye(4))}


def _check(case: str, scans: list[RawScan], measures: Mapping[str, float]) -> None:
    """Refuse, in one sentence with the scan and the measure, what no network should see."""
    if not BRAIN_ML[0] <= measures["brain_ml"] <= BRAIN_ML[1]:
        raise BadCase(
            f"{case}: the brain that was found has {measures['brain_ml']:.0f} ml, expected {BRAIN_ML[0]} to "
            f"{BRAIN_ML[1]} ml; give scans of the whole head"
        )
    check_found(case, scans, measures, "the brain", "scans of the whole head", "a scan of the whole brain")
    for scan in scans:
        if scan.measures.get("fit", np.inf) < FITTING["fit"]:
            raise BadCase(
                f"{scan.told} tells {scan.measures['fit']:.1f} times as much about the scan of the brain as a little "
                f"beside its place, expected {FITTING['fit']} or more; is it of this patient, and sharp?"
            )
