"""Transforms that the bundles need and MONAI 1.6 lacks: normalising inside the brain, augmentation, comparing maps."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import Dataset
from monai.transforms import (
    CastToTyped,
    Compose,
    CropForegroundd,
    GaussianSmooth,
    MapTransform,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    Randomizable,
    RandomizableTransform,
    SpatialPadd,
    Transform,
)
from monai.utils import convert_to_dst_type, convert_to_tensor
from tissnet_components.errors import UserError
from tissnet_components.moved import forwarding
from tissnet_components.regions import TumorToIndicesd
from tissnet_components.scans.brain import find_brain
from tissnet_components.scans.datalist import cases_with


class NormalizeBrain(Transform):
    """Clip each channel to percentiles of its brain and scale to [-1, 1]; the background becomes -1.

    The background is 0 in a prepared scan; any other constant, noise and ringing are taken for it too (`find_brain`).
    A channel that is empty, since the patient lacks this contrast, becomes background.

    Shapes:
        image: (C, X, Y, Z), skull-stripped.
        returns: the same, float32.
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5) -> None:
        self.lower, self.upper = lower, upper

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        normalized = torch.full(image.shape, -1.0)
        with ThreadPoolExecutor() as pool:  # sorting runs without Python's lock
            list(pool.map(self._normalize, convert_to_tensor(image, track_meta=False), normalized))
        return convert_to_dst_type(normalized, image, dtype=torch.float32)[0]

    def _normalize(self, channel: torch.Tensor, normalized: torch.Tensor) -> None:
        voxels = channel.cpu().numpy()
        brain = find_brain(voxels)
        values = torch.from_numpy(voxels[brain])
        low, high = np.percentile(values, [self.lower, self.upper]) if len(values) else (0, 0)
        scaled = (values.clamp(low, high) - low) / (high - low or 1) * 2 - 1
        normalized.masked_scatter_(torch.from_numpy(brain), scaled)


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
            raise UserError(f"AbsoluteDifferenced compares two keys, got {self.keys}")
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        if any(key not in data for key in self.keys):
            return dict(data)
        return {**data, self.output_key: (data[self.keys[0]] - data[self.keys[1]]).abs()}


def tumor_or_everything(label: torch.Tensor) -> torch.Tensor:
    """The tumor; where there is none, or no label, every voxel: what a training box is drawn around.

    Shapes:
        label, returns: (1, X, Y, Z); returns booleans.
    """
    return label > 0 if label.any() else torch.ones_like(label, dtype=torch.bool)


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


class RandContrastCurve(RandomizableTransform):
    """Remap brightness by a random curve that may rise and fall: what is brighter than what tells nothing any more.

    Args:
        prob: of a remapping.
        points: fewest and most corners of the curve, evenly spaced.
        bend: how far a corner may move, up or down; beyond 1 / points the curve may fall.

    Shapes:
        image: (C, X, Y, Z) in [-1, 1], all channels remapped alike; the background, -1, stays.
    """

    def __init__(self, prob: float = 0.5, points: tuple[int, int] = (5, 9), bend: float = 0.5) -> None:
        super().__init__(prob)
        self.points, self.bend = points, bend

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.randomize(None)
        if not self._do_transform:
            return image
        before = np.linspace(-1, 1, self.R.randint(self.points[0], self.points[1] + 1))
        after = np.clip(before + self.R.uniform(-self.bend, self.bend, len(before)), -1, 1)
        after[0] = -1
        values = np.interp(image.cpu().numpy(), before, after).astype(np.float32)
        return torch.as_tensor(values, device=image.device)


