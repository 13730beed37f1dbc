"""From a BraTS download, of any year, to a checked datalist with a reproducible split."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from tissnet_components.errors import BadCase, UserError
from tissnet_components.files import atomic_write, existing_folder
from tissnet_components.prepare.decathlon import DECATHLON, unpack_decathlon
from tissnet_components.prepare.outcome import (
    UNLABELLED,
    checked_workers,
    print_patients,
    print_skipped,
    print_summary,
    refuse_failed,
    set_apart_unnamed,
    writable,
)
from tissnet_components.scans.cases import usable_cases
from tissnet_components.scans.datalist import FILE_KEYS, lacking
from tissnet_components.scans.naming import MODALITIES, candidates_below, check_case_name, unambiguous
from tissnet_components.scans.splits import (
    by_section,
    patients_of,
    read_patients,
    read_split,
    refuse_leaks,
    split_cases,
)

OUT = Path("datalist.json")


def prepare_brats(
    root: Path,
    out: Path = OUT,
    target: str = "flair",
    source: str | Sequence[str] | None = None,
    split: Path | None = None,
    patients: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    partial: bool = False,
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
        root: the unpacked download, or a folder of several, of any years.
        out: the datalist to write; paths in it are relative to its folder where possible, so the two can move together.
        target: the modality to synthesise, missing at inference: t1, t1ce, t2 or flair.
        source: the modalities available at inference, e.g. t1,t2; by default the three that are not the target.
        split: a CSV file with the columns case and split (training, validation or test; cases it does not name are
            left out). By default patients are drawn in the paper's proportions, 258/37/74.
        patients: a CSV file with the columns case and patient, for patients with several scans whose names do not tell;
            by default names of BraTS from 2023 on, UPENN-GBM, BIDS, and of visits and dates do. No patient is split.
        seed: of that draw; the same seed and cases give the same file.
        workers: cases read at the same time; by default one per core, at most eight.
        partial: also take cases that lack the target, the label or a source, to train on what they have. The draw
            gives them to training, and leaves out those whose patient it gave to another section.

    Raises:
        ValueError: one sentence, before anything is read when an argument is wrong, or when cases are not usable.
    """
    folder, datalist, workers = existing_folder(root), writable(out), checked_workers(workers)
    sources = _chosen_sources(source, target)
    assigned = read_split(split) if split else None
    found, failed = _discover(folder, datalist.parent, workers)
    unnamed = set_apart_unnamed(found, failed, assigned, split) if assigned else {}
    entries, incomplete = _entries(found, sources, target, partial)
    good, unusable = usable_cases(entries, workers)
    failed |= incomplete | unusable
    names = [entry["case"] for entry in good]
    patient_of = read_patients(patients, names) if patients else patients_of(names)
    complete = [entry["case"] for entry in good if not lacking(entry)]
    sections = split_cases(complete, seed, patients=patient_of) if assigned is None else by_section(assigned, names)
    held_out = _train_on_partial(sections, names, patient_of) if assigned is None else {}
    skipped = unnamed | failed | held_out
    print_skipped(skipped, folder)
    if not good:
        raise UserError(f"none of the {len(skipped)} cases in {folder} is usable, see the reasons above")
    refuse_leaks(sections, patient_of, split or "the split")
    good = [{**entry, "patient": patient_of[entry["case"]]} for entry in good]
    _write_datalist(datalist, good, sections, sources, target, Path(split).name if split else f"seed {seed}")
    print_summary(datalist, sections, sources, target, len(skipped))
    _print_partial([entry for entry in good if entry["case"] not in held_out])
    print_patients(patient_of, patients)
    refuse_failed({case: reason for case, reason in failed.items() if split or reason != UNLABELLED}, len(good))


