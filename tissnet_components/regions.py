"""The parts of a glioma that BraTS names, each inside the one before: from a label map to a mask of each, and back."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses, FgBgToIndicesd, MapTransform
from tissnet_components.errors import BadCase, UserError

WHOLE = "whole tumor"
LABELS_OF_REGIONS = {WHOLE: 2, "tumor core": 1, "enhancing tumor": 4}  # what BraTS calls the voxels of no smaller part
REST = {(WHOLE, "tumor core"): "edema", ("tumor core", "enhancing tumor"): "necrosis"}  # of a region, beside its part
FROM_MONAI = (1, 0, 2)  # MONAI's order is tumor core, whole tumor, enhancing tumor


def checked_regions(regions: Sequence[str]) -> list[str]:
    """The regions, from the whole to its parts.

    Raises:
        ValueError: an unknown region, none, one twice, or a part before the whole.
    """
    known = [name for name in LABELS_OF_REGIONS if name in regions]
    if not known or list(regions) != known:
        raise UserError(f"regions is {list(regions)}; choose among {list(LABELS_OF_REGIONS)}, in this order")
    return known


def region_masks(label: torch.Tensor, regions: Sequence[str], binary: bool = False) -> torch.Tensor:
    """The mask of each region: of the whole tumor alone, every label; else by BraTS's labels.

    Labels 1, 2 and 4 are necrosis, edema and enhancing tumor; 3 is enhancing too, as BraTS calls it since 2023. Without
    either, nothing enhances: the region is empty.

    Args:
        binary: also of a label map that knows one value, 1.

    Shapes:
        label: (1, X, Y, Z), a label map.
        returns: (R, X, Y, Z) in {0, 1}, float32.

    Raises:
        BadCase: several regions of a label that knows one value, 1, or of one that BraTS's values do not tell.
    """
    if list(regions) == [WHOLE]:
        return (label > 0.5).to(torch.float32)
    file = str(getattr(label, "meta", {}).get("filename_or_obj", "the label"))
    if label.max() == 1 and not binary:
        raise BadCase(f"{file} holds only 0 and 1, expected BraTS's labels of {', '.join(regions)}; or give one region")
    if (label == 3).any() and (label == 4).any():
        raise BadCase(
            f"{file} holds 3 and 4, enhancing tumor and resection cavity in BraTS 2024; make the cavity 0, or give one "
            f"region"
        )
    if "Task01_BrainTumour" in file:
        raise BadCase(
            f"{file} has the Decathlon's labels, where 1 is edema and 2 necrosis; exchange these two, in another "
            f"folder, or give one region"
        )
    masks: Any = ConvertToMultiChannelBasedOnBratsClasses()(torch.where(label == 3, 4, label))[list(FROM_MONAI)]
    return masks[[list(LABELS_OF_REGIONS).index(name) for name in regions]].to(torch.float32)


def nested(probabilities: torch.Tensor) -> torch.Tensor:
    """Regions of which each lies in the one before: a part that is likelier than the whole raises the whole.

    Shapes:
        probabilities, returns: (R, X, Y, Z).
    """
    return probabilities.flip(0).cummax(0).values.flip(0)


def region_label(probabilities: torch.Tensor, regions: Sequence[str]) -> torch.Tensor:
    """One label map of nested regions: BraTS's labels, or 1 where there is one region.

    Shapes:
        probabilities: (R, X, Y, Z), tumor from 0.5.
        returns: (1, X, Y, Z).
    """
    label = torch.zeros_like(probabilities[:1])
    for name, mask in zip(regions, probabilities >= 0.5, strict=True):
        label[mask[None]] = LABELS_OF_REGIONS[name] if len(regions) > 1 else 1
    return label


def label_names(regions: Sequence[str]) -> dict[str, int]:
    """What each value of `region_label` shows: a region without the one inside it, so edema, necrosis, enhancing."""
    inner = dict(pairwise(regions))
    if not inner:
        return {regions[0]: 1}
    return {REST.get((name, inner.get(name, "")), name): LABELS_OF_REGIONS[name] for name in regions}


class RegionsOfLabeld(MapTransform):
    """Make the mask of each region of a label map, see `region_masks`."""

    def __init__(self, keys: KeysCollection, regions: Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.regions = checked_regions(regions)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        return {**data, **{key: region_masks(data[key], self.regions) for key in self.key_iterator(data)}}


class RegionsToLabeld(MapTransform):
    """Make one label map of the probabilities of nested regions, see `region_label`."""

    def __init__(self, keys: KeysCollection, regions: Sequence[str]) -> None:
        super().__init__(keys)
        self.regions = checked_regions(regions)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        return {**data, **{key: region_label(data[key], self.regions) for key in self.key_iterator(data)}}


class TumorToIndicesd(FgBgToIndicesd):
    """MONAI's ``FgBgToIndicesd`` of all regions together; of several channels MONAI takes the first for background."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        whole = {key: data[key].amax(0, keepdim=True) for key in self.key_iterator(data)}
        return {**super().__call__({**data, **whole}), **{key: data[key] for key in whole}}
