"""The command `report`: one self-contained page, and its tables and figures as files."""

import base64
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
from tissnet_components.errors import UserError
from tissnet_components.files import files_below, write_atomic
from tissnet_components.report import formats, plots
from tissnet_components.report.by_case import QUALITY, case_by_case_table, quality_table
from tissnet_components.report.layouts import further_runs, layouts_of, pictured, reference_of, slices_of
from tissnet_components.report.provenance import provenance_table
from tissnet_components.report.runs import Run, notes, read_runs, records_of, simulated, study_of
from tissnet_components.report.tables import (
    Layout,
    Table,
    comparable,
    comparison_table,
    comparisons,
    result_table,
    run_of,
)
from tissnet_components.report.wanted import check_report, evaluated
from tissnet_components.results.page import html_template

OUT = Path("report.html")
CASES = " The cases are those at the 90th, 50th and 10th percentile of the Dice of {}."
GAINS = (
    "Each case's Dice minus that of {}: green gains, red loses. Methods of other test sets or protocols are left out."
)
VOLUMES = (
    "Bland and Altman: predicted minus true volume over their mean. Solid: the mean difference (bias). Dashed: bias ± "
    "1.96 SD, within which 95 % of cases would lie if the differences were normal."
)
CALIBRATION = (
    "Voxels of all cases by their predicted error. On the dashed line the predicted probability is the share of real "
    "mistakes of the coarse segmentation; below it, the network doubts itself too much. Most voxels are background."
)
REFERRAL = (
    f"Cases sorted by a quality that needs no label; the worst go to a human. {QUALITY} Rank correlation (Spearman) of "
    "each with the true Dice, in this order. A curve that rises like the dotted one knows its bad cases."
)
LEARNING = (
    "Blue: the patches of the training, augmented and with dropout, 1 minus the Dice loss of both classes, averaged "
    "over a thirtieth of it. Orange: the Dice of whole validation patients. A line per fold."
)


@dataclass(frozen=True)
class Shown:
    """A figure of the report."""

    title: str
    caption: str
    png: bytes

    @property
    def data(self) -> str:
        return base64.b64encode(self.png).decode()


def report(
    runs: Path | Sequence[Path],
    out: Path = OUT,
    title: str | None = None,
    reference: str | None = None,
    max_pictures: int = 12,
) -> str:
    """Write tables, figures and pictures of every evaluation below a folder; the page opens without a network.

    Tables give mean ± SD, the best in bold, and every method against a reference: bootstrap interval of the mean
    difference, paired t-test and Wilcoxon test with Holm's correction. The folder of a study gets the tables and
    figures that the study asks for, in its order.

        python -m tissnet_components report --runs runs/glioma12 --out docs/results/glioma12 --reference "without FLAIR"

    Args:
        runs: folder whose subfolders hold `cases.csv` (the folder's name becomes the method's), or several folders.
        out: a page, if it ends in .html; else a folder for report.html, report.md, tables (CSV, LaTeX) and figures.
        title: its heading; by default the study's.
        reference: the method that the others are compared with; by default the study's, or else the first.
        max_pictures: single cases shown; the page says how many there were.

    Returns:
        The path of the page.

    Raises:
        ValueError: no such folder, nothing to report in it, a file in it that cannot be read, an unknown reference.
    """
    roots = [Path(root) for root in ([runs] if isinstance(runs, str | Path) else runs)]
    if absent := [root for root in roots if not os.path.isdir(root)]:
        raise UserError(f"{absent[0]} is not a folder: give the one that holds the evaluations (with --runs)")
    found = _read(roots)
    overviews = sorted(path for root in roots for path in files_below(root) if path.name.endswith("_overview.png"))
    if not found and not overviews:
        raise UserError(f"nothing to report below {', '.join(map(str, roots))}: no cases.csv; evaluate a bundle first")
    home = next((root for root in roots if study_of(root)), roots[0])
    study = study_of(home)
    names = list(dict.fromkeys([*study.get("runs", {}), *found]))
    if reference and reference not in found:
        raise UserError(f"there is no evaluation of {reference!r} to compare with; there are {list(found)}")
    wanted = study.get("report", {})
    check_report(wanted, evaluated(study))
    layouts = layouts_of(wanted, names, found, reference) if found else []
    content = {
        "title": title or study.get("title", "TISS-Net report"),
        "simulated": any(map(simulated, roots)),
        "notes": [*_other_studies(roots, home), *notes(found, roots, _side_by_side(wanted, layouts))],
        "tables": [table for layout in layouts for table in _tables(layout, found)] + _quality(wanted, found),
        "figures": list(_figures(wanted, found, layouts, reference)),
        "cases": case_by_case_table(_methods(wanted, found)) if found else None,
        "provenance": provenance_table(study, records_of(home, study)) if study else None,
    }
    one_page = str(out).endswith(".html")
    pictures = [_picture(path, roots, Path(out).parent if one_page else Path(out)) for path in overviews[:max_pictures]]
    page = html_template(Path(__file__).with_name("report.html")).render(
        **content, pictures=pictures, pictures_found=len(overviews)
    )
    if one_page:
        return str(write_atomic(out, page.encode(errors="replace")))
    _write_files(Path(out), content)
    return str(write_atomic(Path(out, "report.html"), page.encode(errors="replace")))


