"""Reading what evaluations left: one run per method, its cases from every fold, and what is missing of a study."""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tissnet_components.errors import UserError
from tissnet_components.files import digest, files_below
from tissnet_components.report import slug

FOLD = re.compile(r"fold_\d+")
RECORD = ("minutes", "machine", "finished")
CALIBRATION_COLUMNS = ("error_from", "error_to", "voxels", "predicted", "mistakes")


@dataclass
class Run:
    """The evaluation of one method.

    Args:
        name: the study's row, or the folder's name.
        protocol: which part of the volumes was evaluated.
        cases: case -> metric -> value, NaN where missing.
        folders: case -> the folder of its pictures.
        calibration: (10, 5), the columns of CALIBRATION_COLUMNS, summed over cases; None without an error map.
        learning: of each fold, loss term or metric -> (N, 2), iteration and value; empty without TensorBoard's files.
        untested: cases that the datalist beside the tables has in the sections that were tested, and the tables lack.
    """

    name: str
    protocol: str
    cases: dict[str, dict[str, float]]
    folders: dict[str, Path] = field(default_factory=dict)
    calibration: np.ndarray | None = None
    learning: list[dict[str, np.ndarray]] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    def values(self, metric: str) -> dict[str, float]:
        """Case -> value; NaN where the case has none."""
        return {case: row.get(metric, math.nan) for case, row in self.cases.items()}

    def has(self, metric: str) -> bool:
        return any(metric in row for row in self.cases.values())


def read_runs(root: Path) -> dict[str, Run]:
    """Every evaluation below a folder by name: those of a study in its rows' order, others in that of the alphabet.

    The folds of a method (folders `fold_1`, `fold_2`...) are one run.

    Raises:
        ValueError: a file that cannot be read, a case that two folds tested, folds of different protocols.
    """
    folders: dict[str, list[Path]] = {name: [] for name in study_of(root).get("runs", {})}
    slugs = {Path(places[0]).parts[0]: name for name, places in study_of(root).get("runs", {}).items()}
    for file in files_below(root):
        if file.name != "cases.csv":
            continue
        place = file.parent.relative_to(root)
        parts = [part for part in place.parts if not FOLD.fullmatch(part)]
        name = ("/".join(parts) or root.resolve().name).encode(errors="replace").decode()  # bytes that are no UTF-8
        folders.setdefault(slugs.get(name, name), []).append(file.parent)
    return {name: _run(name, places) for name, places in folders.items() if places}


def study_of(root: Path) -> dict:
    """The study that made a folder (`study.json` in it), or nothing."""
    file = root / "study.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    if not _is_study(content):
        raise UserError(f"{file} is not what a study leaves: run the study again, or remove it")
    return content


def _is_study(content: object) -> bool:
    kinds = {"rows": list, "runs": dict, "report": dict}
    if not isinstance(content, dict) or any(
        key in content and not isinstance(content[key], kinds[key]) for key in kinds
    ):
        return False
    named = "rows" in content and all(isinstance(row, dict) and "name" in row for row in content["rows"])
    return named and all(isinstance(places, list) and places for places in content.get("runs", {}).values())


def records_of(root: Path, study: Mapping) -> dict[str, list[dict]]:
    """Row -> what the study wrote down about its trainings and evaluations, in every fold."""
    names = [row["name"] for row in study["rows"]]
    return {name: _records((root / slug(name)).rglob("*_record.json")) for name in names}


def unfinished(root: Path) -> dict[str, list[str]]:
    """Row of the study -> its folds that have no evaluation, or one that was cut or read other weights."""
    expected = study_of(root).get("runs", {})
    missing = {name: [place for place in places if not _is_finished(root / place)] for name, places in expected.items()}
    return {name: [_fold(place) or name for place in places] for name, places in missing.items() if places}


def _fold(place: str) -> str:
    name = Path(place).name
    return name.replace("_", " ") if FOLD.fullmatch(name) else ""


