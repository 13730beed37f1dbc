"""Simulated scans on disk: noise in a brain's shape and a brighter ball, as large as real ones."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

BRAIN_MM, HEAD_MM = (147, 165, 137), (240, 240, 155)  # of a real patient, and its field of view
MODALITIES = ("t1", "t1ce", "t2", "flair")


def radius(size_mm: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Distance of every voxel from the centre, 1 on the ellipsoid with these axes; `scale` voxels per millimetre."""
    lengths = zip(HEAD_MM, size_mm, strict=True)
    axes = [np.linspace(-1, 1, round(length * scale)) * length / size for length, size in lengths]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def write_case(folder: Path, name: str) -> dict[str, object]:
    """Write CASE_t1.nii.gz and so on, of 240 x 240 x 155 voxels. Returns the datalist's entry."""
    folder.mkdir(parents=True, exist_ok=True)
    random, inside, tumor = np.random.default_rng(0), radius(BRAIN_MM) < 1, radius((40, 40, 40)) < 1
    files = {}
    for brightness, modality in enumerate(MODALITIES):
        values = inside * (100 + 20 * brightness * tumor + random.normal(0, 5, inside.shape))
        files[modality] = _save(folder / f"{name}_{modality}.nii.gz", values.astype(np.int16))
    label = _save(folder / f"{name}_seg.nii.gz", tumor.astype(np.uint8))
    return {"case": name, "image": [files[name] for name in MODALITIES[:3]], "target": files["flair"], "label": label}


def write_datalist(folder: Path, cases: int) -> None:
    """A cohort for training, with one case to validate."""
    entries = [write_case(folder, f"case{number}") for number in range(cases + 1)]
    sections = {"training": entries[:-1], "validation": entries[-1:]}
    text = json.dumps({"name": "simulated", "sources": MODALITIES[:3], "target_modality": "flair", **sections})
    (folder / "datalist.json").write_text(text, encoding="utf-8")


def _save(file: Path, array: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4)), file)
    return str(file)


def small_head(folder: Path, number: int, sides: tuple[int, int] = (32, 48)) -> dict[str, object]:
    """Write a simulated head of 32 to 48 voxels a side, another for each number, as CASE_t1.nii.gz and so on."""
    random = np.random.default_rng(number)
    shape = tuple(random.integers(sides[0], sides[1] + 1, 3))
    axes = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for brightness, modality in enumerate(MODALITIES[:3]):
        values = inside * (100 + 30 * brightness + random.normal(0, 20, shape))
        files.append(_save(folder / f"head{number:04d}_{modality}.nii.gz", values.astype(np.int16)))
    return {"case": f"head{number:04d}", "image": files}
