"""Whether scans fit what the glioma network was trained on: skull-stripped, and each the contrast it is given as.

What is sure is refused, what is doubtful is flagged, each with a sentence. How often it errs: docs/why/contract.md.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes
from scipy import ndimage
from tissnet_components.errors import BadCase
from tissnet_components.scans.appearance import KNOWN, Features, Tables, likeliest_names, measure, strangeness
from tissnet_components.scans.appearance_tables import TABLES
from tissnet_components.scans.brain import Background, find_background, find_brain, largest_component

GRID_MM = 2.0  # the grid on which all is measured
BRAIN_ML = (900, 2000)
HEAD_ML = 2100  # more is no brain
JUDGED_ML = 500  # of less brain, nothing is said about contrasts
IDENTICAL = 0.99  # correlation inside the brain; T1 with and without contrast agent reach 0.89
SURE, DOUBTFUL = 5.0, 0.0  # by how much other names fit better
STRANGE = 40.0  # robust squared distance of a histogram
SHELL_MM, DEEPEST_MM = 3, 24  # of the layers below the surface that are searched for a skull
SKULL, DARK = 1.3, 1.1  # times as bright as a layer are both what lies outside and what lies below: surely, perhaps


@dataclass
class Findings:
    """Volume of the brain, and by the name of what was found a sentence: what is refused, what is doubtful."""

    brain_ml: float
    refused: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)


def examine(scans: np.ndarray, names: Sequence[str], spacing_mm: Sequence[float], tables: Tables = TABLES) -> Findings:
    """Look at the scans of one brain on a coarse grid.

    Args:
        names: what they are given as, such as t1, t1ce, t2.
        tables: how contrasts look.

    Shapes:
        scans: (C, X, Y, Z), on one grid.
    """
    steps = [max(round(GRID_MM / length), 1) for length in spacing_mm]
    coarse = [scan[tuple(slice(None, None, step) for step in steps)].astype(np.float32) for scan in scans]
    coarse_mm = np.multiply(spacing_mm, steps)
    grounds = [find_background(scan) for scan in coarse]
    brains = [find_brain(scan, ground) for scan, ground in zip(coarse, grounds, strict=True)]
    brain = largest_component(np.logical_and.reduce(brains))
    ml = float(np.prod(coarse_mm)) / 1000
    found = Findings(round(float(brain.sum() * ml), 1))
    _look_at_backgrounds(found, grounds, names)
    _look_at_volumes(found, max(float(one.sum() * ml) for one in brains))
    if found.brain_ml < JUDGED_ML or "skull" in found.refused:
        return found
    head = max(brains, key=np.sum)
    box = ndimage.find_objects(head.astype(np.uint8))[0]
    above = [scan[box] - ground.value for scan, ground in zip(coarse, grounds, strict=True)]
    inside = [np.pad(scan, 1) for scan in above]
    depth_mm = ndimage.distance_transform_edt(np.pad(brain[box], 1), sampling=coarse_mm)
    apart = head.sum() > 1.02 * brain.sum()  # one scan has its head left, another lost it with the background
    below_mm = ndimage.distance_transform_edt(np.pad(head[box], 1), sampling=coarse_mm) if apart else depth_mm
    _look_for_a_skull(found, inside, below_mm, names)
    if _look_for_copies(found, [scan[brain[box]] for scan in above], names) or not set(names) <= set(KNOWN):
        return found
    _look_at_contrasts(found, measure(inside, depth_mm), names, tables)
    return found


def _look_at_backgrounds(found: Findings, grounds: Sequence[Background], names: Sequence[str]) -> None:
    odd = [f"{name} {ground}" for name, ground in zip(names, grounds, strict=True) if ground != Background(0, 0)]
    if odd:
        found.doubtful["background"] = f"the background should be 0 and is {', '.join(odd)}"


def _look_at_volumes(found: Findings, head_ml: float) -> None:
    if head_ml > HEAD_ML:
        found.refused["skull"] = f"the scans show {head_ml:.0f} ml, more than a brain, so they are not skull-stripped"
    elif not BRAIN_ML[0] <= found.brain_ml <= BRAIN_ML[1]:
        found.doubtful["brain_volume"] = (
            f"the brain has {found.brain_ml:.0f} ml, expected {BRAIN_ML[0]} to {BRAIN_ML[1]} ml"
        )


def _look_for_a_skull(found: Findings, scans: Sequence[np.ndarray], depth_mm: np.ndarray, names: Sequence[str]) -> None:
    """A dark layer between two brighter ones; in T2 fluid and white matter look alike, so the others are asked."""
    asked = [scan for name, scan in zip(names, scans, strict=True) if name != "t2"] or scans
    dip = max(_dip(scan, depth_mm) for scan in asked)
    sentence = f"below the surface lies a layer {dip:.1f} times darker than what is around it, like a skull"
    if dip > SKULL:
        found.refused["skull"] = f"{sentence}, so they are not skull-stripped"
    elif dip > DARK:
        found.doubtful["skull"] = sentence


def _dip(scan: np.ndarray, depth_mm: np.ndarray) -> float:
    """How many times darker a layer is than the brightest outside and the brightest below; about 1 in a brain."""
    inside = (depth_mm > 0) & (depth_mm <= DEEPEST_MM)
    layers = np.ceil(depth_mm[inside] / SHELL_MM).astype(int)
    bright = ndimage.median(scan[inside], layers, np.unique(layers))
    dips = [min(bright[:at].max(), bright[at + 1 :].max()) / max(bright[at], 1e-6) for at in range(1, len(bright) - 1)]
    return float(max(dips, default=1))


def _look_for_copies(found: Findings, scans: Sequence[np.ndarray], names: Sequence[str]) -> bool:
    for a, b in combinations(range(len(scans)), 2):
        if np.corrcoef(scans[a], scans[b])[0, 1] > IDENTICAL:
            found.refused["copy"] = f"{names[a]} and {names[b]} show the same image"
    return "copy" in found.refused


def _look_at_contrasts(found: Findings, features: Features, names: Sequence[str], tables: Tables) -> None:
    better, by = likeliest_names(features, names, tables)
    changed = [f"{given} looks like {like}" for given, like in zip(names, better, strict=True) if given != like]
    if by > SURE:
        found.refused["contrast"] = f"what is given as {' and what is given as '.join(changed)}"
    elif by > DOUBTFUL:
        found.doubtful["contrast"] = f"what is given as {' and what is given as '.join(changed)}, but not surely"
    odd = [name for name, own in zip(names, features[0], strict=True) if strangeness(own, name, tables) > STRANGE]
    if odd and not found.refused:
        found.doubtful["histogram"] = f"the grey values of {', '.join(odd)} are spread as in no scan of the training"


class CheckPlausibled(MapTransform):
    """Refuse scans that the glioma network cannot segment, and note doubts in the image's metadata for the summary.

    Args:
        keys: ``image``.
        modalities: what its channels are given as, in order.
        force: note what would be refused as doubtful instead.

    Shapes:
        image: (C, X, Y, Z), as loaded; comes back unchanged, with ``brain_ml`` and any ``doubts`` in its metadata.

    Raises:
        BadCase: see `examine`.
    """

    def __init__(self, keys: KeysCollection, modalities: Sequence[str], force: bool = False) -> None:
        super().__init__(keys)
        self.modalities, self.force = list(modalities), force

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            image = data[key]
            names = image.meta.get("contrasts", self.modalities)
            found = examine(image.cpu().numpy(), names, voxel_sizes(np.asarray(image.affine)))
            if found.refused and not self.force:
                case = image.meta.get("case") or image.meta.get("filename_or_obj", "the case")
                raise BadCase(f"{case}: {'; '.join(found.refused.values())}; give others, or set force (--force)")
            image.meta["brain_ml"] = found.brain_ml
            if doubts := {**found.refused, **found.doubtful}:  # MONAI 1.6 decollates an empty dict into no dict
                image.meta["doubts"] = doubts
        return dict(data)
