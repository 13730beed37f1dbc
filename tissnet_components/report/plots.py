"""Figures that compare runs: pictures side by side, tumor volumes, gains and losses, trust in the error map, sweeps.

Like `figures`, without pyplot. Each is as wide as a page.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tissnet_components.report.runs import Run
from tissnet_components.report.statistics import interval, rank_correlation
from tissnet_components.results.overview import BACKGROUND, CONTOURS, INK, contoured, literal

WIDTH, PANEL, DPI = 10.0, 2.5, 100  # inches
COLUMNS = 4
NAMED_CASES = 40
LEARNING_POINTS = 30
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")  # Okabe and Ito
STYLES = [(colour, marker) for marker in "os^Dv" for colour in COLOURS]
GAIN, LOSS, TRUTH = COLOURS[2], COLOURS[1], "#555555"
QUALITIES = {  # what a case may be ranked by -> its name, colour
    "predicted_dice": ("Dice predicted from the error map", COLOURS[0]),
    "agreement": ("agreement of fine and refined", COLOURS[3]),
}


def pictures(
    slices: Mapping[str, Mapping[str, Mapping[str, np.ndarray] | None]], contours: bool = True, zoom: bool = False
) -> Figure:
    """Cases in rows, methods in columns: each method's image, with the label in yellow and its segmentation in green.

    Args:
        slices: case -> method -> what `save_slices` kept, or None where there is none. A method that synthesises shows
            its synthetic image, another one its first source. The real target stands first where it was kept.
        contours: draw them.
        zoom: show the surroundings of the tumor alone.
    """
    methods = list(next(iter(slices.values())))
    kept = [archive for row in slices.values() for archive in row.values() if archive is not None]
    target = any("target" in archive for archive in kept)
    columns = [*(["real target"] if target else []), *methods]
    boxes = {case: _box(row, zoom) for case, row in slices.items()}
    width = WIDTH / len(columns)
    heights = [width * _shape(row, boxes[case]) for case, row in slices.items()]
    figure = _figure(sum(heights) + 0.75, BACKGROUND)
    top = sum(heights) + 0.4
    for index, title in enumerate(columns):
        _text(figure, (index + 0.5) * width, top + 0.18, _wrapped(literal(title), int(width * 13)), 9)
    for (case, row), height in zip(slices.items(), heights, strict=True):
        top -= height
        reference = next((archive for archive in row.values() if archive is not None and "target" in archive), None)
        for index, name in enumerate(columns):
            axes = _place(figure, index * width, top, width, height)
            if target and index == 0:
                _picture(axes, reference, "target", boxes[case], ["label"] * contours)
                axes.text(0.02, 0.02, literal(case), color=INK, fontsize=7, transform=axes.transAxes, va="bottom")
            else:
                _picture(axes, row[name], "synthetic", boxes[case], [*CONTOURS] * contours)
    _contour_legend(figure) if contours else None
    return figure


def volume_agreement(runs: Sequence[Run]) -> Figure:
    """Bland and Altman's plot of every run: predicted minus true tumor volume over their mean; bias, 1.96 SD limits."""

    def draw(axes: Axes, run: Run) -> None:
        truth, predicted = (np.array([*run.values(name).values()]) for name in ("label_ml", f"{stage(run)}_ml"))
        mean, difference = (truth + predicted) / 2, predicted - truth
        axes.scatter(mean, difference, s=16, color=COLOURS[0], alpha=0.8, linewidths=0)
        there = difference[~np.isnan(difference)]
        bias = there.mean() if len(there) else math.nan
        spread = there.std(ddof=1) if len(there) > 1 else math.nan
        axes.axhline(0, color="0.75", linewidth=0.8)
        axes.axhline(bias, color=COLOURS[1], linewidth=1.2)
        for limit in (bias - 1.96 * spread, bias + 1.96 * spread):
            if math.isfinite(limit):
                axes.axhline(limit, color=COLOURS[1], linewidth=1, linestyle="--")
        axes.set_title(f"{literal(run.name)}\nbias {bias:+.1f} ml, limits ± {1.96 * spread:.1f} ml", fontsize=8)

    return _grid(runs, draw, "mean of both volumes (ml)", "predicted minus true (ml)")


def gains(runs: Sequence[Run], reference: Run) -> Figure:
    """Who gains, who loses: each case's Dice minus the reference's, in points; cases sorted by their mean gain."""
    others = [run for run in runs if run is not reference]
    cases = list(reference.cases)
    gained = {run.name: 100 * (_dice(run, cases) - _dice(reference, cases)) for run in others}
    order = np.argsort(np.nan_to_num(sum(gained.values())))
    names = [literal(cases[index]) for index in order] if len(cases) <= NAMED_CASES else []

    def draw(axes: Axes, run: Run) -> None:
        lengths = gained[run.name][order]
        colours = [GAIN if length > 0 else LOSS if length < 0 else TRUTH for length in lengths]
        axes.hlines(range(len(lengths)), 0, lengths, color=colours, linewidth=1)
        axes.scatter(lengths, range(len(lengths)), s=18, color=colours, zorder=3)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{literal(run.name)}\n{(lengths > 0).sum()} gain, {(lengths < 0).sum()} lose", fontsize=8)

    height = max(PANEL, 0.17 * min(len(cases), NAMED_CASES) + 0.6)
    return _grid(
        others, draw, f"Dice minus that of {literal(reference.name)} (points)", "", share_x=True, height=height
    )


