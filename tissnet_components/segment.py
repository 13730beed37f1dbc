"""Segment one patient or many with a bundle, for people who know no MONAI."""

import csv
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.utils import eval_mode
from tqdm import tqdm

from tissnet_components.errors import BadCase, FileMissing, UserError, report_failed, user_error
from tissnet_components.files import user_path
from tissnet_components.results.dicom_seg import check_dicom_seg, import_highdicom, write_dicom_seg
from tissnet_components.results.maps import refuse_foreign
from tissnet_components.scans.cases import find_scans
from tissnet_components.scans.choice import with_series
from tissnet_components.scans.dicom import Series
from tissnet_components.scans.naming import MODALITIES, check_case_name, find_candidates

MAPS = ("seg", "synthetic", "error", "disagreement", "overview")
VOXEL_MM = (0.1, 20)
FILES = {  # everything that a case may leave in its folder, after its name
    **{name: f"{name}.nii.gz" for name in MAPS[:-1]},
    "overview": "overview.png",
    "summary": "summary.json",
    "dicom_seg": "seg.dcm",
}


def segment(
    bundle: Path,
    t1: Path | None = None,
    t1ce: Path | None = None,
    t2: Path | None = None,
    flair: Path | None = None,
    image: Path | None = None,
    cases: Path | None = None,
    out: Path = Path(),
    case: str | None = None,
    outputs: Sequence[str] = MAPS,
    t1_series: str | None = None,
    t1ce_series: str | None = None,
    t2_series: str | None = None,
    flair_series: str | None = None,
    dicom_seg: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    device: str | None = None,
    precision: str | None = None,
    flips: Sequence[Sequence[int]] | None = None,
    consensus: bool = False,
    weights: Path | None = None,
    spacing_mm: Sequence[float] | None = None,
    widths: Sequence[int] | None = None,
    source_modalities: Sequence[str] | None = None,
) -> None:
    """Segment the tumor of one patient, or of many, and synthesise the contrast that is missing.

    One patient with glioma; the scans lie on one grid and are skull-stripped, as in BraTS:
        tissnet segment --bundle bundles/tissnet_brats --t1 A.nii.gz --t1ce B.nii.gz --t2 C.nii.gz --out results

    Many patients (here vestibular schwannoma, T2 alone); the same command with --resume goes on after a stop:
        tissnet segment --bundle bundles/tissnet_vs --cases scans --out results

    Written to OUT/CASE, every map in the scan's geometry: the mask (_seg.nii.gz, 1 is tumor), the synthetic contrast
    (_synthetic, -1 to 1), where the network doubts its first segmentation (_error), where its two final ones differ
    (_disagreement), a picture (_overview.png), and volume and quality flags (_summary.json).
    Exit status: 0, all went well; 1, a case failed, listed at the end with the reason.
    For research; not a medical device.

    Args:
        bundle: folder of the bundle, such as bundles/tissnet_brats, with weights in its models folder.
        t1: T1-weighted scan: a NIfTI file, or a folder of DICOM files, where the headers tell which series is meant.
        t1ce: contrast-enhanced T1-weighted scan, likewise.
        t2: T2-weighted scan, likewise.
        flair: FLAIR scan, likewise, for bundles that synthesise another contrast.
        image: all scans in one 4-D NIfTI file instead, in the bundle's order.
        cases: many patients instead: a folder of NIfTI files named CASE_t1.nii.gz, CASE_t2.nii.gz and so on as in
            BraTS, at any depth; a folder of DICOM folders, CASE or CASE/t1, CASE/t2 and so on; or a CSV file with the
            columns case, t1, t2 and so on.
        out: folder for the results; made if needed.
        case: name of the one patient in the results; by default the first scan's name.
        outputs: which maps to write, such as seg,error; by default all: seg,synthetic,error,disagreement,overview.
        t1_series: where several DICOM series may be T1, or none looks like it, the one to take: its UID, the end of
            that, or its description.
        t1ce_series: likewise for contrast-enhanced T1.
        t2_series: likewise for T2.
        flair_series: likewise for FLAIR.
        dicom_seg: write the mask as DICOM SEG too (_seg.dcm); the first scan is then a DICOM folder.
        overwrite: replace results that are there already.
        resume: keep finished cases, do the others.
        device: cpu, cuda or cuda:1; by default a GPU where there is one.
        precision: float32, bfloat16 or float16; by default the bundle's.
        flips: also segment the scan mirrored, and average: [[0]] from left to right, [[0],[1]] from front to back too;
            each costs the time of one more segmentation. By default the bundle's, which is none.
        consensus: answer with the mean of two segmentations: the cascade's, and that of the perceptor, which looks at
            the synthetic image alone. Its weights, perceptor.pt, lie beside the others.
        weights: file of trained weights; by default the bundle's models/model.pt.
        spacing_mm: voxel size at which these weights were trained, such as [2,2,2]; by default what the file beside
            them tells, or the bundle's.
        widths: channels per level of these weights, such as [32,64,128,256,512]; by default the bundle's.
        source_modalities: scans these weights were trained with, in order, such as [t1,t2]; by default the bundle's.

    Raises:
        ValueError: a scan that the bundle needs is missing or cannot be used, or an option cannot be followed.
        FileNotFoundError: no bundle, or no weights.
        SystemExit: status 1, some of many cases failed.
    """
    parser = _read_bundle(bundle)
    if source_modalities is not None:
        parser["source_modalities"] = _known_modalities(source_modalities)
    modalities = parser.get_parsed_content("source_modalities")
    scans = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair, "image": image}
    given = {name: str(file) for name, file in scans.items() if file}
    if cases and (given or case):
        raise UserError(f"--cases {cases} names every patient and scan; leave out --{min(given, default='case')}")
    patients = find_patients(cases, modalities, out) if cases else [_one_patient(given, modalities, bundle, case)]
    series = {"t1": t1_series, "t1ce": t1ce_series, "t2": t2_series, "flair": flair_series}
    patients = [{**patient, "series": series} for patient in patients]
    outputs = [*_known_outputs(outputs), "summary", *(["dicom_seg"] if dicom_seg else [])]
    if dicom_seg:
        _check_dicom(patients)
    todo = _to_do(patients, Path(out), outputs, overwrite, resume)
    settings = {
        "output_dir": str(out),
        "outputs": outputs,
        "precision": precision,
        "inferer::flips": flips,
        "consensus": consensus or None,
        "device": None if device is None else _available(device),
        "ckpt_path": None if weights is None else str(weights),
        "spacing_mm": None if spacing_mm is None else _checked_spacing(spacing_mm),
        "widths": None if widths is None else _checked_widths(widths, levels=len(parser["widths"])),
        "inferer::inferer::progress": len(patients) == 1,
    }
    parser.update({key: value for key, value in settings.items() if value is not None})
    parser.parse(True)
    if todo:
        parser.get_parsed_content("initialize")
    failed = _segment_each(parser, todo, alone=not cases, former=list(FILES) if overwrite else ["summary"])
    print(f"results in {Path(out) if cases else Path(out) / patients[0]['case']}")
    report_failed(failed)


