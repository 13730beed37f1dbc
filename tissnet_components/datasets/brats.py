"""From a BraTS download, of any year, to a checked datalist with a reproducible split."""

import csv
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import abspath
from pathlib import Path

import nibabel as nib
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tqdm import tqdm

from tissnet_components.datasets.cases import (
    MODALITIES,
    SECTIONS,
    BadCase,
    check_case_name,
    check_readable,
    usable_cases,
)
from tissnet_components.files import whole

PAPER_SPLIT = (258, 37, 74)  # of BraTS 2020's 369 patients: training, validation, test
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
TIME_POINT = re.compile(r"(BraTS-\w+-\d+)-\d+")  # 2023-2025: BraTS-GLI-00005-000 and -001 are one patient
DECATHLON = "Task01_BrainTumour"
DECATHLON_FOLDERS = ("imagesTr", "labelsTr", "imagesTs")
DECATHLON_ORDER = ("flair", "t1", "t1ce", "t2")
DECATHLON_NAMES = {"flair": "flair", "t1w": "t1", "t1gd": "t1ce", "t2w": "t2"}
UNLABELLED = "no seg file, as in the challenge's validation and test sets"
SPLIT_NAMES = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_SYNONYMS = {name: section for section, names in SPLIT_NAMES.items() for name in names}


