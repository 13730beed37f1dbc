"""Segment one patient with a bundle, for people who know no MONAI."""

import logging
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser


def segment(
    bundle: str,
    t1: str | None = None,
    t1ce: str | None = None,
    t2: str | None = None,
    flair: str | None = None,
    out: str = ".",
    case: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    widths: Sequence[int] | None = None,
    source_modalities: Sequence[str] | None = None,
) -> None:
    """Segment one patient: give the scans you have, get the tumor mask and the missing contrast.

    Example:
        python -m tissnet_components segment --bundle bundles/tissnet_brats --t1 A.nii.gz --t1ce B.nii.gz \
            --t2 C.nii.gz --out results

    The scans must lie on one grid and be skull-stripped, as BraTS prepares them. Written to OUT/CASE: the mask
    (_seg), the synthetic contrast (_synthetic, in [-1, 1]), where the network doubts its first segmentation (_error)
    and where its two final ones differ (_disagreement), all in the scans' geometry, and a picture (_overview.png).
    For research; not a medical device.

    Args:
        bundle: folder of the bundle, such as bundles/tissnet_brats, with weights in its models folder.
        t1: T1-weighted scan, NIfTI.
        t1ce: contrast-enhanced T1-weighted scan, NIfTI.
        t2: T2-weighted scan, NIfTI.
        flair: FLAIR scan, NIfTI, for bundles that synthesise another contrast.
        out: folder for the results; made if needed.
        case: name of the patient in the results; by default the first scan's file name.
        precision: float32, bfloat16 or float16; by default the bundle's.
        device: cpu, cuda or cuda:1; by default a GPU where there is one.
        weights: file of trained weights; by default the bundle's models/model.pt.
        spacing_mm: voxel size at which these weights were trained, such as [2,2,2]; by default the bundle's.
        widths: channels per level of these weights, such as [32,64,128,256,512]; by default the bundle's.
        source_modalities: scans these weights were trained with, in order, such as [t1,t2]; by default the bundle's.

    Raises:
        ValueError: a scan that the bundle needs is missing, or cannot be used.
        FileNotFoundError: no bundle, or no weights.
    """
    parser = _read_bundle(bundle)
    if source_modalities:
        parser["source_modalities"] = list(source_modalities)
    given = {name: file for name, file in {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}.items() if file}
    files = _choose(given, parser.get_parsed_content("source_modalities"), bundle)
    name = str(case or Path(files[0]).name.split(".nii")[0])  # Fire hands a patient called 7 over as a number
    settings = {
        "cases": [{"case": name, "image": files}],
        "output_dir": str(out),
        "precision": precision,
        "device": device and f"$torch.device('{device}')",
        "ckpt_path": weights,
        "spacing_mm": spacing_mm and list(spacing_mm),
        "widths": widths and list(widths),
    }
    parser.update({key: value for key, value in settings.items() if value})
    parser.parse(True)
    logging.getLogger("ignite").setLevel(logging.WARNING)
    for entry in ("initialize", "inferring"):
        parser.get_parsed_content(entry)
    print(f"results in {Path(str(out)) / name}")


def _read_bundle(bundle: str) -> ConfigParser:
    config = Path(bundle) / "configs" / "inference.json"
    if not config.is_file():
        raise FileNotFoundError(f"{bundle} is not a bundle: it has no configs/inference.json; give --bundle its folder")
    parser = ConfigParser()
    parser.read_config(str(config))
    parser["bundle_root"] = str(bundle)
    return parser


def _choose(given: dict[str, str], needed: list[str], bundle: str) -> list[str]:
    """The files of the needed modalities, in order."""
    missing = [name for name in needed if name not in given]
    if missing:
        options = ", ".join(f"--{name}" for name in missing)
        raise ValueError(f"{bundle} needs the modalities {', '.join(needed)}; give {options} as well")
    unused = sorted(set(given) - set(needed))
    if unused:
        raise ValueError(f"{bundle} does not use {', '.join(unused)}; it needs {', '.join(needed)} alone")
    return [str(given[name]) for name in needed]
