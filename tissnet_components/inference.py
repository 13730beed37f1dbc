"""Running a cascade over whole volumes, one case or many."""

import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import Invertd, MapTransform, Transform
from torch import nn

from tissnet_components.datasets.brats import doubled_file, find_candidates
from tissnet_components.datasets.cases import check_case_name, load_datalist, usable_cases
from tissnet_components.errors import answered

MAPS = {"mask": "fine", "synthetic": "synthetic", "error": "error", "disagreement": "disagreement"}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_precision(device: torch.device) -> str:
    """``bfloat16`` where the device has instructions for it, else ``float32``."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # PyTorch before 2.6 cannot tell
        able = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return "bfloat16" if able else "float32"


class CascadeInferer(Inferer):
    """Runs another inferer on ``network.cascade`` (every map) instead of ``forward``, in a chosen precision.

    Args:
        inferer: such as ``SimpleInferer`` (patches) or ``SlidingWindowInferer`` (whole volumes).
        precision: ``float32``, ``bfloat16`` (CPU, CUDA) or ``float16`` (CUDA); mixed, by ``torch.autocast``. ``auto``
            is what `best_precision` says of the device.
        flips: axes, such as ``[[0], [0, 1]]``: the cascade is also run on the inputs flipped along axis 0 (X), and
            along axes 0 and 1, and every map is the mean of all, each flipped back.

    Shapes:
        inputs: (B, C, X, Y, Z).
        returns: map name -> (B, 1, X, Y, Z) float32.

    Raises:
        ValueError: on an unknown precision, flips that are no lists of the axes 0, 1 and 2, or, of a network in eval
            mode, an answer that is not finite.
    """

    def __init__(self, inferer: Inferer, precision: str = "float32", flips: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        if precision not in (*PRECISIONS, "auto"):
            raise ValueError(f"unknown precision {precision!r}; known: {[*PRECISIONS, 'auto']}")
        self.inferer = inferer
        self.precision = precision
        self.flips = _checked_flips(flips)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context that gives the chosen precision on a device."""
        precision = best_precision(device) if self.precision == "auto" else self.precision
        return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        cascade = getattr(network, "module", network).cascade
        with self.autocast(inputs.device):
            maps = self.inferer(inputs, cascade, *args, **kwargs)
            if self.flips:
                maps = {name: values.float() for name, values in maps.items()}
            for axes in self.flips:
                flipped = self.inferer(inputs.flip(axes), cascade, *args, **kwargs)
                maps = {name: values + flipped[name].float().flip(axes) for name, values in maps.items()}
        if self.flips:
            maps = {name: values / (1 + len(self.flips)) for name, values in maps.items()}
        if not network.training:
            self._refuse_non_finite(maps)
        return maps

    def _refuse_non_finite(self, maps: Mapping[str, torch.Tensor]) -> None:
        """A mask of NaN would look like one without tumor."""
        if bad := [name for name, values in maps.items() if not values.isfinite().all()]:
            raise ValueError(
                f"the network answers with NaN or infinity ({', '.join(bad)}): its weights are damaged, or "
                f"{self.precision} is too coarse for them; fetch the weights again, or give --precision float32"
            )


def _checked_flips(flips: Sequence[Sequence[int]]) -> list[list[int]]:
    """The dimensions of (B, C, X, Y, Z) that each list of spatial axes names."""
    for axes in flips if isinstance(flips, (list, tuple)) else [flips]:
        axes_alone = isinstance(axes, (list, tuple)) and axes and all(type(axis) is int for axis in axes)
        if not axes_alone or not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
            raise ValueError(f"flips is {flips}, expected lists of axes, 0, 1 or 2, such as [[0]], or [] for none")
    return [[axis + 2 for axis in axes] for axes in flips]


class FittedWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window, which pads a volume smaller than the window to it; this one shrinks the window instead.

    So a generous window takes a usual head in one piece, and bounds the memory that an unusual one needs.

    Args:
        roi_size: the largest window, in voxels.
        stride: multiples of which the network needs a window to be; what they add to a volume is padding.
        args, kwargs: of ``SlidingWindowInferer``.

    Shapes:
        inputs: (B, C, X, Y, Z).
    """

    def __init__(self, roi_size: Sequence[int], *args: Any, stride: Sequence[int] = (16, 16, 4), **kwargs: Any) -> None:
        super().__init__(roi_size, *args, **kwargs)
        self.largest, self.stride = tuple(roi_size), tuple(stride)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        needed = (-(-length // stride) * stride for length, stride in zip(inputs.shape[2:], self.stride, strict=True))
        self.roi_size = tuple(map(min, self.largest, needed))
        return super().__call__(inputs, network, *args, **kwargs)


class CheckedCases:
    """The cases that can be run (``good``), and those that cannot with the reason (``failed``), after reading all.

    Args:
        cases: datalist entries.
        keys: what a case needs, and all that is kept of it besides ``case``; inference needs ``image`` alone.

    Raises:
        ValueError: none can be run.
    """

    def __init__(self, cases: Sequence[Mapping[str, Any]], keys: Sequence[str] = ("image",)) -> None:
        missing = {case["case"]: [key for key in keys if key not in case] for case in cases}
        kept = [
            {key: case[key] for key in ("case", *keys, "unusable") if key in case}
            for case in cases
            if not missing[case["case"]]
        ]
        self.good, self.failed = usable_cases(kept)
        self.failed |= {
            case: f"the datalist names no {' and no '.join(absent)} for it; add the file or leave the case out"
            for case, absent in missing.items()
            if absent
        }
        if not self.good:
            raise ValueError(f"none of the {len(cases)} cases can be run: {'; '.join(self.failed.values())}")


def find_scans(dataset_dir: str, modalities: Sequence[str], datalist: str, section: str) -> list[dict[str, Any]]:
    """The cases to run: a section of the datalist where there is one, else every scan in the folder.

    Nothing is opened. A file that a case of the folder lacks is listed under the name it should have, and a case with
    two files of one modality is ``unusable``, with the reason.

    Args:
        dataset_dir: a folder of scans, one file per modality, named as in BraTS; used when there is no datalist.
        modalities: the source modalities, in the order the network expects.
        datalist: JSON with cases by section.
        section: training, validation or test.

    Raises:
        ValueError: nothing found, a name not fit for a folder, or a bad datalist.
    """
    if os.path.isfile(datalist):
        return load_datalist(datalist, section, modalities)
    found = find_candidates(dataset_dir, modalities)
    if not found:
        raise ValueError(f"{dataset_dir} holds neither datalist.json nor scans like CASE_t1.nii.gz; give --dataset_dir")
    return [_found(check_case_name(case, dataset_dir), files, modalities) for case, files in found.items()]


def _found(case: str, files: Mapping[str, Sequence[Path]], modalities: Sequence[str]) -> dict[str, Any]:
    beside = next(iter(files.values()))[0]
    image = [str(files.get(name, [beside.with_name(f"{case}_{name}.nii.gz")])[0]) for name in modalities]
    reason = doubled_file(case, files)
    return {"case": case, "image": image, **({"unusable": reason} if reason else {})}


def report_failed(cases: Mapping[str, str]) -> None:
    """After a run, list the cases that could not be run (name -> reason), if any, and exit with status 1."""
    if not cases:
        return
    reasons = [f"{case}: {reason}" for case, reason in cases.items()]
    print(f"{len(cases)} not run:", *reasons, sep="\n  ", file=sys.stderr)
    raise SystemExit(1)


class InvertTogetherd(MapTransform):
    """MONAI's ``Invertd`` of maps on one grid, interpolated: all in one pass, as channels of one image.

    Args:
        keys: the maps.
        transform: what is to be undone.
        orig_keys: the image that went through it.

    Shapes:
        maps: (C, X, Y, Z), each its own C; the same comes back on the image's first grid.
    """

    def __init__(
        self, keys: KeysCollection, transform: Transform, orig_keys: str, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.invert = Invertd("together", transform, orig_keys=orig_keys, nearest_interp=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        names = list(self.key_iterator(data))
        together = torch.cat([data[name] for name in names])
        restored = self.invert({**data, "together": together})["together"]
        return {**data, **dict(zip(names, restored.split([len(data[name]) for name in names]), strict=True))}


class ChooseMapd(MapTransform):
    """Copy one map to ``pred``, which MONAI Label sends back.

    Args:
        choice: ``mask``, ``synthetic``, ``error`` or ``disagreement``; of a list, what MONAI Label offers, the first.

    Raises:
        ValueError: another name.
    """

    def __init__(self, choice: str | Sequence[str]) -> None:
        super().__init__(tuple(MAPS.values()))
        self.choice = choice if isinstance(choice, str) else choice[0]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        with answered(422):
            if self.choice not in MAPS:
                raise ValueError(f"there is no map {self.choice!r}; choose one of {', '.join(MAPS)}")
        return {
            **data,
            "pred": data[MAPS[self.choice]],
            "result_dtype": "uint8" if self.choice == "mask" else "float32",
        }
