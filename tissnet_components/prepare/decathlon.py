"""From the 4-D files of the Medical Segmentation Decathlon's Task01_BrainTumour to one file per modality."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
from tissnet_components.errors import BadCase, UserError
from tissnet_components.files import atomic_write
from tissnet_components.prepare.outcome import UNLABELLED
from tissnet_components.scans.nifti import check_readable, nifti_files
from tqdm import tqdm

DECATHLON = "Task01_BrainTumour"
DECATHLON_FOLDERS = ("imagesTr", "labelsTr", "imagesTs")
DECATHLON_ORDER = ("flair", "t1", "t1ce", "t2")
DECATHLON_NAMES = {"flair": "flair", "t1w": "t1", "t1gd": "t1ce", "t2w": "t2"}


def unpack_decathlon(folder: Path, to: Path, workers: int | None) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Write every 4-D image as one 3-D file per modality; the labels stay where they are."""
    order = _decathlon_order(folder / "dataset.json")
    parts = {part: list(nifti_files(folder / part)) for part in DECATHLON_FOLDERS if (folder / part).is_dir()}
    images = [*parts["imagesTr"], *parts.get("imagesTs", [])]
    labels = {file.name: file for file in parts.get("labelsTr", [])}

    def unpack(image: Path) -> dict[str, Path] | str:
        if image.name not in labels:
            return UNLABELLED
        try:
            return {**_write_modalities(image, order, to), "seg": labels[image.name]}
        except BadCase as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        results = list(tqdm(pool.map(unpack, images), "one file per modality", len(images), unit="case"))
    cases = {_stem(image): result for image, result in zip(images, results, strict=True)}
    found = {case: result for case, result in cases.items() if isinstance(result, dict)}
    return found, {case: result for case, result in cases.items() if isinstance(result, str)}


def _decathlon_order(dataset_json: Path) -> tuple[str, ...]:
    if not dataset_json.is_file():
        return DECATHLON_ORDER
    try:
        channels = json.loads(dataset_json.read_text(encoding="utf-8"))["modality"]
        order = tuple(DECATHLON_NAMES[channels[str(index)].lower()] for index in range(len(channels)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{dataset_json} does not give the modalities as 0: FLAIR, 1: T1w, 2: t1gd, 3: T2w in some order "
            f"({error!r}); restore the file, or remove it for that order"
        ) from error
    return order


def _write_modalities(image: Path, order: Sequence[str], to: Path) -> dict[str, Path]:
    """Split one 4-D file; files that are there already, and newer, are kept."""
    case = _stem(image)
    files = {modality: to / case / f"{case}_{modality}.nii.gz" for modality in order}
    if all(file.is_file() and file.stat().st_mtime >= image.stat().st_mtime for file in files.values()):
        return files
    scan = check_readable(image)
    if len(scan.shape) != 4 or scan.shape[3] != len(order):
        raise BadCase(f"{image} has shape {scan.shape}, expected (X, Y, Z, {len(order)}) in the order {order}")
    for channel, file in enumerate(files.values()):
        with atomic_write(file) as partial:
            nib.save(scan.slicer[..., channel], partial)
    return files


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")
