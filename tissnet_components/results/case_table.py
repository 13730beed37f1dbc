"""The table of an evaluation's cases and metrics, its summary, and how it is written and shown."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from rich.console import Console
from rich.table import Table
from tissnet_components.errors import UserError
from tissnet_components.files import write_atomic
from tissnet_components.metrics import MEANS, SEGMENTATIONS, case_metrics, error_calibration
from tissnet_components.regions import WHOLE, nested


class CaseTable:
    """Ignite handler: measures every case and writes `cases.csv` and `summary.csv` when the engine completes.

    `calibration.csv` holds the rows of `error_calibration` of every case that has an error map.

    Reads `engine.state.batch` and `engine.state.output` as MONAI leaves them after decollating: lists with one dict
    per case, together holding the maps of `case_metrics`, the label, optionally the target, and the case's name under
    "case". Voxel size comes from the label's affine, so the label must be a MetaTensor. Means go to
    `engine.state.metrics`, and to the screen as a table.
    Under torchrun the cases of all processes are gathered and one process writes.

    Args:
        output_dir: folder of the files.
        file_name: name of the table of cases.
        protocol: how the volumes were chosen, written into every file.
        label_key, target_key: keys of the reference mask and the real image, on the grid of the maps.
        regions: channels of the mask and of the maps that segment. The columns of the first are as ever; those of the
            others name the region, `fine_tumor_core_dice`. Each region is made to hold those after it.
        synthesised: channels of the real image that the synthetic one is compared in; the columns are their mean.
    """

    def __init__(
        self,
        output_dir: str | Path,
        file_name: str = "cases.csv",
        protocol: str = "whole volume",
        label_key: str = "label",
        target_key: str = "target",
        regions: Sequence[str] = (WHOLE,),
        synthesised: Sequence[int] = (0,),
    ) -> None:
        self.regions, self.synthesised = list(regions), list(synthesised)
        self.output_dir = Path(output_dir)
        self.file_name = file_name
        self.protocol = protocol
        self.label_key = label_key
        self.target_key = target_key
        self.rows: dict[str, dict[str, float]] = {}
        self.calibration: dict[str, list[dict[str, float]]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        self.rows, self.calibration = {}, {}

    def measure(self, engine: Engine) -> None:
        if not isinstance(engine.state.output, list):
            kind = type(engine.state.output).__name__
            raise TypeError(f"CaseTable expects a list with one dict per case, got {kind}: decollate the output first")
        batch = engine.state.batch if isinstance(engine.state.batch, list) else [{}] * len(engine.state.output)
        for inputs, outputs in zip(batch, engine.state.output, strict=True):
            item = {**inputs, **outputs}
            self.rows[item["case"]] = self._metrics(item)
            if {"coarse", "error"} <= set(item):
                whole = (item[key][:1] for key in ("coarse", "error", self.label_key))
                self.calibration[item["case"]] = error_calibration(*whole)

    def finish(self, engine: Engine) -> None:
        cases, calibration = _of_all_processes(self.rows), _of_all_processes(self.calibration)
        summary = summarise(list(cases.values()))
        engine.state.metrics |= {metric: values["mean"] for metric, values in summary.items()}
        if cases and idist.get_rank() == 0:
            case_rows = [{"protocol": self.protocol, "case": case} | row for case, row in sorted(cases.items())]
            empty = {f"{name}_dice": count for name, count in empty_predictions(list(cases.values())).items()}
            metric_rows = [
                {"protocol": self.protocol, "metric": m} | values | {"empty": empty.get(m, "")}
                for m, values in summary.items()
            ]
            write_atomic(self.output_dir / self.file_name, _csv(case_rows))
            write_atomic(self.output_dir / "summary.csv", _csv(metric_rows))
            if bins := [
                {"protocol": self.protocol, "case": c} | row for c in sorted(calibration) for row in calibration[c]
            ]:
                write_atomic(self.output_dir / "calibration.csv", _csv(bins))
            _print(summary, empty_predictions(list(cases.values())), f"{len(cases)} cases, {self.protocol}")

    def _metrics(self, item: dict) -> dict[str, float]:
        label = item[self.label_key]
        if not isinstance(label, MetaTensor):
            raise TypeError(f"{item['case']}: {self.label_key} has no affine, so no spacing: load it as a MetaTensor")
        maps = {name: nested(item[name]) for name in set(SEGMENTATIONS) - set(MEANS) if name in item}
        maps |= {"error": item["error"]} if "error" in item else {}
        spacing_mm = tuple(affine_to_spacing(label.affine).tolist())
        values: dict[str, float] = {}
        try:
            for number, region in enumerate(self.regions):
                of_region = {name: value[[number]] for name, value in maps.items()}
                found = case_metrics(of_region, None, label[[number]], spacing_mm)
                values |= {_of_region(name, region) if number else name: value for name, value in found.items()}
            return values | self._similarity(item, label[:1], spacing_mm)
        except ValueError as reason:
            raise UserError(f"case {item['case']}: {reason}") from reason

    def _similarity(self, item: dict, label: torch.Tensor, spacing_mm: tuple[float, ...]) -> dict[str, float]:
        """Of the synthetic contrasts to the real ones, where there are both: the mean over contrasts."""
        synthetic, target = item.get("synthetic"), item.get(self.target_key)
        if synthetic is None or target is None:
            return {}
        found = [
            case_metrics({"synthetic": synthetic[[channel]]}, target[[channel]], label, spacing_mm)
            for channel in self.synthesised
        ]
        return {str(name): float(value) for name, value in pd.DataFrame(found).mean(skipna=False).items()}


def _of_region(column: str, region: str) -> str:
    """`fine_dice` -> `fine_tumor_core_dice`."""
    first, *rest = column.split("_", 1)
    return "_".join([first, *region.split(), *rest])


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, sample SD (ddof 1), number of values and number missing of each metric over cases.

    A value is missing when it is NaN or the case has no such metric. No values: mean NaN; fewer than two: SD NaN.
    """
    return {
        str(metric): {
            "mean": float(values.mean()),
            "sd": float(values.std()),
            "n": int(values.count()),
            "missing": int(values.isna().sum()),
        }
        for metric, values in pd.DataFrame(rows, dtype=float).items()
    }


