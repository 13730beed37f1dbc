"""Running a cascade over whole volumes, and writing what it found."""

import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import DtypeLike, KeysCollection
from monai.data import NibabelWriter
from monai.inferers import Inferer
from monai.transforms import MapTransform, SaveImaged
from rich.console import Console
from rich.table import Table
from torch import nn

from tissnet_components.datasets.brats import find_cases
from tissnet_components.datasets.cases import BadCase, load_datalist, usable_cases
from tissnet_components.report.figures import overview

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
        keys: keep only these keys, and ``case``; inference needs ``image`` alone.

    Raises:
        ValueError: none can be run.
    """

    def __init__(self, cases: Sequence[Mapping[str, Any]], keys: Sequence[str] = ("image",)) -> None:
        kept = [{key: case[key] for key in ("case", *keys) if key in case} for case in cases]
        self.good, self.failed = usable_cases(kept)
        if not self.good:
            reasons = "; ".join(self.failed.values())
            raise ValueError(f"none of the {len(kept)} cases can be run: {reasons}")


def find_scans(dataset_dir: str, modalities: Sequence[str], datalist: str, section: str) -> list[dict[str, Any]]:
    """The cases to run: a section of the datalist where there is one, else every scan in the folder.

    Args:
        dataset_dir: a folder of scans, one file per modality, named as in BraTS; used when there is no datalist.
        modalities: the source modalities, in the order the network expects.
        datalist: JSON with cases by section.
        section: training, validation or test.

    Raises:
        ValueError: nothing found, or (BadCase) a case of the folder without one of the modalities.
    """
    if os.path.isfile(datalist):
        return load_datalist(datalist, section)
    found = find_cases(dataset_dir)
    if not found:
        raise ValueError(f"{dataset_dir} holds neither datalist.json nor scans like CASE_t1.nii.gz; give --dataset_dir")
    missing = [f"{case} has no {name}" for case, files in found.items() for name in modalities if name not in files]
    if missing:
        raise BadCase(f"{dataset_dir}: {'; '.join(missing)}; add the files or move these cases elsewhere")
    return [{"case": case, "image": [str(files[name]) for name in modalities]} for case, files in found.items()]


class ReportFailedCases:
    """At the end of a run, lists the cases that could not be run and exits with status 1."""

    def __init__(self, failed: Mapping[str, str]) -> None:
        self.failed = failed

    def attach(self, engine: Engine) -> None:
        if self.failed:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        table = Table("case", "reason", title=f"{len(self.failed)} cases were not run")
        for case, reason in self.failed.items():
            table.add_row(case, reason)
        Console(stderr=True).print(table)
        raise SystemExit(1)


class WholeFileWriter(NibabelWriter):
    """A NIfTI file appears under its final name only when it is whole."""

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        final = Path(filename)
        partial = final.with_name(f".partial-{final.name}")
        try:
            super().write(partial, verbose=verbose, **obj_kwargs)
            os.replace(partial, final)
        finally:
            partial.unlink(missing_ok=True)


class SaveImageCased(SaveImaged):
    """MONAI's ``SaveImaged``, writing ``output_dir/CASE/CASE_postfix.nii.gz`` in the image's own geometry."""

    def __init__(
        self, keys: KeysCollection, output_dir: str, output_postfix: str, output_dtype: DtypeLike = np.float32
    ) -> None:
        super().__init__(
            keys,
            output_dir=output_dir,
            output_postfix=output_postfix,
            output_dtype=output_dtype,
            resample=False,
            writer=WholeFileWriter,
            output_name_formatter=lambda meta, _: {"subject": meta["case"], "idx": None},
            print_log=False,
        )


class SaveImageOverviewd(MapTransform):
    """Write ``output_dir/CASE/CASE_overview.png``, one slice of every map that is there.

    Args:
        keys: maps in display order, of the names that ``report.figures.overview`` knows, and ``image``: the source.
    """

    def __init__(self, keys: KeysCollection, output_dir: str, source_names: Sequence[str] = ()) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.output_dir, self.source_names = Path(output_dir), source_names

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        maps = {"source" if key == "image" else key: data[key].cpu().numpy() for key in self.key_iterator(data)}
        case, affine = data["image"].meta["case"], np.asarray(data["image"].affine)
        path = self.output_dir / case / f"{case}_overview.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        overview(maps, path, title=case, affine=affine, source_names=self.source_names)
        return data
