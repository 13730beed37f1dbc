"""The command `view`: pages that show what was found, in any browser and without a network.

The page of a case holds its volumes and the viewer, NiiVue. The page of many cases links to theirs, the worst first.
"""

import base64
import gzip
import json
import os
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
from tissnet_components.errors import FileMissing, PackageMissing, UserError
from tissnet_components.files import write_atomic
from tissnet_components.results.files import case_file, prepared_scans
from tissnet_components.scans.nifti import check_same_grid

HERE = Path(__file__).parent
TITLES = {"t1": "T1", "t1ce": "T1 + contrast agent", "t2": "T2", "flair": "FLAIR"}
DOUBTS = {"error": "predicted error", "disagreement": "disagreement"}
REASONS = {  # of the flags that a summary gives no reason for
    "empty_mask": "no voxel is tumor",
    "touches_edge": "the mask reaches the edge of the field of view: the tumor may go on outside",
    "agreement": "the network's two answers overlap less than they should",
    "predicted_dice": "the error map says that the first segmentation is poor",
    "mean_error": "much of the mask may be wrong",
    "mean_disagreement": "the two final segmentations differ within the mask",
}
LIMIT_MB = 10  # of the volumes in a page; more are shown at half their resolution
RIM = 4  # voxels around the head that are kept
DIM = 0.02  # of the range of an image is shown black, like the rim of a synthetic one


def view(
    results: Path,
    t1: Path | None = None,
    t1ce: Path | None = None,
    t2: Path | None = None,
    flair: Path | None = None,
    browser: bool = True,
) -> str:
    """Open the page of a case, or the page that lists all cases of a folder, the worst first.

        tissnet view results/A --t1 A_t1.nii.gz --t1ce A_t1ce.nii.gz --t2 A_t2.nii.gz
        tissnet view results

    The page of a case shows the scans that are named here, the synthetic image and, laid over them, the mask and the
    places where the network doubts itself. It is one file, CASE_view.html, which needs no network. It holds the
    images, so pass it on only as you would pass on those. `segment --html` writes it with the scans it segments;
    a page that is there is opened as it is, unless scans are named. For research; not a medical device.

    Args:
        results: the folder of a case, OUT/CASE of `segment`, or of many, OUT.
        t1: T1-weighted scan of the case: a NIfTI file or a DICOM folder, as it was segmented.
        t1ce: contrast-enhanced T1-weighted scan, likewise.
        t2: T2-weighted scan, likewise.
        flair: FLAIR scan, likewise.
        browser: open the page; with --browser=false it is only written.

    Returns:
        The path of the page.

    Raises:
        ValueError: no results there, or a scan that cannot be used or lies on another grid than the results.
    """
    folder = Path(os.path.abspath(results))
    scans = {name: str(scan) for name, scan in {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}.items() if scan}
    if not _images(folder.parent, folder.name):
        if scans:
            raise UserError(f"{results} is not the folder of one case; leave out --{min(scans)}, or give OUT/CASE")
        page = folder / "index.html"
        newest = max((file.stat().st_mtime for file in folder.glob("*/*_summary.json")), default=0)
        if not page.is_file() or page.stat().st_mtime < newest:
            write_index(folder)
    else:
        page = case_file(folder.parent, folder.name, "view")
        if scans or not page.is_file():
            write_page(folder.parent, folder.name, list(scans.values()), list(scans))
    if browser:
        webbrowser.open(page.as_uri())
    return str(page)


@dataclass(frozen=True)
class Volume:
    """What a page shows. Voxels: (X, Y, Z), of an ``image`` any numbers, of a ``mask`` labels, of a ``map`` 0 to 1."""

    kind: str
    name: str
    title: str
    voxels: np.ndarray
    affine: np.ndarray

    def encoded(self) -> str:
        """As NIfTI of one byte per voxel, gzipped, in base64."""
        image = nib.Nifti1Image(_bytes(self), self.affine)
        image.header.set_xyzt_units("mm")
        if self.kind == "mask":
            image.header.set_intent("label")  # or NiiVue draws no outline
        if self.kind == "map":
            image.header.set_slope_inter(1 / 100, 0)
        return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()