def _is_finished(place: Path) -> bool:
    whole = all(
        record["finished"] and not _changed(record.get("reads", {})) for record in _records(place.glob("*_record.json"))
    )
    return (place / "cases.csv").is_file() and whole


def _changed(reads: Mapping[str, str]) -> bool:
    """Whether a file that a run read has another content now; those that are elsewhere are not looked at."""
    return any(digest(file) not in ("", content) for file, content in reads.items())


def _records(files: Iterable[Path]) -> list[dict]:
    """What a study wrote down about its steps."""
    records = {file: read_json(file) for file in sorted(files)}
    for file, record in records.items():
        if not isinstance(record, dict) or not set(RECORD) <= set(record):
            raise UserError(f"{file} does not hold {', '.join(RECORD)}: run the study again, or remove the file")
    return list(records.values())


def simulated(root: Path) -> bool:
    """Whether a dataset_description.json or a datalist below the folder says `"simulated": true`."""
    files = [
        file
        for file in files_below(root)
        if file.match("dataset_description.json") or file.match("*datalist*.json") or file.match("folds/*.json")
    ]
    return any(content.get("simulated") is True for content in map(read_json, files) if isinstance(content, dict))


def notes(runs: Mapping[str, Run], roots: Sequence[Path], groups: Sequence[Sequence[str]]) -> list[str]:
    """What a reader must know before comparing: sentences about gaps, other protocols and other test sets.

    Args:
        groups: names of runs that stand side by side in a table or figure, so that they should have the same cases.
    """
    found = [
        f"{name} is not complete: no finished evaluation of {listed(folds)}. Run the study again, which goes on there."
        for root in roots
        for name, folds in unfinished(root).items()
    ]
    for group in groups:
        found += _differences([runs[name] for name in group if name in runs])
    found += [
        f"{run.name} has no result of {listed(run.untested)}, which its datalist asks for: the evaluation ended early "
        f"or could not read them. Look at its log, and evaluate again."
        for run in runs.values()
        if run.untested
    ]
    found += [gap for run in runs.values() for gap in _gaps(run)]
    if len(runs) == 1:
        found.append(f"{next(iter(runs))} is the only run: there is nothing to compare it with.")
    return list(dict.fromkeys(found))


def _differences(group: Sequence[Run]) -> list[str]:
    """Why runs of one table cannot all be compared."""
    found = []
    protocols = sorted({run.protocol for run in group})
    if len(protocols) > 1:
        found.append(
            f"The runs were evaluated under different protocols ({', '.join(protocols)}); only runs of one protocol "
            f"are compared with each other."
        )
    every_case = {case for run in group for case in run.cases}
    for run in group:
        if absent := sorted(every_case - set(run.cases)):
            found.append(
                f"{run.name} lacks {len(absent)} of {len(every_case)} cases: {listed(absent)}. Its means are over "
                f"other cases than those of runs that have them; it is compared only with runs of the same cases."
            )
    return found


def _gaps(run: Run) -> list[str]:
    """Metrics without a single value, and a Dice that a case lacks; distances may be missing, and tables count them."""
    metrics = dict.fromkeys(metric for row in run.cases.values() for metric in row)
    missing = {metric: [case for case, value in run.values(metric).items() if math.isnan(value)] for metric in metrics}
    empty = [metric for metric, cases in missing.items() if len(cases) == len(run.cases)]
    found = [f"{run.name} has no value at all of {listed(empty)}: look at its pictures."] if empty else []
    found += [
        f"{run.name} has no {metric} of {listed(cases)}: evaluate it again."
        for metric, cases in missing.items()
        if metric.endswith("dice") and cases and metric not in empty
    ]
    return found


def read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise UserError(f"{file} cannot be read as JSON ({reason}): mend or remove it") from reason


