"""Names: of files, which tell the case and the contrast, and of cases, which become folders."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tissnet_components.errors import BadCase
from tissnet_components.files import existing_folder
from tissnet_components.scans.nifti import is_nifti, nifti_files, without_ending

MODALITIES = ("t1", "t1ce", "t2", "flair")
UNFIT = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]")  # in a folder's name; the last are bytes that are no UTF-8
LONGEST_NAME = 200  # bytes; a file's name has at most 255, and results add to the case's
SUFFIXES = {  # contrast or label -> how the end of a file's name tells it, in BraTS, UPENN-GBM, UCSF-PDGM and elsewhere
    "t1": r"t1[nw]?",
    "t1ce": r"t1w?[_-]?(?:ce|c|gd|post)",
    "t2": r"t2w?",
    "flair": r"(?:t2[_-]?)?flair|t2f",
    "seg": r"segm?|tumou?r[_-]segmentation",
}
SCAN_NAME = re.compile(
    rf"(?:(?P<case>.+?)[_-])?(?:{'|'.join(f'(?P<{name}>{ending})' for name, ending in SUFFIXES.items())})",
    re.IGNORECASE | re.DOTALL,
)
BIDS_NAME = re.compile(
    r"(?P<case>sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)_(?P<entities>(?:[a-z]+-[A-Za-z0-9]+_)*)(?P<suffix>\w+)"
)
NNUNET_NAME = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
SHARED_FOLDER = re.compile(  # holds a kind of file, and so tells no patient
    rf"anat|nifti|scans|images(?:T[rs])?|labels(?:T[rs])?|segmentations?|{'|'.join(SUFFIXES.values())}", re.IGNORECASE
)
VISIT_FOLDER = re.compile(
    r"ses-\w+|(?:session|week|month|visit|time(?:point)?|baseline)\W?\w*|(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d.*",
    re.IGNORECASE,
)
MISNAMED_SEG = "W39_1998.09.19_Segm"  # in BraTS 2020's folder BraTS20_Training_355, under this name to this day


def check_case_name(name: object, source: str | Path) -> str:
    """The name, if results can be filed under it: inside their folder, on any file system.

    Raises:
        BadCase: anything else; `source` is what holds the name.
    """
    text = name if isinstance(name, str) else ""
    if text in ("", ".", "..") or UNFIT.search(text) or len(text.encode()) > LONGEST_NAME:
        raise BadCase(
            f"{source} names a case {str(name)[:50]!r}, which cannot be a folder's name; use letters and digits"
        )
    return text


def find_cases(root: str | Path, modalities: Sequence[str] = (*MODALITIES, "seg")) -> dict[str, dict[str, Path]]:
    """Find scans by name, in folders of any depth: case -> modality ("t1", "t1ce", "t2", "flair", "seg") -> file.

    ``BraTS20_Training_001_t1ce.nii.gz``, ``BraTS-GLI-00000-000-t1c.nii.gz``, ``patient7/t1ce.nii``,
    ``sub-07_ses-1_ce-gd_T1w.nii.gz`` (BIDS), ``P7_0001.nii.gz`` beside nnU-Net's dataset.json, and names of UPENN-GBM
    and UCSF-PDGM are all understood. Nothing is opened, and a case may lack any modality: who needs one checks for it.
    Files of other ``modalities`` are passed over, such as results that lie below the scans.

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


def scans_below(folder: str | Path, modalities: Sequence[str], any_subset: bool = False) -> list[dict[str, Any]]:
    """The cases of a folder, as `scans.cases.find_scans` gives them; none where there is none."""
    found = find_candidates(folder, modalities)
    return [_found(check_case_name(case, folder), files, modalities, any_subset) for case, files in found.items()]


def _found(
    case: str, files: Mapping[str, Sequence[Path]], modalities: Sequence[str], any_subset: bool
) -> dict[str, Any]:
    beside = next(iter(files.values()))[0]
    expected = {name: [None if any_subset else beside.with_name(f"{case}_{name}.nii.gz")] for name in modalities}
    scans = [{**expected, **files}[name][0] for name in modalities]
    image = [None if scan is None else str(scan) for scan in scans]
    reason = doubled_file(case, files)
    return {"case": case, "image": image, **({"unusable": reason} if reason else {})}


def tells_contrast(file: Path) -> bool:
    """Whether a file's name tells what it shows."""
    return bool(_case_and_modality(file))


def case_of(scan: Path) -> str:
    """The case of a scan, an absolute path: as its name tells, or else its folders'; all of a name without contrast."""
    named, name, root = _case_and_modality(scan), without_ending(scan.name), Path(scan.anchor)
    return name if named is None else named[0] or _name_of(_home(scan.parent, root), root) or name


