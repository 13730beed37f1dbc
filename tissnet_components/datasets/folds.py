"""Datalists of a cross-validation by patient."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

from tissnet_components.datasets.cases import SECTIONS, load_datalist
from tissnet_components.datasets.datalist import patient_of
from tissnet_components.files import to_json, write_whole


def fold_datalists(content: Mapping) -> dict[str, str]:
    """Fold -> its datalist: those of the study, or K made from the data's own; without folds, the name is empty."""
    if content["datalists"]:
        return {f"fold_{number}": path for number, path in enumerate(content["datalists"], start=1)}
    whole = Path(content["dataset_dir"], "datalist.json")
    if not content["folds"]:
        return {"": str(whole)}
    return write_folds(whole, Path(content["out"], "folds"), content["folds"], content["seed"], content["validation"])


def write_folds(datalist: Path, folder: Path, folds: int, seed: int = 0, validation: int = 1) -> dict[str, str]:
    """Write `fold_1.json`... for a cross-validation in which every patient is tested exactly once.

    The patients of all sections are shuffled by the seed and dealt to the folds; in each fold the validation patients
    are drawn by the seed from those that it does not test, and the others train. A patient's time points stay together.

    Args:
        datalist: any datalist; its sections are not kept.
        folder: for the new ones, whose paths are absolute.
        folds: how many, at least 2.
        validation: patients per fold, at least 1.

    Returns:
        fold -> file.

    Raises:
        ValueError: a bad datalist, too few patients, or folds in the folder that were made otherwise.
    """
    try:
        content = json.loads(datalist.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    content = content if isinstance(content, dict) else {}  # load_datalist says what is wrong
    filled = [section for section in SECTIONS if content.get(section)] or SECTIONS[:1]
    cases = [case for section in filled for case in load_datalist(datalist, section)]
    patients = sorted({patient_of(case["case"]) for case in cases})
    if folds < 2 or validation < 1 or len(patients) < folds or len(patients) - -(-len(patients) // folds) <= validation:
        raise ValueError(
            f"{len(patients)} patients in {datalist} cannot give {folds} folds with {validation} for validation each"
        )
    random.Random(seed).shuffle(patients)
    files = {}
    for fold in range(folds):
        tested = patients[fold::folds]
        validated = random.Random(f"{seed} {fold}").sample(
            [name for name in patients if name not in tested], validation
        )
        section_of = dict.fromkeys(tested, "test") | dict.fromkeys(validated, "validation")
        chosen = {
            section: [case for case in cases if section_of.get(patient_of(case["case"]), "training") == section]
            for section in SECTIONS
        }
        files[f"fold_{fold + 1}"] = _write_unchanged(folder / f"fold_{fold + 1}.json", content | chosen)
    return files


def _write_unchanged(file: Path, content: dict) -> str:
    if file.is_file() and file.read_bytes() != to_json(content):
        raise ValueError(f"{file} was made from another datalist, seed or number of folds; give another --out")
    return str(write_whole(file, to_json(content)))
