"""Raw scans of a head to what the schwannoma network takes: the skull base around both auditory canals, upright.

Nothing is stripped. The canals are found by the brain, which is registered to the atlas.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.eulerangles import euler2mat
from nibabel.processing import resample_from_to
from tissnet_components.raw import atlas
from tissnet_components.raw.register import moved, write_transform
from tissnet_components.raw.scans import (
    Prepared,
    as_found,
    brain_placed,
    check_found,
    inside_view,
    read_scans,
    registered,
    write_marked,
)
from tissnet_components.scans.dicom import Series

CENTRE_MM = (0, -22.5, -36.5)  # in ICBM152, between the openings of both canals, as in `phantom`, which no zip has
SHAPE, SPACING_MM = (140, 84, 40), (0.8, 0.8, 1.5)  # of the crop, as the weights know it: docs/why/raw.md
CANALS_MM = (70, 20, 20)  # around the centre: both canals, with their openings and their ends
NARROW_MM = (130, 100, 60)  # the widest view of the simulated patients with a small one


def prepare_canals(
    case: str, scans: Mapping[str, str | Path | Series], folder: Path, tell: Callable[[str], object]
) -> Prepared:
    """Register the scans of one patient, and crop them to the auditory canals, in one interpolation.

    A scan that shows no more than a crop does stays as it is: it holds too little of the brain to find anything by.

    Args:
        scans: contrast -> file or DICOM series.
        folder: where the cropped scans and the transforms (common space to each scan) are written.
        tell: takes a line for every step.

    Raises:
        BadCase: a scan cannot be read, shows no brain like the atlas's, or does not show both canals.
    """
    raw = read_scans(scans)
    reference, transforms = registered(case, raw, tell)
    if is_narrow(raw[reference]):
        tell(f"{case}: {reference} shows little beside the skull base, and stays as it is")
        grid, measures, shown = (raw[reference].shape, raw[reference].affine), {}, dict.fromkeys(raw, 1.0)
    else:
        seen, brain, pose = brain_placed(case, raw, reference, transforms, tell)
        transforms = {name: transforms[name] @ pose for name in raw}
        measures = {"atlas": atlas.likeness(brain, transforms[seen])}
        shown = {name: canals_shown(raw[name], transforms[name]) for name in raw}
        tell(f"{case}: cropping to the auditory canals")
        grid = within_view(crop_grid(), raw[reference], transforms[reference])
    found = [as_found(name, scans[name], raw[name], transforms[name], {"covered": shown[name]}) for name in raw]
    head = "a scan of the head, or one cropped to the auditory canals"
    check_found(case, found, measures, "the auditory canals", head, "a scan that holds both")
    files = {name: folder / f"{case}_{name}.nii.gz" for name in raw}
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        cropped = resample_from_to(moved(raw[name], transforms[name]), grid, order=1, mode="nearest")
        write_marked(np.asarray(cropped.dataobj), cropped.affine, file)
        write_transform(transforms[name], folder / f"{case}_{name}.tfm")
    return Prepared(files, tuple(found), reference, measures)


def is_narrow(volume: nib.Nifti1Image) -> bool:
    """Whether a scan shows as little as the simulated patients with a small field of view, whatever its axes."""
    extents_mm = sorted(np.array(volume.shape) * voxel_sizes(volume.affine), reverse=True)
    return bool((np.array(extents_mm) <= NARROW_MM).all())


def crop_grid() -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the crop in the common space: upright as the atlas is, not as the brains of BraTS lie."""
    axes = euler2mat(x=np.radians(atlas.TURNED)) * SPACING_MM
    return SHAPE, from_matvec(axes, _centre() - axes @ (np.array(SHAPE) - 1) / 2)


def within_view(
    grid: tuple[tuple[int, ...], np.ndarray], volume: nib.Nifti1Image, transform: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """The grid without those of its outer planes of which a scan shows less than half: networks mistake empty space."""
    shape, affine = grid
    inside = inside_view(volume, transform, apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)))
    kept = [np.flatnonzero(inside.mean(tuple({0, 1, 2} - {axis})) >= 0.5) for axis in range(3)]
    if not all(map(len, kept)):
        return grid
    first, last = np.array([(planes[0], planes[-1]) for planes in kept]).T
    return tuple((last - first + 1).tolist()), affine @ from_matvec(np.eye(3), first)


def canals_shown(volume: nib.Nifti1Image, transform: np.ndarray) -> float:
    """The share of the room around both canals that a scan shows."""
    room = np.stack(np.meshgrid(*(np.linspace(-mm / 2, mm / 2, 11) for mm in CANALS_MM), indexing="ij"), -1)
    upright = from_matvec(euler2mat(x=np.radians(atlas.TURNED)), _centre())
    return round(float(inside_view(volume, transform, apply_affine(upright, room)).mean()), 4)


def _centre() -> np.ndarray:
    return apply_affine(atlas.from_atlas(), CENTRE_MM)
