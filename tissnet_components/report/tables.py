"""Tables in the paper's layout, and the comparisons behind them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tissnet_components.errors import UserError
from tissnet_components.metrics import SEGMENTATIONS, SSIM_SIGMA, SSIM_WINDOW
from tissnet_components.regions import LABELS_OF_REGIONS
from tissnet_components.report.runs import Run
from tissnet_components.report.statistics import RESAMPLES, Comparison, compare, holm
from tissnet_components.results.case_table import mean_and_sd, summarise

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: unit in the title, factor, decimals, and whether more is better."""

    title: str
    scale: float
    decimals: int
    higher_is_better: bool
    definition: str


DICE = "Dice: overlap of masks thresholded at 0.5; an empty prediction of a tumor counts as 0, two empty masks as 1."
DISTANCES = (
    "ASSD: mean over the surface voxels of both masks of the distance to the other surface. HD95: the larger of the "
    "two directed 95th percentiles. In mm of the label's spacing; missing where one mask is empty, 0 where both are. "
    "A missing value is left out of the mean and counted."
)
SIMILARITY = (
    f"SSIM and PSNR: on the label's grid, against the target as the training sees it, clipped and resampled to its "
    f"voxels and back; images in [-1, 1], data range 2; SSIM with a 3D Gaussian window of {SSIM_WINDOW} voxels, sigma "
    f"{SSIM_SIGMA}, where it fits. Global: the entire image, background included. Brain: the box of the real target's "
    f"foreground. Local: the box of the true tumor, widened to at least {SSIM_WINDOW} voxels a side."
)
STAGED = {  # of a segmentation: its column is STAGE_METRIC
    "dice": Metric("Dice (%)", 100, 2, True, DICE),
    "assd_mm": Metric("ASSD (mm)", 1, 2, False, DISTANCES),
    "hd95_mm": Metric("HD95 (mm)", 1, 2, False, DISTANCES),
}
IMAGE = {
    "ssim": Metric("global SSIM", 1, 3, True, SIMILARITY),
    "brain_ssim": Metric("brain SSIM", 1, 3, True, SIMILARITY),
    "local_ssim": Metric("local SSIM", 1, 3, True, SIMILARITY),
    "psnr": Metric("global PSNR (dB)", 1, 2, True, SIMILARITY),
    "brain_psnr": Metric("brain PSNR (dB)", 1, 2, True, SIMILARITY),
    "local_psnr": Metric("local PSNR (dB)", 1, 2, True, SIMILARITY),
}
REGIONAL = {  # of a segmentation too, where regions were evaluated
    f"{region.replace(' ', '_')}_{name}": replace(STAGED[name], title=f"{region}, {STAGED[name].title}")
    for region in list(LABELS_OF_REGIONS)[1:]
    for name in STAGED
}
METRICS = STAGED | REGIONAL | IMAGE
STAGES = {  # other segmentations than fine
    "coarse": "the generator's own, with all its parts, also where the others keep their largest alone",
    "refined": "coarse with its predicted mistakes flipped",
    "average": "the mean of fine and refined",
    "perceptibility": "the perceptor's of the synthetic image",
    "consensus": "the mean of fine and the perceptor's",
}


@dataclass(frozen=True)
class Cell:
    """A cell: its text, whether it is the best of its column, and the numbers behind it, for CSV."""

    text: str
    bold: bool = False
    numbers: Mapping[str, float] = field(default_factory=dict)


def number_cell(value: float, scale: float, decimals: int) -> Cell:
    return Cell(mean_and_sd(value * scale, math.nan, decimals), numbers={"": value * scale})


@dataclass(frozen=True)
class Table:
    """A title, a head, rows as long as the head, and notes that stand under it."""

    title: str
    head: list[str]
    rows: list[list[Cell]]
    notes: list[str]


@dataclass(frozen=True)
class Layout:
    """What a table shows.

    Args:
        title: above it.
        head: titles of the columns that describe a row.
        rows: `ROW` or `ROW:STAGE` -> its description, as long as the head. STAGE is a segmentation (fine by default).
        metrics: columns, of METRICS.
        reference: the row that the others are compared with, or None.
        unranked: rows that are never bold, such as an upper bound.
        mean: what to call a last row, the mean of the rows; by default there is none.

    Raises:
        ValueError: an unknown metric or stage, a description of another length, a reference that is no row.
    """

    title: str
    head: list[str]
    rows: dict[str, list[str]]
    metrics: list[str] = field(default_factory=lambda: list(STAGED))
    reference: str | None = None
    unranked: list[str] = field(default_factory=list)
    mean: str = ""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise UserError(f"table {self.title!r} has the unknown metric {unknown[0]!r}; known: {list(METRICS)}")
        for row, description in self.rows.items():
            if stage_of(row) not in SEGMENTATIONS.values():
                raise UserError(f"row {row!r} of table {self.title!r}: the stages are {list(SEGMENTATIONS.values())}")
            if not isinstance(description, list) or len(description) != len(self.head):
                raise UserError(f"row {row!r} of table {self.title!r} needs {len(self.head)} texts, got {description}")
        for row in [*([self.reference] if self.reference else []), *self.unranked]:
            if row not in self.rows:
                raise UserError(f"table {self.title!r} has no row {row!r}; it has {list(self.rows)}")


