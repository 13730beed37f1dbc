"""Transforms that the bundles need and MONAI 1.6 lacks: loading and checking a case, normalising inside the brain."""

from collections.abc import Hashable, Mapping
from os import PathLike

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Transform
from monai.utils import SpaceKeys

from tissnet_components.datasets.cases import BadCase, check_intensities, check_label, check_readable, check_same_grid
from tissnet_components.datasets.dicom import Series, read_series


class LoadCased(MapTransform):
    """Load the files of each key, one channel per file, after checking them alone and against each other.

    A DICOM ``Series`` may stand for a file.

    Args:
        keys: such as ``image`` (a list of files, the modalities in order), ``target``, ``label``.
        label_keys: those among the keys that hold label maps.
        allow_missing_keys: load what is there.

    Shapes:
        returns: key -> (C, X, Y, Z) float32 ``MetaTensor`` on the files' grid.

    Raises:
        BadCase: a missing, damaged, constant or non-finite file, an unknown label value, or files on differing grids.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = ("label", "original_label"),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        absent = sorted(set(self.keys) - set(data))
        if absent and not self.allow_missing_keys:
            raise BadCase(f"case {data.get('case', '?')} has no {', '.join(absent)}; add it to the datalist")
        loaded, grids = dict(data), {}
        for key in self.key_iterator(loaded):
            files = [data[key]] if isinstance(data[key], str | PathLike) else list(data[key])
            volumes = [self._read(file, check_label if key in self.label_keys else check_intensities) for file in files]
            grids.update(
                {str(file): (volume.shape, volume.affine) for file, volume in zip(files, volumes, strict=True)}
            )
            check_same_grid(grids)
            loaded[key] = self._stack(volumes, str(files[0]), data.get("case", ""))
        return loaded

    @staticmethod
    def _read(file: str | PathLike, check):
        volume = read_series(file) if isinstance(file, Series) else check_readable(file)
        if len(volume.shape) != 3:
            raise BadCase(f"{file} has shape {volume.shape}, expected three axes; give one volume per file")
        check(np.asanyarray(volume.dataobj), file)
        return volume

    @staticmethod
    def _stack(volumes: list, file: str, case: str) -> MetaTensor:
        array = np.stack([np.asanyarray(volume.dataobj, dtype=np.float32) for volume in volumes])
        meta = {
            "case": case,
            "filename_or_obj": file,
            "original_affine": volumes[0].affine,
            "spatial_shape": array.shape[1:],
            "space": SpaceKeys.RAS,
        }
        return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(volumes[0].affine), meta=meta)


class NormalizeBrain(Transform):
    """Clip each channel to percentiles of its brain and scale to [-1, 1]; the background becomes -1.

    Shapes:
        image: (C, X, Y, Z), 0 outside the brain (skull-stripped).
        returns: the same, float32.
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5) -> None:
        self.lower, self.upper = lower, upper

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._normalize(channel) for channel in image])

    def _normalize(self, channel: torch.Tensor) -> torch.Tensor:
        brain = channel != 0
        low, high = np.percentile(channel[brain].cpu().numpy(), [self.lower, self.upper])
        scaled = (channel.clamp(low, high) - low) / max(high - low, 1e-8) * 2 - 1
        return torch.where(brain, scaled, torch.full_like(scaled, -1.0))


class NormalizeBraind(MapTransform):
    """Dictionary version of ``NormalizeBrain``."""

    def __init__(
        self, keys: KeysCollection, lower: float = 0.5, upper: float = 99.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = NormalizeBrain(lower, upper)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        return {**data, **{key: self.normalize(data[key]) for key in self.key_iterator(data)}}


class AbsoluteDifferenced(MapTransform):
    """Write the absolute difference of the two keys to ``output_key``; of fine and refined, their disagreement.

    Where one of them is absent, as from a network without an error branch, nothing is written.
    """

    def __init__(self, keys: KeysCollection, output_key: str) -> None:
        super().__init__(keys)
        if len(self.keys) != 2:
            raise ValueError(f"AbsoluteDifferenced compares two keys, got {self.keys}")
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        if any(key not in data for key in self.keys):
            return dict(data)
        return {**data, self.output_key: (data[self.keys[0]] - data[self.keys[1]]).abs()}


class RandEachChanneld(Randomizable, MapTransform):
    """Apply a random transform to every channel on its own: scanners differ in each contrast independently.

    Args:
        transform: one of MONAI's random array transforms, such as ``RandHistogramShift``.

    Shapes:
        image: (C, X, Y, Z); the same comes back.
    """

    def __init__(
        self, keys: KeysCollection, transform: RandomizableTransform, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = transform

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "RandEachChanneld":
        self.transform.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            image = changed[key].clone()
            for channel in range(len(image)):
                image[channel : channel + 1] = self.transform(image[channel : channel + 1])
            changed[key] = image
        return changed
