"""Check cases and read datalists, so that bad data ends in one sentence that names the file.

A case is a dict: ``case`` (its name), ``image`` (one file or a list, the source modalities in order) and, where known,
``target`` (the missing modality) and ``label`` (the tumor mask). One that was found to be bad before its files were
read has ``unusable``, the reason.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import abspath
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from tqdm import tqdm

from tissnet_components.files import files_below

MODALITIES = ("t1", "t1ce", "t2", "flair")
SECTIONS = ("training", "validation", "test")
LABELS = (0, 1, 2, 3, 4)  # BraTS skips 3 until 2022 and uses it from 2023 on; 4 is back for the resection cavity
FILE_KEYS = ("image", "target", "label")
FEW_CASES = 5
UNFIT = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]")  # in a folder's name; the last are bytes that are no UTF-8
LONGEST_NAME = 200  # bytes; a file's name has at most 255, and results add to the case's
MOST_BYTES = 2**32  # of voxels: 256 mm a side at 0.25 mm, in single precision
MOST_PACKED = 1032  # times, by deflate
EXTENT_MM = (1, 600)  # of a scan along an axis: more or less was no millimetres
LARGEST = 1e38  # differences of such still fit single precision
CLIPPED = (0.5, 99.5)  # percentiles of the brain beyond which the bundles clip


class BadCase(ValueError):
    """A case that cannot be used: one sentence with the file, what is wrong with it and what to do."""


def check_case_name(name: object, source: str | Path) -> str:
    """The name, if results can be filed under it: inside their folder, on any file system.

    Raises:
        BadCase: anything else; `source` is what holds the name.
    """
    fits = isinstance(name, str) and name not in ("", ".", "..") and not UNFIT.search(name)
    if not fits or len(name.encode()) > LONGEST_NAME:
        raise BadCase(
            f"{source} names a case {str(name)[:50]!r}, which cannot be a folder's name; use letters and digits"
        )
    return name


def nifti_files(root: Path) -> Iterator[Path]:
    """All NIfTI files below a folder, see `files_below`."""
    return (file for file in files_below(root) if is_nifti(file.name))


def is_nifti(name: str) -> bool:
    return name.endswith((".nii", ".nii.gz"))


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
    proxy = image.dataobj
    described = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
    with ImageOpener(image.file_map["image"].filename) as stream:
        voxels = np.asanyarray(ArrayProxy(stream, described))
        while stream.read(2**20):
            pass
    return voxels


def _check_size(image: nib.Nifti1Pair, file: str | Path) -> None:
    """Refuse, before memory is asked for it, what the header claims but the file cannot hold, or no scan has."""
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    held = os.path.getsize(image.file_map["image"].filename)
    if claimed > min(MOST_BYTES, MOST_PACKED * held):
        raise BadCase(
            f"{file} claims the shape {image.shape}, {claimed / 2**30:.3g} GiB, in {held} bytes; expected at most "
            f"{MOST_BYTES / 2**30:.0f} GiB: fetch or export it again, or resample it"
        )


def _check_place(image: nib.Nifti1Pair, file: str | Path) -> None:
    """Refuse an affine that is singular or not in mm, and a qform that says otherwise than the sform, which is used."""
    affine, shape = image.affine, image.shape[:3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadCase(f"{file} has the affine {affine.tolist()}, which cannot be inverted; repair its header")
    check_extent(affine, shape, file)
    sform, qform = image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]
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

    common = max(grids, key=lambda file: sum(alike(file, other) for other in grids), default=None)
    for file, (shape, affine) in grids.items():
        if alike(file, common):
            continue
        if tuple(shape) != tuple(grids[common][0]):
            what, found, expected = "shape", tuple(shape), tuple(grids[common][0])
        else:
            what, found, expected = "affine", np.round(affine, 4).tolist(), np.round(grids[common][1], 4).tolist()
        raise BadCase(f"{file} has {what} {found} but {common} has {expected}; resample one to the other's grid")


def check_case(case: Mapping) -> None:
    """Read every file of a case (``target`` and ``label`` may be absent) and check it, alone and against the others.

    Raises:
        BadCase: for the first thing that is wrong.
    """
    if case.get("unusable"):
        raise BadCase(case["unusable"])
    grids = {}
    for key in FILE_KEYS:
        for file in _as_list(case.get(key)):
            image = check_readable(file)
            check_three_axes(image.shape, file)
            (check_label if key == "label" else check_intensities)(np.asanyarray(image.dataobj), file)
            grids[str(file)] = (image.shape, image.affine)
    check_same_grid(grids)


def usable_cases(cases: Sequence[Mapping], workers: int | None = None) -> tuple[list[Mapping], dict[str, str]]:
    """Check cases in parallel, with a progress bar when there are more than a few.

    Threads do: nearly all the time goes into unpacking gzip, which runs without Python's lock.

    Returns:
        the good cases in their order, and case name -> reason for the others.
    """
    with ThreadPoolExecutor(workers) as pool:
        quiet = len(cases) <= FEW_CASES
        reasons = list(tqdm(pool.map(_reason, cases), "checking cases", len(cases), unit="case", disable=quiet))
    good = [case for case, reason in zip(cases, reasons, strict=True) if not reason]
    failed = {case["case"]: reason for case, reason in zip(cases, reasons, strict=True) if reason}
    return good, failed


def load_datalist(path: str | Path, section: str, sources: Sequence[str] | None = None) -> list[dict]:
    """Read the cases of one section ("training", "validation" or "test") of a datalist, paths made absolute.

    Relative paths start at the datalist's folder. ``image`` is always a list. Files are not opened here:
    `usable_cases` does that. With `sources`, the contrasts that a network expects, each case's `image` holds these in
    this order, chosen among those that the datalist names, if it names any.

    Raises:
        ValueError: sources it does not name, no such file or section, not JSON, an empty section, an entry without
            ``case`` or ``image``, a name not fit for a folder, or a case or file that stands in it twice (in two
            sections, it would leak into the test).
    """
    sections, named = _read_sections(Path(path))
    if sources is not None and named is not None and not set(sources) <= set(named):
        raise ValueError(
            f"datalist {path} has the sources {list(named)}, expected {list(sources)}; set --source_modalities to the "
            f"former, or prepare the datalist again"
        )
    if not sections.get(section):
        problem = "an empty" if section in sections else "no"
        filled = {name: len(entries) for name, entries in sections.items() if entries}
        raise ValueError(f"{path} has {problem} section '{section}'; it has {filled or 'no cases'}; prepare it again")
    folder = Path(path).absolute().parent
    cases = {name: [_absolute(entry, folder, path) for entry in entries] for name, entries in sections.items()}
    _refuse_twice([entry["case"] for entries in cases.values() for entry in entries], "case", path)
    _refuse_twice([file for entries in cases.values() for entry in entries for file in _files(entry)], "file", path)
    if sources is None or named is None:
        return cases[section]
    return [{**case, "image": _chosen(case, named, sources, path)} for case in cases[section]]


def _chosen(case: Mapping, named: Sequence[str], sources: Sequence[str], path: str | Path) -> list[str]:
    """The files of the wanted sources among those of a case."""
    if len(case["image"]) != len(named):
        raise ValueError(
            f"datalist {path} names the sources {list(named)}, but {case['case']} has {len(case['image'])} images; "
            f"prepare it again"
        )
    return [case["image"][named.index(source)] for source in sources]


def _read_sections(path: Path) -> tuple[dict[str, list], list[str] | None]:
    """The cases by section, and the names of the source contrasts if the datalist gives them."""
    if not os.path.isfile(path):
        raise ValueError(
            f"datalist {path} does not exist; write it with prepare_brats, prepare_vs or phantom of "
            f"`python -m tissnet_components`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"datalist {path} is not valid JSON ({error}); prepare it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"datalist {path} holds a {type(content).__name__}, expected sections {SECTIONS}")
    sections = {name: content[name] for name in SECTIONS if name in content}
    wrong = [name for name, entries in sections.items() if not isinstance(entries, list)]
    if wrong:
        raise ValueError(f"section '{wrong[0]}' of datalist {path} is no list of cases; prepare it again")
    named = content.get("sources")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise ValueError(f"'sources' of datalist {path} is {named}, expected a list of names; prepare it again")
    return sections, named


def _absolute(entry: dict, folder: Path, path: str | Path) -> dict:
    if not isinstance(entry, dict) or not entry.get("case") or not entry.get("image"):
        raise ValueError(f"datalist {path} has the entry {entry}, expected at least 'case' and 'image'; add them")
    check_case_name(entry["case"], f"datalist {path}")
    try:
        files = {key: [abspath(folder / file) for file in _as_list(entry.get(key))] for key in FILE_KEYS}
    except TypeError as error:
        raise ValueError(f"datalist {path} has the entry {entry}, expected names of files; prepare it again") from error
    single = {key: files[key][0] for key in ("target", "label") if files[key]}
    return {**entry, "image": files["image"], **single}


def _refuse_twice(names: list[str], kind: str, path: str | Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"datalist {path} uses the {kind} {twice[0]} more than once ({len(twice)} such); remove it")


def _reason(case: Mapping) -> str | None:
    try:
        check_case(case)
    except BadCase as error:
        return str(error)
    return None


def _files(case: Mapping) -> list[str]:
    return [file for key in FILE_KEYS for file in _as_list(case.get(key))]


def _as_list(files: str | Path | Sequence | None) -> list:
    if files is None:
        return []
    return [files] if isinstance(files, str | Path) else list(files)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