def mean_and_sd(mean: float, sd: float, decimals: int = 3) -> str:
    """As people read it: "0.875 ± 0.051", "0.875" for a single case, "n/a" for none."""
    if math.isnan(mean):
        return "n/a"
    return f"{mean:.{decimals}f}" + ("" if math.isnan(sd) else f" ± {sd:.{decimals}f}")


def empty_predictions(rows: list[dict[str, float]]) -> dict[str, int]:
    """How many cases had nothing segmented, per segmentation."""
    present = [name for name in SEGMENTATIONS.values() if any(f"{name}_ml" in row for row in rows)]
    return {name: sum(row.get(f"{name}_ml") == 0 for row in rows) for name in present}


def _of_all_processes(rows: dict) -> dict:
    everyone: Any = idist.all_gather(rows) if idist.get_world_size() > 1 else [rows]
    return {case: row for part in everyone for case, row in part.items()}


def _csv(rows: list[dict[str, float | str]]) -> bytes:
    """Comma-separated table; what is missing is an empty cell."""
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _print(summary: dict[str, dict[str, float]], empty: dict[str, int], title: str) -> None:
    table = Table("metric", title=title)
    for heading in ("mean ± SD", "n", "missing"):
        table.add_column(heading, justify="right")
    for metric, values in summary.items():
        table.add_row(metric, mean_and_sd(values["mean"], values["sd"]), str(values["n"]), str(values["missing"]))
    table.caption = "empty predictions: " + (", ".join(f"{name} {count}" for name, count in empty.items()) or "none")
    Console().print(table)