def calibration_curves(runs: Sequence[Run]) -> Figure:
    """Does a high predicted error mean a real error? The share of real mistakes by predicted error, and the voxels."""
    figure = _figure(4.4)
    curve, counts = figure.subplots(1, 2, width_ratios=(3, 2))
    curve.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    tables = {run.name: run.calibration for run in runs if run.calibration is not None}
    for (name, table), (colour, marker) in zip(tables.items(), cycle(STYLES), strict=False):
        low, high, voxels, predicted, mistakes = table.T
        there = voxels > 0
        settings = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.3}
        curve.plot(predicted[there] / voxels[there], mistakes[there] / voxels[there], label=literal(name), **settings)
        counts.plot((low + high)[there] / 2, voxels[there], **settings)
    curve.set(xlabel="predicted probability that coarse is wrong", ylabel="share of voxels where it is", aspect="equal")
    curve.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    counts.set(xlabel="predicted probability", ylabel="voxels, all cases", yscale="log", xlim=(0, 1))
    for axes in (curve, counts):
        _plain(axes)
    figure.legend(
        *curve.get_legend_handles_labels(), loc="outside lower center", ncols=COLUMNS, fontsize=8, frameon=False
    )
    return figure


def referral(runs: Sequence[Run]) -> Figure:
    """Mean Dice of the cases left after the worst ones, by a quality that needs no label, went to a human."""

    def draw(axes: Axes, run: Run) -> None:
        dice = _dice(run)
        share = np.arange(len(dice)) / len(dice)
        axes.plot(share, left_after(dice, dice), color=TRUTH, linestyle=":", linewidth=1.3)
        axes.axhline(dice.mean(), color="0.75", linewidth=0.8)
        correlations = []
        for metric, (_, colour) in QUALITIES.items():
            if run.has(metric):
                quality = np.array([*run.values(metric).values()])
                axes.plot(share, left_after(dice, quality), color=colour, linewidth=1.5)
                correlations.append(f"{rank_correlation(quality, dice):.2f}")
        axes.set_title(f"{literal(run.name)}\nrank correlation {' and '.join(correlations)}", fontsize=8)
        axes.set_xlim(0, 1)

    figure = _grid(runs, draw, "share of cases sent to a human", "mean Dice of the others")
    handles = [Line2D([], [], color=colour, label=name) for name, colour in QUALITIES.values()]
    handles += [
        Line2D([], [], color=TRUTH, linestyle=":", label="the true Dice (the best possible)"),
        Line2D([], [], color="0.75", label="no selection"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def left_after(dice: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Mean Dice of the rest after the 0, 1, 2... cases of the lowest quality are gone; a missing quality goes first."""
    order = np.argsort(np.nan_to_num(quality, nan=-np.inf), kind="stable")
    kept = dice[order][::-1]
    return (np.cumsum(kept) / np.arange(1, len(kept) + 1))[::-1]


def sweeps(curves: Sequence[Mapping], runs: Mapping[str, Run]) -> Figure:
    """Mean Dice and its bootstrap interval over the values of a hyper-parameter, a panel for each (Fig. 6).

    Args:
        curves: `x`, the parameter's name, and `rows`, row -> its value. Rows without a run are left to the caller.
    """

    def draw(axes: Axes, curve: Mapping) -> None:
        rows = sorted((value, name) for name, value in curve["rows"].items() if name in runs)
        dice = [100 * _dice(runs[name]) for _, name in rows]
        means = np.array([values.mean() for values in dice])
        bars = np.abs(np.array([interval(values) for values in dice]).reshape(-1, 2).T - means)
        axes.errorbar(
            range(len(rows)), means, bars, color=COLOURS[0], marker="o", markersize=5, linewidth=1.5, capsize=3
        )
        axes.set_xticks(range(len(rows)), [f"{value:g}" for value, _ in rows])
        axes.set_xlabel(curve["x"], fontsize=9)

    return _grid(curves, draw, "", "Dice (%)", columns=3)


def learning(runs: Sequence[Run]) -> Figure:
    """How well each method knows the patches that it trains on, and the patients that it does not; a line per fold."""

    def draw(axes: Axes, run: Run) -> None:
        for curves in run.learning:
            iterations, loss = curves[stage(run)].T
            parts = np.array_split(np.arange(len(loss)), min(LEARNING_POINTS, len(loss)))
            points = [(iterations[part].mean(), 1 - loss[part].mean()) for part in parts]
            axes.plot(*zip(*points, strict=True), color=COLOURS[0], linewidth=1, alpha=0.8)
            if "val_dice" in curves:
                axes.plot(*curves["val_dice"].T, color=COLOURS[1], marker="o", markersize=4, linewidth=1)
        axes.set_ylim(0, 1)
        axes.set_title(literal(run.name), fontsize=8)

    figure = _grid(runs, draw, "iteration", "Dice")
    names = {"training patches, 1 - loss": COLOURS[0], "validation patients": COLOURS[1]}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def learns(run: Run) -> bool:
    """Whether every training of a run showed the loss of its segmentation."""
    return bool(run.learning) and all(stage(run) in curves for curves in run.learning)


def stage(run: Run) -> str:
    """The segmentation that a run stands for: fine, or what it has instead."""
    return next((name for name in ("fine", "refined", "coarse", "perceptibility") if run.has(f"{name}_dice")), "fine")


def _dice(run: Run, cases: Sequence[str] | None = None) -> np.ndarray:
    values = run.values(f"{stage(run)}_dice")
    return np.array([values[case] for case in (values if cases is None else cases)])


def _grid(
    items: Sequence,
    draw: Callable,
    x_label: str,
    y_label: str,
    columns: int = COLUMNS,
    height: float = PANEL,
    share_x: bool = False,
) -> Figure:
    """Small multiples with one vertical axis: a panel per item, drawn by `draw(axes, item)`."""
    columns = min(columns, max(len(items), 2))
    rows = -(-len(items) // columns)
    figure = _figure(rows * height + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=share_x).ravel()
    for axes, item in zip(panels, items, strict=False):
        draw(axes, item)
        _plain(axes)
    for axes in panels[len(items) :]:
        axes.remove()
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    return figure


def _figure(height: float, colour: str = "white") -> Figure:
    figure = Figure(
        figsize=(WIDTH, height), dpi=DPI, facecolor=colour, layout="constrained" if colour == "white" else None
    )
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _box(row: Mapping[str, Mapping[str, np.ndarray] | None], zoom: bool, margin: int = 4) -> tuple[slice, ...]:
    """What to show of a case: its head, or the tumor with half as much again around it."""
    archive = next((archive for archive in row.values() if archive is not None), None)
    if archive is None:
        return slice(None), slice(None)
    real = archive["target"] if "target" in archive else archive["source"]
    inside = (real > real.min()).any(axis=0)
    if zoom and "label" in archive and (archive["label"][0] > 0.5).any():
        inside = archive["label"][0] > 0.5
        margin += max(int(np.ptp(np.flatnonzero(inside.any(axis=axis)))) for axis in (0, 1)) // 4
    spans = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(max(span[0] - margin, 0), span[-1] + margin + 1) if len(span) else slice(None) for span in spans)


def _shape(row: Mapping[str, Mapping[str, np.ndarray] | None], box: tuple[slice, ...]) -> float:
    """Height of a case's panels over their width."""
    archive = next((archive for archive in row.values() if archive is not None), None)
    if archive is None:
        return 0.5
    rows, columns = archive["source"][0][box].shape
    return rows / columns * float(archive["aspect"])


def _picture(
    axes: Axes, archive: Mapping[str, np.ndarray] | None, name: str, box: tuple[slice, ...], contours: Sequence[str]
) -> None:
    axes.set_axis_off()
    if archive is None:
        axes.text(0.5, 0.5, "no picture", color=INK, fontsize=9, ha="center", va="center", transform=axes.transAxes)
        return
    image = archive[name if name in archive else "source"][0].astype(np.float32)
    scale = archive["target"][0] if name == "synthetic" and "target" in archive and name in archive else image
    axes.imshow(
        image[box], cmap="gray", vmin=float(scale.min()), vmax=float(scale.max()), aspect=float(archive["aspect"])
    )
    for contour, mask in contoured(archive).items():
        if contour in contours and mask[box].any():
            width = 1.8 if contour == "label" else 0.9
            axes.contour(mask[box], levels=[0.5], colors=[CONTOURS[contour]], linewidths=width)


def _contour_legend(figure: Figure) -> None:
    lines = [Line2D([], [], color=colour, label=name) for name, colour in CONTOURS.items()]
    figure.legend(handles=lines, loc="lower left", ncols=2, frameon=False, labelcolor=INK, fontsize=8)


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, with a thin gap around."""
    total, gap = figure.get_size_inches()[1], 0.02
    return figure.add_axes(
        ((left + gap) / WIDTH, (bottom + gap) / total, (width - 2 * gap) / WIDTH, (height - 2 * gap) / total)
    )


def _text(figure: Figure, x: float, y: float, text: str, size: float) -> None:
    total = figure.get_size_inches()[1]
    figure.text(x / WIDTH, y / total, text, color=INK, fontsize=size, ha="center", va="center")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, max(width, 8))[:2])
