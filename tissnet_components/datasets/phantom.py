"""Cohorts of simulated patients, to test and to demonstrate without real data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tissnet_components.datasets.brats import split_cases
from tissnet_components.datasets.simulated_brain import load_atlas
from tissnet_components.datasets.simulated_glioma import glioma_patient

TASKS: dict[str, Callable[[np.random.Generator, float], dict[str, np.ndarray]]] = {"brats": glioma_patient}


def phantom(
    task: str = "brats",
    out: str | Path = "demo/brats",
    cases: int = 24,
    seed: int = 0,
    spacing: float = 2.0,
    workers: int | None = None,
) -> Path:
    """Write a cohort of simulated glioma patients in the layout of BraTS, with a datalist to train and test on.

    Nobody was scanned. Each patient is the ICBM152 atlas deformed at random, with a tumor grown along its white matter,
    imaged by the signal equations of four MR sequences. That a network learns this shows that everything runs; how well
    it does on patients, only patients can show.

    `out` receives ``Phantom_0001/Phantom_0001_{t1,t1ce,t2,flair,seg}.nii.gz`` and so on, `datalist.json` (training,
    validation and test in the paper's proportions, 258 : 37 : 74) and `dataset_description.json`. The same seed gives
    the same bytes, however many cases and workers there are. After an interruption, the same call continues; with more
    cases, it adds them and draws the split anew.

    Args:
        task: which disease; "brats" is glioma in T1, contrast-enhanced T1, T2 and FLAIR.
        out: folder, created when missing.
        cases: number of patients, at least 3 (one each to train, validate and test).
        seed: which patients, a non-negative integer.
        spacing: voxel size in mm, 0.5 to 6. 1 gives 240 x 240 x 155 voxels as BraTS has, 2 gives 120 x 120 x 78.
        workers: processes, by default one per processor; each needs about 0.6 GB at 2 mm and 2 GB at 1 mm.

    Returns:
        the path of `datalist.json`.

    Raises:
        ValueError: an argument is out of range, or `out` cannot be written or holds a different cohort.
        ImportError: nilearn, whose package contains the atlas, is not installed.
    """
    check_arguments(task, cases, seed, spacing, workers)
    load_atlas()
    folder = Path(str(out)).expanduser().absolute()  # Fire hands a folder called 2020 over as a number
    write = partial(write_case, task, folder, seed, spacing)
    try:
        claim_folder(folder, describe(task, seed, spacing))
        run_parallel(write, missing_cases(folder, cases), workers or os.cpu_count() or 1)
        return write_json(folder / "datalist.json", datalist(task, cases, seed))
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror or error}); choose another --out") from error


def check_arguments(task: str, cases: int, seed: int, spacing: float, workers: int | None) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    least = {"cases": (cases, 3), "seed": (seed, 0), "workers": (1 if workers is None else workers, 1)}
    for name, (value, minimum) in least.items():
        if type(value) is not int or value < minimum:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least {minimum}")
    if not (isinstance(spacing, (int, float)) and 0.5 <= spacing <= 6):
        raise ValueError(f"spacing is {spacing!r}, expected a voxel size between 0.5 and 6 mm")


def describe(task: str, seed: int, spacing: float) -> dict:
    """All that decides the bytes of a case, and what whoever finds the folder must know."""
    return {
        "name": f"Simulated {task} cohort",
        "simulated": True,
        "description": (
            "No patient was scanned. Anatomy: the ICBM152 atlas, deformed at random. Tumor: a lobulated core, and "
            "oedema by Fisher's equation. Images: MR signal equations with relaxation times at 3 T, contrast agent, "
            "partial volume, coil shading and Rician noise. No evidence of how anything performs on real images."
        ),
        "atlas": (
            "ICBM 2009a Nonlinear Symmetric, from the nilearn package. Copyright (C) 1993-2004 Louis Collins, "
            "McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University. Fonov et al. 2011, "
            "doi 10.1016/j.neuroimage.2010.07.033."
        ),
        "generator": f"tissnet-components {version('tissnet-components')}, phantom",
        "task": task,
        "seed": seed,
        "spacing_mm": float(spacing),
    }


def claim_folder(folder: Path, description: dict) -> None:
    """Create `folder` and leave the description there, or refuse it when another cohort is in it."""
    file = folder / "dataset_description.json"
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_text(encoding="utf-8") != to_json(description):
        raise ValueError(f"{file} differs in task, seed, spacing or version; choose another --out")
    write_json(file, description)


def to_json(content: dict) -> str:
    return json.dumps(content, indent=2) + "\n"


def write_json(file: Path, content: dict) -> Path:
    hidden = file.with_name(f".{file.name}.partial")
    hidden.write_text(to_json(content), encoding="utf-8")
    return hidden.replace(file)


def case_name(index: int) -> str:
    return f"Phantom_{index + 1:04d}"


def missing_cases(folder: Path, cases: int) -> list[int]:
    return [index for index in range(cases) if not (folder / case_name(index)).exists()]


def write_case(task: str, folder: Path, seed: int, spacing: float, index: int) -> None:
    """Simulate case `index`; its folder appears under its name only when it is whole."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    name = case_name(index)
    hidden = folder / f".{name}.partial"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    for kind, array in TASKS[task](rng, spacing).items():
        nib.save(to_nifti(array, spacing), hidden / f"{name}_{kind}.nii.gz")
    hidden.rename(folder / name)


def to_nifti(array: np.ndarray, spacing: float) -> nib.Nifti1Image:
    """Image with the affine of BraTS: axes towards left and posterior (hence the minus signs) and superior."""
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[1, 3] = 239
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def run_parallel(write: Callable[[int], None], indices: list[int], workers: int) -> None:
    """Call `write` for every index, in this process or in several, with a progress bar."""
    workers = min(workers, len(indices))
    progress = partial(tqdm, total=len(indices), desc="simulating", unit="case", disable=not indices)
    if workers <= 1:
        for index in progress(indices):
            write(index)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(progress(pool.map(write, indices)))
    except BrokenProcessPool as error:
        raise RuntimeError("a worker died, perhaps for lack of memory; run again with --workers 1") from error


def datalist(task: str, cases: int, seed: int) -> dict:
    """The content of `datalist.json`; files are relative to its folder."""
    sources = ["t1", "t1ce", "t2"]
    sections = split_cases([case_name(index) for index in range(cases)], seed)
    return {
        "name": f"Simulated {task} cohort, seed {seed}",
        "description": "Simulated, not scanned: see dataset_description.json",
        "simulated": True,
        "sources": sources,
        "target_modality": "flair",
        "labels": {"0": "background", "1": "whole tumor"},
        **{section: [entry(name, sources) for name in names] for section, names in sections.items()},
    }


def entry(name: str, sources: list[str]) -> dict:
    files = {kind: f"{name}/{name}_{kind}.nii.gz" for kind in (*sources, "flair", "seg")}
    return {"case": name, "image": [files[s] for s in sources], "target": files["flair"], "label": files["seg"]}
