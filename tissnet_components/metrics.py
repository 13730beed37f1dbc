"""How good a case is: overlap and distances in millimetres, image similarity overall, in the brain and at the tumor.

Definitions (Section 4.1 of the paper; where it is silent, docs of each function):

- Segmentations are thresholded at 0.5; any positive label value is tumor.
- An empty prediction of a real tumor has Dice 0 and no distance. So has any prediction where the label is empty.
  Distances that do not exist are NaN: left out of the mean, and counted as missing.
- Two empty masks agree: Dice 1, distances 0 mm (as BraTS does).
- Images live in [-1, 1], so SSIM and PSNR use a data range of 2.
"""

import math

import numpy as np
import torch
from monai.metrics import PSNRMetric
from monai.utils import convert_to_tensor
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree
from tissnet_components.errors import UserError

Box = tuple[slice, ...]
SEGMENTATIONS = {  # map -> its name in the columns
    "coarse": "coarse",
    "fine": "fine",
    "refined": "refined",
    "average": "average",
    "perceived": "perceptibility",
    "consensus": "consensus",
}
MEANS = {"average": ("fine", "refined"), "consensus": ("fine", "perceived")}  # of two maps
ERROR_BINS = 10
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
DATA_RANGE = 2.0
SSIM_SLAB = 32  # places along X at a time: stays in the processor's cache


def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """Dice overlap of two masks (X, Y, Z), thresholded at 0.5. 1 when both are empty, 0 when only one is."""
    predicted, true = _mask(prediction), _mask(label)
    size = np.count_nonzero(predicted) + np.count_nonzero(true)
    return 2 * np.count_nonzero(predicted & true) / size if size else 1.0


def surface_distances_mm(
    prediction: torch.Tensor, label: torch.Tensor, spacing_mm: tuple[float, ...]
) -> dict[str, float]:
    """Average symmetric surface distance and 95 % Hausdorff distance of two masks (X, Y, Z), thresholded at 0.5.

    HD95 is the larger of the two directed 95th percentiles (as in MONAI and PyMIC; MedPy pools them and differs).
    Both are 0 when both masks are empty and NaN when only one is.
    """
    surfaces = [surface_mm(_mask(mask), spacing_mm) for mask in (prediction, label)]
    if not all(map(len, surfaces)):
        distance = math.nan if any(map(len, surfaces)) else 0.0
        return {"assd_mm": distance, "hd95_mm": distance}
    there, back = (KDTree(goal).query(start)[0] for start, goal in (surfaces, reversed(surfaces)))
    hd95 = max(np.percentile(distances, 95) for distances in (there, back))
    return {"assd_mm": float(np.concatenate([there, back]).mean()), "hd95_mm": float(hd95)}


