"""One self-contained HTML page from the folders of finished runs: tables, pictures, and how to read them."""

import base64
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..metrics import SEGMENTATIONS, empty_predictions, mean_and_sd
from . import write_whole

SEGMENTATION_COLUMNS = {"Dice (%)": ("dice", 100, 1), "ASSD (mm)": ("assd_mm", 1, 2), "HD95 (mm)": ("hd95_mm", 1, 2)}
SYNTHESIS_COLUMNS = {
    "SSIM, entire image": ("ssim", 1, 3),
    "SSIM, brain": ("brain_ssim", 1, 3),
    "SSIM, tumor": ("local_ssim", 1, 3),
    "PSNR, entire image (dB)": ("psnr", 1, 2),
    "PSNR, brain (dB)": ("brain_psnr", 1, 2),
    "PSNR, tumor (dB)": ("local_psnr", 1, 2),
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class Method:
    """One evaluation folder: name, protocol, summary (metric -> mean, sd, n, missing) and cases (name -> metrics)."""

    name: str
    protocol: str
    summary: dict[str, dict[str, float]]
    cases: dict[str, dict[str, float]]


def report(runs: str, out: str = "report.html", title: str = "TISS-Net report", max_pictures: int = 24) -> str:
    """Write one HTML page, images included, about every evaluation below a folder; opens without a network.

    Args:
        runs: folder whose subfolders hold `summary.csv` and `cases.csv` (as `CaseTable` writes them; the folder's
            name becomes the method's), and pictures (*.png). What is missing is left out.
        out: the page to write.
        title: its heading.
        max_pictures: pictures shown; the page says how many there were.

    Returns:
        The path of the page.

    Raises:
        ValueError: no such folder, nothing to report in it, or a file in it that cannot be read.
    """
    folder = Path(str(runs))
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds the evaluations (with --runs)")
    methods = [_method(file, folder) for file in sorted(folder.rglob("summary.csv"))]
    pictures = sorted(path for path in folder.rglob("*.png") if path.read_bytes()[:8] == PNG_SIGNATURE)
    if not methods and not pictures:
        raise ValueError(f"nothing to report below {folder}: no summary.csv and no pictures; evaluate a bundle first")
    page = _template().render(
        title=title,
        simulated=_is_simulated(folder),
        notes=_notes(methods),
        headline=_segmentation_table(methods, ["fine"]),
        stages=_segmentation_table(methods, list(SEGMENTATIONS.values())),
        synthesis=_synthesis_table(methods),
        cases=_case_table(methods),
        pictures=[_picture(path, folder) for path in pictures[:max_pictures]],
        pictures_found=len(pictures),
    )
    return str(write_whole(out, page.encode()))


def _template():
    try:
        import jinja2
    except ImportError as missing:
        raise ImportError("the report needs jinja2: pip install 'tissnet-components[report]'") from missing
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html")


def _method(summary_file: Path, root: Path) -> Method:
    folder = summary_file.parent
    rows = _read_csv(summary_file, ("protocol", "metric", "mean", "sd", "n", "missing"))
    summary = {
        row["metric"]: {key: _number(row[key], summary_file) for key in ("mean", "sd", "n", "missing")} for row in rows
    }
    name = folder.resolve().name if folder == root else folder.relative_to(root).as_posix()
    protocols = sorted({row["protocol"] for row in rows})
    return Method(name, ", ".join(protocols), summary, _cases(folder / "cases.csv"))


def _cases(file: Path) -> dict[str, dict[str, float]]:
    if not file.exists():
        return {}
    return {
        row["case"]: {key: _number(row[key], file) for key in row if key not in ("protocol", "case")}
        for row in _read_csv(file, ("case",))
    }


def _read_csv(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(file, newline="", encoding="utf-8") as text:
            table = csv.DictReader(text)
            header, rows = table.fieldnames or [], list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise ValueError(f"{file} cannot be read ({reason}): evaluate again") from reason
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{file} has no column {missing}, found {header}: evaluate again")
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{file} has rows that are longer or shorter than its header: evaluate again")
    return rows


def _number(cell: str, file: Path) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError as reason:
        raise ValueError(f"{file} holds {cell!r} where a number belongs: evaluate again") from reason


def _is_simulated(folder: Path) -> bool:
    """Whether a dataset_description.json or a datalist below the folder says `"simulated": true`."""
    for file in [*folder.rglob("dataset_description.json"), *folder.rglob("*datalist*.json")]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as reason:
            raise ValueError(f"{file} cannot be read as JSON ({reason}): mend or remove it") from reason
        if isinstance(content, dict) and content.get("simulated") is True:
            return True
    return False


def _notes(methods: list[Method]) -> list[str]:
    """What a reader must know before comparing the methods."""
    notes = []
    if len({method.protocol for method in methods}) > 1:
        notes.append("The methods were evaluated under different protocols; compare them with care.")
    with_cases = [method for method in methods if method.cases]
    every_case = {case for method in with_cases for case in method.cases}
    for method in with_cases:
        if absent := sorted(every_case - set(method.cases)):
            notes.append(
                f"{method.name} lacks {len(absent)} of {len(every_case)} cases: {', '.join(absent[:5])}"
                + " …" * (len(absent) > 5)
            )
    return notes


def _segmentation_table(methods: list[Method], stages: list[str]) -> dict:
    rows = []
    for method in methods:
        empty = empty_predictions(list(method.cases.values()))
        for stage in stages:
            if f"{stage}_dice" not in method.summary:
                continue
            cells = [_cell(method, f"{stage}_{name}", *style) for name, *style in SEGMENTATION_COLUMNS.values()]
            count = f"{empty[stage]} of {len(method.cases)}" if stage in empty else "n/a"
            rows.append([method.name, stage, *cells, count, method.protocol])
    return {"head": ["method", "segmentation", *SEGMENTATION_COLUMNS, "empty predictions", "protocol"], "rows": rows}


def _synthesis_table(methods: list[Method]) -> dict:
    rows = [
        [method.name, *(_cell(method, *style) for style in SYNTHESIS_COLUMNS.values())]
        for method in methods
        if "ssim" in method.summary
    ]
    return {"head": ["method", *SYNTHESIS_COLUMNS], "rows": rows}


def _cell(method: Method, metric: str, scale: float, decimals: int) -> str:
    if metric not in method.summary:
        return "n/a"
    values = method.summary[metric]
    text = mean_and_sd(values["mean"] * scale, values["sd"] * scale, decimals)
    return text + (f" ({values['missing']:.0f} missing)" if values["missing"] else "")


def _case_table(methods: list[Method]) -> dict:
    methods = [method for method in methods if method.cases]
    names = sorted({case for method in methods for case in method.cases})
    head = ["case", "tumor (ml)", *(f"{m.name}: {what}" for m in methods for what in ("Dice (%)", "HD95 (mm)", "ml"))]
    rows = []
    for name in names:
        cases = [method.cases.get(name, {}) for method in methods]
        volume = next((case["label_ml"] for case in cases if "label_ml" in case), math.nan)
        row = [name, mean_and_sd(volume, math.nan, 1)]
        for case in cases:
            for metric, scale, decimals in (("fine_dice", 100, 1), ("fine_hd95_mm", 1, 2), ("fine_ml", 1, 1)):
                row.append(mean_and_sd(case.get(metric, math.nan) * scale, math.nan, decimals))
        rows.append(row)
    return {"head": head, "rows": rows}


def _picture(path: Path, root: Path) -> dict[str, str]:
    name = path.relative_to(root).with_suffix("").as_posix()
    return {"name": name, "data": base64.b64encode(path.read_bytes()).decode()}
