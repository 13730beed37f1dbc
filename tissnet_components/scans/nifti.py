"""Check NIfTI files, so that a bad one ends in one sentence that names it."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from tissnet_components.errors import BadCase
from tissnet_components.files import files_below

NIFTI_ENDING = re.compile(r"\.(?:nii|hdr|img)(?:\.gz)?$", re.IGNORECASE)
LABELS = (0, 1, 2, 3, 4)  # BraTS skips 3 until 2022 and uses it from 2023 on; 4 is back for the resection cavity
MOST_BYTES = 2**32  # of voxels: 256 mm a side at 0.25 mm, in single precision
MOST_PACKED = 1032  # times, by deflate
EXTENT_MM = (1, 600)  # of a scan along an axis: more or less was no millimetres
LARGEST = 1e38  # differences of such still fit single precision
_AHEAD: dict[tuple[str, float], Future] = {}  # what `read_ahead` is reading
CLIPPED = (0.5, 99.5)  # percentiles of the brain beyond which the bundles clip


def nifti_files(root: Path) -> Iterator[Path]:
    """All NIfTI files below a folder, see `files_below`."""
    return (file for file in files_below(root) if is_nifti(file.name))


def is_nifti(name: str) -> bool:
    """By the ending alone; of a header and its image, the header counts."""
    return bool(NIFTI_ENDING.search(name)) and not name.lower().endswith((".img", ".img.gz"))


def without_ending(name: str) -> str:
    """A file's name without .nii, .nii.gz, .hdr and the like; nothing else behind a dot is an ending."""
    return NIFTI_ENDING.sub("", name)


def check_readable(file: str | Path) -> nib.Nifti1Pair:
    """Read a NIfTI file completely, which is the only way to notice that it is truncated.

    Returns:
        the image with its voxels in memory (scaled by the header's slope and intercept), without the axes of length
        one after the third, with which FSL, SPM and ITK write one volume.

    Raises:
        BadCase: missing, damaged, too large, not NIfTI, or placed in space in no way or in two.
    """
    if not os.path.isfile(file):
        raise BadCase(f"{file} does not exist; correct the path or fetch the file again")
    try:
        image = nib.load(file)
        if not isinstance(image, nib.Nifti1Pair):
            raise BadCase(f"{file} is {type(image).__name__}, expected NIfTI; convert it to .nii.gz")
        _check_size(image, file)
        _check_place(image, file)
        voxels = _all_voxels(image)
    except BadCase:
        raise
    except Exception as error:  # nibabel, gzip and zlib raise a dozen types; to the user each means the same
        raise BadCase(f"{file} cannot be read as NIfTI ({_one_line(error)}); fetch or export it again") from error
    trailing = tuple(axis for axis, length in enumerate(voxels.shape) if axis > 2 and length == 1)
    return type(image)(voxels.squeeze(trailing), image.affine, image.header)


def _all_voxels(image: nib.Nifti1Pair) -> np.ndarray:
    """The voxels, read on to the end of the file, where gzip keeps the checksum that tells damage."""
    proxy: Any = image.dataobj
    described = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
    with ImageOpener(_file_of_voxels(image)) as stream:
        voxels = np.asanyarray(ArrayProxy(stream, described))
        while stream.read(2**20):
            pass
    return voxels


def _file_of_voxels(image: nib.Nifti1Pair) -> str:
    return str(image.file_map["image"].filename)


def _check_size(image: nib.Nifti1Pair, file: str | Path) -> None:
    """Refuse, before memory is asked for it, what the header claims but the file cannot hold, or no scan has."""
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    held = os.path.getsize(_file_of_voxels(image))
    if claimed > min(MOST_BYTES, MOST_PACKED * held):
        raise BadCase(
            f"{file} claims the shape {image.shape}, {claimed / 2**30:.3g} GiB, in {held} bytes; expected at most "
            f"{MOST_BYTES / 2**30:.0f} GiB: fetch or export it again, or resample it"
        )


def _check_place(image: nib.Nifti1Pair, file: str | Path) -> None:
    """Refuse an affine that is singular or not in mm, one that is no more than a reader's guess, and two that differ.

    Where neither qform nor sform is set, readers place the scan differently, and left and right are not known. Where
    both are, the sform is used.
    """
    affine, shape = image.affine, image.shape[:3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadCase(f"{file} has the affine {affine.tolist()}, which cannot be inverted; repair its header")
    check_extent(affine, shape, file)
    sform, qform = image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]
    if sform is None and qform is None:
        raise BadCase(
            f"{file} does not say where it lies (its sform_code and qform_code are 0), so programs will disagree; "
            f"export it again with its orientation"
        )
    if sform is None or qform is None:
        return
    corners = np.stack(np.meshgrid(*[(0, length) for length in (*shape, 1, 1)[:3]], 1), -1).reshape(-1, 4)
    apart_mm = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
    if apart_mm > nib.affines.voxel_sizes(affine).min() / 2:
        raise BadCase(
            f"{file} is placed by its sform and by its qform {apart_mm:.3g} mm apart, so programs will disagree; "
            f"copy the right one over the other"
        )


