"""From a download of TCIA's Vestibular-Schwannoma-SEG to scans and masks on T2's grid, with a datalist."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform
from tissnet_components.errors import BadCase, UserError
from tissnet_components.files import atomic_folder, existing_folder, files_below, to_json, write_atomic
from tissnet_components.prepare.contours import move, read_contours, read_rtstruct, referenced_series, tumor_mask
from tissnet_components.prepare.outcome import (
    checked_workers,
    print_skipped,
    print_summary,
    refuse_failed,
    set_apart_unnamed,
    writable,
)
from tissnet_components.processes import share_out
from tissnet_components.scans.contrast import contrast_of
from tissnet_components.scans.datalist import SECTIONS
from tissnet_components.scans.dicom import LPS_TO_RAS, Series, find_series, read_series
from tissnet_components.scans.naming import check_case_name
from tissnet_components.scans.nifti import check_intensities, check_readable, check_three_axes
from tissnet_components.scans.splits import read_split
from tqdm import tqdm

OUT = Path("vs")
TCIA_SPLIT = {"training": range(1, 182), "validation": range(182, 202), "test": range(202, 251)}  # split_TCIA.csv
PATIENT = re.compile(r"(?:VS-SEG-|vs_gk_|sub-)0*(\d+)", re.IGNORECASE)
KINDS = {  # the end of a file's path, in TCIA's zip files or in the BIDS variant
    "t1": r"/sub-\w+_T1w\.nii(\.gz)?",
    "t2": r"/sub-\w+_T2w\.nii(\.gz)?",
    "t1 contours": r"(_t1/contours|/[^/]*contours[^/]*_T1w)\.json",
    "t2 contours": r"(_t2/contours|/[^/]*contours[^/]*_T2w)\.json",
    "t1 to t2": r"T1_LPS_to_T2_LPS\.tfm",
    "t2 to t1": r"T2_LPS_to_T1_LPS\.tfm",
}
FILE_KIND = {kind: re.compile(rf".*{pattern}", re.IGNORECASE) for kind, pattern in KINDS.items()}
SAME_POINT_MM = 0.1
HEAD_MM = np.array([(x, y, z) for x in (-100, 100) for y in (-100, 100) for z in (-100, 100)])
WRITTEN = ("t2", "t1ce", "seg")

Found = Mapping[str, Sequence]  # kind -> files or series of a patient


def prepare_vs(
    root: Path,
    out: Path = OUT,
    split: Path | None = None,
    structures: str | Sequence[str] | None = None,
    workers: int | None = None,
) -> None:
    """Turn a download of TCIA's Vestibular-Schwannoma-SEG into what the bundle trains on: NIfTI files and a datalist.

    Unpack all that TCIA offers below one folder: the DICOM images (in descriptive or classic folders, it does not
    matter: headers are read), the contours and the registration matrices. The BIDS variant of the data set, with its
    images, works as well. Nothing else is needed, no 3D Slicer.

        python -m tissnet_components prepare_vs --root Vestibular-Schwannoma-SEG --out vs

    Each patient gets a folder, such as vs/VS-SEG-001, with the T2 scan as it is (_t2), the contrast-enhanced T1 scan
    brought to its grid with the supplied affine transform (_t1ce), and the mask of the tumor there (_seg), from the
    contours, or from RTSTRUCT where there are none. A folder appears only when it is whole: after an interruption run
    the same command again; remove a folder to convert its patient anew. Patients that cannot be converted are listed
    with the reason, the others go on, and the exit status is then 1; the split need not name all.

    Args:
        root: the folder with all that was downloaded.
        out: folder for the results; made if needed. It receives datalist.json.
        split: a CSV file with case,split in each line; by default TCIA's own (its split_TCIA.csv): patients 1-181 for
            training, 182-201 for validation, 202-250 for test.
        structures: the tumor's contours by name, for patients whose names do not tell, such as
            VS-SEG-063=Men,VS-SEG-073=Men.
        workers: patients converted at the same time; by default one per core, at most eight. Each needs about 1.2 GB.

    Raises:
        ValueError: one sentence: an argument is wrong, or some patients could not be converted.
        ImportError: there are DICOM files but pydicom is not installed.
    """
    folder, datalist, workers = existing_folder(root), writable(f"{out}/datalist.json"), checked_workers(workers)
    named, assigned = _parse_structures(structures), _assigned(split)
    found = find_downloads(folder)
    unnamed = set_apart_unnamed(found, {}, assigned, split)
    failed = convert_all(found, datalist.parent, named, workers)
    skipped = unnamed | failed
    print_skipped(skipped, folder)
    done = {name: assigned[name] for name in found if name not in failed}
    if not done:
        raise UserError(f"none of the {len(skipped)} patients in {folder} could be converted, see the reasons above")
    by_section = {section: [name for name in done if done[name] == section] for section in SECTIONS}
    write_atomic(datalist, to_json(_datalist(by_section, Path(split).name if split else "TCIA")))
    print_summary(datalist, by_section, ["t2"], "t1ce", len(skipped))
    refuse_failed(failed, len(done))


def patient_name(text: str) -> str | None:
    """VS-SEG-001 for TCIA's ``VS-SEG-001``, the contours' ``vs_gk_1_t1`` and BIDS's ``sub-001``, anywhere in a text."""
    match = PATIENT.search(text)
    return f"VS-SEG-{int(match[1]):03d}" if match else None


