"""Training, validation and test: read from a file, or drawn by patient."""

import csv
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tissnet_components.scans.datalist import SECTIONS

PAPER_SPLIT = (258, 37, 74)  # of BraTS 2020's 369 patients: training, validation, test
TIME_POINT = re.compile(r"(BraTS-\w+-\d+)-\d+")  # 2023-2025: BraTS-GLI-00005-000 and -001 are one patient
SPLIT_NAMES = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_SYNONYMS = {name: section for section, names in SPLIT_NAMES.items() for name in names}


def split_cases(names: Sequence[str], seed: int, proportions: Sequence[int] = PAPER_SPLIT) -> dict[str, list[str]]:
    """Draw training, validation and test, keeping all time points of a patient together.

    Validation and test are rounded down but get at least one patient once there are three; training gets the rest:
    12 patients give 9/1/2 and the paper's 369 give its 258/37/74.
    """
    patients = sorted({patient_of(name) for name in names})
    random.Random(seed).shuffle(patients)
    least = 1 if len(patients) >= len(SECTIONS) else 0
    validation, test = (max(least, len(patients) * part // sum(proportions)) for part in proportions[1:])
    chosen = dict.fromkeys(patients, "training")
    chosen |= dict.fromkeys(patients[:validation], "validation")
    chosen |= dict.fromkeys(patients[validation : validation + test], "test")
    return by_section({name: chosen[patient_of(name)] for name in names}, names)


def read_split(path: str | Path) -> dict[str, str]:
    """Read a CSV with the columns ``case`` and ``split``: case -> "training", "validation" or "test".

    The first line may name the columns; TCIA's split_TCIA.csv has no such line.

    Raises:
        ValueError: missing file or column, an unknown split, a case named twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            named = file.readline().rpartition(",")[2].strip().lower() not in SPLIT_SYNONYMS
            file.seek(0)
            rows = list(csv.DictReader(file, None if named else ["case", "split"], skipinitialspace=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(
            f"split file {path} cannot be read ({error}); expected a CSV with columns case,split"
        ) from error
    assigned: dict[str, str] = {}
    for line, row in enumerate(rows, start=2 if named else 1):
        case, section = (row.get("case") or "").strip(), SPLIT_SYNONYMS.get((row.get("split") or "").strip().lower())
        if not case or not section:
            raise ValueError(f"{path}, line {line}: got {row}, expected case,split with split one of {SECTIONS}")
        if case in assigned:
            raise ValueError(f"{path}, line {line}: case {case} is named a second time; keep one line per case")
        assigned[case] = section
    if not assigned:
        raise ValueError(f"split file {path} names no case; expected a CSV with columns case,split")
    return assigned


def patient_of(case: str) -> str:
    """The patient of a case, whose time points carry one name from 2023 on; before, the case itself."""
    match = TIME_POINT.fullmatch(case)
    return match[1] if match else case


def by_section(assigned: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    return {section: sorted(name for name in names if assigned[name] == section) for section in SECTIONS}
