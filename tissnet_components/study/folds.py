"""Datalists of a cross-validation by patient, or by groups of them, such as hospitals."""

import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tissnet_components.errors import UserError
from tissnet_components.files import to_json, write_atomic
from tissnet_components.scans.datalist import SECTIONS, lacking, patients_in, read_datalist


def fold_datalists(content: Mapping) -> dict[str, str]:
    """Fold -> its datalist: those of the study, or K made from the data's own; without folds, the name is empty."""
    if content["datalists"]:
        return {f"fold_{number}": path for number, path in enumerate(content["datalists"], start=1)}
    whole = Path(content["dataset_dir"], "datalist.json")
    if not content["folds"]:
        return {"": str(whole)}
    folder = Path(content["out"], "folds")
    return write_folds(whole, folder, content["folds"], content["seed"], content["validation"], content["groups"])


def write_folds(
    datalist: Path, folder: Path, folds: int, seed: int = 0, validation: int = 1, groups: str = ""
) -> dict[str, str]:
    """Write `fold_1.json`... for a cross-validation in which every patient is tested exactly once.

    The patients of all sections are shuffled by the seed and dealt to the folds; in each fold the validation patients
    are drawn by the seed from those that it does not test, and the others train. A patient's time points stay together.
    Cases without image, target or label only train.

    Args:
        datalist: any datalist; its sections are not kept.
        folder: for the new ones, whose paths are absolute.
        folds: how many, at least 2.
        validation: patients per fold, at least 1.
        groups: regular expression; patients in whose names it finds the same text are tested together, so that no fold
            trains on what it tests: "TCIA.." for the hospitals of BraTS's TCIA cases. The largest are dealt first, each
            to the fold with the fewest patients.

    Returns:
        fold -> file.

    Raises:
        ValueError: a bad datalist, too few patients or groups, a patient in no group, or folds in the folder that were
            made otherwise.
    """
    cases = [case for entries in read_datalist(datalist)[0].values() for case in entries]
    content = json.loads(datalist.read_text(encoding="utf-8"))
    patient_of = patients_in(cases)
    complete = {case["case"] for case in cases if not lacking(case)}
    patients = sorted({patient_of[name] for name in complete})
    group_of = {name: _group_of(name, groups) if groups else name for name in patient_of.values()}
    random.Random(seed).shuffle(patients)
    dealt = _dealt(patients, folds, group_of)
    if folds < 2 or validation < 1 or not all(dealt) or len(patients) - max(map(len, dealt)) <= validation:
        found = f"{len(patients)} patients" + (f" in groups of one {groups!r}" if groups else "")
        raise UserError(f"{found} in {datalist} cannot give {folds} folds with {validation} for validation each")
    files = {}
    for fold, tested in enumerate(dealt):
        validated = random.Random(f"{seed} {fold}").sample(
            [name for name in patients if name not in tested], validation
        )
        of_group = dict.fromkeys((group_of[name] for name in tested), "test")
        section_of = {patient: of_group.get(group, "training") for patient, group in group_of.items()}
        section_of |= dict.fromkeys(validated, "validation")
        usable = {"training": {case["case"] for case in cases}, "validation": complete, "test": complete}
        chosen = {
            section: [c for c in cases if section_of[patient_of[c["case"]]] == section and c["case"] in usable[section]]
            for section in SECTIONS
        }
        files[f"fold_{fold + 1}"] = _write_unchanged(folder / f"fold_{fold + 1}.json", content | chosen)
    return files


def _dealt(patients: Sequence[str], folds: int, group_of: Mapping[str, str]) -> list[list[str]]:
    """The patients that each fold tests."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in patients:
        members[group_of[name]].append(name)
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for group in sorted(members.values(), key=len, reverse=True) if folds > 0 else ():
        min(dealt, key=len).extend(group)
    return dealt


def _group_of(name: str, groups: str) -> str:
    try:
        match = re.search(groups, name)
    except re.error:
        match = None
    if match is None:
        raise UserError(
            f"'groups' of the study, {groups!r}, finds nothing in the name {name}; give a regular expression such as "
            f"'TCIA..'"
        )
    return match[0]


def _write_unchanged(file: Path, content: dict) -> str:
    if file.is_file() and file.read_bytes() != to_json(content):
        raise UserError(f"{file} was made from another datalist, seed, number of folds or groups; give another --out")
    return str(write_atomic(file, to_json(content)))
