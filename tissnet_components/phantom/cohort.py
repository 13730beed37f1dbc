"""Cohorts of simulated patients, to test and to demonstrate without real data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
from tissnet_components.errors import UserError
from tissnet_components.files import atomic_folder, to_json, write_atomic
from tissnet_components.phantom.atlas import load_atlas
from tissnet_components.phantom.glioma import glioma_patient
from tissnet_components.phantom.schwannoma import Contours, tumor_contours, varied_grid, vestibular_patient
from tissnet_components.phantom.skull_base import SPACING_MM
from tissnet_components.processes import share_out
from tissnet_components.scans.splits import split_cases
from tqdm import tqdm

ATLAS = (
    "ICBM 2009a Nonlinear Symmetric, from the nilearn package. Copyright (C) 1993-2004 Louis Collins, "
    "McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University. Fonov et al. 2011, "
    "doi 10.1016/j.neuroimage.2010.07.033."
)


@dataclass(frozen=True)
class Task:
    """What a cohort of one disease consists of; `patient` takes a random generator and `Cohort.argument`."""

    patient: Callable[..., dict[str, np.ndarray]]
    sources: list[str]
    target: str
    label: str
    description: str


TASKS = {
    "brats": Task(
        glioma_patient,
        ["t1", "t1ce", "t2"],
        "flair",
        "whole tumor",
        "No patient was scanned. Anatomy: the ICBM152 atlas, deformed at random. Tumor: a lobulated core, and "
        "oedema by Fisher's equation. Images: MR signal equations with relaxation times at 3 T, contrast agent, "
        "partial volume, coil shading and Rician noise. No evidence of how anything performs on real images.",
    ),
    "vs": Task(
        vestibular_patient,
        ["t2"],
        "t1ce",
        "vestibular schwannoma",
        "No patient was scanned. Anatomy: the brain of the ICBM152 atlas in a skull base of simple solids, deformed "
        "at random. Images: signal equations of balanced and of spoiled gradient echoes with relaxation times at "
        "1.5 T, contrast agent, flow, banding, partial volume within the brain, coil shading and Rician noise. No "
        "evidence of how anything performs on real images.",
    ),
}


def phantom(
    task: str = "brats",
    out: str | Path | None = None,
    cases: int = 24,
    seed: int = 0,
    spacing: float | None = None,
    workers: int | None = None,
    contours: str | Path | None = None,
    variety: float = 0,
) -> Path:
    """Write a cohort of simulated patients, with a datalist to train and test on.

    Nobody was scanned. Each patient is the ICBM152 atlas deformed at random, with a tumor in it, imaged by the signal
    equations of MR sequences. That a network learns this shows that everything runs; how well it does on patients,
    only patients can show.

    `out` receives ``Phantom_0001/Phantom_0001_{t1,t1ce,t2,flair,seg}.nii.gz`` (brats) or ``..._{t2,t1ce,seg}.nii.gz``
    (vs) and so on, `datalist.json` (training, validation and test in the proportions 258 : 37 : 74) and
    `dataset_description.json`. The same seed gives the same bytes, however many cases and workers there are. After an
    interruption, the same call continues; with more cases, it adds them and draws the split anew.

    Args:
        task: which disease; "brats" is glioma in T1, contrast-enhanced T1, T2 and FLAIR, "vs" is vestibular schwannoma
            in high-resolution T2 and contrast-enhanced T1.
        out: folder, created when missing; by default demo/TASK.
        cases: number of patients, at least 3 (one each to train, validate and test).
        seed: which patients, a non-negative integer.
        spacing: voxel size in mm of "brats", 0.5 to 6, by default 2. 1 gives 240 x 240 x 155 voxels as BraTS has, 2
            gives 120 x 120 x 78. "vs" always has 272 x 160 x 40 voxels of 0.41 x 0.41 x 1.5 mm.
        workers: processes, by default one per processor; each needs about 0.6 GB (2 mm), 2 GB (1 mm) or 0.8 GB ("vs").
        contours: folder with contours of Vestibular-Schwannoma-SEG, whose tumors "vs" then takes the shapes of.
        variety: of "vs", the share of patients, 0 to 1, with any field of view, sharpness, noise, shading and size of
            tumor up to 20 ml, half of them with any contrast in T2 too, to train networks for scans of anywhere; the
            others are as in Vestibular-Schwannoma-SEG.

    Returns:
        the path of `datalist.json`.

    Raises:
        ValueError: an argument is out of range, `contours` holds no tumor, or `out` cannot be written or holds a
            different cohort.
        ImportError: nilearn, whose package contains the atlas, is not installed.
    """
    check_arguments(task, cases, seed, spacing, workers, contours, variety)
    load_atlas()
    tumors = [] if contours is None else tumor_contours(Path(contours))
    voxel_mm = SPACING_MM if task == "vs" else (float(spacing or 2),) * 3
    folder = Path(out or f"demo/{task}").absolute()
    write = partial(write_case, Cohort(task, folder, seed, voxel_mm, tumors, variety))
    try:
        claim_folder(folder, describe(task, seed, voxel_mm, tumors, variety))
        write_all(write, missing_cases(folder, cases, TASKS[task]), workers or os.cpu_count() or 1)
        return write_atomic(folder / "datalist.json", to_json(datalist(task, cases, seed)))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); choose another --out") from error


def check_arguments(
    task: str,
    cases: int,
    seed: int,
    spacing: float | None,
    workers: int | None,
    contours: str | Path | None,
    variety: float,
) -> None:
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    least = {"cases": (cases, 3), "seed": (seed, 0), "workers": (1 if workers is None else workers, 1)}
    for name, (value, minimum) in least.items():
        if type(value) is not int or value < minimum:
            raise UserError(f"{name} is {value!r}, expected an integer of at least {minimum}")
    if task == "vs" and spacing is not None:
        raise UserError("task vs always has voxels of 0.41 x 0.41 x 1.5 mm; leave out --spacing")
    if task != "vs" and contours is not None:
        raise UserError(f"contours shape the tumors of task vs, not those of {task}; leave out --contours")
    if not (isinstance(variety, (int, float)) and 0 <= variety <= 1):
        raise UserError(f"variety is {variety!r}, expected the share of varied patients, 0 to 1")
    if task != "vs" and variety:
        raise UserError(f"variety is of task vs, not of {task}; leave out --variety")
    if spacing is not None and not (isinstance(spacing, (int, float)) and 0.5 <= spacing <= 6):
        raise UserError(f"spacing is {spacing!r}, expected a voxel size between 0.5 and 6 mm")


def describe(task: str, seed: int, voxel_mm: tuple[float, ...], tumors: list[Contours], variety: float = 0) -> dict:
    """All that decides the bytes of a case, and what whoever finds the folder must know."""
    description = {
        "name": f"Simulated {task} cohort",
        "simulated": True,
        "description": TASKS[task].description,
        "atlas": ATLAS,
        "generator": f"tissnet-components {version('tissnet-components')}, phantom",
        "task": task,
        "seed": seed,
        "spacing_mm": voxel_mm[0] if task == "brats" else list(voxel_mm),
    }
    if variety:
        description["variety"] = variety
    if tumors:
        description["contours"] = (
            f"Shapes of {len(tumors)} tumors of Vestibular-Schwannoma-SEG, CC BY 4.0, Shapey et al. 2021, "
            f"doi 10.7937/TCIA.9YTJ-5Q73 (SHA-256 of the points: {fingerprint(tumors)})."
        )
    return description


def fingerprint(tumors: list[Contours]) -> str:
    return hashlib.sha256(b"".join(polygon.tobytes() for tumor in tumors for polygon in tumor)).hexdigest()


def claim_folder(folder: Path, description: dict) -> None:
    """Create `folder` and leave the description there, or refuse it when another cohort is in it."""
    file = folder / "dataset_description.json"
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_bytes() != to_json(description):
        raise UserError(f"{file} differs in task, seed, spacing, contours, variety or version; choose another --out")
    write_atomic(file, to_json(description))


def case_name(index: int) -> str:
    return f"Phantom_{index + 1:04d}"


def missing_cases(folder: Path, cases: int, task: Task) -> list[int]:
    files = {index: files_of(case_name(index), task).values() for index in range(cases)}
    return [index for index in files if not all((folder / file).is_file() for file in files[index])]


@dataclass(frozen=True)
class Cohort:
    """What all cases of one call share."""

    task: str
    folder: Path
    seed: int
    voxel_mm: tuple[float, ...]
    tumors: list[Contours] = field(default_factory=list)
    variety: float = 0

    def argument(self, index: int) -> float | Contours | None:
        """What simulates case `index`: a voxel size, or contours, each once before any is used again."""
        if self.task == "brats":
            return self.voxel_mm[0]
        order = np.random.default_rng(self.seed).permutation(len(self.tumors))
        return self.tumors[order[index % len(order)]] if self.tumors else None


def write_case(cohort: Cohort, index: int) -> None:
    """Simulate case `index`; its files appear in their folder only when all are written."""
    rng = np.random.default_rng(np.random.SeedSequence(cohort.seed, spawn_key=(index,)))
    name = case_name(index)
    grid = varied_grid(rng) if cohort.variety and rng.random() < cohort.variety else None
    wanted = {"grid": grid, "varied": True} if grid else {}
    voxel_mm = grid.spacing_mm if grid else cohort.voxel_mm
    with atomic_folder(cohort.folder / name) as hidden:
        for kind, array in TASKS[cohort.task].patient(rng, cohort.argument(index), **wanted).items():
            nib.save(to_nifti(array, voxel_mm), hidden / f"{name}_{kind}.nii.gz")


def to_nifti(array: np.ndarray, voxel_mm: tuple[float, ...]) -> nib.Nifti1Image:
    """Image with an affine as in BraTS: axes towards left and posterior (hence the minus signs) and superior."""
    affine = np.diag([-voxel_mm[0], -voxel_mm[1], voxel_mm[2], 1.0])
    affine[1, 3] = 239
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def write_all(write: Callable[[int], None], indices: list[int], workers: int) -> None:
    """Call `write` for every index, in this process or in several, with a progress bar."""
    done = share_out(write, indices, workers)
    for _ in tqdm(done, "simulating", len(indices), unit="case", disable=not indices):
        pass


def datalist(task: str, cases: int, seed: int) -> dict:
    """The content of `datalist.json`; files are relative to its folder."""
    what = TASKS[task]
    sections = split_cases([case_name(index) for index in range(cases)], seed)
    return {
        "name": f"Simulated {task} cohort, seed {seed}",
        "description": "Simulated, not scanned: see dataset_description.json",
        "simulated": True,
        "sources": what.sources,
        "target_modality": what.target,
        "labels": {"0": "background", "1": what.label},
        **{section: [entry(name, what) for name in names] for section, names in sections.items()},
    }


def entry(name: str, task: Task) -> dict:
    files = files_of(name, task)
    return {
        "case": name,
        "image": [files[s] for s in task.sources],
        "target": files[task.target],
        "label": files["seg"],
    }


def files_of(name: str, task: Task) -> dict[str, str]:
    """Kind of image -> file of a case, relative to the cohort's folder."""
    return {kind: f"{name}/{name}_{kind}.nii.gz" for kind in (*task.sources, task.target, "seg")}
