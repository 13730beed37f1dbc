"""Tiny BraTS downloads, and what was made of them."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from tissnet_components.scans.naming import MODALITIES

SHAPE = (4, 5, 3)
UNTIL_2021 = {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair", "seg": "_seg"}
FROM_2023 = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"}


def scan(kind: str) -> np.ndarray:
    """Voxels that tell the modality: the first one holds its number."""
    if kind == "seg":
        return np.full(SHAPE, 4, np.uint8)
    array = np.ones(SHAPE, np.int16)
    array[0, 0, 0] = 10 + MODALITIES.index(kind)
    return array


def save(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), file)
    return file


def brats_case(folder: Path, case: str, names=UNTIL_2021, ending=".nii.gz", without=()) -> dict[str, Path]:
    kinds = [kind for kind in names if kind not in without]
    return {kind: save(folder / f"{case}{names[kind]}{ending}", scan(kind)) for kind in kinds}


def cohort(root: Path, count: int = 3) -> list[str]:
    cases = [f"BraTS20_Training_{number:03d}" for number in range(1, count + 1)]
    for case in cases:
        brats_case(root / case, case)
    return cases


def write_csv(file: Path, *rows: tuple[str, str], header=("case", "split")) -> Path:
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def listed_cases(out: Path) -> list[str]:
    return sorted(case for cases in listed(out).values() for case in cases)


def listed(out: Path) -> dict[str, list[str]]:
    content = json.loads(out.read_text())
    return {section: [entry["case"] for entry in content[section]] for section in ("training", "validation", "test")}


def first_voxel(file: str | Path) -> int:
    return int(nib.load(file).dataobj[0, 0, 0])


def printed(capsys) -> str:
    return " ".join(word for word in capsys.readouterr().out.split() if word not in "│┃")
