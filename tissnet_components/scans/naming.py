"""Names: of files, which tell the case and the contrast, and of cases, which become folders."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tissnet_components.errors import BadCase
from tissnet_components.files import existing_folder
from tissnet_components.scans.nifti import is_nifti, nifti_files

MODALITIES = ("t1", "t1ce", "t2", "flair")
UNFIT = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]")  # in a folder's name; the last are bytes that are no UTF-8
LONGEST_NAME = 200  # bytes; a file's name has at most 255, and results add to the case's
NAMES = {  # until 2021, from 2023 on, elsewhere
    "t1": ("t1", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
    "seg": ("seg",),
}
SUFFIXES = {suffix: modality for modality, suffixes in NAMES.items() for suffix in suffixes}
SCAN_NAME = re.compile(rf"(?:(?P<case>.+)[_-])?(?P<suffix>{'|'.join(SUFFIXES)})", re.IGNORECASE | re.DOTALL)
MISNAMED_SEG = "W39_1998.09.19_Segm"  # in BraTS 2020's folder BraTS20_Training_355, under this name to this day


def check_case_name(name: object, source: str | Path) -> str:
    """The name, if results can be filed under it: inside their folder, on any file system.

    Raises:
        BadCase: anything else; `source` is what holds the name.
    """
    fits = isinstance(name, str) and name not in ("", ".", "..") and not UNFIT.search(name)
    if not fits or len(name.encode()) > LONGEST_NAME:
        raise BadCase(
            f"{source} names a case {str(name)[:50]!r}, which cannot be a folder's name; use letters and digits"
        )
    return name


def find_cases(root: str | Path, modalities: Sequence[str] = (*MODALITIES, "seg")) -> dict[str, dict[str, Path]]:
    """Find scans by name, in folders of any depth: case -> modality ("t1", "t1ce", "t2", "flair", "seg") -> file.

    ``BraTS20_Training_001_t1ce.nii.gz``, ``BraTS-GLI-00000-000-t1c.nii.gz`` and ``patient7/t1ce.nii`` are all
    understood. Nothing is opened, and a case may lack any modality: who needs one checks for it. Files of other
    ``modalities`` are passed over, such as results that lie below the scans.

    Raises:
        BadCase: two files claim to be the same modality of a case.
    """
    unique, doubled = unambiguous(find_candidates(root, modalities))
    for reason in doubled.values():
        raise BadCase(reason)
    return unique


def find_candidates(root: str | Path, modalities: Sequence[str]) -> dict[str, dict[str, list[Path]]]:
    """What `find_cases` finds, with every file that claims to be a modality of a case; see `doubled_file`."""
    candidates = {
        case: {modality: files[modality] for modality in files if modality in modalities}
        for case, files in candidates_below(existing_folder(root)).items()
    }
    return {case: files for case, files in candidates.items() if files}


def doubled_file(case: str, files: Mapping[str, Sequence[Path]]) -> str | None:
    """Why a case cannot be used if two of its files claim to be the same modality."""
    twice = next((modality for modality in files if len(files[modality]) > 1), None)
    if not twice:
        return None
    one, other = files[twice][:2]
    return f"both {one} and {other} are {twice} of {case}; keep one of them"


def find_siblings(file: str | Path, modalities: Sequence[str]) -> list[Path]:
    """The scans of one patient, found by name beside one of them, in the order of ``modalities``.

    Raises:
        BadCase: the name tells no contrast, or a sibling is missing or doubled.
    """
    folder, named = Path(file).parent, _case_and_modality(Path(file))
    if not named:
        raise BadCase(
            f"{file} is one volume and its name tells no contrast, but {', '.join(modalities)} are needed; name the "
            f"files of a folder like CASE_{modalities[0]}.nii.gz, or give one 4-D file"
        )
    beside: dict[str, list[Path]] = defaultdict(list)
    for other in sorted(folder.iterdir()):
        case, modality = (is_nifti(other.name) and _case_and_modality(other)) or (None, None)
        if case == named[0] and modality in modalities:
            beside[modality].append(other)
    found, doubled = unambiguous({named[0]: beside})
    missing = [modality for modality in modalities if modality not in beside]
    if doubled or missing:
        raise BadCase(doubled.get(named[0]) or f"{named[0]} has no {', '.join(missing)} in {folder}; add the file")
    return [found[named[0]][modality] for modality in modalities]


def candidates_below(root: Path) -> dict[str, dict[str, list[Path]]]:
    candidates: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in nifti_files(root):
        named = _case_and_modality(file)
        if named:
            case, modality = named
            candidates[case][modality].append(file)
    return dict(sorted(candidates.items()))


def _case_and_modality(file: Path) -> tuple[str, str] | None:
    named = file.parent if is_nifti(file.parent.name) else file  # some mirrors unpack x_flair.nii/00000057_flair.nii
    stem = named.name.removesuffix(".gz").removesuffix(".nii")
    if stem == MISNAMED_SEG:
        return named.parent.name, "seg"
    match = SCAN_NAME.fullmatch(stem)
    return match and (match["case"] or named.parent.name, SUFFIXES[match["suffix"].lower()])


def unambiguous(candidates: Mapping[str, Mapping[str, list[Path]]]) -> tuple[dict[str, dict[str, Path]], dict]:
    unique, doubled = {}, {}
    for case, files in candidates.items():
        reason = doubled_file(case, files)
        if reason:
            doubled[case] = reason
        else:
            unique[case] = {modality: file for modality, (file,) in files.items()}
    return unique, doubled
