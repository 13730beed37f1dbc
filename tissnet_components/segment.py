"""Segment one patient or many with a bundle, for people who know no MONAI."""

import os
from collections.abc import Iterable, Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tissnet_components.errors import FileMissing, UserError, report_failed
from tissnet_components.patients import ANY_SUBSET, find_patients, one_patient, refuse_shared, scans_of
from tissnet_components.results.bids import check_bids, write_bids
from tissnet_components.results.dicom_seg import import_highdicom
from tissnet_components.results.files import (
    FILES,
    NATIVE,
    NATIVE_DICOM,
    case_file,
    is_finished,
    prepared_scans,
    refuse_foreign,
    remove_prepared,
)
from tissnet_components.results.page import write_index, write_page
from tissnet_components.scans.datalist import as_list
from tissnet_components.scans.nifti import read_ahead
from tissnet_components.shards import shard_of
from tissnet_components.start import import_monai

if TYPE_CHECKING:  # seconds of imports, which are made when they are needed
    import torch
    from monai.bundle import ConfigParser
    from monai.engines import Evaluator

OUT = Path()
UP_TO_DATE = (
    "summary",
    "view",
    *NATIVE.values(),
    *NATIVE_DICOM.values(),
)  # what tells of the mask, and goes when that is replaced
MAPS = ("seg", "synthetic", "error", "disagreement", "overview")