def prepare_brats(
    root: str,
    out: str = "datalist.json",
    target: str = "flair",
    source: str | Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Check a BraTS download case by case and write the datalist that the bundle trains on.

    Reads BraTS 2018 to 2025 as they are unpacked (any folder depth, .nii or .nii.gz) and the Medical Segmentation
    Decathlon's Task01_BrainTumour, whose 4-D files are first written as one file per modality beside the datalist;
    run the same command again to go on after an interruption. Cases that cannot be used are listed with the reason.
    Any but those without label or not named by the split make the exit status 1, after the datalist of the others.
    Whole tumor means any label above 0, whatever each year's values stand for (2024's resection cavity included).

        python -m tissnet_components prepare_brats --root MICCAI_BraTS2020_TrainingData --out datalist.json
        python -m tissnet_components prepare_brats --root Task01_BrainTumour --source t2 --target t1ce

    Args:
        root: the unpacked download.
        out: the datalist to write; paths in it are relative to its folder where possible, so the two can move together.
        target: the modality to synthesise, missing at inference: t1, t1ce, t2 or flair.
        source: the modalities available at inference, e.g. t1,t2; by default the three that are not the target.
        split: a CSV file with the columns case and split (training, validation or test; cases it does not name are
            left out). By default patients are drawn in the paper's proportions, 258/37/74.
        seed: of that draw; the same seed and cases give the same file.
        workers: cases read at the same time; by default one per core, at most eight.

    Raises:
        ValueError: one sentence, before anything is read when an argument is wrong, or when cases are not usable.
    """
    folder, datalist, workers = existing_folder(root), writable(out), checked_workers(workers)
    sources = _chosen_sources(source, target)
    assigned = read_split(split) if split else None
    found, failed = _discover(folder, datalist.parent, workers)
    unnamed = set_apart_unnamed(found, failed, assigned, split) if split else {}
    entries, incomplete = _entries(found, sources, target)
    good, unusable = usable_cases(entries, workers)
    failed |= incomplete | unusable
    skipped = unnamed | failed
    print_skipped(skipped, folder)
    if not good:
        raise ValueError(f"none of the {len(skipped)} cases in {folder} is usable, see the reasons above")
    names = [entry["case"] for entry in good]
    sections = split_cases(names, seed) if assigned is None else _by_section(assigned, names)
    _write_datalist(datalist, good, sections, sources, target, f"seed {seed}" if assigned is None else Path(split).name)
    print_summary(datalist, sections, sources, target, len(skipped))
    refuse_failed({case: reason for case, reason in failed.items() if split or reason != UNLABELLED}, len(good))


def find_cases(root: str | Path, modalities: Sequence[str] = (*MODALITIES, "seg")) -> dict[str, dict[str, Path]]:
    """Find scans by name, in folders of any depth: case -> modality ("t1", "t1ce", "t2", "flair", "seg") -> file.

    ``BraTS20_Training_001_t1ce.nii.gz``, ``BraTS-GLI-00000-000-t1c.nii.gz`` and ``patient7/t1ce.nii`` are all
    understood. Nothing is opened, and a case may lack any modality: who needs one checks for it. Files of other
    ``modalities`` are passed over, such as results that lie below the scans.

    Raises:
        BadCase: two files claim to be the same modality of a case.
    """
    candidates = {
        case: {modality: files[modality] for modality in files if modality in modalities}
        for case, files in _candidates(existing_folder(root)).items()
    }
    unique, doubled = _unambiguous({case: files for case, files in candidates.items() if files})
    for reason in doubled.values():
        raise BadCase(reason)
    return unique


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
        case, modality = (_is_nifti(other.name) and _case_and_modality(other)) or (None, None)
        if case == named[0] and modality in modalities:
            beside[modality].append(other)
    found, doubled = _unambiguous({named[0]: beside})
    missing = [modality for modality in modalities if modality not in beside]
    if doubled or missing:
        raise BadCase(doubled.get(named[0]) or f"{named[0]} has no {', '.join(missing)} in {folder}; add the file")
    return [found[named[0]][modality] for modality in modalities]


def split_cases(names: Sequence[str], seed: int, proportions: Sequence[int] = PAPER_SPLIT) -> dict[str, list[str]]:
    """Draw training, validation and test, keeping all time points of a patient together.

    Validation and test are rounded down but get at least one patient once there are three; training gets the rest:
    12 patients give 9/1/2 and the paper's 369 give its 258/37/74.
    """
    patients = sorted({patient_of(name) for name in names})
    random.Random(seed).shuffle(patients)
    least = 1 if len(patients) >= len(SECTIONS) else 0
    validation, test = (max(least, len(patients) * part // sum(proportions)) for part in proportions[1:])
    chosen = dict.fromkeys(patients, "training")
    chosen |= dict.fromkeys(patients[:validation], "validation")
    chosen |= dict.fromkeys(patients[validation : validation + test], "test")
    return _by_section({name: chosen[patient_of(name)] for name in names}, names)


def read_split(path: str | Path) -> dict[str, str]:
    """Read a CSV with the columns ``case`` and ``split``: case -> "training", "validation" or "test".

    The first line may name the columns; TCIA's split_TCIA.csv has no such line.

    Raises:
        ValueError: missing file or column, an unknown split, a case named twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            named = file.readline().rpartition(",")[2].strip().lower() not in SPLIT_SYNONYMS
            file.seek(0)
            rows = list(csv.DictReader(file, None if named else ["case", "split"], skipinitialspace=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(
            f"split file {path} cannot be read ({error}); expected a CSV with columns case,split"
        ) from error
    assigned: dict[str, str] = {}
    for line, row in enumerate(rows, start=2 if named else 1):
        case, section = (row.get("case") or "").strip(), SPLIT_SYNONYMS.get((row.get("split") or "").strip().lower())
        if not case or not section:
            raise ValueError(f"{path}, line {line}: got {row}, expected case,split with split one of {SECTIONS}")
        if case in assigned:
            raise ValueError(f"{path}, line {line}: case {case} is named a second time; keep one line per case")
        assigned[case] = section
    if not assigned:
        raise ValueError(f"split file {path} names no case; expected a CSV with columns case,split")
    return assigned


def existing_folder(root: str | Path) -> Path:
    folder = Path(abspath(Path(str(root)).expanduser()))  # Fire hands a folder called 2020 over as a number
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is not a folder; give the folder that the download was unpacked to")
    return folder


def checked_workers(workers: int | None) -> int:
    """How many cases to work on at the same time: as given, or one per core, at most eight."""
    if workers is None:
        return min(8, os.cpu_count() or 1)
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers is {workers!r}, expected an integer of at least 1")
    return workers


def refuse_failed(failed: Mapping[str, str], good: int) -> None:
    """After the datalist of the good cases is written: raise ValueError if others failed."""
    if failed:
        raise ValueError(f"{len(failed)} of {len(failed) + good} cases are not in the datalist, see the reasons above")


def writable(out: str | Path) -> Path:
    path = Path(abspath(Path(str(out)).expanduser()))
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; give the file to write, for example --out {path / 'datalist.json'}")
    probe = path.with_name(f".{os.getpid()}_probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
    return path


def _chosen_sources(source: str | Sequence[str] | None, target: str) -> list[str]:
    if source is None:
        chosen = [modality for modality in MODALITIES if modality != target]
    else:
        chosen = [part.strip() for part in source.split(",")] if isinstance(source, str) else list(source)
    unknown = [modality for modality in (*chosen, target) if modality not in MODALITIES]
    if unknown:
        raise ValueError(f"unknown modality {unknown[0]!r}; known: {', '.join(MODALITIES)}")
    if not chosen or target in chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"sources {chosen} for target {target!r}: name each source once, and the target not among them"
        )
    return chosen


def _discover(root: Path, beside: Path, workers: int | None) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Files of each case, and why some cases have none that can be used."""
    decathlon = next((folder for folder in (root, root / DECATHLON) if (folder / "imagesTr").is_dir()), None)
    if decathlon:
        found, skipped = _unpack_decathlon(decathlon, beside / f"{DECATHLON}_3d", workers)
    else:
        found, skipped = _unambiguous(_candidates(root))
    if not found and not skipped:
        raise ValueError(
            f"{root} holds no BraTS case: expected files called like BraTS20_Training_001_t1ce.nii.gz or "
            f"BraTS-GLI-00000-000-t1c.nii.gz, or the Decathlon's {DECATHLON}; give the unpacked download"
        )
    return found, skipped


def _candidates(root: Path) -> dict[str, dict[str, list[Path]]]:
    candidates: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in _nifti_files(root):
        named = _case_and_modality(file)
        if named:
            case, modality = named
            candidates[case][modality].append(file)
    return dict(sorted(candidates.items()))


def _nifti_files(root: Path) -> Iterator[Path]:
    """All NIfTI files below a folder, links followed once; hidden ones are macOS's shadows or half-written."""
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(names) if _is_nifti(name) and not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    raise ValueError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable or move it away"
    ) from error


def _is_nifti(name: str) -> bool:
    return name.endswith((".nii", ".nii.gz"))


def _case_and_modality(file: Path) -> tuple[str, str] | None:
    named = file.parent if _is_nifti(file.parent.name) else file  # some mirrors unpack x_flair.nii/00000057_flair.nii
    stem = named.name.removesuffix(".gz").removesuffix(".nii")
    if stem == MISNAMED_SEG:
        return named.parent.name, "seg"
    match = SCAN_NAME.fullmatch(stem)
    return match and (match["case"] or named.parent.name, SUFFIXES[match["suffix"].lower()])


def _unambiguous(candidates: Mapping[str, Mapping[str, list[Path]]]) -> tuple[dict[str, dict[str, Path]], dict]:
    unique, doubled = {}, {}
    for case, files in candidates.items():
        twice = next((modality for modality in files if len(files[modality]) > 1), None)
        if twice:
            one, other = files[twice][:2]
            doubled[case] = f"both {one} and {other} are {twice} of {case}; keep one of them"
        else:
            unique[case] = {modality: file for modality, (file,) in files.items()}
    return unique, doubled


def _unpack_decathlon(folder: Path, to: Path, workers: int | None) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Write every 4-D image as one 3-D file per modality; the labels stay where they are."""
    order = _decathlon_order(folder / "dataset.json")
    parts = {part: list(_nifti_files(folder / part)) for part in DECATHLON_FOLDERS if (folder / part).is_dir()}
    images = [*parts["imagesTr"], *parts.get("imagesTs", [])]
    labels = {file.name: file for file in parts.get("labelsTr", [])}

    def unpack(image: Path) -> dict[str, Path] | str:
        if image.name not in labels:
            return _missing(["seg"])
        try:
            return {**_write_modalities(image, order, to), "seg": labels[image.name]}
        except BadCase as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        results = list(tqdm(pool.map(unpack, images), "one file per modality", len(images), unit="case"))
    cases = {_stem(image): result for image, result in zip(images, results, strict=True)}
    found = {case: result for case, result in cases.items() if isinstance(result, dict)}
    return found, {case: result for case, result in cases.items() if isinstance(result, str)}


def _decathlon_order(dataset_json: Path) -> tuple[str, ...]:
    if not dataset_json.is_file():
        return DECATHLON_ORDER
    try:
        channels = json.loads(dataset_json.read_text(encoding="utf-8"))["modality"]
        order = tuple(DECATHLON_NAMES[channels[str(index)].lower()] for index in range(len(channels)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{dataset_json} does not give the modalities as 0: FLAIR, 1: T1w, 2: t1gd, 3: T2w in some order "
            f"({error!r}); restore the file, or remove it for that order"
        ) from error
    return order


def _write_modalities(image: Path, order: Sequence[str], to: Path) -> dict[str, Path]:
    """Split one 4-D file; files that are there already, and newer, are kept."""
    case = _stem(image)
    files = {modality: to / case / f"{case}_{modality}.nii.gz" for modality in order}
    if all(file.is_file() and file.stat().st_mtime >= image.stat().st_mtime for file in files.values()):
        return files
    scan = check_readable(image)
    if len(scan.shape) != 4 or scan.shape[3] != len(order):
        raise BadCase(f"{image} has shape {scan.shape}, expected (X, Y, Z, {len(order)}) in the order {order}")
    for channel, file in enumerate(files.values()):
        with whole(file) as partial:
            nib.save(scan.slicer[..., channel], partial)
    return files


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def set_apart_unnamed(
    found: dict, failed: dict[str, str], assigned: Mapping[str, str], split: str | None
) -> dict[str, str]:
    """Remove the cases that a split does not name; returns them with that reason.

    Raises:
        ValueError: a split file names cases that were not found; a collection's own (None) may.
    """
    unknown = sorted(set(assigned) - set(found) - set(failed))
    if split and unknown:
        raise ValueError(
            f"{split} names {len(unknown)} cases that were not found, first {unknown[0]}; correct the names"
        )
    by = Path(split).name if split else "the collection's own split"
    unnamed = {case: f"not named in {by}" for case in (*found, *failed) if case not in assigned}
    for case in unnamed:
        found.pop(case, None)
        failed.pop(case, None)
    return unnamed


def _entries(
    found: Mapping[str, Mapping[str, Path]], sources: Sequence[str], target: str
) -> tuple[list[dict], dict[str, str]]:
    """Datalist entries of the complete cases, and what the others lack."""
    entries, incomplete = [], {}
    for case, files in sorted(found.items()):
        missing = [modality for modality in (*sources, target, "seg") if modality not in files]
        try:
            check_case_name(case, next(iter(files.values())).parent)
        except BadCase as error:
            incomplete[case] = str(error)
            continue
        if missing:
            incomplete[case] = _missing(missing)
        else:
            image = [str(files[modality]) for modality in sources]
            entries.append({"case": case, "image": image, "target": str(files[target]), "label": str(files["seg"])})
    return entries, incomplete


def _missing(modalities: Sequence[str]) -> str:
    return UNLABELLED if list(modalities) == ["seg"] else f"no {', '.join(modalities)} file"


def patient_of(case: str) -> str:
    """The patient of a case, whose time points carry one name from 2023 on; before, the case itself."""
    match = TIME_POINT.fullmatch(case)
    return match[1] if match else case


def _by_section(assigned: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    return {section: sorted(name for name in names if assigned[name] == section) for section in SECTIONS}


def _write_datalist(
    path: Path,
    entries: Sequence[Mapping],
    sections: Mapping[str, Sequence[str]],
    sources: Sequence[str],
    target: str,
    drawn_by: str,
) -> None:
    by_name = {entry["case"]: _relative(entry, path.parent) for entry in entries}
    content = {
        "name": "BraTS",
        "description": f"Whole tumor from {', '.join(sources)} with {target} missing; split by {drawn_by}",
        "sources": list(sources),
        "target_modality": target,
        "labels": {"0": "background", "1": "whole tumor"},
        **{section: [by_name[name] for name in names] for section, names in sections.items()},
    }
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _relative(entry: Mapping, folder: Path) -> dict:
    def shorten(file: str) -> str:
        return Path(file).relative_to(folder).as_posix() if Path(file).is_relative_to(folder) else file

    image = [shorten(file) for file in entry["image"]]
    return {**entry, "image": image, "target": shorten(entry["target"]), "label": shorten(entry["label"])}


def print_skipped(skipped: Mapping[str, str], root: Path) -> None:
    """A row per reason, so that 125 unlabelled cases are one line."""
    if not skipped:
        return
    cases = defaultdict(list)
    for case, reason in sorted(skipped.items()):
        cases[reason.replace(f"{root}{os.sep}", "")].append(case)
    table = Table("cases", "which", Column("why", overflow="fold"), title="Skipped")
    for reason, names in cases.items():
        which = ", ".join(names) if len(names) <= 10 else f"{names[0]} ... {names[-1]}"
        table.add_row(str(len(names)), Text(which), Text(reason))
    Console().print(table)


def print_summary(
    path: Path, sections: Mapping[str, Sequence[str]], sources: Sequence[str], target: str, skipped: int
) -> None:
    counts = ", ".join(f"{len(names)} {section}" for section, names in sections.items())
    summary = f"{path}: {counts}; {', '.join(sources)} -> {target}; {skipped} skipped"
    Console().print(Text(summary), soft_wrap=True)
    empty = [section for section, names in sections.items() if not names]
    if empty:
        Console().print(
            Text(f"no case for {' and '.join(empty)}: three patients are needed, or a --split that names some")
        )