def find_patients(cases: str | Path, modalities: Sequence[str], out: str | Path) -> list[dict[str, Any]]:
    """The patients of a CSV file, of a folder of NIfTI files named as in BraTS, or of DICOM folders; none is opened.

    Args:
        out: a folder in which no scans are looked for, since results go there.

    Returns:
        entries of ``case``, the name, and ``image``, the scans of the modalities, in their order. Relative paths in a
        CSV start at its folder.

    Raises:
        ValueError: nothing found, a column or cell missing, a name used twice or not fit for a folder.
    """
    cases = Path(cases)
    patients = _in_folder(cases, modalities, Path(out)) if os.path.isdir(cases) else _in_table(cases, modalities)
    names = [check_case_name(patient["case"], cases) for patient in patients]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{cases} names the case {twice[0]} more than once; give each its own name")
    return patients


def _in_folder(folder: Path, modalities: Sequence[str], out: Path) -> list[dict[str, Any]]:
    if find_candidates(folder, modalities):
        return find_scans(str(folder), modalities, datalist="", section="")
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    patients = [child for child in inside if realpath(child) != realpath(out)]
    if patients:
        return [{"case": patient.name, "image": _dicom_folders(patient, modalities)} for patient in patients]
    wanted = ", ".join(f"CASE_{name}.nii.gz" for name in modalities)
    raise UserError(f"{folder} holds no scans named like {wanted} and no folders; rename them, or list them in a CSV")


def _dicom_folders(patient: Path, modalities: Sequence[str]) -> list[str]:
    """A folder per modality where they are named so, else the patient's for each."""
    apart = any((patient / name).is_dir() for name in modalities)
    return [str(patient / name if apart else patient) for name in modalities]


def _in_table(path: Path, modalities: Sequence[str]) -> list[dict[str, Any]]:
    columns = ["case", *modalities]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            found = list(table.fieldnames or [])
            rows = [(table.line_num, row) for row in table]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder or a CSV with {','.join(columns)}") from error
    if not rows or not set(columns) <= set(found):
        raise UserError(
            f"{path} has the columns {','.join(found) or 'none'} and {len(rows)} rows, expected {','.join(columns)}"
        )
    for line, row in rows:
        empty = [name for name in columns if not (row[name] or "").strip()]
        if empty:
            raise UserError(f"{path}, line {line}: no {empty[0]}; fill it in or leave the case out")
    folder = path.absolute().parent
    return [
        {"case": row["case"].strip(), "image": [str(folder / user_path(row[name].strip())) for name in modalities]}
        for _, row in rows
    ]


