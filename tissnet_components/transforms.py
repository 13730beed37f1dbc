"""Transforms that the bundles need and MONAI 1.6 lacks: loading and checking a case, normalising inside the brain."""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from os import PathLike

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import Dataset, MetaTensor
from monai.transforms import GaussianSmooth, MapTransform, Randomizable, RandomizableTransform, Transform
from monai.utils import SpaceKeys

from tissnet_components.datasets.brats import find_siblings
from tissnet_components.datasets.cases import (
    BadCase,
    check_intensities,
    check_label,
    check_readable,
    check_same_grid,
    check_three_axes,
)
from tissnet_components.datasets.dicom import Series, read_series
from tissnet_components.errors import answered


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
            volumes = self.read(data[key], check_label if key in self.label_keys else check_intensities)
            grids.update({name: (volume.shape, volume.affine) for name, volume in volumes})
            check_same_grid(grids)
            loaded[key] = self._stack([volume for _, volume in volumes], volumes[0][0], data.get("case", ""))
            if isinstance(data[key], list) and (series := [one for one in data[key] if isinstance(one, Series)]):
                loaded[key].meta["series"] = [one.told for one in series]
        return loaded

    def read(self, given: str | PathLike | Sequence, check: Callable) -> list[tuple[str, nib.Nifti1Pair]]:
        """The checked volumes of one key, each with its file, in their order."""
        files = [given] if isinstance(given, str | PathLike) else given
        return [(str(file), self._read(file, check)) for file in files]

    @staticmethod
    def _read(file: str | PathLike | Series, check: Callable) -> nib.Nifti1Pair:
        volume = read_series(file) if isinstance(file, Series) else check_readable(file)
        check_three_axes(volume.shape, file)
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

    MONAI Label hands over one path per image. A 3-D file then stands for its siblings, found by name in its folder; a
    4-D file holds the modalities along its last axis, in the order of ``modalities``. A list of files is taken as is.
    MONAI Deploy, which reads the image itself, leaves out transforms with ``LoadImage`` in their name.

    Args:
        keys: ``image``.
        modalities: what the network expects, in order. With one alone, a file needs no particular name.

    Raises:
        BadCase: as ``LoadCased``; a sibling is missing or doubled; a 4-D file has another number of channels.
    """

    def __init__(self, keys: KeysCollection, modalities: Sequence[str]) -> None:
        super().__init__(keys)
        self.modalities = list(modalities)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        with answered(422):
            loaded = super().__call__(data)
        for key in self.key_iterator(loaded):
            # at a NIfTI name, MONAI 1.6's Spacingd takes MONAI Label's string "image_path" for a dict of metadata
            loaded[key].meta["filename_or_obj"] = loaded[key].meta["filename_or_obj"].split(".nii")[0]
        return loaded

    def read(self, given: str | PathLike | Sequence, check: Callable) -> list[tuple[str, nib.Nifti1Pair]]:
        if not isinstance(given, str | PathLike):
            return super().read(given, check)
        with answered(404):
            if not os.path.isfile(given):
                raise BadCase(f"there is no image {str(given)!r}; give one that the studies folder holds")
        volume = check_readable(given)
        if len(volume.shape) == 4:
            return self._channels(volume, str(given), check)
        one = len(self.modalities) == 1
        return super().read(given if one else find_siblings(given, self.modalities), check)

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
        scaled = (channel.clamp(low, high) - low) / (high - low or 1) * 2 - 1
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


class RandPasteTumord(RandomizableTransform, MapTransform):
    """Paste another patient's tumor, in all contrasts: copy-paste between training patients.

    Brightness and contrast of what is pasted follow the patch: mean and standard deviation of the brain beside the
    tumors, channel by channel. The edge fades outside the tumor. Nothing is pasted where there is no brain.

    Args:
        keys: the images, background -1.
        donors: patches of other cases, with the same keys, shapes and label; None if nothing is ever pasted.
        prob: of pasting.
        label_key: the mask, which becomes the union of both tumors.
        edge: standard deviation of the fading edge, voxels.
    """

    def __init__(
        self, keys: KeysCollection, donors: Dataset | None, prob: float, label_key: str = "label", edge: float = 1.0
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.donors, self.label_key, self.blur = donors, label_key, GaussianSmooth(edge)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "RandPasteTumord":
        super().set_random_state(seed, state)
        if self.donors is not None:
            self.donors.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        self.randomize(None)
        if not self._do_transform or self.donors is None:
            return dict(data)
        (donor,) = self.donors[self.R.randint(len(self.donors))]
        return self._paste({key: donor[key].as_tensor() for key in (*self.keys, self.label_key)}, data)

    def _paste(
        self, donor: Mapping[Hashable, torch.Tensor], data: Mapping[Hashable, torch.Tensor]
    ) -> dict[Hashable, torch.Tensor]:
        label, brain = data[self.label_key], self._brain(data)
        tumor = donor[self.label_key] * brain
        opacity = torch.maximum(tumor, (2 * self.blur(tumor)).clamp(max=1)) * (brain & self._brain(donor))
        beside = self._brain(donor) & (donor[self.label_key] == 0), brain & (label == 0)
        pasted = {**data, self.label_key: torch.maximum(label, tumor)}
        for key in self.keys:
            pasted[key] = torch.lerp(data[key], match_brightness(donor[key], data[key], *beside), opacity)
        return pasted

    def _brain(self, data: Mapping[Hashable, torch.Tensor]) -> torch.Tensor:
        return (data[self.keys[0]] > -1).any(0, keepdim=True)


def match_brightness(
    image: torch.Tensor, reference: torch.Tensor, where: torch.Tensor, where_reference: torch.Tensor
) -> torch.Tensor:
    """The image with the mean and standard deviation of the reference in each channel, both measured where told.

    With fewer than two voxels to measure, it stays as it is.

    Shapes:
        image, reference: (C, X, Y, Z) in [-1, 1]; where, where_reference: (1, X, Y, Z), bool.
        returns: as ``image``.
    """
    if min(where.sum(), where_reference.sum()) < 2:
        return image
    there, here = image[:, where[0]], reference[:, where_reference[0]]
    scale = here.std(1) / there.std(1).clamp(min=1e-3)
    shift = here.mean(1) - there.mean(1) * scale
    return (image * scale[:, None, None, None] + shift[:, None, None, None]).clamp(-1, 1)
