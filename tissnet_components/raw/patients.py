"""`segment --raw`: prepare every patient before the network runs, and bring its masks back to every scan."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tissnet_components.errors import UserError, in_one_sentence
from tissnet_components.files import to_json, write_atomic
from tissnet_components.raw.prepare_scans import Prepared, to_native, write_marked
from tissnet_components.results.dicom_seg import check_dicom_seg, write_dicom_seg
from tissnet_components.results.files import NATIVE, NATIVE_DICOM, PREPARED, case_file, remove_prepared
from tissnet_components.scans.choice import with_series
from tissnet_components.scans.dicom import Series
from tissnet_components.scans.nifti import check_readable
from tqdm import tqdm


def prepare_patients(
    prepare: Callable[..., Prepared],
    patients: Sequence[dict[str, Any]],
    modalities: Sequence[str],
    known: Sequence[str],
    series: Mapping[str, str],
    out: Path,
    dicom_seg: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Prepare raw scans, one patient after the other; a bad one is told and left as it is.

    Args:
        prepare: what the network wants done, such as `prepare_scans` or `prepare_canals`.
        patients: entries of ``case``, ``any_subset`` and ``image``, which becomes the prepared scans.
        modalities: what the scans of a patient are, in order; of one of any subset, ``known``, with None for what it
            lacks.
        series: contrast -> the DICOM series to take, where the user says so.
        out: the folder of the results; prepared scans go to ``CASE/prepared``.
        dicom_seg: what a DICOM SEG tells, see `mask_terms`; a series to which none can refer is then a failure.

    Returns:
        case -> what was prepared, and case -> reason of the failed.
    """
    prepared, failed = {}, {}
    for patient in patients:
        case, names = patient["case"], known if patient["any_subset"] else modalities
        try:
            prepared[case] = _prepare(prepare, case, patient["image"], names, series, out, dicom_seg)
        except Exception as error:  # whatever it is, the other patients go on
            failed[case] = in_one_sentence(error)
            continue
        files = prepared[case].files
        patient["image"] = [str(files[name]) if name in files else None for name in names]
    return prepared, failed


def write_native(out: Path, case: str, prepared: Prepared, dicom_seg: Mapping[str, Any] | None = None) -> None:
    """Write the mask on every scan's own grid, ``CASE_seg_t1.nii.gz`` and so on, and tell the summary of the scans.

    Args:
        dicom_seg: what a DICOM SEG tells, see `mask_terms`; every DICOM series then gets one, ``CASE_seg_t1.dcm``.
    """
    told: dict[str, Any] = {"reference": prepared.reference, **prepared.measures, "scans": {}}
    mask_file = case_file(out, case, "seg")
    mask = check_readable(mask_file) if mask_file.is_file() else None
    for scan in prepared.scans:
        about = {"file": scan.told, "reason": scan.reason, **scan.measures}
        if mask is not None:
            native = to_native(mask, scan)
            affine = scan.grid[1]
            write_marked(native, affine, case_file(out, case, NATIVE[scan.contrast]))
            if dicom_seg and scan.dicom_files:
                dicom_file = case_file(out, case, NATIVE_DICOM[scan.contrast])
                write_dicom_seg(native, affine, scan.dicom_files, dicom_file, **dicom_seg)
            voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
            about["volume_ml"] = round(float((native > 0).sum() * voxel_ml), 4)
        told["scans"][scan.contrast] = about
    summary_file = case_file(out, case, "summary")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    write_atomic(summary_file, to_json({**summary, "raw": told}))


def _prepare(
    prepare: Callable[..., Prepared],
    case: str,
    image: str | Sequence[str | None],
    contrasts: Sequence[str],
    series: Mapping[str, str],
    out: Path,
    dicom_seg: Mapping[str, Any] | None,
) -> Prepared:
    if isinstance(image, str):
        raise UserError(f"--raw takes a scan per contrast, not one file of all ({image}); give --{contrasts[0]} etc.")
    there = [name for name, scan in zip(contrasts, image, strict=True) if scan is not None]
    scans = with_series([scan for scan in image if scan is not None], there, series)
    for scan in scans:
        if not dicom_seg or not isinstance(scan, Series) or scan.converted:
            continue
        if doubts := check_dicom_seg(scan.files, **dicom_seg):
            tqdm.write(f"{case}: {doubts}")
    remove_prepared(out, case)
    prepared = prepare(case, dict(zip(there, scans, strict=True)), out / case / PREPARED, tqdm.write)
    for line in table_of(prepared):
        tqdm.write(f"  {line}")
    return prepared


def table_of(prepared: Prepared) -> list[str]:
    """What was taken for which contrast, why, and how well it fits, a line each."""
    rows = [("contrast", "scan", "why", "shown", "fit to the brain's scan")]
    for scan in prepared.scans:
        fit = scan.measures.get("fit")
        rows.append(
            (
                scan.contrast,
                scan.told,
                scan.reason,
                f"{scan.measures['covered']:.0%}",
                "it is" if fit is None else f"{fit:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
