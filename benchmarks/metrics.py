"""Every metric of one case of 240 x 240 x 155 voxels: five segmentations and the image, by MONAI and by the package."""

from collections.abc import Callable

import torch
from monai.metrics import PSNRMetric, compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from monai.metrics.regression import compute_ssim_and_cs
from tissnet_components.metrics import SEGMENTATIONS, box_around, case_metrics

from benchmarks.measure import compare, show

SHAPE, SPACING_MM = (240, 240, 155), (1.0, 1.0, 1.0)
VARIANTS = ["MONAI", "package"]


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> torch.Tensor:
    """1 inside, falling to 0 over ten voxels; 0.5 at the radius."""
    axes = [torch.arange(length) - middle for length, middle in zip(shape, centre, strict=True)]
    distance = sum(axis.float() ** 2 for axis in torch.meshgrid(*axes, indexing="ij")).sqrt()
    return ((radius - distance) / 10 + 0.5).clamp(0, 1)


def example(shape: tuple[int, ...] = SHAPE) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Maps, target and label: a noisy head with a tumor, segmented five times, each with a shift and a false speck."""
    generator, middle = torch.Generator().manual_seed(0), [length / 2 for length in shape]
    head = ball(shape, middle, 0.3 * shape[0]) > 0.5
    target = torch.where(head, torch.rand(shape, generator=generator) - 0.5, torch.tensor(-1.0))
    noise = 0.2 * torch.randn(shape, generator=generator)
    maps = {"synthetic": torch.where(head, target + noise, target).clamp(-1, 1)}
    radius = 0.11 * shape[0]
    for shift, name in enumerate(("coarse", "fine", "refined", "error", "perceived")):
        seen = ball(shape, [middle[0] + 2 * shift, *middle[1:]], radius)
        maps[name] = torch.maximum(seen, ball(shape, [0.7 * length for length in shape], 6))
    return maps, target, (ball(shape, middle, radius) > 0.5).float()


def by_monai(maps: dict[str, torch.Tensor], target: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """The same values, each by the function that MONAI has for it."""
    settings = {"include_background": True, "spacing": list(SPACING_MM)}
    values, masks = {}, {name: maps[name] > 0.5 for name in SEGMENTATIONS if name in maps}
    masks["average"] = (maps["fine"] + maps["refined"]) / 2 > 0.5
    for name, mask in masks.items():
        pair, column = (mask[None, None].float(), label[None, None]), SEGMENTATIONS[name]
        values[f"{column}_dice"] = float(compute_dice(*pair))
        values[f"{column}_assd_mm"] = float(compute_average_surface_distance(*pair, symmetric=True, **settings))
        values[f"{column}_hd95_mm"] = float(compute_hausdorff_distance(*pair, percentile=95, **settings))
    images = maps["synthetic"][None, None], target[None, None]
    similarity = compute_ssim_and_cs(*images, 3, [11] * 3, [1.5] * 3, data_range=2)[0][0, 0]
    everywhere = tuple(slice(0, length) for length in target.shape)
    boxes = {"": everywhere, "brain_": box_around(target > -1), "local_": box_around(label > 0.5, 11)}
    for prefix, box in boxes.items():
        fits = tuple(slice(side.start, side.stop - 10) for side in box)
        values[f"{prefix}ssim"] = float(similarity[fits].double().mean())
        values[f"{prefix}psnr"] = float(PSNRMetric(max_val=2)(*(image[(..., *box)] for image in images)))
    return values


def build(variant: str, shape: tuple[int, ...] = SHAPE) -> Callable[[], dict]:
    """The values of the example."""
    maps, target, label = example(shape)
    if variant == "MONAI":
        return lambda: {"values": by_monai(maps, target, label)}
    return lambda: {"values": case_metrics(maps, target, label, SPACING_MM)}


def run(repeats: int = 1) -> dict:
    """Times, and the largest difference between the values of both."""
    results = compare(build, VARIANTS, repeats)
    theirs, ours = (results[variant].pop("values") for variant in VARIANTS)
    results["package"]["largest difference"] = max(abs(theirs[name] - ours[name]) for name in theirs)
    return results


if __name__ == "__main__":
    show(run())
