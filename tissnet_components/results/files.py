"""Where the results of a case lie, and which files are results; light, so that a command can refuse at once."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
from tissnet_components.errors import UserError
from tissnet_components.scans.naming import MODALITIES
from tissnet_components.scans.nifti import is_nifti

NATIVE = {name: f"seg_{name}" for name in MODALITIES}  # masks on the grids of raw scans
NATIVE_DICOM = {name: f"dicom_seg_{name}" for name in MODALITIES}  # of those that are DICOM series
FILES = {  # what a case may leave in its folder, after its name
    **{name: f"{name}.nii.gz" for name in ("seg", *NATIVE.values(), "synthetic", "error", "disagreement")},
    "overview": "overview.png",
    "slice": "slice.npz",
    "summary": "summary.json",
    "dicom_seg": "seg.dcm",
    **{NATIVE_DICOM[name]: f"seg_{name}.dcm" for name in MODALITIES},
    "view": "view.html",
}
PREPARED = "prepared"  # below a case's folder: what `--raw` made of its scans
MARK = b"TISS-Net"  # in the header's description, of what may be replaced


def case_file(output_dir: str | os.PathLike, case: str, name: str) -> Path:
    """Where each of the `FILES` of a case lies; whatever the case is called, two cases share none."""
    return Path(output_dir) / case / f"{case}_{FILES[name]}"


def refuse_foreign(file: str | os.PathLike) -> None:
    """Raise ValueError on a file that `AtomicNiftiWriter` did not write: an expert's label has the mask's name.

    Files under other names than NIfTI's are not looked at.
    """
    if os.path.exists(file) and is_nifti(os.path.basename(file)) and not is_result(file):
        raise UserError(f"{file} is there and is no result of TISS-Net; give another folder for the results")


def prepared_scans(out: str | os.PathLike, case: str) -> dict[str, str]:
    """Contrast -> the scan on the grid of the results, where `--raw` prepared it."""
    files = {name: Path(out, case, PREPARED, f"{case}_{name}.nii.gz") for name in NATIVE}
    return {name: str(file) for name, file in files.items() if file.is_file()}


def remove_prepared(out: str | os.PathLike, case: str) -> None:
    """Remove what `--raw` prepared in an earlier run, and nothing else that lies there."""
    folder = Path(out, case, PREPARED)
    for name in (*NATIVE, "brain"):
        for file in (folder / f"{case}_{name}.nii.gz", folder / f"{case}_{name}.tfm"):
            refuse_foreign(file)
            file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def is_result(file: str | os.PathLike) -> bool:
    """Whether a NIfTI file says that `AtomicNiftiWriter` wrote it."""
    try:
        header: Any = nib.load(file).header
        return header["descrip"].item() == MARK
    except Exception:  # nibabel raises a dozen types; whatever it is, it is not ours
        return False


def is_finished(out: Path, case: str, outputs: Iterable[str]) -> bool:
    """Whether the results of a case are all there; where every contrast is real, no synthetic one is among them."""
    missing = [name for name in outputs if not os.path.exists(case_file(out, case, name))]
    if missing != ["synthetic"]:
        return not missing
    try:
        return json.loads(case_file(out, case, "summary").read_text(encoding="utf-8"))["synthetic"] == []
    except (ValueError, KeyError, TypeError):
        return False