def write_page(
    out: Path,
    case: str,
    scans: str | Sequence[str | None] = (),
    modalities: Sequence[str] = (),
    series: Mapping[str, str] | None = None,
) -> Path:
    """Write ``out/CASE/CASE_view.html`` about the results that lie there, and return its path.

    Args:
        scans, modalities, series: the scans on whose grid they lie, as `LoadImageCased` takes them; by default those
            that `segment --raw` prepared.

    Raises:
        ValueError: nothing to show, or scans that cannot be used or lie on another grid.
    """
    found, summary = _images(out, case), _summary(case_file(out, case, "summary"))
    if not scans and (prepared := prepared_scans(out, case)):
        scans, modalities, series = list(prepared.values()), list(prepared), {}
    volumes = [*(_scans(case, scans, modalities, series, found) if scans else ()), *_results(found, summary)]
    if not any(volume.kind == "image" for volume in volumes):
        raise UserError(
            f"{out / case} holds no synthetic image; name the scans, such as --t1, so that there is a picture"
        )
    volumes, encoded = _small_enough(_cut_to_head(volumes))
    content = {
        "volumes": [
            {"kind": volume.kind, "name": volume.name, "title": volume.title, "nifti": nifti}
            for volume, nifti in zip(volumes, encoded, strict=True)
        ],
        "start_mm": _start_mm(volumes),
        "regions": "regions_ml" in summary,
    }
    licenses, viewer = (
        (HERE / "vendor" / name).read_text("utf-8") for name in ("niivue_licenses.txt", "niivue.umd.js")
    )
    page = html_template(HERE / "view.html").render(
        case=case, summary=summary, flags=_flags(summary), content=content, library=f"/*\n{licenses}*/\n{viewer}"
    )
    return write_atomic(case_file(out, case, "view"), page.encode(errors="replace"))


def write_index(out: Path, failed: Mapping[str, str] | None = None) -> Path:
    """Write ``out/index.html``, which lists the cases that have a summary, the worst first, and return its path.

    The worst have the most flags, then the lowest agreement of the network's two answers.

    Args:
        failed: case -> reason; these come first, and what they left is not shown.

    Raises:
        ValueError: no case has a summary, and none failed.
    """
    failed = failed or {}
    found = [_summary(file) for file in sorted(out.glob("*/*_summary.json"))]
    summaries = [summary for summary in found if summary["case"] not in failed]
    if not summaries and not failed:
        raise FileMissing(
            f"{out} holds no results; give the folder that segment wrote to (its --out), or one case in it"
        )
    page = html_template(HERE / "index.html").render(
        cases=[
            {
                **summary,
                "flags": _flags(summary),
                "page": page_link(out, summary["case"]),
                "picture": _link(out, summary["case"], "overview"),
            }
            for summary in _worst_first(summaries)
        ],
        failed=failed,
    )
    return write_atomic(out / "index.html", page.encode(errors="replace"))


