"""Which tables and pictures a report shows: those that a study asks for, or those that any set of runs can have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tissnet_components.errors import UserError
from tissnet_components.metrics import SEGMENTATIONS
from tissnet_components.report.plots import stage
from tissnet_components.report.runs import Run
from tissnet_components.report.tables import IMAGE, Layout, run_of
from tissnet_components.report.wanted import layout_of

PICTURED_METHODS, QUANTILES = 6, (0.9, 0.5, 0.1)


def layouts_of(wanted: Mapping, names: Sequence[str], runs: Mapping[str, Run], reference: str | None) -> list[Layout]:
    """The study's tables, or the usual ones; `reference` replaces theirs where it is one of their rows.

    `further_runs` stand in a table behind the study's own, beside its methods.
    """
    found = [layout_of(entry) for entry in wanted.get("tables", [])]
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
                raise UserError(f"{where}, which {present[-1]} did not test; name others, or none for typical ones")
    return found


def typical_cases(run: Run) -> list[str]:
    dice = run.values(f"{stage(run)}_dice")
    order = sorted((case for case in dice if not math.isnan(dice[case])), key=dice.__getitem__)
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
            raise UserError(f"{file} cannot be read ({type(reason).__name__}): evaluate {name} again") from reason

    return {case: {title: load(name, case) for name, title in figure["rows"].items()} for case in figure["cases"]}


def _with_reference(layout: Layout, chosen: str | None, default: str | None) -> Layout:
    """The layout with the chosen reference, where it has such a row; else its own; without one, the study's."""

    def row_of(reference: str | None) -> str | None:
        return next((row for row in layout.rows if reference in (row, run_of(row))), None)

    return replace(layout, reference=row_of(chosen) or layout.reference or row_of(default))
