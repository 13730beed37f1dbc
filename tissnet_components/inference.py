"""Running a cascade over whole volumes, and writing what it found."""

import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import NibabelWriter
from monai.inferers import Inferer
from monai.transforms import MapTransform, SaveImaged
from torch import nn

from tissnet_components.datasets.brats import find_cases
from tissnet_components.datasets.cases import load_datalist, usable_cases
from tissnet_components.errors import answered
from tissnet_components.files import whole
from tissnet_components.report.figures import overview, save_slices

MAPS = {"mask": "fine", "synthetic": "synthetic", "error": "error", "disagreement": "disagreement"}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CascadeInferer(Inferer):
    """Runs another inferer on ``network.cascade`` (every map) instead of ``forward``, in a chosen precision.

    Args:
        inferer: such as ``SimpleInferer`` (patches) or ``SlidingWindowInferer`` (whole volumes).
        precision: ``float32``, ``bfloat16`` (CPU, CUDA) or ``float16`` (CUDA); mixed, by ``torch.autocast``.

    Shapes:
        inputs: (B, C, X, Y, Z).
        returns: map name -> (B, 1, X, Y, Z) float32.

    Raises:
        ValueError: on an unknown precision.
    """

    def __init__(self, inferer: Inferer, precision: str = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; known: {list(PRECISIONS)}")
        self.inferer = inferer
        self.precision = precision

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context that gives the chosen precision on a device."""
        return torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "float32")

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        cascade = getattr(network, "module", network).cascade
        with self.autocast(inputs.device):
            return self.inferer(inputs, cascade, *args, **kwargs)


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
        kept = [{key: case[key] for key in ("case", *keys)} for case in cases if not missing[case["case"]]]
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

    Nothing is opened. A file that a case of the folder lacks is listed under the name it should have.

    Args:
        dataset_dir: a folder of scans, one file per modality, named as in BraTS; used when there is no datalist.
        modalities: the source modalities, in the order the network expects.
        datalist: JSON with cases by section.
        section: training, validation or test.

    Raises:
        ValueError: nothing found, or a bad datalist.
    """
    if os.path.isfile(datalist):
        return load_datalist(datalist, section, modalities)
    found = find_cases(dataset_dir, modalities)
    if not found:
        raise ValueError(f"{dataset_dir} holds neither datalist.json nor scans like CASE_t1.nii.gz; give --dataset_dir")
    return [
        {"case": case, "image": [str(files.get(name, _expected(case, files, name))) for name in modalities]}
        for case, files in found.items()
    ]


def _expected(case: str, files: Mapping[str, Path], modality: str) -> Path:
    return next(iter(files.values())).with_name(f"{case}_{modality}.nii.gz")


def report_failed(cases: Mapping[str, str]) -> None:
    """After a run, list the cases that could not be run (name -> reason), if any, and exit with status 1."""
    if not cases:
        return
    reasons = [f"{case}: {reason}" for case, reason in cases.items()]
    print(f"{len(cases)} not run:", *reasons, sep="\n  ", file=sys.stderr)
    raise SystemExit(1)


class WholeFileWriter(NibabelWriter):
    """A NIfTI file appears under its final name only when it is whole."""

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        with whole(filename) as unfinished:
            super().write(unfinished, verbose=verbose, **obj_kwargs)


class SaveImageCased(SaveImaged):
    """MONAI's ``SaveImaged``, writing ``output_dir/CASE/CASE_postfix.nii.gz`` in the image's own geometry.

    A map that the network does not have, such as the error of a compared method, is left out.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str, output_postfix: str, output_dtype: DtypeLike = np.float32
    ) -> None:
        super().__init__(
            keys,
            allow_missing_keys=True,
            output_dir=output_dir,
            output_postfix=output_postfix,
            output_dtype=output_dtype,
            resample=False,
            writer=WholeFileWriter,
            output_name_formatter=lambda meta, _: {"subject": meta["case"], "idx": None},
            print_log=False,
        )


class SaveImageOverviewd(SaveImaged):
    """Write ``output_dir/CASE/CASE_overview.png``, one slice of every map that is there.

    A ``SaveImaged``, because MONAI Label leaves these out and writes the answer itself.

    Args:
        keys: maps in display order, of the names that ``report.figures.overview`` knows, and ``image``: the source.
        slices: also keep the slice as ``CASE_slice.npz``, from which the report compares methods.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str, source_names: Sequence[str] = (), slices: bool = False
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=True)
        self.output_dir, self.source_names, self.slices = Path(output_dir), source_names, slices

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        maps = {"source" if key == "image" else key: data[key].cpu().numpy() for key in self.key_iterator(data)}
        case, affine = data["image"].meta["case"], np.asarray(data["image"].affine)
        path = self.output_dir / case / f"{case}_overview.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        overview(maps, path, title=case, affine=affine, source_names=self.source_names)
        if self.slices:
            save_slices(maps, path.with_name(f"{case}_slice.npz"), affine)
        return data


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
