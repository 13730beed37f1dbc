"""What every preparation shares: its arguments, the split of the patients, and what it says of the cases."""

import csv
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os.path import abspath
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tissnet_components.datasets.cases import SECTIONS

PAPER_SPLIT = (258, 37, 74)  # of BraTS 2020's 369 patients: training, validation, test
TIME_POINT = re.compile(r"(BraTS-\w+-\d+)-\d+")  # 2023-2025: BraTS-GLI-00005-000 and -001 are one patient
UNLABELLED = "no seg file, as in the challenge's validation and test sets"
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


def set_apart_unnamed(
    found: dict, failed: dict[str, str], assigned: Mapping[str, str], split: str | None
) -> dict[str, str]:
    """Remove the cases that a split does not name; returns them with that reason.

    Raises:
        ValueError: a split file names cases that were not found; a collection's own (None) may.
    """
    unknown = sorted(set(assigned) - set(found) - set(failed))
    if split and unknown:
        raise ValueError(
            f"{split} names {len(unknown)} cases that were not found, first {unknown[0]}; correct the names"
        )
    by = Path(split).name if split else "the collection's own split"
    unnamed = {case: f"not named in {by}" for case in (*found, *failed) if case not in assigned}
    for case in unnamed:
        found.pop(case, None)
        failed.pop(case, None)
    return unnamed


def patient_of(case: str) -> str:
    """The patient of a case, whose time points carry one name from 2023 on; before, the case itself."""
    match = TIME_POINT.fullmatch(case)
    return match[1] if match else case


def by_section(assigned: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    return {section: sorted(name for name in names if assigned[name] == section) for section in SECTIONS}


def existing_folder(root: str | Path) -> Path:
    folder = Path(abspath(Path(str(root)).expanduser()))  # Fire hands a folder called 2020 over as a number
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is not a folder; give the folder that the download was unpacked to")
    return folder


def checked_workers(workers: int | None) -> int:
    """How many cases to work on at the same time: as given, or one per core, at most eight."""
    if workers is None:
        return min(8, os.cpu_count() or 1)
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers is {workers!r}, expected an integer of at least 1")
    return workers


def writable(out: str | Path) -> Path:
    path = Path(abspath(Path(str(out)).expanduser()))
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; give the file to write, for example --out {path / 'datalist.json'}")
    probe = path.with_name(f".{os.getpid()}_probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
    return path


def refuse_failed(failed: Mapping[str, str], good: int) -> None:
    """After the datalist of the good cases is written: raise ValueError if others failed."""
    if failed:
        raise ValueError(f"{len(failed)} of {len(failed) + good} cases are not in the datalist, see the reasons above")


def print_skipped(skipped: Mapping[str, str], root: Path) -> None:
    """A row per reason, so that 125 unlabelled cases are one line."""
    if not skipped:
        return
    cases = defaultdict(list)
    for case, reason in sorted(skipped.items()):
        cases[reason.replace(f"{root}{os.sep}", "")].append(case)
    table = Table("cases", "which", Column("why", overflow="fold"), title="Skipped")
    for reason, names in cases.items():
        which = ", ".join(names) if len(names) <= 10 else f"{names[0]} ... {names[-1]}"
        table.add_row(str(len(names)), Text(which), Text(reason))
    Console().print(table)


def print_summary(
    path: Path, sections: Mapping[str, Sequence[str]], sources: Sequence[str], target: str, skipped: int
) -> None:
    counts = ", ".join(f"{len(names)} {section}" for section, names in sections.items())
    summary = f"{path}: {counts}; {', '.join(sources)} -> {target}; {skipped} skipped"
    Console().print(Text(summary), soft_wrap=True)
    empty = [section for section, names in sections.items() if not names]
    if empty:
        Console().print(
            Text(f"no case for {' and '.join(empty)}: three patients are needed, or a --split that names some")
        )