def segment(
    bundle: Path,
    t1: Path | None = None,
    t1ce: Path | None = None,
    t2: Path | None = None,
    flair: Path | None = None,
    image: Path | None = None,
    cases: Path | None = None,
    out: Path = OUT,
    case: str | None = None,
    outputs: Sequence[str] = MAPS,
    t1_series: str | None = None,
    t1ce_series: str | None = None,
    t2_series: str | None = None,
    flair_series: str | None = None,
    dicom_seg: bool = False,
    html: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    precision: str | None = None,
    flips: Sequence[Sequence[int]] | None = None,
    consensus: bool | None = None,
    components: int | None = None,
    weights: Path | None = None,
    skip_unmatched: bool = False,
    shard: str | None = None,
    raw: bool = False,
    bids: bool = False,
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
    A patient with another subset of the contrasts needs models/any_missing.pt in the bundle; all that is missing is
    then synthesised.
    With --html each case also gets a page for the browser, to look at scans and results.
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
        case: name of the one patient in the results; by default as the first scan's name tells, A of A_t1.nii.gz.
        outputs: which maps to write, such as seg,error; by default all: seg,synthetic,error,disagreement,overview.
        t1_series: where several DICOM series may be T1, or none looks like it, the one to take: its UID, the end of
            that, or its description.
        t1ce_series: likewise for contrast-enhanced T1.
        t2_series: likewise for T2.
        flair_series: likewise for FLAIR.
        dicom_seg: write the mask as DICOM SEG too (_seg.dcm); the first scan is then a DICOM folder. With --raw, one
            for every scan that is a DICOM folder (_seg_t1.dcm and so on).
        html: write a page per case too (_view.html), to look at scans and results, and for many cases index.html,
            which lists them, the worst first.
        overwrite: replace results that are there already.
        resume: keep finished cases, do the others.
        force: segment also scans that are surely no such contrasts, or not skull-stripped.
        device: cpu, cuda or cuda:1; by default a GPU where there is one.
        precision: float32, bfloat16 or float16; by default the bundle's.
        flips: also segment the scan mirrored, and average: [[0]] from left to right, [[0],[1]] from front to back too;
            each costs the time of one more segmentation. By default the bundle's, which is none.
        consensus: answer with the mean of two segmentations: the cascade's, and that of the perceptor, which looks at
            the synthetic image alone. Its weights, perceptor.pt, lie beside the others, of any_missing.pt
            any_missing_perceptor.pt. By default as the bundle says: for model.pt no for the glioma, yes for the
            schwannoma; for any_missing.pt yes where its perceptor is there.
        components: how many connected parts of the tumor stay in the mask, the largest first; 0 for all. By default as
            the bundle says: 1 for the glioma, 0 for the schwannoma. A part that lies apart is mostly a false alarm, but
            of a glioma in several places it takes all but one.
        weights: file of trained weights for every patient; by default the bundle's models/model.pt, and its
            models/any_missing.pt for patients with other contrasts. The file beside it tells which scans they need.
            A file called any_missing.pt takes any subset.
        skip_unmatched: leave out what of the folder of many patients is told to be passed over; else the exit status
            is 1.
        shard: of many patients, the part that this job does: 3/16 is the third of sixteen parts. Jobs of all parts, at
            any time and on any machine, do every patient once.
        raw: scans as the scanner gave them: registers them, strips the skull, or for schwannoma crops them to the
            auditory canals, and also writes the mask on every scan's own grid (_seg_t1.nii.gz and so on). Needs the
            extra raw.
        bids: file the masks also as BIDS derivatives, below OUT/derivatives/tissnet.

    Raises:
        ValueError: a scan that the bundle needs is missing or cannot be used, or an option cannot be followed.
        FileNotFoundError: no bundle, or no weights.
        SystemExit: status 1, some of many cases failed.
    """
    scans = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair, "image": image}
    given = {name: str(file) for name, file in scans.items() if file}
    if not cases and not image:
        read_ahead(file for file in given.values() if os.path.isfile(file))
    own = _read_bundle(bundle, weights)
    any_subset = own if own.get("any_subset") else _of_any_subset(bundle, weights)
    modalities = own.get_parsed_content("source_modalities")
    known = any_subset.get_parsed_content("source_modalities") if any_subset else []
    if cases and (given or case):
        raise UserError(f"--cases {cases} names every patient and scan; leave out --{min(given, default='case')}")
    if shard and not cases:
        raise UserError(f"--shard {shard} is a part of many patients; give them with --cases, or leave it out")
    out = Path(out)
    passed_over: dict[str, str] = {}
    if cases:
        patients, passed_over = find_patients(cases, modalities, out, known)
        _tell(cases, patients, passed_over)
    else:
        patients = [one_patient(given, modalities, known, bundle, case)]
    refuse_shared(patients)
    patients = shard_of(patients, shard)
    outputs = [*_known_outputs(outputs), "summary", *(["dicom_seg"] if dicom_seg and not raw else [])]
    if raw:
        _check_raw(own, bundle)
    if dicom_seg:
        _check_dicom(patients, raw)
    if bids:
        check_bids([patient["case"] for patient in patients])
    if "seg" not in outputs and (bids or (raw and dicom_seg)):
        raise UserError(f"--{'bids' if bids else 'dicom_seg with --raw'} files the mask; add seg to --outputs")
    wanted = {patient["case"]: outputs for patient in patients}
    if raw and "seg" in outputs:
        wanted = {
            p["case"]: [*outputs, *_native(p, known if p["any_subset"] else modalities, dicom_seg)] for p in patients
        }
    todo = _to_do(patients, out, wanted, overwrite, resume)
    given_series = {"t1": t1_series, "t1ce": t1ce_series, "t2": t2_series, "flair": flair_series}
    series = {modality: name for modality, name in given_series.items() if name}
    failed: dict[str, str] = {}
    settings = {
        "output_dir": str(out),
        "outputs": outputs,
        "series": series,
        "precision": precision,
        "inferer::flips": flips,
        "consensus": consensus,
        "components": components,
        "force": force or None,
        "raw": raw or None,
        "preparation::dicom_seg": _mask_terms(own) if raw and dicom_seg else None,
        "device": None if device is None else _available(device),
        "inferer::inferer::progress": not cases,
    }
    for parser in (own, any_subset if any_subset is not own else None):
        theirs = [patient for patient in todo if parser is (any_subset if patient["any_subset"] else own)]
        if parser and theirs:
            parser.update({key: value for key, value in settings.items() if value is not None})
            failed |= _run(parser, theirs, out, list(FILES) if overwrite else UP_TO_DATE, raw)
    if bids:
        for patient in patients:
            if patient["case"] not in failed:
                _write_bids(out, patient["case"], any_subset if any_subset and patient["any_subset"] else own)
    if html:
        unseen = [p for p in patients if p in todo or not os.path.exists(case_file(out, p["case"], "view"))]
        there = [patient for patient in unseen if patient["case"] not in failed]
        failed |= _write_pages(there, out, modalities, known, series)
        if cases:
            write_index(out, failed)
    print(f"results in {out if cases else out / patients[0]['case']}")
    if failed and not cases:
        raise UserError(failed[patients[0]["case"]])
    report_failed(failed if skip_unmatched else passed_over | failed)


def _write_pages(
    patients: Sequence[Mapping[str, Any]],
    out: Path,
    modalities: Sequence[str],
    known: Sequence[str],
    series: Mapping[str, str],
) -> dict[str, str]:
    """The page of each patient. Returns the reasons of those that failed."""
    failed = {}
    for patient in patients:
        try:
            scans = () if prepared_scans(out, patient["case"]) else patient["image"]
            write_page(out, patient["case"], scans, known if patient["any_subset"] else modalities, series)
        except UserError as reason:
            failed[patient["case"]] = f"segmented, but without a page: {reason}"
    return failed


def _tell(cases: Path, patients: list[dict[str, Any]], passed_over: Mapping[str, str]) -> None:
    """What was found, and what was passed over."""
    folders = sum(os.path.isdir(scans_of(patient)[0]) for patient in patients)
    others = sum(patient["any_subset"] for patient in patients)
    of_them = f"{folders} of them in DICOM folders" + (f", {others} by the weights for any subset" if others else "")
    print(f"{cases}: {len(patients)} cases, {of_them}; {len(passed_over)} files passed over")
    for file, reason in passed_over.items():
        print(f"  {file}: {reason}")


def _of_any_subset(bundle: Path, weights: Path | None) -> "ConfigParser | None":
    """The bundle with its weights that take any of its contrasts, where it has them and no others are asked for."""
    if weights is not None or not os.path.isfile(Path(bundle, "models", f"{ANY_SUBSET}.pt")):
        return None
    return _read_bundle(bundle, None, f"inference_{ANY_SUBSET}")


def _known_outputs(outputs: Any) -> list[str]:  # Fire makes of a value what it looks like
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    unknown = [name for name in outputs if name not in MAPS]
    if unknown or not outputs:
        raise UserError(f"--outputs knows {', '.join(MAPS)}; got {', '.join(map(str, unknown)) or 'none'}")
    return outputs


def _check_dicom(patients: list[dict[str, Any]], raw: bool) -> None:
    """Refuse what a DICOM SEG cannot refer to, before anything is run; of raw scans, any may be the one."""
    import_highdicom()
    for patient in patients:
        scans = scans_of(patient)
        if not any(map(os.path.isdir, scans if raw else scans[:1])):
            raise UserError(f"--dicom_seg needs a DICOM series to refer to, but {scans[0]} is no folder; leave it out")


def _check_raw(parser: "ConfigParser", bundle: Path) -> None:
    if "preparation" not in parser:
        raise UserError(f"{bundle} is of a version that does not know --raw; fetch the bundle again")


def _mask_terms(parser: "ConfigParser") -> dict[str, Any]:
    """What a bundle's mask shows, and what made it."""
    from tissnet_components.results.maps import mask_terms

    return mask_terms(*(parser.get_parsed_content(name) for name in ("dicom_segment", "bundle_root", "regions")))


def _write_bids(out: Path, case: str, parser: "ConfigParser") -> None:
    from tissnet_components.regions import label_names  # which imports PyTorch

    terms = _mask_terms(parser)
    write_bids(out, case, label_names(terms["regions"]), terms["algorithm"], terms["version"])


def _native(patient: Mapping[str, Any], names: Sequence[str], dicom_seg: bool) -> list[str]:
    """The masks that `--raw` gives a patient, one for each scan."""
    scans = {name: scan for name, scan in zip(names, as_list(patient["image"]), strict=False) if scan}
    dicom = [NATIVE_DICOM[name] for name, scan in scans.items() if dicom_seg and os.path.isdir(scan)]
    return [*(NATIVE[name] for name in scans), *dicom]


def _available(device: str) -> "torch.device":
    import torch

    try:
        return torch.empty(0, device=str(device)).device
    except (RuntimeError, AssertionError) as error:  # torch's own two ways to say so
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used here ({reason}); give cpu, cuda or cuda:1") from error


def _to_do(
    patients: list[dict[str, Any]], out: Path, wanted: Mapping[str, Sequence[str]], overwrite: bool, resume: bool
) -> list[dict[str, Any]]:
    """The patients that remain, after refusing to replace results that nobody asked to replace.

    Args:
        wanted: case -> the kinds of files without which it is not finished.
    """
    if overwrite and resume:
        raise UserError("--overwrite replaces finished cases and --resume keeps them; give one of them")
    for patient in patients:
        folder, scans = out / patient["case"], scans_of(patient)
        if any(Path(realpath(scan)).is_relative_to(realpath(folder)) for scan in scans):
            raise UserError(f"results would go to {folder}, among the scans; give another --out")

    def exists(patient: Mapping[str, Any], names: Iterable[str]) -> list[bool]:
        return [os.path.exists(case_file(out, patient["case"], name)) for name in names]

    begun = [patient["case"] for patient in patients if any(exists(patient, FILES))]
    if begun and not overwrite and not resume:
        raise UserError(
            f"{out / begun[0]} holds results already ({len(begun)} of {len(patients)} cases have some); "
            f"give --resume to keep finished cases or --overwrite to replace them"
        )
    for case in begun:
        for name in FILES:
            refuse_foreign(case_file(out, case, name))
    finished = [case for case, names in wanted.items() if resume and is_finished(out, case, names)]
    return [patient for patient in patients if patient["case"] not in finished]


def _read_bundle(bundle: Path, weights: Path | None, *overlays: str) -> "ConfigParser":
    config = Path(bundle) / "configs" / "inference.json"
    if not os.path.isfile(config):
        raise FileMissing(f"{bundle} is not a bundle: it has no configs/inference.json; give --bundle its folder")
    import_monai()
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    try:
        if weights is not None and Path(weights).stem == ANY_SUBSET:
            overlays = (*overlays, f"inference_{ANY_SUBSET}")
        parser.read_config([str(config), *(str(config.with_name(f"{name}.json")) for name in overlays)])
        parser["bundle_root"] = str(bundle)
        if weights is not None:
            parser["ckpt_path"] = str(weights)
        for name in ("source_modalities", "widths", "inferer"):
            parser[name]
    except Exception as error:  # MONAI raises whatever a content that it does not check leads to
        raise UserError(f"{config} is not a bundle's configuration ({error}); fetch the bundle again") from error
    return parser


def _run(
    parser: "ConfigParser", cases: list[dict[str, Any]], out: Path, former: Iterable[str], raw: bool
) -> dict[str, str]:
    """What `inferring` of the bundle does, of these cases. Returns the reasons of those that failed.

    Args:
        former: of these kinds, the files of a case from an earlier run are removed before new ones are written.
        raw: the scans are prepared anew; else what was prepared of them earlier is removed.
    """
    from monai.engines import IterationEvents

    parser["cases"] = []  # file names are no expressions, and a parser would take some for one
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("dataset").data = cases
    evaluator = parser.get_parsed_content("evaluator")

    def remove_former(engine: "Evaluator") -> None:
        (case,) = engine.state.batch["case"]
        for name in former:
            case_file(out, case, name).unlink(missing_ok=True)
        if not raw:
            remove_prepared(out, case)

    evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, remove_former)
    try:
        evaluator.run()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command with --resume does the remaining cases") from None
    return evaluator.failed
