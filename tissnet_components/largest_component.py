"""The largest connected components of a segmentation: a tumor is mostly one piece, and what lies apart a false alarm.

What nnU-Net (Isensee 2021) also tries after its training. MONAI's ``KeepLargestConnectedComponent`` takes masks, of
which each region decides for itself, and needs scikit-image.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage
from tissnet_components.errors import UserError


def largest_components(probabilities: torch.Tensor, components: int) -> torch.Tensor:
    """0 where the whole tumor lies outside its largest components, by volume; voxels that share a face connect.

    Args:
        components: how many stay, with the regions inside them; 0 for all.

    Shapes:
        probabilities, returns: (R, X, Y, Z), tumor from 0.5.
    """
    if not components:
        return probabilities
    tumor = _tumor(probabilities).cpu().numpy()
    labels, count = ndimage.label(tumor)
    if count <= components:
        return probabilities
    sizes = np.bincount(labels[tumor])
    left_out = tumor & ~np.isin(labels, np.argsort(sizes)[-components:])
    return probabilities * torch.from_numpy(~left_out).to(probabilities.device)


class LargestComponentsd(MapTransform):
    """Keep the `largest_components` of each map, and tell how much of the first map that leaves out.

    Args:
        components: how many stay; 0 for all.
        grid_key: an image on the grid of the maps, with its affine.

    Shapes:
        each map: (R, X, Y, Z).
        returns: the data with ``left_out_ml``, unless all are to stay.

    Raises:
        ValueError: `components` is no whole number from 0.
    """

    def __init__(
        self, keys: KeysCollection, components: int, grid_key: str = "image", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if type(components) is not int or components < 0:
            raise UserError(f"components is {components!r}, expected how many parts of a tumor stay, or 0 for all")
        self.components, self.grid_key = components, grid_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if not self.components:
            return dict(data)
        kept = {key: largest_components(data[key], self.components) for key in self.key_iterator(data)}
        first = self.keys[0]
        left_out = int((_tumor(data[first]) & ~_tumor(kept[first])).sum())
        voxel_ml = abs(float(torch.linalg.det(data[self.grid_key].affine[:3, :3]))) / 1000
        return {**data, **kept, "left_out_ml": round(left_out * voxel_ml, 4)}


def _tumor(probabilities: torch.Tensor) -> torch.Tensor:
    """(R, X, Y, Z) -> (X, Y, Z), where any region is."""
    return probabilities.amax(0) >= 0.5
