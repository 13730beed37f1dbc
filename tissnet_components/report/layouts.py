"""What a report shows: the tables and figures that a study asks for, or those that any set of runs can have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..case_table import mean_and_sd
from ..metrics import SEGMENTATIONS
from . import slug
from .plots import QUALITIES, stage
from .runs import Run
from .statistics import RESAMPLES, correlation_interval, finite_pairs, rank_correlation
from .tables import DICE, DISTANCES, IMAGE, Cell, Layout, Table, run_of

TABLE_KEYS = {
    "title": str,
    "head": list[str],
    "rows": dict,
    "metrics": list[str],
    "reference": str | None,
    "unranked": list[str],
}
PICTURE_KEYS = {"title": str, "rows": list | dict, "cases": list[str], "contours": bool, "zoom": bool}
CURVE_KEYS = {"x": str, "rows": dict}
REPORT_KEYS = {
    "tables": list,
    "pictures": list,
    "curves": list,
    "methods": list[str],
    "reference": str | None,
    "alarm": dict,
}
ALARM_KEYS = dict.fromkeys(("dice", *QUALITIES), int | float)
KINDS = {
    str: "a text",
    str | None: "a text",
    int: "a whole number",
    int | float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    list[str]: "a list of texts",
    list | dict: "a list or an object",
}
QUALITY = (
    "Dice predicted from the error map: that of coarse if every voxel were wrong with its predicted probability. "
    "Agreement: the Dice of fine and refined with each other."
)
FEW_METHODS = 4
PICTURED_METHODS, QUANTILES = 6, (0.9, 0.5, 0.1)
PLACES = ("dataset_dir", "datalist", "ckpt_dir", "output_dir")  # settings that a study gives every run


def check_report(wanted: Mapping, rows: Sequence[str]) -> None:
    """Refuse what a study's `report` cannot mean: keys and values of other kinds, rows that the study does not have.

    Raises:
        ValueError: one sentence.
    """
    check_keys(wanted, REPORT_KEYS, "report")
    if "alarm" in wanted:
        check_keys(wanted["alarm"], ALARM_KEYS, "report's alarm", required=["dice"])
    named = [("methods", name) for name in wanted.get("methods", [])]
    for key, known in (("pictures", PICTURE_KEYS), ("curves", CURVE_KEYS)):
        for entry in wanted.get(key, []):
            check_keys(entry, known, f"an entry of report's {key}", required=list(known)[:2])
            named += [(key, name) for name in entry.get("rows", [])]
    for curve in wanted.get("curves", []):
        if texts := [row for row, value in curve["rows"].items() if not isinstance(value, int | float)]:
            found = f"a number for {texts[0]!r}, not {curve['rows'][texts[0]]!r}"
            raise ValueError(f"report's curve {curve['x']!r} needs {found}: the value of the parameter")
    for entry in wanted.get("tables", []):
        named += [(layout.title, run_of(row)) for layout in [_layout(entry)] for row in layout.rows]
    if wanted.get("reference"):
        named.append(("reference", wanted["reference"]))
    for where, name in named:
        if name not in rows:
            absent = "which the study does not have, or not evaluate"
            raise ValueError(f"report asks in {where} for the row {name!r}, {absent}: {[*rows]}")


def evaluated(study: Mapping) -> list[str]:
    """The rows of which there are results to show."""
    return [row["name"] for row in study.get("rows", []) if row.get("evaluate", True)]


def layouts_of(wanted: Mapping, names: Sequence[str], runs: Mapping[str, Run], reference: str | None) -> list[Layout]:
    """The study's tables, or the usual ones; `reference` replaces theirs where it is one of their rows.

    `further_runs` stand in a table behind the study's own, beside its methods.
    """
    found = [_layout(entry) for entry in wanted.get("tables", [])]
    if not found:
        found = usual_layouts(names, runs)
    elif others := further_runs(wanted, runs):
        methods = [name for name in wanted.get("methods", []) if name not in others]
        beside = usual_layouts([*methods, *others], runs)[0]
        found.append(replace(beside, title="Segmentation, with further runs"))
    return [_with_reference(layout, reference, wanted.get("reference")) for layout in found]


def further_runs(wanted: Mapping, runs: Mapping[str, Run]) -> list[str]:
    """Runs that no table or curve of a study names, such as those of another folder."""
    tables = [run_of(row) for entry in wanted.get("tables", []) for row in entry["rows"]]
    named = set(tables).union(*(curve["rows"] for curve in wanted.get("curves", [])))
    return [name for name in runs if name not in named] if tables else []


def reference_of(layouts: Sequence[Layout], chosen: str | None) -> str | None:
    """The run that single cases are compared with: the chosen one, or that of the last table that ranks several runs.

    A reference that its table keeps out of the ranking, such as an upper bound, is none.
    """
    found = [
        run_of(layout.reference)
        for layout in layouts
        if layout.reference and layout.reference not in layout.unranked and len(set(map(run_of, layout.rows))) > 1
    ]
    return chosen or (found[-1] if found else None)


def usual_layouts(names: Sequence[str], runs: Mapping[str, Run]) -> list[Layout]:
    """Final segmentations; every stage, where a run has several; synthetic images, where a run has any."""
    stages = {name: stage(runs[name]) if name in runs else "fine" for name in names}
    main = {f"{name}:{s}": [name if s == "fine" else f"{name} ({s})"] for name, s in stages.items()}
    first = next((row for row in main if run_of(row) in runs), None)
    found = [Layout("Segmentation", ["Method"], main, reference=first)]
    staged = {f"{n}:{s}": [n, s] for n in runs for s in SEGMENTATIONS.values() if runs[n].has(f"{s}_dice")}
    if len(staged) > len(runs):
        found.append(Layout("Segmentation, stage by stage", ["Method", "Segmentation"], staged))
    synthesising = {row: text for row, text in main.items() if run_of(row) in runs and runs[run_of(row)].has("ssim")}
    if synthesising:
        found.append(Layout("Synthetic image", ["Method"], synthesising, list(IMAGE)))
    return found


def pictured(wanted: Mapping, runs: Mapping[str, Run]) -> list[dict]:
    """Figures of methods side by side: the study's, or one of the first methods; each names its cases.

    Without cases of its own, a figure shows those at the 90th, 50th and 10th percentile of the Dice of its last row.
    """
    names = [name for name in runs if any(slice_file(runs[name], case).is_file() for case in runs[name].cases)]
    first = names[:PICTURED_METHODS]
    title = "Methods side by side" if first == names else f"The first {len(first)} of {len(names)} methods side by side"
    usual = [{"title": title, "rows": first}] if names else []
    found = []
    for entry in wanted.get("pictures") or usual:
        rows = dict(entry["rows"]) if isinstance(entry["rows"], dict) else {name: name for name in entry["rows"]}
        present = [name for name in rows if name in runs]
        if present:
            chosen = {"cases": typical_cases(runs[present[-1]]), "by": present[-1], "typical": "cases" not in entry}
            found.append({"contours": True, "zoom": False, **chosen, **entry, "rows": rows})
            if unknown := [case for case in found[-1]["cases"] if case not in runs[present[-1]].cases]:
                where = f"figure {entry['title']!r} asks for the case {unknown[0]!r}"
                raise ValueError(f"{where}, which {present[-1]} did not test; name others, or none for typical ones")
    return found


def typical_cases(run: Run) -> list[str]:
    dice = run.values(f"{stage(run)}_dice")
    order = sorted((case for case in dice if not math.isnan(dice[case])), key=dice.get)
    return list(dict.fromkeys(order[round(quantile * (len(order) - 1))] for quantile in QUANTILES)) if order else []


def slice_file(run: Run, case: str) -> Path:
    return run.folders[case] / f"{case}_slice.npz"


def slices_of(figure: Mapping, runs: Mapping[str, Run]) -> dict[str, dict[str, Mapping[str, np.ndarray] | None]]:
    """Case -> title of the method -> its kept slice, or None."""

    def load(name: str, case: str) -> Mapping[str, np.ndarray] | None:
        if name not in runs or case not in runs[name].cases or not slice_file(runs[name], case).is_file():
            return None
        try:
            return dict(np.load(slice_file(runs[name], case)))
        except Exception as reason:  # numpy, zipfile and zlib raise half a dozen types; to the user each means the same
            file = slice_file(runs[name], case)
            raise ValueError(f"{file} cannot be read ({type(reason).__name__}): evaluate {name} again") from reason

    return {case: {title: load(name, case) for name, title in figure["rows"].items()} for case in figure["cases"]}


def case_table(runs: Mapping[str, Run]) -> Table:
    """Every case of every run: Dice, and HD95 and volume too where the runs are few."""
    metrics = [("dice", "Dice (%)", 100, 1), ("hd95_mm", "HD95 (mm)", 1, 2), ("ml", "ml", 1, 1)]
    metrics = metrics if len(runs) <= FEW_METHODS else metrics[:1]
    rows = []
    for case in sorted({case for run in runs.values() for case in run.cases}):
        volume = next(
            (run.cases[case].get("label_ml", math.nan) for run in runs.values() if case in run.cases), math.nan
        )
        cells = [Cell(case), _number(volume, 1, 1)]
        for run in runs.values():
            values = run.cases.get(case, {})
            cells += [_number(values.get(f"{stage(run)}_{name}", math.nan), *style) for name, _, *style in metrics]
        rows.append(cells)
    head = ["case", "tumor (ml)", *(f"{name}: {title}" for name in runs for _, title, *_ in metrics)]
    protocols = sorted({run.protocol for run in runs.values()})
    stages = {name: stage(run) for name, run in runs.items() if stage(run) != "fine"}
    others = ", ".join(f"{found} of {name}" for name, found in stages.items())
    notes = [f"Segmentation: fine{others and f'; {others}'}. Protocol: {', '.join(protocols)}. {DICE}"]
    return Table("Case by case", head, rows, notes + [DISTANCES] * (len(runs) <= FEW_METHODS))


def quality_table(runs: Sequence[Run], alarm: Mapping[str, float]) -> Table:
    """How well each quality that needs no label goes with the true Dice, and how well it finds bad cases.

    Args:
        alarm: `dice`, below which a case is bad, and of each quality the threshold below which it raises an alarm; a
            case of unknown quality is an alarm. Empty: correlations alone.
    """
    rows = []
    for run in runs:
        for metric in filter(run.has, QUALITIES):
            pairs = [(run.cases[case].get(f"{stage(run)}_dice", math.nan), q) for case, q in run.values(metric).items()]
            dice, quality = np.array(pairs).T
            caught = _caught(dice, quality, alarm["dice"], alarm.get(metric, math.nan)) if alarm else []
            cells = [Cell(run.name), Cell(QUALITIES[metric][0]), Cell(str(finite_pairs(dice, quality).shape[1]))]
            rows.append([*cells, _correlation(dice, quality), *caught])
    notes = [
        QUALITY,
        f"Rank correlation (Spearman) with the true Dice, over the cases that have both. CI: percentile bootstrap of "
        f"{RESAMPLES:,} resamples of cases, seed 0.",
    ]
    if alarm:
        limits = " and ".join(f"{QUALITIES[key][0]} below {alarm[key]:g}" for key in QUALITIES if key in alarm)
        notes.append(f"Bad: Dice below {100 * alarm['dice']:g} %. Alarm: {limits or 'none'}.")
    head = ["Method", "Quality", "Cases", "Rank correlation [95 % CI]"]
    return Table("Quality without a label", head + ["Bad cases found", "False alarms"] * bool(alarm), rows, notes)


def _correlation(dice: np.ndarray, quality: np.ndarray) -> Cell:
    value, (low, high) = rank_correlation(dice, quality), correlation_interval(dice, quality)
    text = "n/a" if math.isnan(value) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return Cell(text, numbers={"": value, "low": low, "high": high})


def _caught(dice: np.ndarray, quality: np.ndarray, bad_below: float, alarm_below: float) -> list[Cell]:
    """Alarms among the bad cases, and among the others."""
    alarm = ~(quality >= alarm_below) if not math.isnan(alarm_below) else None
    return [_share(alarm, group) for group in (dice < bad_below, dice >= bad_below)]


def _share(alarm: np.ndarray | None, group: np.ndarray) -> Cell:
    if alarm is None or not group.any():
        return Cell("n/a")
    hits, share = alarm[group].sum(), alarm[group].mean()
    return Cell(f"{hits} / {group.sum()} ({100 * share:.0f} %)", numbers={"": hits, "of": group.sum()})


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
        rows.append([Cell(name), *map(Cell, made), _number(minutes, 1, 1)])
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


def _layout(entry: Mapping) -> Layout:
    check_keys(entry, TABLE_KEYS, "a table of report", required=("title", "head", "rows"))
    return Layout(**entry)


def _with_reference(layout: Layout, chosen: str | None, default: str | None) -> Layout:
    """The layout with the chosen reference, where it has such a row; else its own; without one, the study's."""

    def row_of(reference: str | None) -> str | None:
        return next((row for row in layout.rows if reference in (row, run_of(row))), None)

    return replace(layout, reference=row_of(chosen) or layout.reference or row_of(default))


def check_keys(given: object, known: Mapping[str, type], where: str, required: Sequence[str] = ()) -> None:
    """Refuse what is no object, a key that is not known or is missing, and a value of another kind.

    Raises:
        ValueError: one sentence.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{where} is a {type(given).__name__}, expected an object; docs/study.md shows one")
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if missing := [key for key in required if key not in given]:
        raise ValueError(f"{where} lacks {missing[0]!r}; it has {list(given)}")
    for key, value in given.items():
        if not _is_of(value, known[key]):
            raise ValueError(f"{key!r} of {where} is {value!r}, expected {KINDS[known[key]]}; docs/study.md shows one")


def _is_of(value: object, kind: type) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)


def _number(value: float, scale: float, decimals: int) -> Cell:
    return Cell(mean_and_sd(value * scale, math.nan, decimals), numbers={"": value * scale})
