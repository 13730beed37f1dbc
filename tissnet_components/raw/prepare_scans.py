"""Raw scans to what the glioma network takes, and masks back: registered, stripped, on one grid of 1 mm.

Every voxel is interpolated once: a scan's own grid is reached from the common one by a single transform.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.eulerangles import euler2mat
from nibabel.processing import resample_from_to
from scipy import ndimage
from tissnet_components.errors import BadCase, PackageMissing
from tissnet_components.files import atomic_write
from tissnet_components.raw.register import coarsened, moved, register, write_transform
from tissnet_components.raw.strip import BEST_FIRST, brain_mask_of
from tissnet_components.results.files import MARK
from tissnet_components.scans.dicom import LPS_TO_RAS, Series, read_series
from tissnet_components.scans.nifti import check_intensities, check_readable, check_three_axes
from tissnet_components.scans.plausible import BRAIN_ML

COMMON_SHAPE = (240, 240, 155)  # of BraTS, 1 mm, axes to left, posterior and superior
COMMON_CENTRE = (119, 134, 73)  # where the centre of BraTS's brains lies, as in `phantom`, which no zip has
ATLAS_LARGER = (1.06, 1.07, 1.12)  # than the brains of BraTS, by these factors
ATLAS_TURNED = 14  # degrees about the axis from left to right, against the brains of BraTS: docs/why/raw.md
FITTING = {"fit": 2.35, "covered": 0.95, "atlas": 0.8}  # docs/why/raw.md
GREY_LEVELS = 32
COMPARED_MM, BESIDE_MM = 3.0, 9.0  # the grid on which `fit_of` looks, and how far beside


@dataclass(frozen=True)
class RawScan:
    """One scan as it came and why it was taken, where its points lie (common space to it, RAS mm), how well it fits.

    ``grid``: its shape, and its affine of 4x4. ``dicom_files``: its slices, if it is a DICOM series.
    """

    contrast: str
    grid: tuple[tuple[int, ...], np.ndarray]
    told: str
    reason: str
    transform: np.ndarray
    measures: Mapping[str, float]
    dicom_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A patient's scans in the common space, in files, and the raw ones."""

    files: Mapping[str, Path]
    scans: tuple[RawScan, ...]
    reference: str
    measures: Mapping[str, float]


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


def read_scans(scans: Mapping[str, str | Path | Series]) -> dict[str, nib.Nifti1Image]:
    """Contrast -> the scan as float32, checked alone.

    Raises:
        BadCase: a scan cannot be read or used.
    """
    return {contrast: _read(scan) for contrast, scan in scans.items()}


def registered(
    case: str, raw: Mapping[str, nib.Nifti1Image], tell: Callable[[str], object]
) -> tuple[str, dict[str, np.ndarray]]:
    """The scan to which all are registered, and where its points lie in each."""
    reference = "t1ce" if "t1ce" in raw else min(raw, key=lambda name: np.prod(voxel_sizes(raw[name].affine)))
    tell(f"{case}: registering {', '.join(name for name in raw if name != reference) or 'nothing'} to {reference}")
    return reference, {name: np.eye(4) if name == reference else register(raw[reference], raw[name]) for name in raw}


def brain_placed(
    case: str,
    raw: Mapping[str, nib.Nifti1Image],
    reference: str,
    to_scan: Mapping[str, np.ndarray],
    tell: Callable[[str], object],
) -> tuple[str, nib.Nifti1Image, np.ndarray]:
    """In which scan the brain was found, its mask there, and where the atlas's points lie in the reference."""
    seen = next((name for name in BEST_FIRST if name in raw), reference)
    tell(f"{case}: looking for the brain in {seen}")
    rough = brain_mask_of(raw[seen], seen)
    tell(f"{case}: registering the brain to the atlas")
    brain = np.asarray(raw[seen].dataobj, dtype=np.float32) * np.asarray(rough.dataobj)
    pose = register(atlas_brain(), nib.Nifti1Image(brain, raw[seen].affine))
    return seen, rough, np.linalg.inv(to_scan[seen]) @ pose


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


def to_native(mask: nib.Nifti1Pair, scan: RawScan) -> np.ndarray:
    """A mask or label map of the common space on a scan's own grid, by one interpolation: uint8.

    What lies more than half inside is tumor, of the label that has the greatest share.
    """
    labels = np.asarray(mask.dataobj)
    place = scan.transform @ mask.affine
    most = whole = np.zeros(scan.grid[0], np.float32)
    native = np.zeros(scan.grid[0], np.uint8)
    for label in np.unique(labels[labels > 0]):
        alone = nib.Nifti1Image((labels == label).astype(np.float32), place)
        share = np.asarray(resample_from_to(alone, scan.grid, order=1, mode="grid-constant").dataobj)  # edges count
        native[share > most] = label
        most, whole = np.maximum(most, share), whole + share
    native[whole <= 0.5] = 0
    return native


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
    smaller = np.diag([*(1 / np.array(ATLAS_LARGER)), 1])
    smaller[:3, 3] = -apply_affine(smaller @ template.affine, np.array(ndimage.center_of_mass(inside)))
    return from_matvec(euler2mat(x=np.radians(ATLAS_TURNED))) @ smaller


