"""Load a case for MONAI: every file checked alone and against the others."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import SpaceKeys, ensure_tuple
from tissnet_components.errors import BadCase
from tissnet_components.scans.choice import with_series
from tissnet_components.scans.datalist import as_list, lacking, refuse_lacking
from tissnet_components.scans.dicom import Series, read_series
from tissnet_components.scans.naming import find_siblings
from tissnet_components.scans.nifti import (
    check_intensities,
    check_label,
    check_readable,
    check_same_grid,
    check_three_axes,
    read_volume,
    without_ending,
)
from tqdm import tqdm


class LoadCased(MapTransform):
    """Load the files of each key, one channel per file, after checking them alone and against each other.

    A DICOM ``Series`` may stand for a file.

    Args:
        keys: such as ``image`` (a list of files, the modalities in order), ``target``, ``label``.
        label_keys: those among the keys that hold label maps.
        fill_missing: a key that the case lacks gets a map of zeros, and every key says by ``has_KEY`` whether it is
            real; otherwise such a case is refused.

    Shapes:
        returns: key -> (C, X, Y, Z) float32 ``MetaTensor`` on the files' grid; zeros have one channel.

    Raises:
        BadCase: a missing, damaged, constant or non-finite file, an unknown label value, or files on differing grids.
    """

    def __init__(
        self, keys: KeysCollection, label_keys: KeysCollection = ("label", "original_label"), fill_missing: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys=fill_missing)
        self.fill_missing = fill_missing
        self.label_keys = ensure_tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        absent = lacking(data, [str(key) for key in self.keys])
        if not self.fill_missing or len(absent) == len(self.keys):
            refuse_lacking(data, absent)
        loaded, grids = dict(data), {}
        for key in self.key_iterator(loaded):
            volumes = self.read(data[key], check_label if key in self.label_keys else check_intensities)
            grids.update({name: (volume.shape, volume.affine) for name, volume in volumes})
            check_same_grid(grids)
            loaded[key] = self._stack([volume for _, volume in volumes], volumes[0][0], data.get("case", ""))
            loaded[key].meta |= _of_dicom(as_list(data[key]))
        return loaded | (self._fillers(loaded) if self.fill_missing else {})

    def _fillers(self, loaded: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Zeros for what is missing, on the grid of what is there, and what is real."""
        like = next(loaded[key] for key in self.key_iterator(loaded))
        zeros = MetaTensor(torch.zeros_like(like.as_tensor()[:1]), meta=like.meta)
        missing = {key: zeros.clone() for key in self.keys if key not in loaded}
        return missing | {f"has_{key}": key in loaded for key in self.keys}

    def read(self, given: str | Path | Sequence, check: Callable) -> list[tuple[str, nib.Nifti1Pair]]:
        """The checked volumes of one key, each with its file, in their order."""
        files = [given] if isinstance(given, str | Path) else given
        with ThreadPoolExecutor() as pool:  # unpacking and sorting run without Python's lock
            volumes = pool.map(lambda file: self._read(file, check), files)
            return [(str(file), volume) for file, volume in zip(files, volumes, strict=True)]

    @staticmethod
    def _read(file: str | Path | Series, check: Callable) -> nib.Nifti1Pair:
        if not isinstance(file, Series):
            return read_volume(file, check)
        volume = read_series(file)
        check_three_axes(volume.shape, str(file))
        check(np.asanyarray(volume.dataobj), file)
        return volume

    @staticmethod
    def _stack(volumes: list, file: str, case: str) -> MetaTensor:
        array = np.stack([np.asanyarray(volume.dataobj, dtype=np.float32) for volume in volumes])
        meta = {
            "case": case,
            "filename_or_obj": file,
            "original_affine": volumes[0].affine,
            "original_channel_dim": 0,
            "spatial_shape": array.shape[1:],
            "space": SpaceKeys.RAS,
        }
        return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(volumes[0].affine), meta=meta)