def check_extent(affine: np.ndarray, shape: Sequence[int], file: str | Path) -> None:
    """Refuse a scan whose sides were no millimetres, or no head's."""
    extent_mm = nib.affines.voxel_sizes(affine)[: len(shape)] * shape
    if extent_mm.min() < EXTENT_MM[0] or extent_mm.max() > EXTENT_MM[1]:
        raise BadCase(
            f"{file} extends over {' x '.join(f'{length:.3g}' for length in extent_mm)} mm, expected {EXTENT_MM[0]} to "
            f"{EXTENT_MM[1]} mm a side; is its header in millimetres? Repair it"
        )


def read_volume(file: str | Path, check: Callable[[np.ndarray, str | Path], None]) -> nib.Nifti1Pair:
    """`check_readable`, of three axes, its voxels checked; at once, where `read_ahead` has done so."""
    if check is check_intensities and (ahead := _AHEAD.pop(_as_it_is(file), None)):
        return ahead.result()
    return _read_volume(file, check)


def _read_volume(file: str | Path, check: Callable[[np.ndarray, str | Path], None]) -> nib.Nifti1Pair:
    volume = check_readable(file)
    check_three_axes(volume.shape, file)
    check(np.asanyarray(volume.dataobj), file)
    return volume


def read_ahead(files: Iterable[str]) -> None:
    """Begin to read scans, which `read_volume` will be asked for once; what is wrong with one is said then."""
    pool = ThreadPoolExecutor()
    for file in files:
        _AHEAD[_as_it_is(file)] = pool.submit(_read_volume, file, check_intensities)


def _as_it_is(file: str | Path) -> tuple[str, float]:
    """A file until it changes."""
    return str(file), os.path.getmtime(file) if os.path.isfile(file) else 0


def check_three_axes(shape: Sequence[int], file: str | Path) -> None:
    """Refuse anything but a volume; a single slice is none."""
    if len(shape) != 3 or min(shape) < 2:
        raise BadCase(f"{file} has shape {shape}, expected three axes of several voxels; give one volume per file")


def check_intensities(array: np.ndarray, file: str | Path) -> None:
    """Refuse an image of (nearly) constant value, usually a failed export, or with voxels that are no finite numbers.

    Judged in single precision, as the networks read it.
    """
    bad = array.size - int((np.abs(_real(array, file)) < LARGEST).sum())
    if bad:
        raise BadCase(
            f"{file} holds {bad} voxels that are NaN or infinite (or beyond {LARGEST:g}); repair them or leave the "
            f"case out"
        )
    array = array.astype(np.float32)
    if array.size == 0 or array.min() == array.max():
        value = f"only the value {array.flat[0]:g}" if array.size else "no voxels"
        raise BadCase(f"{file} holds {value}, so there is no image in it; export it again or leave the case out")
    low, high = np.percentile(array[array != 0], CLIPPED)
    if low == high:
        raise BadCase(
            f"{file} holds 0 and {low:g} almost everywhere, so there is no image in it; export it again or leave the "
            f"case out"
        )


def _real(array: np.ndarray, file: str | Path) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise BadCase(f"{file} holds {array.dtype} voxels, expected real numbers; export it as a grey-value image")
    return array


def check_label(array: np.ndarray, file: str | Path) -> None:
    """Refuse a label map with anything but BraTS's values. An empty map is allowed: not everyone has a tumor."""
    unknown = array[~np.isin(_real(array, file), LABELS)]
    if unknown.size:
        values = ", ".join(f"{value:g}" for value in np.unique(unknown)[:5])
        raise BadCase(f"{file} holds {unknown.size} voxels of value {values}; a label map holds only {LABELS}")


def check_same_grid(grids: Mapping[str, tuple[Sequence[int], np.ndarray]]) -> None:
    """Refuse files whose voxels do not lie on each other; names the one that differs from most of the others.

    Args:
        grids: file -> (shape in voxels, 4x4 affine in mm).
    """

    def alike(one: str, other: str) -> bool:
        (shape, affine), (other_shape, other_affine) = grids[one], grids[other]
        return tuple(shape) == tuple(other_shape) and np.allclose(affine, other_affine, rtol=0, atol=1e-3)

    common = max(grids, key=lambda file: sum(alike(file, other) for other in grids), default="")
    for file, (shape, affine) in grids.items():
        if alike(file, common):
            continue
        if tuple(shape) != tuple(grids[common][0]):
            what, found, expected = "shape", tuple(shape), tuple(grids[common][0])
        else:
            what, found, expected = "affine", np.round(affine, 4).tolist(), np.round(grids[common][1], 4).tolist()
        raise BadCase(f"{file} has {what} {found} but {common} has {expected}; resample one to the other's grid")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