def run_of(row: str) -> str:
    return row.rpartition(":")[0] or row


def stage_of(row: str) -> str:
    return row.rpartition(":")[2] if ":" in row else "fine"


def column_of(row: str, metric: str) -> str:
    """The column of cases.csv in which a row has a metric."""
    return metric if metric in IMAGE else f"{stage_of(row)}_{metric}"


def comparable(one: Run | None, other: Run | None) -> bool:
    """Whether two runs tested the same cases by the same protocol."""
    if one is None or other is None:
        return False
    return one.protocol == other.protocol and set(one.cases) == set(other.cases)


def comparisons(layout: Layout, runs: Mapping[str, Run]) -> dict[tuple[str, str], Comparison]:
    """(row, metric) -> the row against the reference, in the metric's unit; p-values corrected over each metric's rows.

    Rows without a run, of another test set or protocol, or without the metric are left out.
    """
    if layout.reference is None or run_of(layout.reference) not in runs:
        return {}
    found = {}
    for metric in layout.metrics:
        rivals = (row for row in layout.rows if row != layout.reference)
        rows = {row: result for row in rivals if (result := _compare(runs, row, layout.reference, metric))}
        corrected = {test: holm([getattr(c, test) for c in rows.values()]) for test in ("t_test", "wilcoxon")}
        for row, t_test, wilcoxon in zip(rows, *corrected.values(), strict=True):
            found[row, metric] = replace(rows[row], t_test=t_test, wilcoxon=wilcoxon)
    return found


def result_table(
    layout: Layout, runs: Mapping[str, Run], compared: Mapping[tuple[str, str], Comparison] | None = None
) -> Table:
    """Mean ± SD of every row; the best of each column bold, rows that differ significantly from the reference marked.

    A row without a run stands in the table as missing. Bold is given among the rows that tested the cases of the
    reference (without one: of most rows) by its protocol, and that have the fewest missing values.
    `compared` is what `comparisons` found, if it is known.
    """
    compared = comparisons(layout, runs) if compared is None else compared
    best = {metric: _best(layout, runs, metric) for metric in layout.metrics}
    rows = []
    for row, description in layout.rows.items():
        cells = [Cell(text) for text in description]
        for metric in layout.metrics:
            significant = (row, metric) in compared and compared[row, metric].t_test < SIGNIFICANT
            cells.append(_result(runs.get(run_of(row)), row, metric, row in best[metric], "†" if significant else ""))
        rows.append(cells)
    if layout.mean:
        rows.append(_mean_row(layout, runs))
    titles = [METRICS[name].title + (" ↑" if METRICS[name].higher_is_better else " ↓") for name in layout.metrics]
    return Table(layout.title, [*layout.head, *titles], rows, _notes(layout, runs))


def _mean_row(layout: Layout, runs: Mapping[str, Run]) -> list[Cell]:
    """The mean over all rows of each metric's mean; nothing where a row has none."""
    cells = [Cell(text) for text in [layout.mean, *[""] * (len(layout.head) - 1)]]
    for metric in layout.metrics:
        found = [_summary(runs[run_of(row)], row, metric)["mean"] for row in layout.rows if run_of(row) in runs]
        complete = len(found) == len(layout.rows)
        cells.append(number_cell(sum(found) / len(found) if complete else math.nan, 1, METRICS[metric].decimals))
    return cells


def comparison_table(layout: Layout, compared: Mapping[tuple[str, str], Comparison]) -> Table | None:
    """What `comparisons` found, a row of the table per method and metric; None when it found nothing."""
    if not compared or layout.reference is None:
        return None
    reference = label(layout, layout.reference)
    head = ["method", "metric", "pairs", "difference [95 % CI]", "better / worse", "p, t-test", "p, Wilcoxon"]
    rows = [
        _comparison(label(layout, row), METRICS[metric], compared[row, metric])
        for row in layout.rows
        for metric in layout.metrics
        if (row, metric) in compared
    ]
    notes = [
        f"Difference: mean of method minus {reference}, over the pairs: the cases where both have a value. "
        f"Better / worse: in how many of them the method is.",
        f"CI: percentile bootstrap of {RESAMPLES:,} resamples of cases, seed 0.",
        "p: paired t-test and Wilcoxon signed-rank test, two-sided, corrected by Holm over the methods of each metric.",
    ]
    return Table(f"{layout.title}: compared with {reference}", head, rows, notes)


def label(layout: Layout, row: str) -> str:
    """What a row is called where its description does not fit."""
    alone = sum(run_of(other) == run_of(row) for other in layout.rows) == 1
    return run_of(row) if alone else f"{run_of(row)} ({stage_of(row)})"