class LoadImageCased(LoadCased):
    """``LoadCased`` for inference, where one file may stand for a patient: one of the scans, or a 4-D file of all.

    In a list of files, a folder stands for the DICOM series of its modality below it. None stands for a contrast that
    the patient lacks: it has no channel, and the image's metadata name the others, ``contrasts``.

    MONAI Label hands over one path per image. A 3-D file then stands for its siblings, found by name in its folder; a
    4-D file holds the modalities along its last axis, in the order of ``modalities``. A list of files is taken as is.
    MONAI Deploy, which reads the image itself, leaves out transforms with ``LoadImage`` in their name.

    Args:
        keys: ``image``.
        modalities: what the network expects, in order. With one alone, a file needs no particular name.
        any_subset: one of the scans stands for those that the patient has, and not for all modalities.
        series: modality -> the DICOM series to take, where the user says so, see `with_series`.
        told: print which series is taken, and why.

    Raises:
        BadCase: as ``LoadCased``; a sibling is missing or doubled; a 4-D file has another number of channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modalities: Sequence[str],
        series: Mapping[str, str] | None = None,
        any_subset: bool = False,
        told: bool = True,
    ) -> None:
        super().__init__(keys)
        self.modalities, self.series, self.any_subset = list(modalities), dict(series or {}), any_subset
        self.told = told

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = {**data, **{key: self._one_by_one(data[key]) for key in self.keys if key in data}}
        scans = {key: self._with_series(data[key], data.get("case", "")) for key in self.keys if key in data}
        loaded = super().__call__({**data, **scans})
        for key in self.key_iterator(loaded):
            if None in as_list(data[key]):
                loaded[key].meta["contrasts"] = self._there(data[key])
            # at a NIfTI name, MONAI 1.6's Spacingd takes MONAI Label's string "image_path" for a dict of metadata
            file = re.sub(r", \w+$", "", loaded[key].meta["filename_or_obj"])  # which names the channel of a 4-D file
            loaded[key].meta["filename_or_obj"] = without_ending(file)
        return loaded

    def _one_by_one(self, given: str | Path | Sequence) -> str | Path | Sequence:
        """Those of the patient's scans that are there, where one of them stands for the patient."""
        if not self.any_subset or not isinstance(given, str | Path) or len(check_readable(given).shape) == 4:
            return given
        return find_siblings(given, self.modalities, any_subset=True)

    def read(self, given: str | Path | Sequence, check: Callable) -> list[tuple[str, nib.Nifti1Pair]]:
        if not isinstance(given, str | Path):
            return super().read(given, check)
        volume = check_readable(given)
        if len(volume.shape) == 4:
            return self._channels(volume, str(given), check)
        one = len(self.modalities) == 1
        return super().read(given if one else find_siblings(given, self.modalities), check)

    def _with_series(self, given: str | Path | Sequence, case: str) -> str | list[str | Series]:
        """The scans, with a DICOM series instead of each folder; which and why is printed."""
        there = self._there(given)
        given = given if isinstance(given, str | Path) else [scan for scan in given if scan is not None]
        scans = with_series(str(given) if isinstance(given, Path) else given, there, self.series)
        for scan in as_list(scans):
            if self.told and isinstance(scan, Series):
                tqdm.write(f"{case}: {scan.contrast} is the {scan}: {scan.reason}")
        return scans

    def _there(self, given: str | Path | Sequence) -> list[str]:
        """The modalities that the patient has: those that no None stands for."""
        if isinstance(given, str | Path) or None not in given:
            return self.modalities
        return [name for name, scan in zip(self.modalities, given, strict=True) if scan is not None]

    def _channels(self, volume: nib.Nifti1Pair, file: str, check: Callable) -> list[tuple[str, nib.Nifti1Pair]]:
        if volume.shape[3] != len(self.modalities):
            raise BadCase(
                f"{file} has {volume.shape[3]} channels, expected {len(self.modalities)} along its fourth axis: "
                f"{', '.join(self.modalities)}, in this order"
            )
        check_three_axes(volume.shape[:3], file)
        named = zip(self.modalities, nib.four_to_three(volume), strict=True)
        channels = [(f"{file}, {name}", channel) for name, channel in named]
        for name, channel in channels:
            check(np.asanyarray(channel.dataobj), name)
        return channels


def _of_dicom(scans: Sequence) -> dict[str, list]:
    """What is told of the DICOM series among the scans, and the files of the first scan."""
    series = [scan for scan in scans if isinstance(scan, Series)]
    told = {"series": [one.told for one in series]} if series else {}
    return told | ({"dicom_files": [str(file) for file in scans[0].files]} if series[:1] == scans[:1] else {})