def find_downloads(root: Path) -> dict[str, Found]:
    """Scans, contours and transforms of every patient below a folder; images are not opened.

    Raises:
        ValueError: nothing is there.
    """
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for file in files_below(root):
        path = f"/{file.relative_to(root).as_posix()}"
        kind = next((kind for kind, pattern in FILE_KIND.items() if pattern.fullmatch(path)), None)
        if kind and (name := patient_name(path)):
            found[name][kind].append(file)
    for series in find_series(root):
        kind = "rtstruct" if series.modality == "RTSTRUCT" else series.modality
        found[patient_name(series.patient) or series.patient][kind].append(series)
    if not found:
        raise UserError(f"{root} holds no scan of Vestibular-Schwannoma-SEG; give the folder of TCIA's download")
    return {name: dict(kinds) for name, kinds in sorted(found.items())}


def convert_all(
    patients: Mapping[str, Found], out: Path, structures: Mapping[str, str], workers: int
) -> dict[str, str]:
    """Convert those whose files are not there yet, in parallel; returns why some could not be."""
    missing = [name for name in patients if not all((out / file).is_file() for file in _files(name))]
    jobs = [(name, patients[name], out, structures.get(name)) for name in missing]
    done = share_out(_reason, jobs, workers)
    reasons = tqdm(done, "converting", len(jobs), unit="patient", disable=not jobs)
    return {name: reason for name, reason in zip(missing, reasons, strict=True) if reason}


def convert(name: str, found: Found, out: Path, structure: str | None = None) -> None:
    """Write ``out/NAME/NAME_{t2,t1ce,seg}.nii.gz``.

    Raises:
        BadCase: something is missing, doubtful or damaged.
    """
    check_case_name(name, "a DICOM header")
    _check_patient(name, found)
    t1, t2 = choose_scan(found, "t1"), choose_scan(found, "t2")
    t2_to_t1, transform = _transform(found)
    if not (_fits_contours(found, t2_to_t1, transform, structure) or _fits_its_inverse(found)):
        tqdm.write(f"{name}: nothing tells whether {transform} is inverted, for its counterpart is missing")
    contours = _tumor(found, {"t1": t1, "t2": t2}, t2_to_t1, structure)
    t1_image, t2_image = _read(t1), _read(t2)
    for image, scan in ((t1_image, t1), (t2_image, t2)):
        check_intensities(np.asanyarray(image.dataobj), str(scan))
    t1ce = into_grid(t1_image, t2_image, t2_to_t1)
    check_intensities(np.asanyarray(t1ce.dataobj), f"{t1}, brought to T2's grid by {transform},")
    seg = nib.Nifti1Image(tumor_mask(contours, t2_image.shape, t2_image.affine), t2_image.affine)
    _write(out, name, dict(zip(WRITTEN, (t2_image, t1ce, seg), strict=True)))


def choose_scan(found: Found, modality: str) -> Path | Series:
    """The patient's T1 or T2 scan: the series that the contours name, else the only one whose headers fit.

    Of several T1, that is the only one with contrast agent; else of several scans the only one with an RTSTRUCT.

    Raises:
        BadCase: there is none, or more than one.
    """
    if found.get(modality):
        return _only(found, modality)
    series, named = found.get("MR", ()), _told_by_contours(found, modality, "MR_SeriesInstanceUID")
    fits = [
        one for one in series if (one.uid in named if named else (contrast_of(one).contrast or "").startswith(modality))
    ]
    enhanced = [one for one in fits if contrast_of(one).contrast == "t1ce"]
    fits = enhanced if len(enhanced) == 1 else fits
    contoured = [one for one in fits if _drawn_on(found, one)] if len(fits) > 1 else []
    fits = contoured if len(contoured) == 1 else fits
    if len(fits) > 1:
        raise BadCase(f"{fits[0]} and {fits[1]} are both {modality.upper()}; move the one away that was not contoured")
    if not fits:
        which = f" (series {', '.join(named)}, which the contours name)" if named else ""
        others = ", ".join(sorted(one.description or one.uid for one in series)) or "none"
        raise BadCase(f"no {modality.upper()} scan among the MR images ({others}); download it too{which}")
    return fits[0]


