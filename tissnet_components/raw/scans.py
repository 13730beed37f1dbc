"""What every raw scan goes through: read, registered, its brain found, refused or kept; and masks on their way back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.processing import resample_from_to
from tissnet_components.errors import BadCase
from tissnet_components.files import atomic_write
from tissnet_components.raw import atlas
from tissnet_components.raw.register import register
from tissnet_components.raw.strip import BEST_FIRST, brain_mask_of
from tissnet_components.results.files import MARK
from tissnet_components.scans.dicom import Series, read_series
from tissnet_components.scans.nifti import check_intensities, check_readable, check_three_axes

FITTING = {"fit": 2.35, "covered": 0.95, "atlas": 0.8}  # docs/why/raw.md


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
    pose = register(atlas.atlas_brain(), nib.Nifti1Image(brain, raw[seen].affine))
    return seen, rough, np.linalg.inv(to_scan[seen]) @ pose


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


def check_found(
    case: str, scans: Sequence[RawScan], measures: Mapping[str, float], room: str, head: str, scan_of_room: str
) -> None:
    """Refuse, in one sentence with the measure, a brain unlike the atlas's, and scans that show too little.

    Args:
        room: what every scan must show.
        head, scan_of_room: what to give instead.

    Raises:
        BadCase: so.
    """
    if measures.get("atlas", 1) < FITTING["atlas"]:
        raise BadCase(
            f"{case}: the brain that was found has a Dice of {measures['atlas']:.2f} with the atlas's, expected "
            f"{FITTING['atlas']} or more; give {head}"
        )
    for scan in scans:
        if scan.measures["covered"] < FITTING["covered"]:
            raise BadCase(
                f"{scan.told} shows {scan.measures['covered']:.0%} of {room}, expected {FITTING['covered']:.0%} "
                f"or more; give {scan_of_room}"
            )
