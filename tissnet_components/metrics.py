"""How good a case is: overlap and distances in millimetres, image similarity overall, in the brain and at the tumor.

Definitions (Section 4.1 of the paper; where it is silent, docs of each function):

- Segmentations are thresholded at 0.5; any positive label value is tumor.
- An empty prediction of a real tumor has Dice 0 and no distance. So has any prediction where the label is empty.
  Distances that do not exist are NaN: left out of the mean, and counted as missing.
- Two empty masks agree: Dice 1, distances 0 mm (as BraTS does).
- Images live in [-1, 1], so SSIM and PSNR use a data range of 2.
"""

import csv
import io
import math
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import PSNRMetric, compute_average_surface_distance, compute_hausdorff_distance
from monai.metrics.regression import compute_ssim_and_cs
from monai.utils import convert_to_tensor
from rich.console import Console
from rich.table import Table

from .files import write_whole

Box = tuple[slice, slice, slice]
SEGMENTATIONS = {  # map -> its name in the columns
    "coarse": "coarse",
    "fine": "fine",
    "refined": "refined",
    "average": "average",
    "perceived": "perceptibility",
}
ERROR_BINS = 10
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
DATA_RANGE = 2.0


def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """Dice overlap of two masks (X, Y, Z), thresholded at 0.5. 1 when both are empty, 0 when only one is."""
    prediction, label = prediction > 0.5, label > 0.5
    size = int(prediction.sum() + label.sum())
    return 2 * int((prediction & label).sum()) / size if size else 1.0


def surface_distances_mm(
    prediction: torch.Tensor, label: torch.Tensor, spacing_mm: tuple[float, ...]
) -> dict[str, float]:
    """Average symmetric surface distance and 95 % Hausdorff distance of two masks (X, Y, Z), by MONAI.

    HD95 is the larger of the two directed 95th percentiles (as in PyMIC; MedPy pools them and differs).
    Both are 0 when both masks are empty and NaN when only one is.
    """
    prediction, label = prediction > 0.5, label > 0.5
    if prediction.any() != label.any():
        return {"assd_mm": math.nan, "hd95_mm": math.nan}
    if not label.any():
        return {"assd_mm": 0.0, "hd95_mm": 0.0}
    box = box_around(prediction | label)
    masks = prediction[box][None, None], label[box][None, None]
    spacing = [float(length) for length in spacing_mm]
    assd = compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=spacing)
    hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
    return {"assd_mm": float(assd), "hd95_mm": float(hd95)}