def read_transform(file: Path) -> np.ndarray:
    """Read an ITK transform as a 4x4 matrix between points in LPS mm.

    Raises:
        BadCase: unreadable, not one affine transform, or one that mirrors or collapses space.
    """
    try:
        transforms = itk.transformread(str(file))
    except RuntimeError as error:
        raise BadCase(f"{file} cannot be read as ITK transform; fetch it again") from error
    if len(transforms) != 1 or not transforms[0].IsLinear():
        kinds = ", ".join(transform.GetNameOfClass() for transform in transforms) or "nothing"
        raise BadCase(f"{file} holds {kinds}, expected one affine transform; supply that")
    corners = np.array([transforms[0].TransformPoint(list(map(float, point))) for point in np.eye(4)[:, :3]])
    matrix = np.eye(4)
    matrix[:3] = np.column_stack([*(corners[:3] - corners[3]), corners[3]])
    if not 0.5 < np.linalg.det(matrix) < 2:
        raise BadCase(f"{file} changes volumes by the factor {np.linalg.det(matrix):.2g}, expected 1; fetch it again")
    return matrix


def into_grid(moving: nib.Nifti1Pair, fixed: nib.Nifti1Pair, fixed_to_moving: np.ndarray) -> nib.Nifti1Image:
    """Resample ``moving`` linearly into the grid of ``fixed``; 0 where it does not reach.

    Args:
        fixed_to_moving: 4x4, a point of ``fixed`` in LPS mm to the same point of ``moving``, ITK's direction.
    """
    voxels = np.linalg.inv(moving.affine) @ LPS_TO_RAS @ fixed_to_moving @ LPS_TO_RAS @ fixed.affine
    array = np.asanyarray(moving.dataobj)
    resampled = affine_transform(array.astype(np.float32), voxels, output_shape=fixed.shape, order=1)
    whole = np.rint(resampled).astype(array.dtype) if array.dtype.kind in "iu" else resampled
    return nib.Nifti1Image(whole, fixed.affine, dtype=whole.dtype)


def _reason(job: tuple[str, Found, Path, str | None]) -> str | None:
    try:
        convert(*job)
    except (BadCase, ImportError) as error:
        return str(error)
    except Exception as error:  # one patient's surprise must not end the others' conversion
        return f"unexpected {type(error).__name__}: {error}"
    return None


def _only(found: Found, kind: str) -> Any:
    files = found.get(kind, ())
    if len(files) > 1:
        raise BadCase(f"both {files[0]} and {files[1]} are the patient's {kind}; keep one of them")
    return files[0] if files else None


def _check_patient(name: str, found: Found) -> None:
    for modality in ("t1", "t2"):
        others = [who for who in _told_by_contours(found, modality, "PatientID") if (patient_name(who) or who) != name]
        if others:
            raise BadCase(f"{_only(found, f'{modality} contours')} is of patient {others[0]}; fetch this patient's own")


def _told_by_contours(found: Found, modality: str, tag: str) -> list[str]:
    """What the contours' file says under a tag; a file that cannot be read is refused when its contours are."""
    file = _only(found, f"{modality} contours")
    try:
        return sorted({str(item[tag]) for item in json.loads(file.read_text()) if item.get(tag)}) if file else []
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return []


def _transform(found: Found) -> tuple[np.ndarray, Path]:
    """T2's points to T1's, which the file T1_LPS_to_T2_LPS holds: ITK resamples by it from T1 to T2's grid."""
    forward, backward = _only(found, "t1 to t2"), _only(found, "t2 to t1")
    if forward:
        return read_transform(forward), forward
    if backward:
        return np.linalg.inv(read_transform(backward)), backward
    raise BadCase(
        "no file inv_T1_LPS_to_T2_LPS.tfm; download TCIA's registration matrices and unpack them below --root"
    )


