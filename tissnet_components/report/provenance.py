"""How the rows of a study were made, as a table."""

import math
from collections.abc import Mapping, Sequence

from tissnet_components.report import slug
from tissnet_components.report.tables import Cell, Table, number_cell

PLACES = ("dataset_dir", "datalist", "ckpt_dir", "output_dir")  # settings that a study gives every run


def provenance_table(study: Mapping, records: Mapping[str, Sequence[Mapping]]) -> Table:
    """How every row of a study was made: its configs, its options, the minutes it took; as it ran, where it did.

    Args:
        records: row -> what the study wrote down about its runs.
    """
    configs = {row["name"]: _configs(study, row, records[row["name"]]) for row in study["rows"]}
    options = {row["name"]: _options(study, row, records[row["name"]]) for row in study["rows"]}
    rows = []
    for name, kept in records.items():
        minutes = sum(record["minutes"] for record in kept) if kept else math.nan
        made = (", ".join(text for text in of[name] if text not in _common(of)) for of in (configs, options))
        rows.append([Cell(name), *map(Cell, made), number_cell(minutes, 1, 1)])
    machines = sorted({record["machine"] for kept in records.values() for record in kept})
    notes = [
        f"Options of all rows: {', '.join(_common(options)) or 'none'}; "
        f"configs of all rows: {', '.join(_common(configs)) or 'none'}.",
        f"Folds: {study.get('folds') or len(study.get('datalists', [])) or 'none'}. Seed: {study.get('seed', 0)}. "
        f"Minutes: training and evaluation of all folds, on {' and '.join(machines) or 'an unknown machine'}.",
    ]
    return Table("How it was made", ["Row", "Configs", "Options", "Minutes"], rows, notes)


def _configs(study: Mapping, row: Mapping, kept: Sequence[Mapping]) -> list[str]:
    """The overlays of a row's runs, or those that the study has for it."""
    names = [name for record in kept for name in record["configs"] if name not in ("train", "evaluate")]
    return list(dict.fromkeys(names if kept else [*row.get("configs", []), *study.get("configs", [])]))


def _options(study: Mapping, row: Mapping, kept: Sequence[Mapping]) -> list[str]:
    """The options of a row's runs, or those that the study has for it; "A or B" where its runs differ."""
    implied = [("model_name", slug(row["name"])), ("seed", study.get("seed", 0))]
    values: dict[str, list[str]] = {}
    for settings in [record["settings"] for record in kept] or [study.get("options", {}) | row.get("options", {})]:
        for key, value in settings.items():
            if key not in PLACES and (key, value) not in implied:
                values.setdefault(key, []).append(str(value))
    return [f"{key} {' or '.join(dict.fromkeys(texts))}" for key, texts in values.items()]


def _common(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """What all rows have."""
    first = next(iter(texts.values()))
    return [text for text in first if all(text in others for others in texts.values())]
