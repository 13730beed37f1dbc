"""Contours drawn around a tumor, slice by slice, and the mask that they enclose.

Contours are closed planar polygons in LPS mm, as DICOM has them, read from the JSON files of Vestibular-Schwannoma-SEG
or from RTSTRUCT. Masks lie on any grid: the planes need not be its slices.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Polygon
from scipy.spatial import cKDTree
from tissnet_components.errors import BadCase
from tissnet_components.scans.dicom import LPS_TO_RAS, import_pydicom

SIDE = r"(?:(?:rt|lt|r|l|right|left)[ _]*)?"
TUMOR = r"(?:tv|an|vs|tumou?r|vol(?:ume)?|(?:vestibular )?schwannoma|acoustic(?: neuroma)?)"
TUMOR_NAME = re.compile(rf"{SIDE}{TUMOR}(?:[ _]*t[12])?", re.IGNORECASE)  # "Vol 2y", "Vol2016": a later scan's tumor
ONE_PLANE_MM = 0.2  # contours nearer to each other than this along their normal are in one plane
FLAT_MM = 0.1
AREA_STEPS = 120  # per axis; errs by less than 1 % of the area
OUTLINE_STEP_MM = 0.05


def read_contours(file: str | Path, structure: str | None = None) -> list[np.ndarray]:
    """Read the tumor's contours from a ``contours.json`` of Vestibular-Schwannoma-SEG.

    Args:
        file: the JSON file of one patient and modality.
        structure: name of the tumor's structure; by default the one structure that is called like a tumor.

    Returns:
        one array (N, 3) per contour, LPS mm in the space of that modality.

    Raises:
        BadCase: not such a file, no or several structures called like a tumor, or a contour that encloses nothing.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        structures = [(str(item["structure_name"]).strip(), item["LPS_contour_points"]) for item in content]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadCase(f"{file} cannot be read as contours ({type(error).__name__}: {error}); fetch it again") from error
    return _checked(_tumor_of(structures, structure, file), file)


def read_rtstruct(file: str | Path, structure: str | None = None) -> list[np.ndarray]:
    """The same from a DICOM RTSTRUCT.

    Raises:
        BadCase: as `read_contours`, or the tumor has contours that are not closed and planar.
        ImportError: pydicom is not installed.
    """
    try:
        item = import_pydicom().dcmread(file)
        names = {roi.ROINumber: str(roi.ROIName).strip() for roi in item.StructureSetROISequence}
        drawn = [(names[roi.ReferencedROINumber], roi.get("ContourSequence") or []) for roi in item.ROIContourSequence]
    except ImportError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise BadCase(f"{file} cannot be read as RTSTRUCT ({type(error).__name__}); fetch it again") from error
    contours = _tumor_of(drawn, structure, file)
    other = [c.ContourGeometricType for c in contours if not c.ContourGeometricType.startswith("CLOSED")]
    if other:
        raise BadCase(f"{file} has a tumor contour of type {other[0]}, expected CLOSED_PLANAR; close or remove it")
    return _checked([contour.ContourData for contour in contours], file)


def referenced_series(file: str | Path) -> str | None:
    """UID of the series that an RTSTRUCT was drawn on, if it says so."""
    try:
        frame = import_pydicom().dcmread(file).ReferencedFrameOfReferenceSequence[0]
        return str(frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID)
    except (AttributeError, IndexError, OSError):
        return None


def move(contours: Sequence[np.ndarray], matrix: np.ndarray) -> list[np.ndarray]:
    """Contours carried by a 4x4 matrix between LPS spaces."""
    return [points @ matrix[:3, :3].T + matrix[:3, 3] for points in contours]


def volume_mm3(contours: Sequence[np.ndarray]) -> float:
    """Area times distance of the planes, as the polygons enclose it."""
    _, heights, planes = _planes(contours)
    return sum(_area_mm2(loops) for loops in planes) * _distance_mm(heights)