def _one_patient(given: dict[str, str], modalities: list[str], bundle: str, case: str | None) -> dict[str, Any]:
    scans = given["image"] if list(given) == ["image"] else _choose(given, modalities, bundle)
    first = Path(_listed(scans)[0]).absolute().name.split(".nii")[0]
    return {"case": check_case_name(str(case or first), "--case"), "image": scans}  # Fire makes 7 of a patient called 7


def _choose(given: dict[str, str], needed: list[str], bundle: str) -> list[str]:
    """The files of the needed modalities, in order."""
    missing = [name for name in needed if name not in given]
    if missing:
        options = ", ".join(f"--{name}" for name in missing)
        raise UserError(f"{bundle} needs the modalities {', '.join(needed)}; give {options} as well")
    unused = sorted(set(given) - set(needed))
    if unused:
        raise UserError(f"{bundle} does not use {', '.join(unused)}; it needs {', '.join(needed)} alone")
    return [given[name] for name in needed]


def _known_outputs(outputs: str | Sequence[str]) -> list[str]:
    outputs = _listed(outputs)
    unknown = [name for name in outputs if name not in MAPS]
    if unknown or not outputs:
        raise UserError(f"--outputs knows {', '.join(MAPS)}; got {', '.join(map(str, unknown)) or 'none'}")
    return outputs


def _known_modalities(names: str | Sequence[str]) -> list[str]:
    names = _listed(names)
    if not names or any(name not in MODALITIES or names.count(name) > 1 for name in names):
        known = ", ".join(MODALITIES)
        raise UserError(f"--source_modalities is {_typed(names)}, expected some of {known}, each once, such as t1,t2")
    return names


def _checked_spacing(spacing_mm: Sequence[float]) -> list[float]:
    lengths = _listed(spacing_mm)
    least, most = VOXEL_MM
    if len(lengths) != 3 or not all(type(length) in (int, float) and least <= length <= most for length in lengths):
        raise UserError(
            f"--spacing_mm is {_typed(lengths)}, expected three lengths from {least} to {most} mm, such as [2,2,2]"
        )
    return lengths


def _checked_widths(widths: Sequence[int], levels: int) -> list[int]:
    channels = _listed(widths)
    if len(channels) != levels or not all(type(count) is int and count > 0 for count in channels):
        raise UserError(
            f"--widths is {_typed(channels)}, expected {levels} numbers of channels, such as [16,32,64,128,256]"
        )
    return channels


def _typed(values: Sequence) -> str:
    return ",".join(map(str, values)) or "empty"


def _listed(values: Any) -> list:
    """A value, of which Fire makes what it looks like, or several."""
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _check_dicom(patients: list[dict[str, Any]]) -> None:
    """Refuse what a DICOM SEG cannot refer to, before anything is run."""
    import_highdicom()
    for patient in patients:
        scan = _listed(patient["image"])[0]
        if not os.path.isdir(scan):
            raise UserError(f"--dicom_seg needs a DICOM series to refer to, but {scan} is no folder; leave it out")


def _available(device: str) -> torch.device:
    try:
        return torch.empty(0, device=str(device)).device
    except (RuntimeError, AssertionError) as error:  # torch's own two ways to say so
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used here ({reason}); give cpu, cuda or cuda:1") from error


def _files(folder: Path, case: str, names: Sequence[str]) -> list[Path]:
    return [folder / f"{case}_{FILES[name]}" for name in names]


def _to_do(
    patients: list[dict[str, Any]], out: Path, outputs: Sequence[str], overwrite: bool, resume: bool
) -> list[dict[str, Any]]:
    """The patients that remain, after refusing to replace results that nobody asked to replace."""
    if overwrite and resume:
        raise UserError("--overwrite replaces finished cases and --resume keeps them; give one of them")
    for patient in patients:
        folder, scans = out / patient["case"], _listed(patient["image"])
        if any(Path(realpath(scan)).is_relative_to(realpath(folder)) for scan in scans):
            raise UserError(f"results would go to {folder}, among the scans; give another --out")
        twice = [scan for scan in scans if scans.count(scan) > 1 and not os.path.isdir(scan)]
        if twice:
            raise UserError(f"{patient['case']} uses {twice[0]} for more than one scan; correct it")
    begun = [
        p["case"] for p in patients if any(os.path.exists(f) for f in _files(out / p["case"], p["case"], list(FILES)))
    ]
    if begun and not overwrite and not resume:
        raise UserError(
            f"{out / begun[0]} holds results already ({len(begun)} of {len(patients)} cases have some); "
            f"give --resume to keep finished cases or --overwrite to replace them"
        )
    for case in begun:
        for file in _files(out / case, case, list(FILES)):
            refuse_foreign(file)
    if not resume:
        return patients
    return [p for p in patients if not all(os.path.exists(f) for f in _files(out / p["case"], p["case"], outputs))]


