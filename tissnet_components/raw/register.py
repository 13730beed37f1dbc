"""Rigid registration by mutual information: where each point of one scan lies in another, whatever their contrasts.

By ITK's registration framework as SimpleITK offers it, which loads in a fifth of a second; the package itk takes many.
A transform is a 4x4 matrix that takes points of the fixed volume to points of the moving one, both in RAS mm.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.processing import resample_from_to, sigma2fwhm, smooth_image
from tissnet_components.files import write_atomic
from tissnet_components.scans.dicom import LPS_TO_RAS

LEVELS_MM = (8.0, 4.0, 2.0, 1.0)  # of the grids on which a start is refined
SAMPLES = 100_000  # voxels, at most, that a level compares
TURNS_DEGREES = (-20, 0, 20)  # of the starts, about each axis
REFINED = 3  # starts, on the coarsest grid
HISTOGRAM_BINS = 32
MOST_STEPS = 60  # at most, at each level


def register(fixed: nib.Nifti1Image, moving: nib.Nifti1Image) -> np.ndarray:
    """The rigid transform under which two volumes tell most about each other.

    Every start is tried on a coarse grid, the best of them are refined there, and the best of these on finer grids.

    Returns:
        (4, 4), points of `fixed` to points of `moving`.
    """
    pairs = [(_to_sitk(coarsened(fixed, mm)), _to_sitk(coarsened(moving, mm))) for mm in LEVELS_MM]
    tried = sorted(_starts(fixed, moving), key=lambda start: _information(*pairs[0], start), reverse=True)[:REFINED]
    refined = [_refined(*pairs[0], start, LEVELS_MM[0]) for start in tried]
    best = max(refined, key=lambda transform: _information(*pairs[0], transform))
    for pair, mm in zip(pairs[1:], LEVELS_MM[1:], strict=True):
        best = _refined(*pair, best, mm)
    return _matrix(best)


def moved(volume: nib.Nifti1Image, transform: np.ndarray) -> nib.Nifti1Image:
    """The volume, placed so that what a transform finds in it lies where it was found from; no voxel changes."""
    return nib.Nifti1Image(volume.dataobj, np.linalg.inv(transform) @ volume.affine)


def coarsened(volume: nib.Nifti1Image, mm: float) -> nib.Nifti1Image:
    """The volume on a grid of cubes along its own axes, smoothed along those that are finer; never finer than it is."""
    spacing = voxel_sizes(volume.affine)
    mm = max(mm, float(spacing.min()))
    smooth = smooth_image(volume, sigma2fwhm(np.where(spacing < mm, mm / 2, 0)), mode="nearest")
    shape = np.maximum((np.array(volume.shape) * spacing / mm).astype(int), 2)
    first = (np.array(volume.shape) - 1 - (shape - 1) * mm / spacing) / 2
    affine = volume.affine @ np.vstack([np.column_stack([np.diag(mm / spacing), first]), [0, 0, 0, 1]])
    return resample_from_to(smooth, (tuple(shape), affine), order=1, mode="nearest")


def write_transform(transform: np.ndarray, file: Path) -> None:
    """Write a transform as ITK does, in LPS, for 3D Slicer, ITK-SNAP, SimpleITK and ANTs."""
    lps = LPS_TO_RAS @ transform @ LPS_TO_RAS
    numbers = " ".join(f"{number:.10g}" for number in (*lps[:3, :3].ravel(), *lps[:3, 3]))
    text = (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
    write_atomic(file, text.encode())


def read_matrix(file: Path) -> np.ndarray:
    """A rigid or affine transform of ITK's text format, from RAS mm to RAS mm."""
    import SimpleITK

    return _matrix(SimpleITK.ReadTransform(str(file)))


def _matrix(transform: Any) -> np.ndarray:
    corners = np.vstack([np.zeros(3), np.eye(3)])
    places = np.array([transform.TransformPoint(corner.tolist()) for corner in corners])
    lps = np.vstack([np.column_stack([(places[1:] - places[0]).T, places[0]]), [0, 0, 0, 1]])
    return LPS_TO_RAS @ lps @ LPS_TO_RAS


def _starts(fixed: nib.Nifti1Image, moving: nib.Nifti1Image) -> Iterator[Any]:
    """As the scanner placed both, and head on head, each turned about every axis."""
    import SimpleITK

    centre, other = (apply_affine(LPS_TO_RAS, _centre(volume)) for volume in (fixed, moving))
    for shift in (np.zeros(3), other - centre):
        for angles in product(np.radians(TURNS_DEGREES).tolist(), repeat=3):
            yield SimpleITK.Euler3DTransform(centre.tolist(), *angles, shift.tolist())


def _centre(volume: nib.Nifti1Image) -> np.ndarray:
    """Centre of the head, of what is brighter than the mean, in RAS mm."""
    coarse = coarsened(volume, LEVELS_MM[0])
    array = np.asarray(coarse.dataobj)
    return apply_affine(coarse.affine, np.argwhere(array > array.mean()).mean(0))


def _to_sitk(volume: nib.Nifti1Image) -> Any:
    import SimpleITK

    lps = LPS_TO_RAS @ volume.affine
    spacing = voxel_sizes(lps)
    image = SimpleITK.GetImageFromArray(np.asarray(volume.dataobj, dtype=np.float32).T)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _method(start: Any) -> Any:
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetInitialTransform(SimpleITK.Euler3DTransform(start), inPlace=False)
    return method


def _information(fixed: Any, moving: Any, transform: Any) -> float:
    """Mutual information in nats; 0 where the images do not overlap, which ITK refuses."""
    try:
        return -float(_method(transform).MetricEvaluate(fixed, moving))
    except RuntimeError:
        return 0.0


def _refined(fixed: Any, moving: Any, start: Any, mm: float) -> Any:
    """The transform to which gradient descent leads from a start."""
    method = _method(start)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=mm / 2,
        minStep=mm / 200,
        numberOfIterations=MOST_STEPS,
        relaxationFactor=0.7,
        estimateLearningRate=method.Never,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetMetricSamplingStrategy(method.RANDOM)  # off the grid, whose regularity would draw
    method.SetMetricSamplingPercentage(min(1.0, SAMPLES / fixed.GetNumberOfPixels()), seed=1)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError:  # it left the field of view; other starts remain
        return start
    return found.GetNthTransform(0) if found.GetName() == "CompositeTransform" else found