def surface_mm(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Where the voxels of a mask (X, Y, Z) lie that touch its outside, or the volume's, across a face: (N, 3)."""
    box = box_around(mask)
    if box is None:
        return np.empty((0, 3))
    inside = mask[box]
    corner = [side.start for side in box]
    return (np.argwhere(inside & ~binary_erosion(inside)) + corner) * np.asarray(spacing_mm, float)


def psnr(synthetic: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal to noise ratio in dB of two images (X, Y, Z) in [-1, 1]; infinite when they are equal."""
    return float(torch.as_tensor(PSNRMetric(max_val=DATA_RANGE)(synthetic[None, None], target[None, None])))


def ssim(synthetic: torch.Tensor, target: torch.Tensor) -> float:
    """Structural similarity of two images (X, Y, Z) in [-1, 1]; NaN when they are thinner than the window.

    3D Gaussian window of 11 voxels, sigma 1.5, only where it fits: equal to scikit-image with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2``.
    """
    return _mean(ssim_map(synthetic, target))


def ssim_map(synthetic: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SSIM of every place where the window fits: (X, Y, Z) -> (X - 10, Y - 10, Z - 10), empty when it never does.

    It is 1 where a window sees no difference, as in the background of both, and computed elsewhere alone.
    """
    similarity = torch.ones([max(length - SSIM_WINDOW + 1, 0) for length in target.shape])
    differing = box_around((synthetic != target).numpy())
    if differing is None or not similarity.numel():
        return similarity
    reached = [
        slice(max(side.start - SSIM_WINDOW + 1, 0), min(side.stop, length))
        for side, length in zip(differing, similarity.shape, strict=True)
    ]
    for start in range(reached[0].start, reached[0].stop, SSIM_SLAB):
        places = slice(start, min(start + SSIM_SLAB, reached[0].stop)), *reached[1:]
        seen = tuple(slice(side.start, side.stop + SSIM_WINDOW - 1) for side in places)
        similarity[places] = _structural_similarity(synthetic[seen], target[seen])
    return similarity


def _structural_similarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Wang 2004, with K1 = 0.01 and K2 = 0.03."""
    images = one, other, one * one + other * other, one * other
    mean_one, mean_other, squares, product = (_gaussian(image) for image in images)
    both_means, mean_squares = mean_one * mean_other, mean_one**2 + mean_other**2
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    contrast = (2 * (product - both_means) + c2) / (squares - mean_squares + c2)
    return (2 * both_means + c1) / (mean_squares + c1) * contrast


def _gaussian(image: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the window where it fits, axis by axis: each time a product with a banded matrix."""
    window = torch.exp(-0.5 * ((torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / SSIM_SIGMA) ** 2)
    for length in image.shape:  # the product puts the first axis last; after three, they are as they were
        bands = torch.eye(length).unfold(0, SSIM_WINDOW, 1) @ (window / window.sum())
        image = torch.tensordot(image, bands, dims=([0], [1]))
    return image


def box_around(mask: torch.Tensor | np.ndarray, at_least: int = 1) -> Box | None:
    """Smallest box around a mask (X, Y, Z), widened inside the volume to `at_least` voxels a side; None if empty."""
    mask = np.asarray(mask)
    sides = []
    for axis, length in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(inside):
            return None
        extent = int(inside[-1] - inside[0]) + 1
        size = max(extent, min(at_least, length))
        start = min(max(int(inside[0]) - (size - extent) // 2, 0), length - size)
        sides.append(slice(start, start + size))
    return tuple(sides)


def case_metrics(
    maps: dict[str, torch.Tensor], target: torch.Tensor | None, label: torch.Tensor, spacing_mm: tuple[float, ...]
) -> dict[str, float]:
    """Every metric of one case, on the grid of the original label.

    Args:
        maps: any of synthetic, coarse, fine, refined, error and perceived (the perceptor's probability on the
            synthetic image), each (1, X, Y, Z) or (X, Y, Z). What is absent is left out of the result.
        target: the real image, or None: then there is no image similarity.
        label: the tumor mask.
        spacing_mm: voxel size along X, Y, Z.

    Returns:
        `<map>_dice, <map>_assd_mm, <map>_hd95_mm, <map>_ml` of coarse, fine, refined, average (mean of fine and
        refined), perceptibility and consensus (mean of fine and perceived); `label_ml`; `ssim, psnr` in the entire
        image, which its background flatters, so also `brain_` (in the box of target > -1) and `local_` (in the label's
        box, at least 11 voxels a side).
        Two label-free quality estimates: `predicted_dice`, the Dice of coarse if error is right, and
        `agreement`, the Dice of fine and refined with each other.

    Raises:
        ValueError: a map whose shape differs from the label's, or that is not finite.
    """
    label = _volume("label", label, None)
    volumes = {name: _volume(name, array, label.shape) for name, array in maps.items()}
    quality = {}
    if {"coarse", "error"} <= set(volumes):
        quality["predicted_dice"] = predicted_dice(volumes["coarse"], volumes["error"])
    for name, (one, other) in MEANS.items():
        if {one, other} <= set(volumes):
            volumes[name] = (volumes[one] + volumes[other]) / 2
    if {"fine", "refined"} <= set(volumes):
        quality["agreement"] = dice(volumes["fine"], volumes["refined"])
    voxel_ml = math.prod(float(length) for length in spacing_mm) / 1000
    values: dict[str, float] = {"label_ml": np.count_nonzero(_mask(label)) * voxel_ml}
    for name, column in SEGMENTATIONS.items():
        if name in volumes:
            values[f"{column}_dice"] = dice(volumes[name], label)
            distances = surface_distances_mm(volumes[name], label, spacing_mm)
            values |= {f"{column}_{distance}": value for distance, value in distances.items()}
            values[f"{column}_ml"] = np.count_nonzero(_mask(volumes[name])) * voxel_ml
    if target is not None and "synthetic" in volumes:
        values |= image_similarity(volumes["synthetic"], _volume("target", target, label.shape), label)
    return values | quality


def predicted_dice(coarse: torch.Tensor, error: torch.Tensor) -> float:
    """The Dice of coarse that its error map implies, without a label: 1 when neither sees any tumor.

    A voxel of coarse is right with probability 1 - error; a voxel outside it is missed tumor with probability error.
    The expected counts enter the Dice.

    Shapes:
        coarse, error: (X, Y, Z) probabilities; coarse is thresholded at 0.5.
    """
    doubted = error[coarse > 0.5].double()
    hits, false_alarms = float((1 - doubted).sum()), float(doubted.sum())
    missed = float(error.sum()) - false_alarms
    size = 2 * hits + false_alarms + missed
    return 2 * hits / size if size else 1.0


def error_calibration(coarse: torch.Tensor, error: torch.Tensor, label: torch.Tensor) -> list[dict[str, float]]:
    """Where coarse was predicted to be wrong with some probability, how often was it?

    Returns:
        ten rows of equal width from 0 to 1: `error_from`, `error_to`, the number of `voxels` whose error lies there,
        the number of mistakes `predicted` (the sum of their error) and those that there were (`mistakes`: coarse,
        thresholded at 0.5, differs from the label).

    Shapes:
        coarse, error, label: (1, X, Y, Z) or (X, Y, Z), on one grid.
    """
    label = _volume("label", label, None)
    error, coarse = _volume("error", error, label.shape).double(), _volume("coarse", coarse, label.shape)
    bins = (error * ERROR_BINS).long().clamp(0, ERROR_BINS - 1).flatten()
    mistakes = ((coarse > 0.5) != (label > 0.5)).flatten()
    columns = {
        "voxels": torch.bincount(bins, minlength=ERROR_BINS),
        "predicted": torch.bincount(bins, error.flatten(), ERROR_BINS),
        "mistakes": torch.bincount(bins[mistakes], minlength=ERROR_BINS),
    }
    return [
        {"error_from": index / ERROR_BINS, "error_to": (index + 1) / ERROR_BINS}
        | {name: column[index].item() for name, column in columns.items()}
        for index in range(ERROR_BINS)
    ]


def image_similarity(synthetic: torch.Tensor, target: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """SSIM and PSNR in the entire image, in the brain's box and in the tumor's; NaN where there is no such box.

    The SSIM map is computed once: cut to a box, it equals the map of the cut images.
    """
    everywhere = tuple(slice(0, length) for length in target.shape)
    boxes = {"": everywhere, "brain_": box_around(target > -1), "local_": box_around(label > 0.5, SSIM_WINDOW)}
    similarity = ssim_map(synthetic, target)
    values: dict[str, float] = {}
    for prefix, box in boxes.items():
        if box is None:
            values |= {f"{prefix}ssim": math.nan, f"{prefix}psnr": math.nan}
            continue
        fits = tuple(slice(side.start, max(side.stop - SSIM_WINDOW + 1, side.start)) for side in box)
        values[f"{prefix}ssim"] = _mean(similarity[fits])
        values[f"{prefix}psnr"] = psnr(synthetic[box], target[box])
    return values


def _volume(name: str, array: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
    """(1, X, Y, Z) or (X, Y, Z) -> plain finite float32 (X, Y, Z) on the CPU."""
    volume = convert_to_tensor(array, dtype=torch.float32, device="cpu", track_meta=False).detach()
    volume = volume[0] if volume.ndim == 4 and len(volume) == 1 else volume
    if volume.ndim != 3 or (shape is not None and volume.shape != shape):
        expected = "(X, Y, Z) or (1, X, Y, Z)" if shape is None else f"{tuple(shape)} like the label"
        raise UserError(f"{name} has shape {tuple(array.shape)}, expected {expected}: bring it to the label's grid")
    if not torch.stack(volume.aminmax()).isfinite().all():
        raise UserError(f"{name} holds NaN or infinite values, so it cannot be measured: look at the network")
    return volume


def _mask(volume: torch.Tensor) -> np.ndarray:
    """NumPy counts and combines booleans several times faster than PyTorch."""
    return (volume > 0.5).numpy()


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean()) if values.numel() else math.nan