def _read(roots: Sequence[Path]) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for root in roots:
        runs = read_runs(root)
        if doubled := sorted(set(found) & set(runs)):
            raise UserError(f"two runs are called {doubled[0]!r}, one of them in {root}: rename its folder")
        found |= runs
    return found


def _other_studies(roots: Sequence[Path], home: Path) -> list[str]:
    """Studies whose runs are shown, but not their own tables."""
    return [
        f"{root} holds a study of its own; its runs are shown here, its tables are not: report it alone for those."
        for root in roots
        if root != home and study_of(root)
    ]


def _side_by_side(wanted: Mapping, layouts: Sequence[Layout]) -> list[list[str]]:
    """Groups of runs that a reader compares."""
    tables = [[run_of(row) for row in layout.rows] for layout in layouts]
    return tables + [list(entry["rows"]) for key in ("pictures", "curves") for entry in wanted.get(key, [])]


def _methods(wanted: Mapping, runs: Mapping[str, Run]) -> dict[str, Run]:
    """The runs that figures of single cases show: those that the study chose and those it does not know, or all."""
    chosen = [*wanted["methods"], *further_runs(wanted, runs)] if "methods" in wanted else runs
    return {name: runs[name] for name in chosen if name in runs}


def _tables(layout: Layout, runs: Mapping[str, Run]) -> list[Table]:
    compared = comparisons(layout, runs)
    behind = comparison_table(layout, compared)
    return [result_table(layout, runs, compared), *([behind] if behind else [])]


def _ranking(methods: Iterable[Run]) -> list[Run]:
    """The runs that have a label-free quality estimate."""
    return [run for run in methods if run.has(f"{plots.stage(run)}_dice") and any(map(run.has, plots.QUALITIES))]


def _quality(wanted: Mapping, runs: Mapping[str, Run]) -> list[Table]:
    ranking = _ranking(_methods(wanted, runs).values())
    return [quality_table(ranking, wanted.get("alarm", {}))] if ranking else []