def psnr(synthetic: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal to noise ratio in dB of two images (X, Y, Z) in [-1, 1]; infinite when they are equal."""
    return float(PSNRMetric(max_val=DATA_RANGE)(synthetic[None, None], target[None, None]))


def ssim(synthetic: torch.Tensor, target: torch.Tensor) -> float:
    """Structural similarity of two images (X, Y, Z) in [-1, 1]; NaN when they are thinner than the window.

    3D Gaussian window of 11 voxels, sigma 1.5, only where it fits: equal to scikit-image with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2``.
    """
    return _mean(ssim_map(synthetic, target))


def ssim_map(synthetic: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SSIM of every place where the window fits: (X, Y, Z) -> (X - 10, Y - 10, Z - 10), empty when it never does."""
    inner = [max(length - SSIM_WINDOW + 1, 0) for length in target.shape]
    if 0 in inner:
        return torch.empty(inner)
    window = [SSIM_WINDOW] * 3, [SSIM_SIGMA] * 3
    return compute_ssim_and_cs(synthetic[None, None], target[None, None], 3, *window, data_range=DATA_RANGE)[0][0, 0]


def box_around(mask: torch.Tensor, at_least: int = 1) -> Box | None:
    """Smallest box around a mask (X, Y, Z), widened inside the volume to `at_least` voxels a side; None if empty."""
    if not mask.any():
        return None
    sides = []
    for axis, length in enumerate(mask.shape):
        others = [other for other in range(mask.ndim) if other != axis]
        inside = mask.amax(dim=others).nonzero()
        extent = int(inside[-1] - inside[0]) + 1
        size = max(extent, min(at_least, length))
        start = min(max(int(inside[0]) - (size - extent) // 2, 0), length - size)
        sides.append(slice(start, start + size))
    return tuple(sides)


def case_metrics(
    maps: dict[str, torch.Tensor], target: torch.Tensor | None, label: torch.Tensor, spacing_mm: tuple[float, ...]
) -> dict[str, float]:
    """Every metric of one case, on the grid of the original label.

    Args:
        maps: any of synthetic, coarse, fine, refined, error and perceived (the perceptor's probability on the
            synthetic image), each (1, X, Y, Z) or (X, Y, Z). What is absent is left out of the result.
        target: the real image, or None: then there is no image similarity.
        label: the tumor mask.
        spacing_mm: voxel size along X, Y, Z.

    Returns:
        `<map>_dice, <map>_assd_mm, <map>_hd95_mm, <map>_ml` of coarse, fine, refined, average (mean of fine and
        refined) and perceptibility; `label_ml`; `ssim, psnr` in the entire image, which its background flatters,
        so also `brain_` (in the box of target > -1) and `local_` (in the label's box, at least 11 voxels a side).
        Two guesses of quality that need no label: `predicted_dice`, the Dice of coarse if error is right, and
        `agreement`, the Dice of fine and refined with each other.

    Raises:
        ValueError: a map whose shape differs from the label's, or that is not finite.
    """
    label = _volume("label", label, None)
    volumes = {name: _volume(name, array, label.shape) for name, array in maps.items()}
    guesses = {}
    if {"coarse", "error"} <= set(volumes):
        guesses["predicted_dice"] = predicted_dice(volumes["coarse"], volumes["error"])
    if {"fine", "refined"} <= set(volumes):
        volumes["average"] = (volumes["fine"] + volumes["refined"]) / 2
        guesses["agreement"] = dice(volumes["fine"], volumes["refined"])
    voxel_ml = math.prod(float(length) for length in spacing_mm) / 1000
    values = {"label_ml": int((label > 0.5).sum()) * voxel_ml}
    for name, column in SEGMENTATIONS.items():
        if name in volumes:
            values[f"{column}_dice"] = dice(volumes[name], label)
            distances = surface_distances_mm(volumes[name], label, spacing_mm)
            values |= {f"{column}_{distance}": value for distance, value in distances.items()}
            values[f"{column}_ml"] = int((volumes[name] > 0.5).sum()) * voxel_ml
    if target is not None and "synthetic" in volumes:
        values |= image_similarity(volumes["synthetic"], _volume("target", target, label.shape), label)
    return values | guesses


def predicted_dice(coarse: torch.Tensor, error: torch.Tensor) -> float:
    """The Dice of coarse that its error map implies, without a label: 1 when neither sees any tumor.

    A voxel of coarse is right with probability 1 - error; a voxel outside it is missed tumor with probability error.
    The expected counts enter the Dice.

    Shapes:
        coarse, error: (X, Y, Z) probabilities; coarse is thresholded at 0.5.
    """
    inside = coarse > 0.5
    hits, false_alarms = float((1 - error)[inside].sum()), float(error[inside].sum())
    missed = float(error[~inside].sum())
    size = 2 * hits + false_alarms + missed
    return 2 * hits / size if size else 1.0


def error_calibration(coarse: torch.Tensor, error: torch.Tensor, label: torch.Tensor) -> list[dict[str, float]]:
    """Where coarse was predicted to be wrong with some probability, how often was it?

    Returns:
        ten rows of equal width from 0 to 1: `error_from`, `error_to`, the number of `voxels` whose error lies there,
        the number of mistakes `predicted` (the sum of their error) and those that there were (`mistakes`: coarse,
        thresholded at 0.5, differs from the label).

    Shapes:
        coarse, error, label: (1, X, Y, Z) or (X, Y, Z), on one grid.
    """
    label = _volume("label", label, None)
    error, coarse = _volume("error", error, label.shape).double(), _volume("coarse", coarse, label.shape)
    bins = (error * ERROR_BINS).long().clamp(0, ERROR_BINS - 1).flatten()
    mistakes = ((coarse > 0.5) != (label > 0.5)).flatten()
    columns = {
        "voxels": torch.bincount(bins, minlength=ERROR_BINS),
        "predicted": torch.bincount(bins, error.flatten(), ERROR_BINS),
        "mistakes": torch.bincount(bins[mistakes], minlength=ERROR_BINS),
    }
    return [
        {"error_from": index / ERROR_BINS, "error_to": (index + 1) / ERROR_BINS}
        | {name: column[index].item() for name, column in columns.items()}
        for index in range(ERROR_BINS)
    ]


def image_similarity(synthetic: torch.Tensor, target: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """SSIM and PSNR in the entire image, in the brain's box and in the tumor's; NaN where there is no such box.

    The SSIM map is computed once: cut to a box, it equals the map of the cut images.
    """
    everywhere = tuple(slice(0, length) for length in target.shape)
    boxes = {"": everywhere, "brain_": box_around(target > -1), "local_": box_around(label > 0.5, SSIM_WINDOW)}
    similarity = ssim_map(synthetic, target)
    values = {}
    for prefix, box in boxes.items():
        if box is None:
            values |= {f"{prefix}ssim": math.nan, f"{prefix}psnr": math.nan}
            continue
        fits = tuple(slice(side.start, max(side.stop - SSIM_WINDOW + 1, side.start)) for side in box)
        values[f"{prefix}ssim"] = _mean(similarity[fits])
        values[f"{prefix}psnr"] = psnr(synthetic[box], target[box])
    return values


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, sample SD (ddof 1), number of values and number missing of each metric over cases.

    A value is missing when it is NaN or the case has no such metric. No values: mean NaN; fewer than two: SD NaN.
    """
    summary = {}
    for metric in dict.fromkeys(name for row in rows for name in row):
        values = torch.tensor([row.get(metric, math.nan) for row in rows], dtype=torch.float64)
        there = values[~values.isnan()]
        sd = float(there.std()) if len(there) > 1 else math.nan
        counts = {"n": len(there), "missing": len(values) - len(there)}
        summary[metric] = {"mean": float(there.mean()) if len(there) else math.nan, "sd": sd, **counts}
    return summary


def mean_and_sd(mean: float, sd: float, decimals: int = 3) -> str:
    """As people read it: "0.875 ± 0.051", "0.875" for a single case, "n/a" for none."""
    if math.isnan(mean):
        return "n/a"
    return f"{mean:.{decimals}f}" + ("" if math.isnan(sd) else f" ± {sd:.{decimals}f}")


def empty_predictions(rows: list[dict[str, float]]) -> dict[str, int]:
    """How many cases had nothing segmented, per segmentation."""
    present = [name for name in SEGMENTATIONS.values() if any(f"{name}_ml" in row for row in rows)]
    return {name: sum(row.get(f"{name}_ml") == 0 for row in rows) for name in present}


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
    """

    def __init__(
        self,
        output_dir: str | Path,
        file_name: str = "cases.csv",
        protocol: str = "whole volume",
        label_key: str = "label",
        target_key: str = "target",
    ) -> None:
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
                self.calibration[item["case"]] = error_calibration(item["coarse"], item["error"], item[self.label_key])

    def finish(self, engine: Engine) -> None:
        cases, calibration = _of_all_processes(self.rows), _of_all_processes(self.calibration)
        summary = summarise(list(cases.values()))
        engine.state.metrics |= {metric: values["mean"] for metric, values in summary.items()}
        if idist.get_rank() == 0:
            case_rows = [{"protocol": self.protocol, "case": case} | row for case, row in sorted(cases.items())]
            empty = {f"{name}_dice": count for name, count in empty_predictions(list(cases.values())).items()}
            metric_rows = [
                {"protocol": self.protocol, "metric": m} | values | {"empty": empty.get(m, "")}
                for m, values in summary.items()
            ]
            write_whole(self.output_dir / self.file_name, _csv(case_rows))
            write_whole(self.output_dir / "summary.csv", _csv(metric_rows))
            if bins := [
                {"protocol": self.protocol, "case": c} | row for c in sorted(calibration) for row in calibration[c]
            ]:
                write_whole(self.output_dir / "calibration.csv", _csv(bins))
            _print(summary, empty_predictions(list(cases.values())), f"{len(cases)} cases, {self.protocol}")

    def _metrics(self, item: dict) -> dict[str, float]:
        label = item[self.label_key]
        if not isinstance(label, MetaTensor):
            raise TypeError(f"{item['case']}: {self.label_key} has no affine, so no spacing: load it as a MetaTensor")
        names = ("synthetic", "error", *SEGMENTATIONS)
        maps = {name: item[name] for name in names if name in item and name != "average"}
        try:
            return case_metrics(maps, item.get(self.target_key), label, tuple(affine_to_spacing(label.affine).tolist()))
        except ValueError as reason:
            raise ValueError(f"case {item['case']}: {reason}") from reason


def _volume(name: str, array: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
    """(1, X, Y, Z) or (X, Y, Z) -> plain finite float32 (X, Y, Z) on the CPU."""
    volume = convert_to_tensor(array, dtype=torch.float32, device="cpu", track_meta=False).detach()
    volume = volume[0] if volume.ndim == 4 and len(volume) == 1 else volume
    if volume.ndim != 3 or (shape is not None and volume.shape != shape):
        expected = "(X, Y, Z) or (1, X, Y, Z)" if shape is None else f"{tuple(shape)} like the label"
        raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {expected}: bring it to the label's grid")
    if not volume.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values, so it cannot be measured: look at the network")
    return volume


def _of_all_processes(rows: dict) -> dict:
    everyone = idist.all_gather(rows) if idist.get_world_size() > 1 else [rows]
    return {case: row for part in everyone for case, row in part.items()}


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean()) if values.numel() else math.nan


def _csv(rows: list[dict[str, float | str]]) -> bytes:
    """Comma-separated table; what is missing is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _cell(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"


def _print(summary: dict[str, dict[str, float]], empty: dict[str, int], title: str) -> None:
    table = Table("metric", title=title)
    for heading in ("mean ± SD", "n", "missing"):
        table.add_column(heading, justify="right")
    for metric, values in summary.items():
        table.add_row(metric, mean_and_sd(values["mean"], values["sd"]), str(values["n"]), str(values["missing"]))
    table.caption = "empty predictions: " + (", ".join(f"{name} {count}" for name, count in empty.items()) or "none")
    Console().print(table)
