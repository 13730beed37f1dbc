"""Tiny simulated cohorts for tests: a head as an ellipsoid, a tumor as a ball that is bright where FLAIR is bright."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (40, 36, 20)
SECTIONS = {"training": 3, "validation": 1, "test": 2}
TINY = {  # settings of a bundle's configs that fit patients of 32 x 32 x 12 voxels
    "widths": [2, 2, 2, 2, 2],
    "patch_size": [32, 32, 8],
    "box_size": [32, 32, 12],
    "spacing_mm": [1.0, 1.0, 1.0],
    "discriminator_channels": 2,
}
BRIGHTNESS = {"t1": 80, "t1ce": 120, "t2": 200, "flair": 260}  # of the tumor; the head is 100 in every modality


def oblique_affine(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """LPS axes, each rotated by some ten degrees, and an origin away from 0."""
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.2, 0.1, 0.3) @ np.diag([-1, -1, 1]) @ np.diag(spacing_mm)
    affine[:3, 3] = [30, 20, -7]
    return affine


def save(file: Path, array: np.ndarray, affine: np.ndarray) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)
    return str(file)


def write_case(
    folder: Path, seed: int = 0, shape: tuple[int, int, int] = SHAPE, affine: np.ndarray | None = None
) -> dict[str, object]:
    """Write ``CASE_t1.nii.gz``... and ``CASE_seg.nii.gz`` (BraTS names; CASE is the folder's); returns its entry."""
    affine = np.eye(4) if affine is None else affine
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij"))
    head = (place**2).sum(0) < 0.8
    centre = random.uniform(-0.3, 0.3, 3)
    tumor = ((place - centre[:, None, None, None]) ** 2).sum(0) < 0.1
    files = {}
    for name, brightness in BRIGHTNESS.items():
        values = np.where(tumor, brightness, 100) + random.normal(0, 5, shape)
        files[name] = save(folder / f"{folder.name}_{name}.nii.gz", (values * head).astype(np.int16), affine)
    label = save(folder / f"{folder.name}_seg.nii.gz", (tumor * 2).astype(np.uint8), affine)
    image = [files[name] for name in ("t1", "t1ce", "t2")]
    return {"case": folder.name, "image": image, "target": files["flair"], "label": label}


def write_datalist(folder: Path, **sections: list[dict]) -> Path:
    path = folder / "datalist.json"
    path.write_text(
        json.dumps({"name": "tiny", "sources": ["t1", "t1ce", "t2"], "target_modality": "flair", **sections})
    )
    return path


def write_cohort(folder: Path) -> Path:
    """Six cases and their datalist; returns the folder."""
    numbers = iter(range(sum(SECTIONS.values())))
    sections = {
        name: [write_case(folder / f"case_{number}", number) for number in (next(numbers) for _ in range(count))]
        for name, count in SECTIONS.items()
    }
    write_datalist(folder, **sections)
    return folder
