"""Which voxels of a scan are the brain: what is not background, however the background looks.

A prepared scan is 0 outside the brain, exactly. Programs that resample, add an offset or subtract the mean leave
another constant, noise, or the ringing of cubic interpolation there, and a network would take all of that for brain.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

FAINT = 0.05  # of the brain's brightness: what is fainter may be ringing
MARGIN = 1.6  # times what nearly all of the corners reach: what is fainter may be noise
STRAY = 0.03  # of the brain's volume: prepared scans have less outside the largest component, ringing makes more
ROUGH = 48  # voxels along an axis, where a rough look is enough


@dataclass(frozen=True)
class Background:
    """What surrounds the brain: a value, and how far from it noise or ringing reaches; 0 where it is constant."""

    value: float
    reach: float

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.reach == 0 else f"noise or ringing, up to {self.reach:.3g}"


def find_brain(volume: np.ndarray, background: Background | None = None) -> np.ndarray:
    """The voxels of the brain, or of the head in a scan that is not skull-stripped.

    With a constant background, whatever differs from it. With any other, the largest component that is brighter,
    without holes.

    Args:
        background: where it is known already.

    Shapes:
        volume: (X, Y, Z).
        returns: the same, boolean.
    """
    background = background or find_background(volume)
    if background.reach == 0:
        return volume != background.value
    return largest_component(volume - background.value > background.reach)


def find_background(volume: np.ndarray) -> Background:
    """The background as the eight corners show it; up to three of them may hold something else.

    Where they vary like the rest, or lie amid its values, as in a crop from inside the head, it is taken to be 0.
    """
    value, noise = _corners(volume)
    difference = volume[tuple(slice(None, None, max(length // ROUGH, 1)) for length in volume.shape)] - value
    distance = np.abs(difference)
    bright = float(np.percentile(distance, 99))
    reach = max(noise * MARGIN, bright * FAINT)
    if noise == 0 and _is_clean(distance, largest_component(distance > reach)):
        return Background(value, 0.0)
    darkest = float(np.percentile(difference, 5))
    return Background(value, reach) if reach < bright / 4 and darkest > -reach else Background(0.0, 0.0)


def _corners(volume: np.ndarray) -> tuple[float, float]:
    """A usual value of the corners, and how far nearly all of a usual corner lies from it."""
    sizes = [max(length // 10, 1) for length in volume.shape]
    corners = [volume[place] for place in product(*((slice(None, size), slice(-size, None)) for size in sizes))]
    value = sorted(float(np.median(corner)) for corner in corners)[(len(corners) - 1) // 2]
    far = sorted(float(np.percentile(np.abs(corner - value), 99.5)) for corner in corners)[len(corners) // 2]
    return value, far


def _is_clean(distance: np.ndarray, brain: np.ndarray) -> bool:
    """Whether little lies beyond the brain. One value alone, as where a field of view ends, does not count."""
    _, counts = np.unique(distance[(distance > 0) & ~brain], return_counts=True)
    return bool(counts.sum() - counts.max(initial=0) <= STRAY * brain.sum())


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a boolean (X, Y, Z) array, its holes filled; of an empty one, nothing."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    box = ndimage.find_objects(parts, largest)[largest - 1]
    filled = np.zeros_like(mask)
    filled[box] = ndimage.binary_fill_holes(parts[box] == largest)
    return filled