def _fits_contours(found: Found, t2_to_t1: np.ndarray, transform: Path, structure: str | None) -> bool:
    """Whether both scans' contours are there, the same points in both spaces; refuses a transform that parts them."""
    files = _only(found, "t1 contours"), _only(found, "t2 contours")
    if None in files:
        return False
    t1, t2 = (np.concatenate(read_contours(file, structure)) for file in files)
    if t1.shape != t2.shape:
        return False
    apart, inverted = (np.abs(move([t2], matrix)[0] - t1).max() for matrix in (t2_to_t1, np.linalg.inv(t2_to_t1)))
    if apart > SAME_POINT_MM:
        hint = "it is inverted" if inverted <= SAME_POINT_MM else "it belongs to other scans"
        raise BadCase(f"{transform} leaves T1's and T2's contours {apart:.1f} mm apart: {hint}; fetch it again")
    return True


def _fits_its_inverse(found: Found) -> bool:
    """Whether both directions' transforms are there; refuses them if they do not undo each other."""
    files = _only(found, "t1 to t2"), _only(found, "t2 to t1")
    if None in files:
        return False
    forward, backward = map(read_transform, files)
    apart = np.abs(move(move([HEAD_MM], forward), backward)[0] - HEAD_MM).max()
    if apart > SAME_POINT_MM:
        raise BadCase(f"{files[0]} and {files[1].name} do not undo each other ({apart:.1f} mm left); fetch both again")
    return True


def _tumor(
    found: Found, scans: Mapping[str, Path | Series], t2_to_t1: np.ndarray, structure: str | None
) -> list[np.ndarray]:
    """The tumor's contours in T2's space, from T2's file where there is one."""
    to_t2 = {"t2": np.eye(4), "t1": np.linalg.inv(t2_to_t1)}
    for modality, matrix in to_t2.items():
        file = _only(found, f"{modality} contours")
        if file:
            return move(read_contours(file, structure), matrix)
    for modality, matrix in to_t2.items():
        file = _rtstruct(found, scans[modality])
        if file:
            return move(read_rtstruct(file, structure), matrix)
    raise BadCase("no contours of these scans, neither JSON nor RTSTRUCT; download TCIA's contours too")


def _rtstruct(found: Found, scan: Path | Series) -> Path | None:
    """The RTSTRUCT that was drawn on a scan."""
    return _only({"RTSTRUCT": _drawn_on(found, scan)}, "RTSTRUCT")


def _drawn_on(found: Found, scan: Path | Series) -> list[Path]:
    files = [file for series in found.get("rtstruct", ()) for file in series.files]
    return [file for file in files if isinstance(scan, Series) and referenced_series(file) == scan.uid]


def _read(scan: Path | Series) -> nib.Nifti1Pair:
    image = read_series(scan) if isinstance(scan, Series) else check_readable(scan)
    check_three_axes(image.shape, str(scan))
    return image


def _write(out: Path, name: str, images: Mapping[str, nib.Nifti1Pair]) -> None:
    try:
        with atomic_folder(out / name) as hidden:
            for kind, image in images.items():
                nib.save(image, hidden / f"{name}_{kind}.nii.gz")
    except OSError as error:
        raise BadCase(
            f"{out / name} cannot be written ({error.strerror or error}); make room, or choose --out"
        ) from error


def _parse_structures(structures: str | Sequence[str] | None) -> dict[str, str]:
    parts = structures.split(",") if isinstance(structures, str) else [str(part) for part in structures or ()]
    pairs = [part.partition("=") for part in parts]
    wrong = [
        part for part, (patient, _, name) in zip(parts, pairs, strict=True) if not (patient_name(patient) and name)
    ]
    if wrong:
        raise UserError(f"--structures has {wrong[0]!r}, expected PATIENT=NAME, for example VS-SEG-063=Men")
    return {patient_name(patient) or patient: name.strip() for patient, _, name in pairs}


def _assigned(split: Path | None) -> dict[str, str]:
    """Section by patient, of the split file or TCIA's own."""
    if split:
        return {patient_name(case) or case: section for case, section in read_split(split).items()}
    return {f"VS-SEG-{n:03d}": section for section, numbers in TCIA_SPLIT.items() for n in numbers}


def _datalist(sections: Mapping[str, Sequence[str]], split: str) -> dict[str, object]:
    return {
        "name": "Vestibular-Schwannoma-SEG",
        "description": f"Vestibular schwannoma from t2 with t1ce missing; split by {split}",
        "sources": ["t2"],
        "target_modality": "t1ce",
        "labels": {"0": "background", "1": "vestibular schwannoma"},
        **{section: [_entry(name) for name in names] for section, names in sections.items()},
    }


def _entry(name: str) -> dict[str, object]:
    t2, t1ce, seg = _files(name)
    return {"case": name, "image": [t2], "target": t1ce, "label": seg}


def _files(name: str) -> list[str]:
    return [f"{name}/{name}_{kind}.nii.gz" for kind in WRITTEN]
