"""Which of a study's DICOM series is T1, contrast-enhanced T1, T2 or FLAIR, by what the headers say."""

import re
from pathlib import Path

from tissnet_components.datasets.cases import BadCase
from tissnet_components.datasets.dicom import IMAGE_MODALITIES, Series, find_series

T1 = re.compile(r"(?<![a-z0-9])t1|mprage|flash|bravo", re.IGNORECASE)
T2 = re.compile(r"(?<![a-z0-9])t2|ciss|fiesta|drive", re.IGNORECASE)
FLAIR = re.compile(r"flair|dark.?fluid", re.IGNORECASE)
AGENT = r"(?:gad[a-z]*|contrast|gd|ce|km|\+?c)(?![a-z])"
PLAIN = re.compile(
    rf"(?<![a-z])(?:pre(?![a-z]|[ _-]?op)(?:[ _-]*{AGENT})?"
    rf"|w/?o(?:[ _-]*{AGENT}|$)|(?:non?|without|ohne)[ _-]*{AGENT})",
    re.IGNORECASE,
)
ENHANCED = re.compile(
    r"gad|contrast|\+c(?![a-z])|(?<![a-z])(?:c\+|(?:gd|ce|km)(?![a-z])|post(?![a-z]|[ _-]?op))"
    r"|(?<=t1)(?:ce|c|gd)(?![a-z])",
    re.IGNORECASE,
)
NO_AGENT = re.compile(r"(?:no(?:ne)?|n/?a|without|ohne|0|-)?", re.IGNORECASE)  # as typed where one must be entered


def weighting(series: Series) -> str | None:
    """``t1``, ``t1ce``, ``t2`` or ``flair``, by description and contrast agent; None where they do not tell one."""
    text = series.description
    if FLAIR.search(text) and not T1.search(text):  # "T1 FLAIR" is T1
        return "flair"
    if bool(T1.search(text)) == bool(T2.search(text)):
        return None
    if T2.search(text):
        return "t2"
    plain, enhanced = PLAIN.search(text), ENHANCED.search(PLAIN.sub(" ", text))
    if plain:
        return None if enhanced else "t1"
    return "t1ce" if enhanced or not NO_AGENT.fullmatch(series.agent) else "t1"


def choose_series(folder: str | Path, modality: str) -> Series:
    """The series of a modality below a folder; one that is there alone may be called anything but another modality.

    Alone, a T1 whose headers name no contrast agent may be the contrast-enhanced one: not every scanner is told.

    Raises:
        BadCase: there is none, or several could be meant.
    """
    images = [series for series in find_series(folder) if series.modality in IMAGE_MODALITIES]
    telling = [modality] if len(images) > 1 else [modality, None, *(["t1"] if modality == "t1ce" else [])]
    fits = [series for series in images if weighting(series) in telling]
    if len(fits) == 1:
        return fits[0]
    if not images:
        raise BadCase(f"{folder} holds no DICOM images; give the folder of a series, or a NIfTI file")
    named = ", ".join(repr(series.description or series.uid) for series in fits or images)
    problem = f"{len(fits)} series that look like" if fits else "no series that looks like"
    cure = "the folder of the series alone" if len(images) > 1 else "another folder, or the scan as NIfTI file"
    raise BadCase(f"{folder} holds {problem} {modality}: {named}; give {cure}")
