"""NIfTI files as dcm2niix writes them, each with a JSON file of the DICOM header's attributes beside it.

Their names tell no contrast, but these attributes do, as those of a DICOM series.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from tissnet_components.scans.dicom import HEADER, LPS_TO_RAS, Series, find_series, holds_dicom
from tissnet_components.scans.nifti import nifti_files, without_ending

IN_SECONDS = ("EchoTime", "RepetitionTime", "InversionTime")  # there, but in DICOM in milliseconds


def series_below(folder: str | Path) -> list[Series]:
    """Every DICOM series below a folder, see `find_series`; of one without DICOM, what dcm2niix made of it.

    Raises:
        ValueError: no such folder.
    """
    converted = [] if holds_dicom(Path(folder)) else _converted(Path(folder))
    return sorted(converted, key=lambda one: (one.patient, one.description, one.uid)) or find_series(folder)


def holds_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files, or what dcm2niix made of them."""
    return holds_dicom(folder) or any(map(is_converted, nifti_files(folder)))


def is_converted(file: Path) -> bool:
    """Whether a NIfTI file has the attributes of a DICOM header beside it."""
    return bool(_sidecar(file))


def _converted(folder: Path) -> Iterator[Series]:
    for file in nifti_files(folder):
        if tags := _sidecar(file):
            header = {tag: _text(tag, tags[tag]) for tag in HEADER if tags.get(tag) is not None}
            modality, description, patient = (
                header.get(tag, "") for tag in ("Modality", "SeriesDescription", "PatientID")
            )
            name = without_ending(file.name)
            yield Series(name, modality, description or name, patient, (file,), _slices(file, header))


def _sidecar(file: Path) -> dict[str, Any]:
    """The attributes beside a NIfTI file; none where there is no such file, or one of something else."""
    beside = file.with_name(f"{without_ending(file.name)}.json")
    try:
        tags = json.loads(beside.read_text(encoding="utf-8")) if os.path.isfile(beside) else None
    except (OSError, ValueError):
        return {}
    return tags if isinstance(tags, dict) and tags.get("Modality") else {}


def _text(tag: str, value: Any) -> str:
    """The attribute as `Series` has it."""
    if tag in IN_SECONDS and isinstance(value, (int, float)):
        value = round(1000 * value, 6)
    if tag.endswith("Time") and isinstance(value, str):
        value = value.replace(":", "")
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)


def _slices(file: Path, header: Mapping[str, str]) -> tuple[Mapping[str, str], ...]:
    """The header of every slice, with its place as the NIfTI header has it; without one where that cannot be read."""
    try:
        image: Any = nib.load(file)
        shape, lps = image.shape[:3], LPS_TO_RAS @ image.affine
    except Exception:  # nibabel raises a dozen types; who reads the voxels is told
        return (header,)
    axes = (lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)).T.ravel()
    corners = apply_affine(lps, [[0, 0, number] for number in range(shape[2])])
    turned = {**header, "ImageOrientationPatient": "\\".join(map(str, axes))}
    return tuple({**turned, "ImagePositionPatient": "\\".join(map(str, corner))} for corner in corners)