def _read_bundle(bundle: str) -> ConfigParser:
    config = Path(bundle) / "configs" / "inference.json"
    if not os.path.isfile(config):
        raise FileMissing(f"{bundle} is not a bundle: it has no configs/inference.json; give --bundle its folder")
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
        parser["bundle_root"] = str(bundle)
        parser["source_modalities"], parser["widths"], parser["inferer"]
    except Exception as error:  # MONAI raises whatever a content that it does not check leads to
        raise UserError(f"{config} is not a bundle's configuration ({error}); fetch the bundle again") from error
    return parser


def _segment_each(
    parser: ConfigParser, patients: list[dict[str, Any]], alone: bool, former: Sequence[str]
) -> dict[str, str]:
    """Segment one patient after the other. Returns the reasons of those that failed; one alone raises."""
    failed = {}
    for patient in tqdm(patients, "segmenting", unit="case", disable=alone):
        try:
            tqdm.write(_verdict(_segment_one(parser, patient, former)))
        except KeyboardInterrupt:
            raise SystemExit("stopped; the same command with --resume does the remaining cases") from None
        except Exception as error:
            if alone:
                raise
            failed[patient["case"]] = _reason(error)
    return failed


def _segment_one(parser: ConfigParser, patient: Mapping[str, Any], former: Sequence[str]) -> dict[str, Any]:
    """From the scans to the files, after removing the former ones of these kinds. Returns the summary."""
    names = ("preprocessing", "inferer", "network", "device", "postprocessing")
    preprocessing, inferer, network, device, postprocessing = (parser.get_parsed_content(name) for name in names)
    case, folder = patient["case"], Path(parser.get_parsed_content("output_dir")) / patient["case"]
    if "unusable" in patient:
        raise BadCase(patient["unusable"])
    scans = with_series(patient["image"], parser.get_parsed_content("source_modalities"), patient["series"])
    for scan in _listed(scans):
        if isinstance(scan, Series):
            tqdm.write(f"{case}: {scan.contrast} is the {scan}: {scan.reason}")
    data = preprocessing({**patient, "image": scans})
    if "dicom_seg" in parser.get_parsed_content("outputs") and (doubts := _check_dicom_seg(parser, scans[0])):
        tqdm.write(f"{case}: {doubts}")
    with eval_mode(network):
        maps = inferer(data["image"].as_tensor()[None].to(device), network)
    for file in _files(folder, case, former):
        file.unlink(missing_ok=True)
    pred = {name: MetaTensor(values[0]) for name, values in maps.items()}  # plain tensors, Invertd would pass over
    result = postprocessing({**data, "pred": pred})
    if "dicom_seg" in parser.get_parsed_content("outputs"):
        _write_dicom_seg(parser, result["fine"], scans[0], *_files(folder, case, ["dicom_seg"]))
    return result["summary"]


def _check_dicom_seg(parser: ConfigParser, source: Series) -> str:
    return check_dicom_seg(source.files, **_dicom_terms(parser))


def _write_dicom_seg(parser: ConfigParser, mask: MetaTensor, source: Series, path: Path) -> None:
    write_dicom_seg(mask[0].cpu().numpy(), np.asarray(mask.affine), source.files, path, **_dicom_terms(parser))


def _dicom_terms(parser: ConfigParser) -> dict[str, Any]:
    """What a DICOM SEG tells of the segment and of the algorithm."""
    metadata = json.loads((Path(parser["bundle_root"]) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    segment = parser.get_parsed_content("dicom_segment")
    return {"segment": segment, "algorithm": metadata["name"], "version": metadata["version"]}


def _verdict(summary: Mapping[str, Any]) -> str:
    flags = f"; look at it: {', '.join(summary['flags'])}" if summary["flags"] else ""
    return f"{summary['case']}: {summary['volume_ml']:.2f} ml{flags}"


def _reason(error: Exception) -> str:
    """One sentence; what is no user's mistake also shows where it happened."""
    cause = user_error(error)
    if cause is None:
        tqdm.write("".join(traceback.format_exception(error)))
    return str(cause or f"{type(error).__name__}: {error}".splitlines()[0])
