"""Which patients a folder or a table names, and which weights take the scans of each; no scan is opened."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

from tissnet_components.errors import UserError
from tissnet_components.files import user_path
from tissnet_components.results.files import is_result
from tissnet_components.scans.choice import contrasts_below
from tissnet_components.scans.datalist import as_list
from tissnet_components.scans.dcm2niix import holds_series, is_converted
from tissnet_components.scans.naming import case_of, check_case_name, scans_below, tells_contrast
from tissnet_components.scans.nifti import nifti_files
from tissnet_components.scans.table import read_table

ANY_SUBSET = "any_missing"  # weights of this name take any subset of the contrasts


def find_patients(
    cases: str | Path, modalities: Sequence[str], out: str | Path, known: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The patients of a CSV file, of a folder of NIfTI files named as in BraTS, or of DICOM folders; none is opened.

    Args:
        out: a folder in which no scans are looked for, since results go there.
        known: contrasts of which a patient may have any subset, if there are weights for that.

    Returns:
        entries of ``case``, the name; ``any_subset``, whether the patient has others of the known contrasts than the
        modalities; and ``image``, the scans of the modalities, or else of all that are known, in their order, None for
        what is absent; and what was passed over, file -> reason. Relative paths in a CSV start at its folder.

    Raises:
        ValueError: nothing found, a column or cell missing, a name used twice or not fit for a folder.
    """
    cases = Path(cases)
    patients, passed_over = (
        _in_folder(cases, modalities, Path(out), known) if cases.is_dir() else (_in_table(cases, modalities, known), {})
    )
    patients = [patient | placed(patient["image"], modalities, known) for patient in patients]
    names = [check_case_name(patient["case"], cases) for patient in patients]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{cases} names the case {twice[0]} more than once; give each its own name")
    return patients, passed_over


def placed(scans: Mapping[str, str | None], modalities: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """The scans in the order of the weights that take them: the bundle's own, if it is these, or any subset's."""
    any_subset = bool(known) and {name for name, scan in scans.items() if scan} != set(modalities)
    return {"any_subset": any_subset, "image": [scans.get(name) for name in (known if any_subset else modalities)]}


def one_patient(
    given: dict[str, str], modalities: list[str], known: list[str], bundle: Path, case: str | None
) -> dict[str, Any]:
    """The patient whose scans are given one by one, as an entry of `find_patients`.

    Raises:
        ValueError: other scans than the weights take, or a name that is not fit for a folder.
    """
    if list(given) == ["image"]:
        patient: dict[str, Any] = {"any_subset": False, "image": given["image"]}
    else:
        _check_given(given, modalities, known, bundle)
        patient = placed(given, modalities, known)
    first = case_of(Path(scans_of(patient)[0]).absolute())
    return {"case": check_case_name(str(case or first), "--case"), **patient}  # Fire makes 7 of a patient called 7


def scans_of(patient: Mapping[str, Any]) -> list[str]:
    """The scans that the patient has: None stands for a contrast that is to be synthesised."""
    return [scan for scan in as_list(patient["image"]) if scan is not None]


def refuse_shared(patients: Sequence[Mapping[str, Any]]) -> None:
    """Refuse one file, however it is spelled, for two scans or two cases; a folder may hold several series."""
    users: dict[str, str] = {}
    for patient in patients:
        files = [realpath(scan) for scan in scans_of(patient) if os.path.isfile(scan)]
        for file in files:
            if files.count(file) > 1:
                raise UserError(f"{patient['case']} uses {file} for more than one scan; correct it")
            if (other := users.setdefault(file, patient["case"])) != patient["case"]:
                raise UserError(f"{other} and {patient['case']} both use {file}; correct one of them")


def _in_folder(
    folder: Path, modalities: Sequence[str], out: Path, known: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    names = known or modalities
    named = [
        case | {"image": dict(zip(names, case["image"], strict=True))}
        for case in scans_below(folder, names, any_subset=bool(known))
    ]
    taken = {Path(scan) for case in named for scan in case["image"].values() if scan}
    patients = list(_dicom_patients(folder, taken, out))
    if not named and not patients:
        wanted = ", ".join(f"CASE_{name}.nii.gz" for name in modalities)
        raise UserError(
            f"{folder} holds no scans named like {wanted} and no folders; rename them, or list them in a CSV"
        )
    reason = (
        f"its name tells no contrast; name it CASE_{modalities[0]}.nii.gz, list it in a CSV, or give --skip-unmatched"
    )
    apart = [{"case": patient.name, "image": _dicom_folders(patient, modalities, known)} for patient in patients]
    unnamed = [
        file for file in nifti_files(folder) if not (tells_contrast(file) or is_converted(file) or is_result(file))
    ]
    return [*named, *apart], {str(file.relative_to(folder)): reason for file in unnamed}


def _dicom_patients(folder: Path, taken: Collection[Path], out: Path) -> Iterator[Path]:
    """The folders of DICOM patients, at any depth beside those of the scans taken; without any, all folders."""
    for child in sorted(folder.iterdir()):
        if not child.is_dir() or child.name.startswith(".") or realpath(child) == realpath(out):
            continue
        below = [scan for scan in taken if child in scan.parents]
        if not below and (not taken or holds_series(child)):
            yield child
        elif below and not any(scan.parent == child for scan in below):
            yield from _dicom_patients(child, taken, out)


def _dicom_folders(patient: Path, modalities: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """A folder per modality where they are named so, else the patient's for each; those that are there, of any."""
    apart = [name for name in known or modalities if (patient / name).is_dir()]
    if apart:
        return {name: str(patient / name) for name in (apart if known else modalities)}
    there = contrasts_below(patient).intersection(known) if known else set()
    return {name: str(patient) for name in there or modalities}


def _in_table(path: Path, modalities: Sequence[str], known: Sequence[str]) -> list[dict[str, Any]]:
    columns = ["case", *(() if known else modalities)]
    rows, folder = read_table(path, columns), path.absolute().parent
    if not rows:
        raise UserError(f"{path} names no case; give a folder or a CSV with {','.join(['case', *modalities])}")
    for row in rows:
        empty = [name for name in columns if not row[name]]
        if known and not any(map(row.get, known)):
            empty.append(", ".join(known[:-1]) + f" or {known[-1]}")
        if empty:
            raise UserError(f"{path}, line {row['line']}: no {empty[0]}; fill it in or leave the case out")
    return [
        {"case": row["case"], "image": {n: str(folder / user_path(row[n])) for n in known or modalities if row.get(n)}}
        for row in rows
    ]


def _check_given(given: dict[str, str], needed: list[str], known: list[str], bundle: Path) -> None:
    """Refuse other scans than the needed modalities, or than any that are known."""
    missing = [name for name in needed if name not in given]
    if missing and not (known and given):
        options = ", ".join(f"--{name}" for name in missing)
        some = f"at least one of --{', --'.join(known)}" if known else f"{options} as well"
        hint = "" if known else f" (any subset of the contrasts needs models/{ANY_SUBSET}.pt)"
        raise UserError(f"{bundle} needs the modalities {', '.join(needed)}; give {some}{hint}")
    if unused := sorted(set(given) - set(known or needed)):
        takes = f"takes any of {', '.join(known)}" if known else f"needs {', '.join(needed)} alone"
        hint = "" if known else f" (more contrasts need models/{ANY_SUBSET}.pt)"
        raise UserError(f"{bundle} does not use {', '.join(unused)}; it {takes}{hint}")