def _compare(runs: Mapping[str, Run], row: str, reference: str, metric: str) -> Comparison | None:
    sides = [(runs[run_of(name)], column_of(name, metric)) for name in (row, reference) if run_of(name) in runs]
    if len(sides) < 2 or not comparable(*(run for run, _ in sides)) or not all(run.has(name) for run, name in sides):
        return None
    scale = METRICS[metric].scale
    return compare(*({case: v * scale for case, v in run.values(column).items()} for run, column in sides))


def _ranked(layout: Layout, runs: Mapping[str, Run]) -> list[str]:
    """The rows that compete: those comparable with the reference, or with the row that most are comparable with."""
    present = [row for row in layout.rows if run_of(row) in runs]

    def rivals(anchor: str) -> list[str]:
        return [row for row in present if comparable(runs[run_of(row)], runs[run_of(anchor)])]

    anchors = [layout.reference] if layout.reference in present else present
    group = max(map(rivals, anchors), key=len, default=[])
    return [row for row in group if row not in layout.unranked]


def _best(layout: Layout, runs: Mapping[str, Run], metric: str) -> set[str]:
    found = {row: _summary(runs[run_of(row)], row, metric) for row in _ranked(layout, runs)}
    fewest = min((values["missing"] for values in found.values()), default=0)
    means = {row: values["mean"] for row, values in found.items() if values["missing"] == fewest and values["n"]}
    if len(set(means.values())) < 2:
        return set()
    winner = (max if METRICS[metric].higher_is_better else min)(means.values())
    return {row for row, mean in means.items() if mean == winner}


def _summary(run: Run, row: str, metric: str) -> dict[str, float]:
    """Mean, sd, n and missing in the metric's unit."""
    column, scale = column_of(row, metric), METRICS[metric].scale
    return summarise([{column: value * scale} for value in run.values(column).values()])[column]


def _result(run: Run | None, row: str, metric: str, best: bool, mark: str) -> Cell:
    if run is None:
        return Cell("not evaluated")
    if not run.has(column_of(row, metric)):
        return Cell("n/a")
    numbers = _summary(run, row, metric)
    missing = f" ({numbers['missing']} missing)" if numbers["missing"] else ""
    text = mean_and_sd(numbers["mean"], numbers["sd"], METRICS[metric].decimals)
    return Cell(text + mark + missing, best, numbers)


def _comparison(name: str, metric: Metric, found: Comparison) -> list[Cell]:
    digits = f".{metric.decimals}f"
    interval = f"{found.difference:+{digits}} [{found.low:+{digits}}, {found.high:+{digits}}]"
    better, worse = (found.above, found.below) if metric.higher_is_better else (found.below, found.above)
    numbers = {"mean": found.difference, "low": found.low, "high": found.high}
    return [
        Cell(name),
        Cell(metric.title),
        Cell(str(found.pairs)),
        Cell("n/a" if math.isnan(found.difference) else interval, numbers=numbers),
        Cell(f"{better} / {worse}"),
        *(Cell(_p(p), p < SIGNIFICANT, {"Holm": p}) for p in (found.t_test, found.wilcoxon)),
    ]


def _p(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(layout: Layout, runs: Mapping[str, Run]) -> list[str]:
    """How many cases, by which protocol, by which definitions."""
    present = {row: runs[run_of(row)] for row in layout.rows if run_of(row) in runs}
    counts = sorted({len(run.cases) for run in present.values()})
    protocols = sorted({run.protocol for run in present.values()})
    notes = [
        f"Mean ± SD (sample) over {' or '.join(map(str, counts)) or 'no'} cases. Protocol: {', '.join(protocols)}."
    ]
    if set(layout.metrics) & set(STAGED):
        notes += _stages(layout)
    empty = {label(layout, row): _empty(run, row) for row, run in present.items()}
    if any(empty.values()) and set(layout.metrics) & set(STAGED):
        found = ", ".join(f"{name} {count}" for name, count in empty.items() if count)
        notes.append(f"Empty predictions: {found}.")
    if layout.reference:
        aside = ", ".join(label(layout, row) for row in layout.unranked)
        notes.append(
            f"Bold: best of its column{aside and f', {aside} aside'}; rows with more missing values than others do not "
            f"compete. †: differs from "
            f"{label(layout, layout.reference)} (paired t-test, p < {SIGNIFICANT} after Holm's correction)."
        )
    return notes + list(dict.fromkeys(METRICS[metric].definition for metric in layout.metrics))


def _stages(layout: Layout) -> list[str]:
    """Whose segmentation it is, where it is not fine."""
    rows = {stage: [row for row in layout.rows if stage_of(row) == stage] for stage in STAGES}
    names = {stage: ", ".join(label(layout, row) for row in found) for stage, found in rows.items()}
    names |= {stage: "every row" for stage, found in rows.items() if len(found) == len(layout.rows)}
    return [f"Segmentation of {names[stage]}: {stage}, {STAGES[stage]}." for stage, found in rows.items() if found]


def _empty(run: Run, row: str) -> int:
    """Predictions without a voxel; a prediction where there is no tumor is not counted here."""
    return sum(volume == 0 for volume in run.values(f"{stage_of(row)}_ml").values())
