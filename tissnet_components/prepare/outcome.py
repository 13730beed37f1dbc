"""What every preparation shares: where it writes, and what it says of the cases."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os.path import abspath
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tissnet_components.errors import UserError
from tissnet_components.scans.splits import applied_rules

UNLABELLED = "no seg file, as in the challenge's validation and test sets"


def set_apart_unnamed(
    found: dict, failed: dict[str, str], assigned: Mapping[str, str], split: Path | None
) -> dict[str, str]:
    """Remove the cases that a split does not name; returns them with that reason.

    Raises:
        ValueError: a split file names cases that were not found; a collection's own (None) may.
    """
    unknown = sorted(set(assigned) - set(found) - set(failed))
    if split and unknown:
        raise UserError(
            f"{split} names {len(unknown)} cases that were not found, first {unknown[0]}; correct the names"
        )
    by = Path(split).name if split else "the collection's own split"
    unnamed = {case: f"not named in {by}" for case in (*found, *failed) if case not in assigned}
    for case in unnamed:
        found.pop(case, None)
        failed.pop(case, None)
    return unnamed


def checked_workers(workers: int | None) -> int:
    """How many cases to work on at the same time: as given, or one per core, at most eight."""
    if workers is None:
        return min(8, os.cpu_count() or 1)
    if type(workers) is not int or workers < 1:
        raise UserError(f"workers is {workers!r}, expected an integer of at least 1")
    return workers


def writable(out: str | Path) -> Path:
    path = Path(abspath(out))
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give the file to write, for example --out {path / 'datalist.json'}")
    probe = path.with_name(f".{os.getpid()}_probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
    return path


def refuse_failed(failed: Mapping[str, str], good: int) -> None:
    """After the datalist of the good cases is written: raise ValueError if others failed."""
    if failed:
        raise UserError(f"{len(failed)} of {len(failed) + good} cases are not in the datalist, see the reasons above")


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


def print_patients(patient_of: Mapping[str, str], file: str | Path | None) -> None:
    """How many patients the cases are, and what told so."""
    rules = [f"{rule} ({count} cases)" for rule, count in applied_rules(list(patient_of)).items()]
    told = [*([Path(file).name] if file else []), *rules] or ["every case is a patient of its own"]
    count = len(set(patient_of.values()))
    Console().print(Text(f"{count} patients in {len(patient_of)} cases, by: {', '.join(told)}"), soft_wrap=True)