def _run(name: str, places: Sequence[Path]) -> Run:
    cases: dict[str, dict[str, float]] = {}
    folders: dict[str, Path] = {}
    protocols, calibrations, learning, untested = set(), [], [], []
    for place in places:
        for row in _read_csv(place / "cases.csv", ("protocol", "case")):
            case = row.pop("case")
            if case in cases:
                raise UserError(f"{name} holds the case {case} twice: in {folders[case].parent} and {place}; keep one")
            protocols.add(row.pop("protocol"))
            cases[case] = {metric: _number(cell, place / "cases.csv") for metric, cell in row.items()}
            _check_dice(cases[case], case, place / "cases.csv")
            folders[case] = place / case
        tested = {case for case in folders if folders[case].parent == place}
        untested += _untested(place / "datalist.json", tested)
        if (place / "calibration.csv").is_file():
            calibrations.append(_calibration(place / "calibration.csv", tested))
        learning += [_learning(log) for log in sorted(place.glob("training/*_tensorboard"))]
    if len(protocols) != 1:
        found = f"the protocols {sorted(protocols)}" if protocols else "no case"
        raise UserError(f"{name} has {found} in {', '.join(map(str, places))}: evaluate it again, under one protocol")
    calibration = sum_calibrations(calibrations) if calibrations else None
    return Run(name, protocols.pop(), cases, folders, calibration, learning, untested)


def _untested(datalist: Path, tested: set[str]) -> list[str]:
    """Cases of the sections that were tested, by the datalist that an evaluation keeps, without a result."""
    content = read_json(datalist) if datalist.is_file() else {}
    lists = [entries for entries in content.values() if isinstance(entries, list)] if isinstance(content, dict) else []
    sections = [{str(entry["case"]) for entry in part if isinstance(entry, dict) and "case" in entry} for part in lists]
    return sorted(case for section in sections if section & tested for case in section - tested)


def _learning(log: Path) -> dict[str, np.ndarray]:
    """Every scalar that a training showed in TensorBoard, by iteration; what it showed twice, as it did last.

    A validation is counted by epochs there: it stands at the last iteration before it.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    done = [(event.wall_time, event.step) for event in scalars.get("loss", [])]
    curves = {}
    for tag, shown in scalars.items():
        counted = tag.startswith("val_")
        places = (
            [max([step for time, step in done if time <= e.wall_time], default=0) for e in shown] if counted else []
        )
        steps = places if counted else [event.step for event in shown]
        curves[tag] = np.array(sorted(dict(zip(steps, [event.value for event in shown], strict=True)).items()))
    return curves


def sum_calibrations(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Counts added up; the edges of the bins kept."""
    return np.concatenate([tables[0][:, :2], sum(table[:, 2:] for table in tables)], axis=1)


def _check_dice(values: Mapping[str, float], case: str, file: Path) -> None:
    for metric, value in values.items():
        if metric.endswith("dice") and (value < 0 or value > 1):
            raise UserError(f"{file} holds the {metric} {value} of {case}, expected 0 to 1: evaluate again")


def _calibration(file: Path, tested: set[str]) -> np.ndarray:
    cases: dict[str, list[list[float]]] = {}
    for row in _read_csv(file, ("case", *CALIBRATION_COLUMNS)):
        cases.setdefault(row["case"], []).append([_number(row[name], file) for name in CALIBRATION_COLUMNS])
    if others := sorted(set(cases) ^ tested):
        raise UserError(f"{file} holds other cases than cases.csv ({listed(others)}): evaluate again")
    tables = [np.array(table) for table in cases.values()]
    if not tables or len({table.shape for table in tables}) > 1:
        raise UserError(f"{file} does not hold the same bins for every case: evaluate again")
    return sum_calibrations(tables)


def _read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(file, newline="", encoding="utf-8") as text:
            table = csv.DictReader(text)
            header, rows = table.fieldnames or [], list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise UserError(f"{file} cannot be read ({reason}): evaluate again") from reason
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{file} has no column {missing}, found {header}: evaluate again")
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{file} has rows that are longer or shorter than its header: evaluate again")
    return rows


def _number(cell: str, file: Path) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError as reason:
        raise UserError(f"{file} holds {cell!r} where a number belongs: evaluate again") from reason


def listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + " …" * (len(names) > most)
