"""Numbers that say at which results to look first: volume, doubt inside the mask, and what is plainly suspicious.

Everything is measured on what is saved, on the grid of the input scan, so that anyone can compute it again.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.config import KeysCollection
from monai.engines import Evaluator
from monai.transforms import SaveImaged
from tissnet_components.errors import UserError
from tissnet_components.files import write_atomic
from tissnet_components.metrics import dice, predicted_dice
from tissnet_components.regions import WHOLE, region_masks
from tissnet_components.results.files import case_file
from tqdm import tqdm

AGREEMENT = "agreement"
LEAST = (AGREEMENT, "predicted_dice")  # suspicious below their threshold
MOST = ("mean_error", "mean_disagreement")  # and above
THRESHOLDS = {*LEAST, *MOST, "edge_voxels"}
SHARE = "tumor_share"  # of the brain; a threshold of the glioma bundle, whose scans show a whole brain


def measure_quality(
    mask: np.ndarray,
    refined: np.ndarray | None,
    error: np.ndarray | None,
    disagreement: np.ndarray | None,
    coarse: np.ndarray | None,
    affine: np.ndarray,
    edge_voxels: int = 1,
) -> dict[str, float | bool | None]:
    """Volume and quality of one segmentation.

    Args:
        mask: above 0.5 is tumor.
        refined, error, disagreement, coarse: in [0, 1]; None of a network without such a branch. Another second
            answer, the perceptor's, may stand in the place of refined.
        affine: (4, 4), voxel to millimetres.
        edge_voxels: how many outermost voxels of each axis count as the edge of the field of view.

    Shapes:
        mask, refined, error, disagreement, coarse: (X, Y, Z).
        returns: ``volume_ml``; ``agreement``, the Dice of the mask and refined, the network's two answers;
            ``predicted_dice``, the Dice of coarse that the error map implies; ``mean_error`` and
            ``mean_disagreement``, means over the mask, None where it is empty or the map is not there;
            ``touches_edge``, whether the mask has a voxel on the edge; ``empty_mask``.
    """
    tumor = mask > 0.5
    empty = not tumor.any()
    return {
        "volume_ml": round(float(tumor.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000), 4),
        "agreement": None if refined is None else round(dice(torch.from_numpy(mask), torch.from_numpy(refined)), 4),
        "predicted_dice": None if coarse is None or error is None else _predicted_dice(coarse, error),
        "mean_error": None if empty or error is None else round(float(error[tumor].mean()), 4),
        "mean_disagreement": None if empty or disagreement is None else round(float(disagreement[tumor].mean()), 4),
        "touches_edge": touches_edge(tumor, edge_voxels),
        "empty_mask": empty,
    }


def _predicted_dice(coarse: np.ndarray, error: np.ndarray) -> float:
    return round(predicted_dice(torch.from_numpy(coarse), torch.from_numpy(error)), 4)


def touches_edge(tumor: np.ndarray, edge_voxels: int = 1) -> bool:
    """Whether a boolean (X, Y, Z) array is true in one of the outermost voxels along any axis."""
    inside = tumor[tuple(slice(edge_voxels, max(length - edge_voxels, edge_voxels)) for length in tumor.shape)]
    return bool(tumor.sum() > inside.sum())


def quality_flags(measured: Mapping[str, float | bool | None], thresholds: Mapping[str, float]) -> list[str]:
    """What is suspicious: an empty mask, one at the edge, a label-free estimate below or a mean above its threshold."""
    flags = [name for name in ("empty_mask", "touches_edge") if measured[name]]
    known = {name: value for name, value in measured.items() if value is not None}
    flags += [name for name in LEAST if name in known and known[name] < thresholds[name]]
    return flags + [name for name in MOST if name in known and known[name] > thresholds[name]]


class SaveImageSummaryd(SaveImaged):
    """Write ``output_dir/CASE/CASE_summary.json``: what `measure_quality` finds, its flags and their thresholds.

    Of DICOM series it tells which were taken, and why.

    A ``SaveImaged``, because MONAI Label leaves these out.

    Args:
        keys: mask, the second answer (refined, or the perceptor's), error, disagreement and coarse, in this order, on
            the grid of the input scan.
        regions: that the mask names; of several, the volumes are told, and of the whole's parts ``parts``, the same
            numbers. A part is flagged by its agreement alone: its predicted error tells nothing of its Dice. That it is
            empty is no flag: many tumors do not enhance.
        contrasts: that the network knows; where a patient lacks some, it is told which are real and which synthetic.
        thresholds: ``agreement`` and ``predicted_dice``, below which a case is flagged, ``mean_error`` and
            ``mean_disagreement``, above which it is, and ``edge_voxels``; also ``tumor_share``, where the metadata of
            the scan tell the volume of the brain.

    What `CheckPlausibled` doubts in the scan becomes flags too, with its reasons. ``left_out_ml`` is that of
    `LargestComponentsd`.

    Raises:
        ValueError: other thresholds than these.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        thresholds: Mapping[str, float],
        regions: Sequence[str] = (WHOLE,),
        contrasts: Sequence[str] = (),
    ) -> None:
        super().__init__(keys, output_dir=output_dir)
        self.regions, self.contrasts = list(regions), list(contrasts)
        if set(thresholds) - {SHARE} != THRESHOLDS:
            raise UserError(f"quality needs the thresholds {sorted(THRESHOLDS)}, got {sorted(thresholds)}")
        self.output_dir, self.thresholds = Path(output_dir), dict(thresholds)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data[self.keys[0]]
        measured, *parts = (self._measured(data, number) for number in range(len(self.regions)))
        case = image.meta["case"]
        series = {"series": image.meta["series"]} if "series" in image.meta else {}
        reasons = {**self._share(measured, image.meta.get("brain_ml")), **image.meta.get("doubts", {})}
        flags = [*quality_flags(measured, self.thresholds), *reasons]
        of_parts = zip(self.regions[1:], parts, strict=True)
        flags += [
            f"{name}: {AGREEMENT}" for name, part in of_parts if AGREEMENT in quality_flags(part, self.thresholds)
        ]
        left_out = {"left_out_ml": data["left_out_ml"]} if "left_out_ml" in data else {}
        real = self._contrasts(image.meta.get("contrasts"))
        told = {**series, **real, **measured, **left_out, **self._of_parts(measured, parts)}
        summary = {"case": case, **told, "flags": flags, "reasons": reasons}
        text = json.dumps({**summary, "thresholds": self.thresholds}, indent=2)
        write_atomic(case_file(self.output_dir, case, "summary"), f"{text}\n".encode())
        return {**data, "summary": summary}

    def _contrasts(self, real: Sequence[str] | None) -> dict[str, list[str]]:
        """Which contrasts are the patient's own, and which the network had to synthesise."""
        if real is None:
            return {}
        return {"real": list(real), "synthetic": [name for name in self.contrasts if name not in real]}

    def _measured(self, data: Mapping[Hashable, Any], number: int) -> dict[str, Any]:
        """What `measure_quality` finds of a region."""
        label, *others = self.keys
        mask = region_masks(data[label], self.regions, binary=True)[number].cpu().numpy()
        refined, error, disagreement, coarse = (
            data[key][number].cpu().numpy() if key in data else None for key in others
        )
        edge_voxels = int(self.thresholds["edge_voxels"])
        affine = np.asarray(data[label].affine)
        return measure_quality(mask, refined, error, disagreement, coarse, affine, edge_voxels)

    def _of_parts(self, whole: dict[str, Any], parts: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The volume of each region and the numbers of the whole's parts, where there are several."""
        if not parts:
            return {}
        volumes_ml = [region["volume_ml"] for region in (whole, *parts)]
        numbers = [{name: part[name] for name in (*LEAST, *MOST)} for part in parts]
        return {
            "regions_ml": dict(zip(self.regions, volumes_ml, strict=True)),
            "parts": dict(zip(self.regions[1:], numbers, strict=True)),
        }

    def _share(self, measured: dict[str, Any], brain_ml: float | None) -> dict[str, str]:
        """Note which share of the brain is tumor; the reason to doubt it, if there is one."""
        if not brain_ml:
            return {}
        share = round(measured["volume_ml"] / brain_ml, 4)
        measured |= {"brain_ml": brain_ml, SHARE: share}
        too_much = share > self.thresholds.get(SHARE, 1)
        return {SHARE: f"{share:.0%} of the brain would be tumor"} if too_much else {}


class PrintSummary:
    """Ignite handler: prints a line per case, its volume and what is suspicious, as `SaveImageSummaryd` found it."""

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Evaluator) -> None:
        for case in engine.state.output:
            if summary := case.get("summary"):
                reasons = summary["reasons"]
                told = [f"{flag} ({reasons[flag]})" if flag in reasons else flag for flag in summary["flags"]]
                flags = f"; look at it: {', '.join(told)}" if told else ""
                apart = f" ({left:.2f} ml apart from it left out)" if (left := summary.get("left_out_ml")) else ""
                tqdm.write(f"{summary['case']}: {summary['volume_ml']:.2f} ml{apart}{flags}")