def doubled_file(case: str, files: Mapping[str, Sequence[Path]]) -> str | None:
    """Why a case cannot be used if two of its files claim to be the same modality."""
    twice = next((modality for modality in files if len(files[modality]) > 1), None)
    if not twice:
        return None
    one, other = files[twice][:2]
    return f"both {one} and {other} are {twice} of {case}; keep one of them"


def find_siblings(file: str | Path, modalities: Sequence[str], any_subset: bool = False) -> list[Path | None]:
    """The scans of one patient, found by name beside one of them, in the order of ``modalities``.

    Args:
        any_subset: None stands for a sibling that is missing.

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
        told = _case_and_modality(other) if is_nifti(other.name) else None
        if told and told[0] == named[0] and told[1] in modalities:
            beside[told[1]].append(other)
    found, doubled = unambiguous({named[0]: beside})
    missing = [modality for modality in modalities if modality not in beside]
    if doubled or not beside or (missing and not any_subset):
        raise BadCase(doubled.get(named[0]) or f"{named[0]} has no {', '.join(missing)} in {folder}; add the file")
    return [found[named[0]].get(modality) for modality in modalities]


def candidates_below(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Every scan below a folder: case -> modality -> the files that claim to be it.

    A case lies in one folder, or in neighbouring ones for images, labels or single contrasts. Cases of one name get the
    folders above them as part of it, as far as these tell them apart.
    """
    found: dict[tuple[tuple[str, ...], str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in nifti_files(root):
        if named := _case_and_modality(file):
            home = _home(file.parent.parent if is_nifti(file.parent.name) else file.parent, root)
            found[home, named[0] or _name_of(home, root)][named[1]].append(file)
    return dict(sorted(zip(_apart(list(found)), found.values(), strict=True)))


def _home(folder: Path, root: Path) -> tuple[str, ...]:
    """Where a patient's files lie, below the root: without the folders that part them by kind."""
    home = folder.relative_to(root).parts
    while home and SHARED_FOLDER.fullmatch(home[-1]):
        home = home[:-1]
    return home


def _name_of(home: tuple[str, ...], root: Path) -> str:
    """A case after its folder, and after those above as long as they tell no more than the visit."""
    first = next((depth for depth in range(1, len(home) + 1) if not VISIT_FOLDER.fullmatch(home[-depth])), len(home))
    return "_".join(home[-first:]) if home else root.name


def _apart(found: Sequence[tuple[tuple[str, ...], str]]) -> list[str]:
    """A name for each home and case, longer by one folder at a time where several would have the same."""
    above = [
        next((home[:-count] for count in range(len(home), 0, -1) if case == "_".join(home[-count:])), home)
        for home, case in found
    ]
    names = [case for _, case in found]
    for depth in range(1, 1 + max(map(len, above), default=0)):
        times = Counter(names)
        names = [
            "_".join([*parents[-depth:], case]) if times[name] > 1 else name
            for name, parents, (_, case) in zip(names, above, found, strict=True)
        ]
    return names


def _case_and_modality(file: Path) -> tuple[str, str] | None:
    """What a file's name tells: the case, which may be empty, and the contrast or "seg"; None if no contrast."""
    named = file.parent if is_nifti(file.parent.name) else file  # some mirrors unpack x_flair.nii/00000057_flair.nii
    stem = without_ending(named.name)
    if stem == MISNAMED_SEG:
        return named.parent.name, "seg"
    if bids := BIDS_NAME.fullmatch(stem):
        case, modality = bids["case"], _modality(bids["suffix"])
        modality = "t1ce" if modality == "t1" and "ce-" in bids["entities"] else modality
    elif channel := NNUNET_NAME.fullmatch(stem):
        case, modality = channel["case"], _channels(named.parent).get(str(int(channel["channel"])))
    else:
        match = SCAN_NAME.fullmatch(stem)
        case, modality = (match["case"] or "", match.lastgroup) if match else ("", None)
    return (case, modality) if modality else None


def _modality(suffix: str) -> str | None:
    """The modality of a suffix: "t1" of "T1w", for example."""
    match = SCAN_NAME.fullmatch(suffix)
    return match and match.lastgroup


@cache
def _channels(folder: Path) -> dict[str, str | None]:
    """nnU-Net's channels -> contrast, by its dataset.json, which lies above the folder of images."""
    try:
        names = json.loads((folder.parent / "dataset.json").read_text(encoding="utf-8"))["channel_names"]
        return {number: _modality(str(name)) for number, name in names.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def unambiguous(candidates: Mapping[str, Mapping[str, list[Path]]]) -> tuple[dict[str, dict[str, Path]], dict]:
    unique, doubled = {}, {}
    for case, files in candidates.items():
        reason = doubled_file(case, files)
        if reason:
            doubled[case] = reason
        else:
            unique[case] = {modality: file for modality, (file,) in files.items()}
    return unique, doubled