def _figures(
    wanted: Mapping, runs: Mapping[str, Run], layouts: Sequence[Layout], chosen: str | None
) -> Iterator[Shown]:
    for figure in pictured(wanted, runs):
        lines = ", the label in yellow and the segmentation in green" if figure["contours"] else ""
        caption = (
            f"One axial slice per case, where the tumor is largest{lines}. A method that synthesises shows its "
            f"synthetic image, another one its first source."
            + (CASES.format(figure["by"]) if figure["typical"] else "")
        )
        drawn = plots.pictures(slices_of(figure, runs), figure["contours"], figure["zoom"])
        yield _shown(figure["title"], caption, drawn)
    curves = [curve for curve in wanted.get("curves", []) if any(name in runs for name in curve["rows"])]
    if curves:
        yield _shown("Hyper-parameters", _curves_caption(curves, runs), plots.sweeps(curves, runs))
    methods = [run for run in _methods(wanted, runs).values() if run.has(f"{plots.stage(run)}_dice")]
    reference = next((run for run in methods if run.name == reference_of(layouts, chosen)), None)
    rivals = [run for run in methods if comparable(run, reference)]
    if reference is not None and [run for run in rivals if run is not reference]:
        yield _shown("Who gains, who loses", GAINS.format(reference.name), plots.gains(rivals, reference))
    if methods:
        yield _shown("Tumor volume", VOLUMES, plots.volume_agreement(methods))
    if learning := [run for run in methods if plots.learns(run)]:
        yield _shown("Learning", LEARNING, plots.learning(learning))
    if doubting := [run for run in methods if run.calibration is not None]:
        yield _shown("Does a high predicted error mean a real error?", CALIBRATION, plots.calibration_curves(doubting))
    if ranking := _ranking(methods):
        yield _shown("If the worst cases go to a human", REFERRAL, plots.referral(ranking))


def _curves_caption(curves: Sequence[Mapping], runs: Mapping[str, Run]) -> str:
    absent = [name for curve in curves for name in curve["rows"] if name not in runs]
    return "Mean Dice and its 95 % bootstrap interval over cases." + (
        f" Not evaluated, so not drawn: {', '.join(absent)}." if absent else ""
    )


def _shown(title: str, caption: str, figure: Figure) -> Shown:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return Shown(title, caption, png.getvalue())


def _write_files(folder: Path, content: Mapping) -> None:
    """Tables as CSV and LaTeX, figures as PNG, and report.md, which shows them."""
    tables = [*content["tables"], *filter(None, [content["cases"], content["provenance"]])]
    for name, table in zip(_file_names(tables), tables, strict=True):
        write_atomic(folder / "tables" / f"{name}.csv", formats.to_csv(table).encode())
        write_atomic(folder / "tables" / f"{name}.tex", formats.to_latex(table).encode())
    figures = dict(zip(_file_names(content["figures"]), content["figures"], strict=True))
    for name, figure in figures.items():
        write_atomic(folder / "figures" / f"{name}.png", figure.png)
    simulated_note = ["**Simulated data.** The numbers say that the software works, not how it performs on patients."]
    parts = [
        f"# {content['title']}",
        *simulated_note * content["simulated"],
        *content["notes"],
        *map(formats.to_markdown, content["tables"]),
        *(f"**{f.title}**\n\n![{f.title}](figures/{name}.png)\n\n{f.caption}" for name, f in figures.items()),
        *map(formats.to_markdown, filter(None, [content["cases"], content["provenance"]])),
        "For research; not a medical device.",
    ]
    write_atomic(folder / "report.md", ("\n\n".join(part.rstrip() for part in parts) + "\n").encode())


def _file_names(shown: Sequence[Table | Shown]) -> list[str]:
    """Titles as names of files; those that come again are numbered."""
    names = [re.sub(r"\W+", "_", item.title.lower()).strip("_") for item in shown]
    counts = [names[:index].count(name) + 1 for index, name in enumerate(names)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(names, counts, strict=True)]


def _picture(path: Path, roots: Sequence[Path], folder: Path) -> dict[str, str]:
    """A case's picture, and the address of its page from the folder of the report, if it has one."""
    root = next(root for root in roots if root in path.parents)
    name = path.relative_to(root).with_suffix("").as_posix()
    page = path.with_name(path.name.replace("_overview.png", "_view.html"))
    address = quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else ""
    return {"name": name, "data": base64.b64encode(path.read_bytes()).decode(), "page": address}
