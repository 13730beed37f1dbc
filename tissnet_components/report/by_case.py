"""Tables of single cases: every result, and how well a quality that needs no label knows the bad ones."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from tissnet_components.report.plots import QUALITIES, stage
from tissnet_components.report.runs import Run
from tissnet_components.report.statistics import RESAMPLES, correlation_interval, finite_pairs, rank_correlation
from tissnet_components.report.tables import DICE, DISTANCES, Cell, Table, number_cell

QUALITY = (
    "Dice predicted from the error map: that of coarse if every voxel were wrong with its predicted probability. "
    "Agreement: the Dice of fine and refined with each other."
)
FEW_METHODS = 4


def case_by_case_table(runs: Mapping[str, Run]) -> Table:
    """Every case of every run: Dice, and HD95 and volume too where the runs are few."""
    metrics = [("dice", "Dice (%)", 100, 1), ("hd95_mm", "HD95 (mm)", 1, 2), ("ml", "ml", 1, 1)]
    metrics = metrics if len(runs) <= FEW_METHODS else metrics[:1]
    rows = []
    for case in sorted({name for run in runs.values() for name in run.cases}):
        volume = next(
            (run.cases[case].get("label_ml", math.nan) for run in runs.values() if case in run.cases), math.nan
        )
        cells = [Cell(case), number_cell(volume, 1, 1)]
        for run in runs.values():
            values = run.cases.get(case, {})
            cells += [number_cell(values.get(f"{stage(run)}_{name}", math.nan), *style) for name, _, *style in metrics]
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