def _chosen_sources(source: str | Sequence[str] | None, target: str) -> list[str]:
    if source is None:
        chosen = [modality for modality in MODALITIES if modality != target]
    else:
        chosen = [part.strip() for part in source.split(",")] if isinstance(source, str) else list(source)
    unknown = [modality for modality in (*chosen, target) if modality not in MODALITIES]
    if unknown:
        raise UserError(f"unknown modality {unknown[0]!r}; known: {', '.join(MODALITIES)}")
    if not chosen or target in chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"sources {chosen} for target {target!r}: name each source once, and the target not among them")
    return chosen


def _discover(root: Path, beside: Path, workers: int | None) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Files of each case, and why some cases have none that can be used."""
    decathlon = next((folder for folder in (root, root / DECATHLON) if (folder / "imagesTr").is_dir()), None)
    if decathlon:
        found, skipped = unpack_decathlon(decathlon, beside / f"{DECATHLON}_3d", workers)
    else:
        found, skipped = unambiguous(candidates_below(root))
    if not found and not skipped:
        raise UserError(
            f"{root} holds no BraTS case: expected files called like BraTS20_Training_001_t1ce.nii.gz or "
            f"BraTS-GLI-00000-000-t1c.nii.gz, or the Decathlon's {DECATHLON}; give the unpacked download"
        )
    return found, skipped


def _train_on_partial(
    sections: dict[str, list[str]], names: Sequence[str], patient_of: Mapping[str, str]
) -> dict[str, str]:
    """Add the cases that no section has to training; returns those whose patient is in another, with that reason."""
    section_of = {patient_of[case]: section for section, cases in sections.items() for case in cases}
    rest = sorted(set(names) - {case for cases in sections.values() for case in cases})
    others = {case: section_of.get(patient_of[case], "training") for case in rest}
    sections["training"] = sorted([*sections["training"], *(case for case in rest if others[case] == "training")])
    told = "partial, and another scan of its patient is in"
    return {case: f"{told} {section}" for case, section in others.items() if section != "training"}


def _print_partial(entries: Sequence[Mapping]) -> None:
    """How many cases of the datalist lack what."""
    counts = Counter(", ".join(absent) for entry in entries if (absent := lacking(entry)))
    if counts:
        told = ", ".join(f"{count} without {key}" for key, count in sorted(counts.items()))
        Console().print(Text(f"{counts.total()} partial: {told}"), soft_wrap=True)


def _entries(
    found: Mapping[str, Mapping[str, Path]], sources: Sequence[str], target: str, partial: bool
) -> tuple[list[dict], dict[str, str]]:
    """Datalist entries of the complete cases, or of those with two of image, target and label; what others lack."""
    entries, incomplete = [], {}
    for case, files in sorted(found.items()):
        missing = [modality for modality in (*sources, target, "seg") if modality not in files]
        try:
            check_case_name(case, next(iter(files.values())).parent)
        except BadCase as error:
            incomplete[case] = str(error)
            continue
        entry = _entry(case, files, sources, target)
        if len(lacking(entry)) > partial:
            incomplete[case] = _missing(missing)
        else:
            entries.append(entry)
    return entries, incomplete


def _entry(case: str, files: Mapping[str, Path], sources: Sequence[str], target: str) -> dict:
    """What a case has of ``image``, all sources, ``target`` and ``label``."""
    entry: dict = {"case": case}
    if set(sources) <= set(files):
        entry["image"] = [str(files[modality]) for modality in sources]
    return entry | {key: str(files[name]) for key, name in (("target", target), ("label", "seg")) if name in files}


def _missing(modalities: Sequence[str]) -> str:
    return UNLABELLED if list(modalities) == ["seg"] else f"no {', '.join(modalities)} file"


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
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _relative(entry: Mapping, folder: Path) -> dict:
    def shorten(file: str) -> str:
        return Path(file).relative_to(folder).as_posix() if Path(file).is_relative_to(folder) else file

    files = {key: entry[key] for key in FILE_KEYS if key in entry}
    shortened = {key: shorten(file) if isinstance(file, str) else [*map(shorten, file)] for key, file in files.items()}
    return {**entry, **shortened}