class RandFieldOfViewd(RandomizableTransform, MapTransform):
    """Narrow the field of view to a random box, around some voxel of the tumor if there is one.

    Outside of it is background. The image is scaled anew to its percentiles inside, as that of a scan that ends there.

    Args:
        keys: ``image``, and what is cut with it, such as ``target``; background -1.
        prob: of narrowing.
        smallest: share of each side that is left at least.
        percentiles: that become -1 and 1.
        label_key: the mask.

    Shapes:
        each (C, X, Y, Z); the same comes back.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float,
        smallest: Sequence[float] = (0.4, 0.4, 0.6),
        percentiles: Sequence[float] = (1, 99),
        label_key: str = "label",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.smallest, self.percentiles, self.label_key = smallest, percentiles, label_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        inside = self._box(data[self.label_key].amax(0))
        narrowed = {**data, self.label_key: data[self.label_key] * inside}
        for key in self.keys:
            image = data[key]
            if key == "image":
                image = torch.stack([self._rescaled(channel, inside) for channel in image])
            narrowed[key] = torch.where(inside, image, torch.full_like(image, -1))
        return narrowed

    def _box(self, label: torch.Tensor) -> torch.Tensor:
        tumor = label.nonzero().cpu().numpy()
        centre = tumor[self.R.randint(len(tumor))] if len(tumor) else self.R.randint(label.shape)
        inside = torch.zeros(label.shape, dtype=torch.bool, device=label.device)
        sizes = [round(n * self.R.uniform(least, 1)) for n, least in zip(label.shape, self.smallest, strict=True)]
        starts = [
            int(np.clip(c - self.R.randint(size), 0, n - size))
            for c, size, n in zip(centre, sizes, label.shape, strict=True)
        ]
        inside[tuple(slice(a, a + size) for a, size in zip(starts, sizes, strict=True))] = True
        return inside

    def _rescaled(self, channel: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        low, high = np.percentile(channel[inside].cpu().numpy(), self.percentiles)
        return ((channel - low) / (high - low or 1) * 2 - 1).clamp(-1, 1)


def tumor_donors(
    data: Sequence[dict[str, Any]],
    prepared: Sequence[Transform],
    patch_size: Sequence[int],
    dataset: Callable[..., Dataset],
) -> Dataset:
    """Patches around the tumors of training cases, flipped and scaled anew at each draw, for ``RandPasteTumord``.

    Args:
        data: the cases; those with ``image``, ``target`` and ``label`` are donors.
        prepared: what makes volumes of a case, background -1.
        patch_size: of a patch, voxels.
        dataset: builds a dataset from ``data`` and ``transform``; one that caches keeps half-precision volumes.

    Shapes:
        each item: a list of one dict with ``image``, ``target`` and ``label``, each (channels, *patch_size).
    """
    images, volumes = ("image", "target"), ("image", "target", "label")
    inside, outside = "label_fg_indices", "label_bg_indices"
    size = [side * 3 // 2 for side in patch_size]
    halves = [torch.float16, torch.float16, torch.uint8, torch.int32, torch.int32]
    donor = [
        CropForegroundd(volumes, "label", margin=[side // 2 for side in size], allow_smaller=True),
        SpatialPadd(images, size, value=-1),
        SpatialPadd("label", size),
        TumorToIndicesd("label"),
        CastToTyped([*volumes, inside, outside], halves),
        RandCropByPosNegLabeld(volumes, "label", size, pos=1, neg=0, fg_indices_key=inside, bg_indices_key=outside),
        CastToTyped(volumes, torch.float32),
        *(RandFlipd(volumes, 0.5, axis) for axis in range(3)),
        RandAffined(
            volumes,
            patch_size,
            prob=1,
            scale_range=[(-0.17, 0.43)] * 3,
            mode=["bilinear", "bilinear", "nearest"],
            padding_mode="border",
        ),
    ]
    complete = cases_with(data, volumes, "the donors for --tumor_paste")
    return dataset(data=complete, transform=Compose([*prepared, *donor]))


class RandPasteTumord(RandomizableTransform, MapTransform):
    """Paste another patient's tumor, in all contrasts: copy-paste between training patients.

    Brightness and contrast of what is pasted follow the patch: mean and standard deviation of the brain beside the
    tumors, channel by channel. The edge fades outside the tumor. Nothing is pasted where there is no brain.

    Args:
        keys: the images, background -1.
        donors: patches of other cases, with the same keys, shapes and label; None if nothing is ever pasted.
        prob: of pasting.
        label_key: the mask of each region; where a tumor is pasted, the donor's.
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
        regions = donor[self.label_key] * brain
        tumor = regions.amax(0, keepdim=True)
        opacity = torch.maximum(tumor, (2 * self.blur(tumor)).clamp(max=1)) * (brain & self._brain(donor))
        beside = self._brain(donor) & _outside(donor[self.label_key]), brain & _outside(label)
        pasted = {**data, self.label_key: torch.where(tumor > 0, regions, label)}
        for key in self.keys:
            pasted[key] = torch.lerp(data[key], match_brightness(donor[key], data[key], *beside), opacity)
        return pasted

    def _brain(self, data: Mapping[Hashable, torch.Tensor]) -> torch.Tensor:
        return (data[self.keys[0]] > -1).any(0, keepdim=True)


def _outside(label: torch.Tensor) -> torch.Tensor:
    """(R, X, Y, Z) -> (1, X, Y, Z), where there is none of the regions."""
    return (label == 0).all(0, keepdim=True)


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


__getattr__ = forwarding(__name__)
