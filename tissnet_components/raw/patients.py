"""`--raw`: prepare every patient before the network sees it, and bring its mask back to every scan."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import SaveImaged
from tissnet_components.errors import UserError
from tissnet_components.files import to_json, write_atomic
from tissnet_components.raw.scans import Prepared, to_native, write_marked
from tissnet_components.results.dicom_seg import check_dicom_seg, write_dicom_seg
from tissnet_components.results.files import NATIVE, NATIVE_DICOM, PREPARED, case_file, remove_prepared
from tissnet_components.scans.choice import with_series
from tissnet_components.scans.dicom import Series
from tissnet_components.scans.nifti import check_readable
from tqdm import tqdm


class RawPatients:
    """Prepares patients one by one, when each is loaded, and brings the mask of each back when it is written.

    Args:
        prepare: what the network wants done: `prepare_scans` or `prepare_canals`.
        modalities: what the scans of a patient are, in order; None stands for a scan that is not there.
        output_dir: the folder of the results; prepared scans go to ``CASE/prepared``.
        series: contrast -> the DICOM series to take, where the user says so.
        dicom_seg: what a DICOM SEG tells, see `mask_terms`; every DICOM series then gets one, ``CASE_seg_t1.dcm``, and
            one to which none can refer is a failure.
    """

    def __init__(
        self,
        prepare: Callable[..., Prepared],
        modalities: Sequence[str],
        output_dir: str,
        series: Mapping[str, str] | None = None,
        dicom_seg: Mapping[str, Any] | None = None,
    ) -> None:
        self.prepare, self.modalities, self.out = prepare, modalities, Path(output_dir)
        self.series, self.dicom_seg = series or {}, dicom_seg
        self.prepared: dict[str, Prepared] = {}

    def __call__(self, patient: Mapping[str, Any]) -> dict[str, Any]:
        """The patient with prepared scans.

        Raises:
            BadCase: these scans cannot be prepared.
        """
        case, image = patient["case"], patient["image"]
        if isinstance(image, str):
            raise UserError(
                f"--raw takes a scan per contrast, not one file of all ({image}); give --{self.modalities[0]} etc."
            )
        there = [name for name, scan in zip(self.modalities, image, strict=True) if scan is not None]
        scans = with_series([scan for scan in image if scan is not None], there, self.series)
        for scan in scans:
            if not self.dicom_seg or not isinstance(scan, Series) or scan.converted:
                continue
            if doubts := check_dicom_seg(scan.files, **self.dicom_seg):
                tqdm.write(f"{case}: {doubts}")
        remove_prepared(self.out, case)
        folder = self.out / case / PREPARED
        prepared = self.prepare(case, dict(zip(there, scans, strict=True)), folder, tqdm.write)
        for line in table_of(prepared):
            tqdm.write(f"  {line}")
        self.prepared[case] = prepared
        files = prepared.files
        return {**patient, "image": [str(files[name]) if name in files else None for name in self.modalities]}

    def bring_back(self, case: str) -> None:
        """Write what `write_native` does of a case that was prepared."""
        write_native(self.out, case, self.prepared.pop(case), self.dicom_seg)


class SaveImageNatived(SaveImaged):
    """Bring the mask of raw scans back, after it and its summary were written.

    A ``SaveImaged``, because MONAI Label leaves these out.
    """

    def __init__(self, keys: KeysCollection, patients: RawPatients) -> None:
        super().__init__(keys, output_dir=patients.out)
        self.patients = patients

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        self.patients.bring_back(data[next(self.key_iterator(data))].meta["case"])
        return data


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
    if summary_file.is_file():
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        write_atomic(summary_file, to_json({**summary, "raw": told}))


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