def html_template(file: Path) -> Any:
    """A jinja2 template that escapes what is put into it.

    Raises:
        ImportError: no jinja2.
    """
    try:
        import jinja2
    except ImportError as missing:
        raise PackageMissing("the report needs jinja2: pip install 'tissnet-components[report]'") from missing
    loader = jinja2.FileSystemLoader(file.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(file.name)


def page_link(out: Path, case: str) -> str | None:
    """The address of a case's page, from ``out``; None where it has none."""
    return _link(out, case, "view")


def _link(out: Path, case: str, name: str) -> str | None:
    file = case_file(out, case, name)
    return quote(file.relative_to(out).as_posix()) if file.is_file() else None


def _worst_first(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def goodness(summary: Mapping[str, Any]) -> tuple[int, float, str]:
        agreement = summary.get("agreement")
        return -len(summary["flags"]), 1 if agreement is None else agreement, summary["case"]

    return sorted(summaries, key=goodness)


def _summary(file: Path) -> dict[str, Any]:
    """What a case's summary tells; nothing of a case without one."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}); segment the case again with --overwrite") from error


def _flags(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each flag and, in a sentence, its reason."""
    return [(flag.replace("_", " "), _reason(flag, summary)) for flag in summary.get("flags", ())]


def _reason(flag: str, summary: Mapping[str, Any]) -> str:
    if flag in summary["reasons"]:
        return summary["reasons"][flag]
    *part, name = flag.rsplit(": ", 1)  # such as "tumor core: agreement"
    value = (summary["parts"][part[0]] if part else summary).get(name)
    threshold = summary["thresholds"].get(name)
    numbers = f" ({value:.2f}, threshold {threshold:g})" if isinstance(value, float) and threshold else ""
    return REASONS.get(name, "") + numbers


def _images(out: Path, case: str) -> dict[str, Any]:
    """The images among the results of a case, not read yet."""
    files = {name: case_file(out, case, name) for name in ("synthetic", "seg", *DOUBTS)}
    return {name: nib.load(file) for name, file in files.items() if file.is_file()}


def _scans(
    case: str,
    scans: str | Sequence[str | None],
    modalities: Sequence[str],
    series: Mapping[str, str] | None,
    results: Mapping[str, Any],
) -> list[Volume]:
    """The scans, as they were segmented."""
    from tissnet_components.scans.loading import LoadImageCased  # with PyTorch and MONAI, which results alone need not

    loader = LoadImageCased("image", modalities, series, told=False)
    image: Any = loader({"case": case, "image": scans})["image"]
    affine = image.affine.numpy()
    grids = {f"{case}_{name}": (result.shape[:3], result.affine) for name, result in results.items()}
    check_same_grid({**grids, f"the scan {image.meta['filename_or_obj']}": (image.shape[1:], affine)})
    names = image.meta.get("contrasts", modalities)
    return [Volume("image", n, TITLES.get(n, n), v, affine) for n, v in zip(names, image.numpy(), strict=True)]


def _results(results: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Volume]:
    """Every synthetic contrast, the mask, and of the maps of doubt the whole tumor's."""
    shown = []
    for name, image in results.items():
        voxels = np.asanyarray(image.dataobj)
        channels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
        if name == "synthetic":
            contrasts = summary.get("synthetic", [])
            named = contrasts if len(contrasts) == len(channels) else [""] * len(channels)
            titles = [f"synthetic {TITLES.get(contrast, contrast)}".strip() for contrast in named]
            shown += [
                Volume("image", f"synthetic {number}", title, channel, image.affine)
                for number, (title, channel) in enumerate(zip(titles, channels, strict=True))
            ]
        else:
            shown.append(
                Volume("map" if name in DOUBTS else "mask", name, DOUBTS.get(name, "mask"), channels[0], image.affine)
            )
    return shown


def _cut_to_head(volumes: list[Volume]) -> list[Volume]:
    """Without the empty space around everything that the images show."""
    head = np.any([volume.voxels > volume.voxels.min() for volume in volumes if volume.kind == "image"], axis=0)
    if not head.any():
        return volumes
    places = [np.flatnonzero(head.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low = [max(place[0] - RIM, 0) for place in places]
    box = tuple(slice(start, place[-1] + 1 + RIM) for start, place in zip(low, places, strict=True))
    return [_moved(volume, volume.voxels[box], low, [1, 1, 1]) for volume in volumes]


def _moved(volume: Volume, voxels: np.ndarray, first: Any, step: Any) -> Volume:
    """The volume with other voxels, of which the first lies at this place of the former grid."""
    placed = np.eye(4)
    placed[:3, :3], placed[:3, 3] = np.diag(step), first
    return replace(volume, voxels=voxels, affine=volume.affine @ placed)


def _small_enough(volumes: list[Volume]) -> tuple[list[Volume], list[str]]:
    """The volumes and their encoding, with larger voxels where a page would be too large to open."""
    while sum(map(len, encoded := [volume.encoded() for volume in volumes])) > LIMIT_MB * 4e6 / 3:
        volumes = [_halved(volume) for volume in volumes]
    return volumes, encoded


def _halved(volume: Volume) -> Volume:
    """Voxels of twice the size along the axes where they are small: means, of a mask the highest label."""
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    step = np.where((spacing < 1.5 * spacing.min()) & (np.array(volume.voxels.shape) > 1), 2, 1)
    shape = np.array(volume.voxels.shape) // step
    voxels = volume.voxels[tuple(slice(length) for length in shape * step)]
    blocks = voxels.reshape([part for pair in zip(shape, step, strict=True) for part in pair])
    smaller = blocks.max((1, 3, 5)) if volume.kind == "mask" else blocks.mean((1, 3, 5))
    return _moved(volume, smaller, (step - 1) / 2, step)


def _bytes(volume: Volume) -> np.ndarray:
    """One byte per voxel: a label, a percentage, or the grey value between the darkest and nearly the brightest."""
    if volume.kind == "mask":
        return volume.voxels.astype(np.uint8)
    if volume.kind == "map":
        return np.rint(100 * np.clip(volume.voxels, 0, 1)).astype(np.uint8)
    dark = volume.voxels.min()
    inside = volume.voxels[volume.voxels > dark]
    bright = np.percentile(inside, 99.8) if inside.size else dark + 1
    black = dark + DIM * (bright - dark)
    return np.rint(np.clip((volume.voxels - black) * (255 / (bright - black)), 0, 255)).astype(np.uint8)


def _start_mm(volumes: Sequence[Volume]) -> list[float]:
    """The point of each axis's slice with the largest tumor; without a tumor the middle."""
    mask = next((volume for volume in volumes if volume.kind == "mask"), volumes[0])
    tumor = mask.voxels > 0 if mask.kind == "mask" else np.zeros(1, bool)
    middle = [length // 2 for length in mask.voxels.shape]
    areas = [tumor.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)] if tumor.any() else []
    voxel = [int(np.median(np.flatnonzero(area == area.max()))) for area in areas] or middle
    return nib.affines.apply_affine(mask.affine, voxel).round(3).tolist()
