"""Training, validation and test: read from a file, or drawn by patient."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tissnet_components.errors import UserError
from tissnet_components.scans.table import read_table

SECTIONS = ("training", "validation", "test")
PAPER_SPLIT = (258, 37, 74)  # of BraTS 2020's 369 patients: training, validation, test
PATIENT_RULES = {  # how a case's name tells its patient, who may have been scanned several times; the first that fits
    "BraTS 2023 and later": r"(BraTS-\w+-\d+)-\d+",
    "UPENN-GBM": r"(UPENN-GBM-\d+)_\d\d",
    "BIDS": r"(sub-[A-Za-z0-9]+)_ses-.+",
    "time point": (
        r"(.+?)[_-](?:ses(?:sion)?|week|month|visit|time(?:[_-]?point)?|tp|baseline|follow-?up|fu|pre-?op|post-?op)"
        r"(?:[_-]?\d.*)?"
    ),
    "date": r"(.+?)[_-](?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(?:\D.*)?",
}
SPLIT_NAMES = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_SYNONYMS = {name: section for section, names in SPLIT_NAMES.items() for name in names}


def split_cases(
    names: Sequence[str], seed: int, proportions: Sequence[int] = PAPER_SPLIT, patients: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """Draw training, validation and test, keeping all time points of a patient together.

    Validation and test are rounded down but get at least one patient once there are three; training gets the rest:
    12 patients give 9/1/2 and the paper's 369 give its 258/37/74.

    Args:
        names: the cases; their order does not matter.
        seed: of the draw.
        proportions: of training, validation and test.
        patients: case -> patient; by default what `patients_of` tells.
    """
    patients = patients_of(names) if patients is None else patients
    drawn = sorted({patients[name] for name in names})
    random.Random(seed).shuffle(drawn)
    least = 1 if len(drawn) >= len(SECTIONS) else 0
    validation, test = (max(least, len(drawn) * part // sum(proportions)) for part in proportions[1:])
    chosen = dict.fromkeys(drawn, "training")
    chosen |= dict.fromkeys(drawn[:validation], "validation")
    chosen |= dict.fromkeys(drawn[validation : validation + test], "test")
    return by_section({name: chosen[patients[name]] for name in names}, names)


def patients_of(cases: Sequence[str]) -> dict[str, str]:
    """Case -> its patient, by `PATIENT_RULES`; a case whose name follows none is a patient of its own."""
    return {case: _patient_and_rule(case)[0] for case in cases}


def applied_rules(cases: Sequence[str]) -> dict[str, int]:
    """Rule of `PATIENT_RULES` -> how many of the cases it told the patient of; rules that told none are left out."""
    counts = Counter(_patient_and_rule(case)[1] for case in cases)
    return {rule: counts[rule] for rule in PATIENT_RULES if counts[rule]}


def _patient_and_rule(case: str) -> tuple[str, str]:
    for rule, pattern in PATIENT_RULES.items():
        if match := re.fullmatch(pattern, case, re.IGNORECASE | re.DOTALL):
            return match[1], rule
    return case, ""


def refuse_leaks(sections: Mapping[str, Sequence[str]], patients: Mapping[str, str], source: str | Path) -> None:
    """Raise ValueError, naming `source`, when cases of one patient stand in two sections: the test would be no test."""
    seen: dict[str, tuple[str, str]] = {}
    for section, cases in sections.items():
        for case in cases:
            other, before = seen.setdefault(patients[case], (case, section))
            if before != section:
                raise UserError(
                    f"{source} has {other} in {before} and {case} in {section}, which are scans of one patient, "
                    f"{patients[case]}; put them into one section, or name the patients (--patients, or a datalist's "
                    f"'patient')"
                )


def read_split(path: str | Path) -> dict[str, str]:
    """Read a CSV with the columns ``case`` and ``split``: case -> "training", "validation" or "test".

    The first line may name the columns; TCIA's split_TCIA.csv has no such line.

    Raises:
        ValueError: missing file or column, an unknown split, a case named twice.
    """
    headless = read_table(path, [], ["case", "split"])
    named = not headless or headless[0]["split"].lower() not in SPLIT_SYNONYMS
    rows = read_table(path, ["case", "split"]) if named else headless
    assigned: dict[str, str] = {}
    for row in rows:
        line, case, section = row["line"], row["case"], SPLIT_SYNONYMS.get(row["split"].lower())
        if not case or not section:
            raise UserError(
                f"{path}, line {line}: got {case},{row['split']}, expected case,split with split one of {SECTIONS}"
            )
        if case in assigned:
            raise UserError(f"{path}, line {line}: case {case} is named a second time; keep one line per case")
        assigned[case] = section
    if not assigned:
        raise UserError(f"split file {path} names no case; expected a CSV with columns case,split")
    return assigned


def read_patients(path: str | Path, names: Sequence[str]) -> dict[str, str]:
    """Case -> patient by a CSV with the columns ``case`` and ``patient``; of cases not named there, `patients_of`.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    named = {row["case"]: row["patient"] for row in read_table(path, ["case", "patient"])}
    return {**patients_of(names), **{case: patient for case, patient in named.items() if patient}}


def by_section(assigned: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    return {section: sorted(name for name in names if assigned[name] == section) for section in SECTIONS}
