"""Which of a study's DICOM series is taken for each contrast, and why."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from os.path import isdir
from pathlib import Path

import numpy as np
from tissnet_components.errors import BadCase
from tissnet_components.scans.contrast import OTHER, Told, contrast_of, name_of, says_agent, slice_normal, vector
from tissnet_components.scans.dcm2niix import series_below
from tissnet_components.scans.dicom import IMAGE_MODALITIES, Series

SLAB_MM = 80  # a lower stack does not show the whole head
SHOWN = 15  # series listed in a message
REFORMATTED = re.compile(r"(?<![a-z])(?:mpr|mpvr|re(?:format|[ck]on)[a-z]*)(?![a-z])")
THREE_D = re.compile(r"3d|mp[ -]?rage|bravo|space|cube|vista|brain ?view")
NOT_AXIAL = re.compile(r"(?<![a-z])(?:[ck]or|sag)")


def with_series(
    scans: str | Sequence[str], modalities: Sequence[str], wanted: Mapping[str, str | None] | None = None
) -> str | list[str | Series]:
    """The scans, with the DICOM series of its modality instead of each folder.

    Args:
        scans: a file or folder per modality, or one file of all, which is returned as it is.
        wanted: modality -> UID, end of it, or description of the series to take.

    Raises:
        BadCase: none or several series fit, one fits twice, or they are not of one patient and day.
    """
    wanted = {modality: str(name) for modality, name in (wanted or {}).items() if name}
    named = {} if isinstance(scans, str) else dict(zip(modalities, scans, strict=True))
    for modality in wanted:
        if not isdir(named.get(modality, "")):
            raise BadCase(f"--{modality}-series chooses from a DICOM folder, but --{modality} is none; leave it out")
    if isinstance(scans, str):
        return scans
    found = {folder: series_below(folder) for folder in dict.fromkeys(scans) if isdir(folder)}
    taken = [choose(found[s], s, m, wanted.get(m)) if s in found else s for m, s in named.items()]
    _check_apart(taken, modalities)
    _check_together({m: (s, one) for (m, s), one in zip(named.items(), taken, strict=True) if m not in wanted})
    return taken


def choose_series(folder: str | Path, modality: str, wanted: str | None = None) -> Series:
    """The series of a modality below a folder, see `choose`."""
    return choose(series_below(folder), folder, modality, wanted)


def contrasts_below(folder: str | Path) -> set[str]:
    """What the DICOM series below a folder show, as far as their headers tell."""
    images = [series for series in series_below(folder) if series.modality in IMAGE_MODALITIES]
    return {told.contrast for told in _told(images).values() if told.contrast}


def choose(found: Sequence[Series], folder: str | Path, modality: str, wanted: str | None = None) -> Series:
    """The series of a modality among those of a folder, with the reason.

    Of several, the original, thin, three-dimensional and axial ones come first. A series that is there alone may be
    called anything but something else; a T1 alone whose headers name no contrast agent may be the enhanced one: not
    every scanner is told.

    Raises:
        BadCase: there is none, or several could be meant.
    """
    images = [series for series in found if series.modality in IMAGE_MODALITIES]
    if not images:
        raise BadCase(f"{folder} holds no DICOM images; give the folder of a series, or a NIfTI file")
    told = _told(images)
    if wanted:
        return _wanted(told, folder, modality, wanted)
    fits = [series for series in images if told[series].contrast == modality]
    if not fits and len(images) == 1 and _may_be(told[images[0]], modality):
        fits = images
    best, why = _preferred(fits, modality)
    if len(best) == 1:
        alone = "" if told[best[0]].contrast == modality else "; it is the only one there"
        reason = told[best[0]].reason + (f"; of {len(fits)} it has {why}" if why else alone)
        return replace(best[0], contrast=modality, reason=reason)
    problem = f"{len(best)} series that look like" if best else "no series that looks like"
    listed = _listed({series: told[series] for series in best or images})
    raise BadCase(f"{folder} holds {problem} {modality}: {listed}; choose with --{modality}-series UID")


def _may_be(told: Told, modality: str) -> bool:
    """Whether a series that is there alone may be of a modality that its headers do not tell."""
    enhanced = modality == "t1ce"
    return (enhanced and told.contrast == "t1") or ("t1" if enhanced else modality) in told.can_be


def _told(images: Sequence[Series]) -> dict[Series, Told]:
    """What each series is. A T1 of which nothing says that it is plain, acquired after an enhanced one, is neither."""
    told = {series: contrast_of(series) for series in images}
    enhanced = [_start(series) for series in images if told[series].contrast == "t1ce" and any(_start(series))]
    for series in images:
        late = any(day == _start(series)[0] and _start(series)[1] > time > "" for day, time in enhanced)
        if told[series].contrast == "t1" and late and not says_agent(name_of(series))[0]:
            told[series] = Told(OTHER, "t1 that does not say so, acquired after the contrast agent")
    return told


def _start(series: Series) -> tuple[str, str]:
    """The day and the time of a series, "" where unknown."""
    header = series.headers[0] if series.headers else {}
    return header.get("StudyDate", ""), header.get("AcquisitionTime", "") or header.get("SeriesTime", "")


def _wanted(told: Mapping[Series, Told], folder: str | Path, modality: str, wanted: str) -> Series:
    """The series that the user names."""
    ways: list[Callable[[Series], bool]] = [
        lambda series: series.uid == wanted,
        lambda series: series.description.casefold() == wanted.casefold(),
        lambda series: series.uid.endswith(wanted),
    ]
    fits = next((fits for way in ways if (fits := [series for series in told if way(series)])), [])
    if len(fits) == 1:
        contrast, reason, _ = told[fits[0]]
        doubt = "" if contrast == modality else f", though it is {reason}"
        return replace(fits[0], contrast=modality, reason=f"--{modality}-series names it{doubt}")
    problem = f"{len(fits)} series" if fits else "no series"
    listed = _listed({series: told[series] for series in fits or told})
    raise BadCase(f"{folder} holds {problem} that --{modality}-series {wanted!r} names: {listed}; give a whole UID")


def _listed(told: Mapping[Series, Told]) -> str:
    texts = [f"{series.description!r} (UID {series.uid}; {reason})" for series, (_, reason, *_) in told.items()]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def _preferred(fits: list[Series], modality: str) -> tuple[list[Series], str]:
    """Those of equal contrast to be preferred, and for what; a slab and a whole head serve different ends."""
    stacks = {series: _stack(series) for series in fits}
    if len({height_mm < SLAB_MM for height_mm, _, _ in stacks.values()}) > 1:
        return fits, ""
    merits: dict[str, Callable[[Series], float]] = {
        "the name of a plain scan": lambda series: modality == "t1" and says_agent(name_of(series))[0],
        "no contrast agent in its name": lambda series: modality != "t1ce" and not says_agent(name_of(series))[1],
        "original images": lambda series: not _derived(series),
        "the thinnest slices": lambda series: -round(stacks[series][1]),
        "three dimensions": lambda series: _three_dimensional(series),
        "axial slices": lambda series: stacks[series][2] and not NOT_AXIAL.search(name_of(series)),
        "corrected images": lambda series: len(_image_type(series) & {"NORM", "DIS2D", "DIS3D"}),
    }
    why: list[str] = []
    for name, merit in merits.items():
        most = max(map(merit, fits), default=0)
        if len(kept := [series for series in fits if merit(series) == most]) < len(fits):
            why, fits = [*why, name], kept
    return fits, " and ".join(why)


def _stack(series: Series) -> tuple[float, float, bool]:
    """Height and distance of the slices in mm, and whether they are axial; zeros where the headers do not tell."""
    normal = slice_normal(series.headers[0]) if series.headers else None
    places = [vector(header, "ImagePositionPatient", 3) for header in series.headers]
    if normal is None or any(place is None for place in places):
        return 0, 0, False
    heights_mm = np.unique(np.round(np.array(places) @ normal, 2))
    height_mm = float(np.ptp(heights_mm))
    return height_mm, height_mm / max(len(heights_mm) - 1, 1), abs(normal[2]) > 0.7


def _check_apart(taken: Sequence[str | Series], modalities: Sequence[str]) -> None:
    twice = [one for one in taken if isinstance(one, Series) and taken.count(one) > 1]
    if twice:
        raise BadCase(f"{twice[0]} would be more than one of {', '.join(modalities)}; give each its own series")


def _check_together(taken: Mapping[str, tuple[str, str | Series]]) -> None:
    """Refuse series of two patients, and of two days in one folder, among those that no option names."""
    series = [(modality, folder, one) for modality, (folder, one) in taken.items() if isinstance(one, Series)]
    for (first, folder, one), (second, other_folder, other) in combinations(series, 2):
        days = {_start(one)[0], _start(other)[0]} - {""}
        if len({one.patient, other.patient} - {""}) > 1:
            problem = "of two patients by PatientID"
        elif folder == other_folder and len(days) > 1:
            problem = f"of two days by StudyDate, {' and '.join(sorted(days))}"
        else:
            continue
        raise BadCase(f"{one} and {other} are {problem}; choose with --{first}-series UID and --{second}-series UID")


def _derived(series: Series) -> bool:
    types = _image_type(series) - {""}
    return bool(types & {"DERIVED", "REFORMATTED", "MPR"} if types else REFORMATTED.search(name_of(series)))


def _three_dimensional(series: Series) -> bool:
    kind = _header(series, "MRAcquisitionType")
    return kind == "3D" if kind else bool(THREE_D.search(name_of(series)))


def _image_type(series: Series) -> set[str]:
    return set(_header(series, "ImageType").upper().split("\\"))


def _header(series: Series, tag: str) -> str:
    return series.headers[0].get(tag, "") if series.headers else ""