def _icbm152() -> tuple[nib.Nifti1Image, np.ndarray]:
    """The template, and where its brain is."""
    try:
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
    except ImportError as error:
        raise PackageMissing('--raw needs nilearn, which is not installed; pip install -e ".[raw]"') from error
    return load_mni152_template(1), np.asarray(load_mni152_brain_mask(1).dataobj) > 0


def write_marked(array: np.ndarray, affine: np.ndarray, file: Path) -> None:
    """Write a NIfTI file that says whose it is."""
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = MARK
    with atomic_write(file) as unfinished:
        nib.save(image, unfinished)


def _read(scan: str | Path | Series) -> nib.Nifti1Image:
    volume = read_series(scan) if isinstance(scan, Series) else check_readable(scan)
    check_three_axes(volume.shape, str(scan))
    check_intensities(np.asanyarray(volume.dataobj), str(scan))
    return nib.Nifti1Image(np.asarray(volume.dataobj, dtype=np.float32), volume.affine)


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


def as_found(
    contrast: str,
    given: str | Path | Series,
    volume: nib.Nifti1Image,
    transform: np.ndarray,
    measures: Mapping[str, float],
) -> RawScan:
    """A scan as it was given, with what was found of it."""
    grid = (volume.shape, volume.affine)
    if not isinstance(given, Series):
        return RawScan(contrast, grid, str(given), "given", transform, measures)
    files = () if given.converted else given.files
    return RawScan(contrast, grid, given.description or given.uid, given.reason, transform, measures, files)


def inside_view(volume: nib.Nifti1Image, transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points of the common space, (..., 3), lie in a scan's field of view: (...)."""
    places = apply_affine(np.linalg.inv(volume.affine) @ transform, points)
    return ((places > -0.5) & (places < np.array(volume.shape) - 0.5)).all(-1)


def masked(volume: nib.Nifti1Image, mask: np.ndarray) -> nib.Nifti1Image:
    """The volume, 0 outside the mask."""
    return nib.Nifti1Image(np.asarray(volume.dataobj, dtype=np.float32) * mask, volume.affine)


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


def _of_brain(mask: np.ndarray) -> dict[str, float]:
    """Volume of the brain in ml, and its Dice with the atlas's."""
    voxel_ml = abs(np.linalg.det(common_affine()[:3, :3])) / 1000
    found = nib.Nifti1Image(mask.astype(np.uint8), common_affine())
    return {"brain_ml": round(float(mask.sum() * voxel_ml), 1), "atlas": likeness(found, np.eye(4))}


def likeness(brain: nib.Nifti1Image, transform: np.ndarray) -> float:
    """Dice of a brain's mask on a grid that the common space's points reach by `transform`, with the atlas's there."""
    atlas = atlas_brain()
    there = nib.Nifti1Image(atlas.dataobj, transform @ atlas.affine)
    expected = np.asarray(resample_from_to(there, (brain.shape, brain.affine), order=1).dataobj) > 0
    mask = np.asarray(brain.dataobj) > 0
    return round(2 * float((mask & expected).sum()) / max(int(mask.sum() + expected.sum()), 1), 4)


def _check(case: str, scans: list[RawScan], measures: Mapping[str, float]) -> None:
    """Refuse, in one sentence with the scan and the measure, what no network should see."""
    if not BRAIN_ML[0] <= measures["brain_ml"] <= BRAIN_ML[1]:
        raise BadCase(
            f"{case}: the brain that was found has {measures['brain_ml']:.0f} ml, expected {BRAIN_ML[0]} to "
            f"{BRAIN_ML[1]} ml; give scans of the whole head"
        )
    if measures["atlas"] < FITTING["atlas"]:
        raise BadCase(
            f"{case}: the brain that was found has a Dice of {measures['atlas']:.2f} with the atlas's, expected "
            f"{FITTING['atlas']} or more; give scans of the whole head"
        )
    for scan in scans:
        if scan.measures["covered"] < FITTING["covered"]:
            raise BadCase(
                f"{scan.told} shows {scan.measures['covered']:.0%} of the brain, expected {FITTING['covered']:.0%} or "
                f"more; give a scan of the whole brain"
            )
        if scan.measures.get("fit", np.inf) < FITTING["fit"]:
            raise BadCase(
                f"{scan.told} tells {scan.measures['fit']:.1f} times as much about the scan of the brain as a little "
                f"beside its place, expected {FITTING['fit']} or more; is it of this patient, and sharp?"
            )