def tumor_mask(contours: Sequence[np.ndarray], shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Voxels whose centre lies within the contours.

    Where a voxel lies between two planes, signed distances to the outline are interpolated linearly between them
    (shape-based interpolation, Raya and Udupa 1990, doi 10.1109/42.52980). That shrinks what is convex, small tumors
    the most, so the level is not 0 but the one at which the mask has the volume of the contours, area times distance.
    The first and the last plane reach half the distance between planes further out. Contours within others in one
    plane are holes (even-odd rule), which also settles contours that touch or cross themselves.

    Args:
        contours: as `read_contours` returns them, in LPS mm of the grid's space.
        shape: (X, Y, Z) of the grid.
        affine: of the grid, 4x4, voxels to RAS mm.

    Returns:
        (X, Y, Z) uint8, 1 inside.

    Raises:
        BadCase: contours not in parallel planes at even distances, or partly outside the grid.
    """
    frame, heights, planes = _planes(contours)
    thickness = _distance_mm(heights)
    to_lps = LPS_TO_RAS @ affine
    voxels = _voxels_around(np.concatenate(contours), thickness, shape, to_lps)
    points = (voxels @ to_lps[:3, :3].T + to_lps[:3, 3]) @ frame.T
    height = points[:, 2] + 1e-6  # a slice at either end, by a hair, is in at one end and out at the other
    within = (height >= heights[0] - thickness / 2) & (height < heights[-1] + thickness / 2)
    voxels, points = voxels[within], points[within]
    depth = _depth_mm(points, heights, planes)
    wanted = volume_mm3(contours) / abs(np.linalg.det(affine[:3, :3]))
    deepest = np.argsort(-depth, kind="stable")[: max(1, round(wanted))]
    mask = np.zeros(shape, np.uint8)
    mask[tuple(voxels[deepest].T)] = 1
    return mask


def _tumor_of(structures: Sequence[tuple[str, list]], wanted: str | None, file: str | Path) -> list:
    names = ", ".join(name for name, _ in structures) or "none"
    fits = [item for item in structures if (item[0] == wanted if wanted else TUMOR_NAME.fullmatch(item[0]))]
    if len(fits) != 1:
        found = f"{len(fits)} structures called {wanted or 'like a tumor'}"
        raise BadCase(f"{file} has {found}, among {names}; name the tumor with --structures PATIENT=NAME")
    return fits[0][1]


def _checked(contours: Sequence, file: str | Path) -> list[np.ndarray]:
    """Contours as arrays without the repeated first point, each with an inside; one that is there twice counts once."""
    loops = {}
    for number, points in enumerate(contours or (), start=1):
        try:
            loop = np.asarray(points, dtype=float)
            loop = loop.reshape(len(loop) if loop.ndim == 2 else -1, 3)
        except (TypeError, ValueError) as error:
            raise BadCase(f"contour {number} of the tumor in {file} has points that are not 3-D; mend it") from error
        edges = np.linalg.norm(np.diff(loop, axis=0), axis=1)
        gap = np.linalg.norm(loop[0] - loop[-1]) if len(loop) else 0
        if len(loop) < 3 or not np.isfinite(loop).all() or gap > 2 * edges.max():
            fault = f"is open by {gap:.1f} mm" if len(loop) > 2 and np.isfinite(gap) else "encloses nothing"
            raise BadCase(f"contour {number} of the tumor in {file} {fault}; close or remove it")
        loops[frozenset(map(tuple, loop.round(3).tolist()))] = loop[:-1] if gap < 1e-6 else loop
    if not loops:
        raise BadCase(f"{file} has no contour of the tumor; draw it, or leave the patient out")
    return list(loops.values())


def _planes(contours: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[list[np.ndarray]]]:
    """A frame with the contours' normal as third axis, the planes' heights along it, the loops (N, 2) in each."""
    centred = np.concatenate([points - points.mean(0) for points in contours])
    frame = np.linalg.svd(centred, full_matrices=False)[2]
    loops = sorted((points @ frame.T for points in contours), key=lambda loop: loop[:, 2].mean())
    heights = np.array([loop[:, 2].mean() for loop in loops])
    uneven = max(np.abs(loop[:, 2] - height).max() for loop, height in zip(loops, heights, strict=True))
    if uneven > FLAT_MM:
        raise BadCase(f"the tumor's contours leave their planes by {uneven:.1f} mm; draw them in parallel planes")
    first = np.flatnonzero(np.diff(heights, prepend=-np.inf) > ONE_PLANE_MM)
    planes = [[loop[:, :2] for loop in loops[a:b]] for a, b in zip(first, [*first[1:], len(loops)], strict=True)]
    return frame, heights[first], planes


def _distance_mm(heights: np.ndarray) -> float:
    if len(heights) < 2:
        raise BadCase("the tumor has contours in one plane only, so its height is unknown; leave the patient out")
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    odd = gaps[np.abs(gaps - usual).argmax()]
    if abs(odd - usual) > ONE_PLANE_MM:
        raise BadCase(
            f"the tumor has contours in planes {odd:.1f} mm apart but others {usual:.1f} mm; draw the missing ones, "
            f"or leave the patient out"
        )
    return usual


def _voxels_around(points: np.ndarray, margin_mm: float, shape: Sequence[int], to_lps: np.ndarray) -> np.ndarray:
    """Indices (N, 3) of the grid in the box of the points and a margin."""
    inverse = np.linalg.inv(to_lps)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    outside = max((-0.5 - index).max(), (index - np.array(shape) + 0.5).max())
    if outside > 0:
        raise BadCase(f"the tumor's contours lie {outside:.0f} voxels outside the image; check which scan they fit")
    margin = margin_mm / np.linalg.norm(to_lps[:3, :3], axis=0)
    low = np.maximum(np.floor(index.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(index.max(0) + margin) + 1, shape).astype(int)
    return np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).reshape(-1, 3)


def _depth_mm(points: np.ndarray, heights: np.ndarray, planes: Sequence[list[np.ndarray]]) -> np.ndarray:
    """Depth below the surface of the body that the planes are sections of; points (N, 3) in the planes' frame."""
    place = np.interp(points[:, 2], heights, np.arange(len(heights)))
    depth = np.zeros(len(points))
    for number, loops in enumerate(planes):
        share = np.clip(1 - np.abs(place - number), 0, None)
        near = share > 0
        depth[near] += share[near] * _depth_in_plane(points[near, :2], loops)
    return depth


def _depth_in_plane(points: np.ndarray, loops: Sequence[np.ndarray]) -> np.ndarray:
    """Distance to the nearest outline in mm, negative outside."""
    outline = np.concatenate([_densely(loop) for loop in loops])
    return np.where(_inside(points, loops), 1, -1) * cKDTree(outline).query(points)[0]


def _densely(loop: np.ndarray) -> np.ndarray:
    closed = np.concatenate([loop, loop[:1]])
    length = np.concatenate([[0], np.linalg.norm(np.diff(closed, axis=0), axis=1).cumsum()])
    at = np.arange(0, length[-1], OUTLINE_STEP_MM)
    return np.stack([np.interp(at, length, closed[:, axis]) for axis in range(2)], axis=1)


def _inside(points: np.ndarray, loops: Sequence[np.ndarray]) -> np.ndarray:
    inside = np.zeros(len(points), dtype=bool)
    for loop in loops:
        inside ^= Polygon(loop).contains_points(points)
    return inside


def _area_mm2(loops: Sequence[np.ndarray]) -> float:
    """Counted on a lattice, which the even-odd rule needs where contours touch or cross."""
    corners = np.concatenate(loops)
    step = np.ptp(corners, axis=0) / AREA_STEPS
    axes = [low + (np.arange(AREA_STEPS) + 0.5) * d for low, d in zip(corners.min(0), step, strict=True)]
    return _inside(np.stack(np.meshgrid(*axes), -1).reshape(-1, 2), loops).sum() * step.prod()
