"""One picture per case: what went in, what was synthesised, what was segmented, and where the network doubts itself.

Figures are drawn without pyplot, so that training code may call them from any thread and no global state changes.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tissnet_components.errors import UserError
from tissnet_components.files import write_atomic
from tissnet_components.regions import LABELS_OF_REGIONS

CONTRASTS = {"t1": "T1", "t1ce": "contrast-enhanced T1", "t2": "T2", "flair": "FLAIR"}
IMAGES = {"source": "source", "synthetic": "synthetic", "target": "real target"}
PROBABILITIES = {
    "coarse": "coarse",
    "fine": "segmentation",
    "refined": "refined",
    "error": "predicted error",
    "disagreement": "disagreement",
}
MASKS = {"label": "label", "mask": "mask"}
CONTOURS = {"label": "#ffd92f", "segmentation": "#33ff66"}  # yellow truth, green prediction, as in the paper's Fig. 7
BACKGROUND, INK = "#101216", "#e8eaed"
PROBABILITY_COLOURS = "magma"  # perceptually uniform
PANEL, GAP, HEADER, TITLE, FOOTER = 2.1, 0.05, 0.36, 0.24, 0.36  # inches
DPI = 110


def overview(
    maps: dict[str, np.ndarray],
    path: str | Path,
    title: str = "",
    slice_index: int | None = None,
    affine: np.ndarray | None = None,
    source_names: Sequence[str] = (),
    answer: str = "fine",
) -> Path:
    """Save `overview_figure` as PNG; the file appears only when it is whole. Returns its path."""
    png = io.BytesIO()
    overview_figure(maps, title, slice_index, affine, source_names, answer).savefig(png, format="png")
    return write_atomic(path, png.getvalue())


def overview_figure(
    maps: dict[str, np.ndarray],
    title: str = "",
    slice_index: int | None = None,
    affine: np.ndarray | None = None,
    source_names: Sequence[str] = (),
    answer: str = "fine",
) -> Figure:
    """Draw one axial slice of every map, in radiological orientation (the patient's left is on the right).

    Args:
        maps: name -> (X, Y, Z) or (C, X, Y, Z), drawn in this order, images before maps. Names: source
            (one panel per channel), synthetic, target, coarse, fine, refined, error, disagreement, label, mask.
            None is required. Images are grey, over their range in the slice (the synthetic one over the
            real target's); probabilities coloured, over 0 to 1.
        slice_index: slice of these arrays, from inferior to superior; by default the one with the largest tumor
            (by label, else by fine), or the middle one without a tumor.
        affine: (4, 4) voxel to RAS millimetres, which the heading then gives; without it arrays are taken to be LPS
            with cubic voxels.
        source_names: titles of the source channels.
        answer: what kind of segmentation ``fine`` holds, such as ``consensus``.

    Raises:
        ValueError: nothing to draw, an unknown name, shapes that differ, or a slice outside the volume.
    """
    slices, index = axial_slices(maps, slice_index, affine)
    where = f"slice {index}" if affine is None else f"axial at {_height_mm(maps, affine, index):.0f} mm"
    return _draw(_cut_to_head(slices), f"{title}  ·  {where}".strip(" ·"), _aspect(affine), source_names, answer)


def literal(text: str) -> str:
    """A name as it is, which matplotlib would take for mathematics between two dollar signs."""
    return text.replace("$", r"\$")


def axial_slices(
    maps: dict[str, np.ndarray], slice_index: int | None = None, affine: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """One axial slice of every map, as `overview_figure` shows it: (C, rows, columns), and its index."""
    volumes = _upright(_as_volumes(maps), affine)
    index = _tumor_slice(volumes) if slice_index is None else slice_index
    depth = next(iter(volumes.values())).shape[-1]
    if not 0 <= index < depth:
        raise UserError(f"slice {index} does not exist: the volume has {depth} axial slices, 0 to {depth - 1}")
    return {name: np.moveaxis(volume[..., index], 1, -1) for name, volume in volumes.items()}, index


def save_slices(maps: dict[str, np.ndarray], path: str | Path, affine: np.ndarray | None = None) -> Path:
    """Keep `axial_slices` for comparisons between methods, as float16 in a NumPy archive with `aspect` and `index`."""
    slices, index = axial_slices(maps, affine=affine)
    archive = io.BytesIO()
    halves: dict[str, Any] = {name: array.astype(np.float16) for name, array in slices.items()}
    np.savez_compressed(archive, **halves, aspect=_aspect(affine), index=index)
    return write_atomic(path, archive.getvalue())


def _as_volumes(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    known = [*IMAGES, *PROBABILITIES, *MASKS]
    if unknown := sorted(set(maps) - set(known)):
        raise UserError(f"unknown maps {unknown}; known: {known}")
    if not maps:
        raise UserError(f"no maps to draw; give at least one of {known}")
    arrays = {name: np.asarray(array) for name, array in maps.items()}
    volumes = {name: array[None] if array.ndim == 3 else array for name, array in arrays.items()}
    if len({volume.shape[1:] for volume in volumes.values()}) > 1:
        raise UserError(f"maps of one case need one grid, got { ({n: v.shape for n, v in volumes.items()}) }")
    return volumes


def _upright(volumes: dict[str, np.ndarray], affine: np.ndarray | None) -> dict[str, np.ndarray]:
    """Flip and swap axes to the nearest LPS, where row = y and column = x give the radiological view."""
    if affine is None:
        return volumes
    return {
        name: np.stack([nib.orientations.apply_orientation(channel, _to_lps(affine)) for channel in volume])
        for name, volume in volumes.items()
    }


def _to_lps(affine: np.ndarray) -> np.ndarray:
    return nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))


def _height_mm(maps: dict[str, np.ndarray], affine: np.ndarray, index: int) -> float:
    """Where a viewer finds the middle of an axial slice, in millimetres upwards."""
    shape = np.shape(next(iter(maps.values())))[-3:]
    to_lps = _to_lps(affine)
    across = [(shape[axis] - 1) / 2 for axis in np.argsort(to_lps[:, 0])[:2]]
    return float((affine @ nib.orientations.inv_ornt_aff(to_lps, shape) @ [*across, index, 1])[2])


def _aspect(affine: np.ndarray | None) -> float:
    """Height of a displayed pixel over its width."""
    if affine is None:
        return 1.0
    ras_axes = nib.io_orientation(affine)[:, 0]
    spacing = dict(zip(ras_axes, nib.affines.voxel_sizes(affine), strict=True))
    return float(spacing[1] / spacing[0])


def _tumor_slice(volumes: dict[str, np.ndarray]) -> int:
    for name in ("label", "fine"):
        if name in volumes:
            area = (volumes[name] > 0.5).sum(axis=(0, 1, 2))
            if area.any():
                return int(area.argmax())
    return next(iter(volumes.values())).shape[-1] // 2


def _cut_to_head(slices: dict[str, np.ndarray], margin: int = 4) -> dict[str, np.ndarray]:
    """Cut away the background that surrounds the head in every image."""
    images = [channel for name in IMAGES if name in slices for channel in slices[name]]
    if not images:
        return slices
    head = np.any([image > image.min() for image in images], axis=0)
    if not head.any():
        return slices
    rows, columns = (np.flatnonzero(head.any(axis=axis)) for axis in (1, 0))
    box = tuple(slice(max(span[0] - margin, 0), span[-1] + margin + 1) for span in (rows, columns))
    return {name: image[(slice(None), *box)] for name, image in slices.items()}


def _draw(slices: dict[str, np.ndarray], title: str, aspect: float, source_names: Sequence[str], answer: str) -> Figure:
    rows = _rows(slices)
    columns = max(len(row) for row in rows)
    pixels = next(iter(slices.values())).shape[1:]
    height = PANEL * aspect * pixels[0] / pixels[1]
    size = np.array([columns * (PANEL + GAP) + GAP, HEADER + len(rows) * (height + TITLE + GAP) + FOOTER])
    figure = Figure(figsize=(size[0], size[1]), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - HEADER / 2 / size[1], literal(title), color=INK, fontsize=11, ha="center", va="center")
    for row, panels in enumerate(rows):
        bottom = size[1] - HEADER - (row + 1) * (height + TITLE + GAP) + GAP
        for column, (name, channel) in enumerate(panels):
            corner = np.array([GAP + column * (PANEL + GAP), bottom])
            axes = figure.add_axes((*corner / size, *np.array([PANEL, height]) / size))
            _panel(axes, slices, name, channel, aspect)
            axes.set_title(
                _panel_title(name, channel, _names(slices, name, source_names), answer), color=INK, fontsize=9, pad=3
            )
            axes.set_axis_off()
    _footer(figure, slices)
    return figure


def _rows(slices: dict[str, np.ndarray]) -> list[list[tuple[str, int]]]:
    """Panels as (name, channel): images above maps, or all in one row when they are few.

    A source that is the real target, as of the perceptor, or that the patient lacks, has no panel of its own.
    """
    target = slices["target"][0] if "target" in slices else None
    panels = [
        (name, channel)
        for name, image in slices.items()
        for channel in range(len(image))
        if name != "source"
        or not ((target is not None and np.array_equal(image[channel], target)) or _is_lacking(image, channel))
    ]
    images = [panel for panel in panels if panel[0] in IMAGES]
    others = [panel for panel in panels if panel[0] not in IMAGES]
    return [images + others] if len(panels) <= 5 else [row for row in (images, others) if row]


def _is_lacking(image: np.ndarray, channel: int) -> bool:
    """Whether this channel is background everywhere, unlike others: a contrast that the patient lacks."""
    return bool((image[channel] == -1).all() and (image != -1).any())


def _names(slices: dict[str, np.ndarray], name: str, source_names: Sequence[str]) -> Sequence[str]:
    """What the channels of a map show: contrasts, of several synthetic ones those that were lacking, or regions."""
    if name == "source" or len(slices[name]) == 1:
        return source_names if name == "source" else ()
    if name in IMAGES:
        source = slices.get("source", np.zeros(0))
        lacking = [given for number, given in enumerate(source_names[: len(source)]) if _is_lacking(source, number)]
        return lacking if len(lacking) == len(slices[name]) else source_names
    return list(LABELS_OF_REGIONS)


def _panel_title(name: str, channel: int, names: Sequence[str], answer: str) -> str:
    given = names[channel] if channel < len(names) else f"source {channel + 1}"
    if name == "source":
        return CONTRASTS.get(given, given)
    title = {**IMAGES, **PROBABILITIES, **MASKS}[name] + (f" ({answer})" if name == "fine" else "")
    return f"{title}: {CONTRASTS.get(given, given)}" if channel < len(names) else title


def _panel(axes: Axes, slices: dict[str, np.ndarray], name: str, channel: int, aspect: float) -> None:
    if name in IMAGES:
        low, high = _grey_range(slices, name, channel)
        axes.imshow(slices[name][channel], cmap="gray", vmin=low, vmax=high, aspect=aspect)
        if name != "source" or not {"synthetic", "target"} & set(slices):
            _contours(axes, slices)
        return
    _backdrop(axes, slices, aspect)
    values = np.clip(slices[name][channel], 0, 1)
    if name in MASKS:
        colour = CONTOURS["label" if name == "label" else "segmentation"]
        axes.contourf(values, levels=[0.5, np.inf], colors=[colour], alpha=0.75)
    else:
        axes.imshow(values, cmap=PROBABILITY_COLOURS, vmin=0, vmax=1, alpha=values**0.5, aspect=aspect)


def _grey_range(slices: dict[str, np.ndarray], name: str, channel: int) -> tuple[float, float]:
    """The real target's range for it and its synthetic version, so that they compare; any other image's own."""
    image = slices["target"] if name == "synthetic" and "target" in slices else slices[name][channel]
    return float(image.min()), float(image.max())


def _backdrop(axes: Axes, slices: dict[str, np.ndarray], aspect: float) -> None:
    """The anatomy behind a map, dimmed: the real target if there is one, else the synthetic one, else the source."""
    blank = np.zeros((1, *next(iter(slices.values())).shape[1:]))
    behind = next((slices[name] for name in ("target", "synthetic", "source") if name in slices), blank)[0]
    low, high = float(behind.min()), float(behind.max())
    axes.imshow(behind, cmap="gray", vmin=low, vmax=low + 2 * max(high - low, 1e-6), aspect=aspect)


def _contours(axes: Axes, slices: dict[str, np.ndarray]) -> None:
    """Label below and wider than the segmentation, so that both stay visible where they agree."""
    for name, mask in contoured(slices).items():
        if mask.any():
            axes.contour(mask, levels=[0.5], colors=[CONTOURS[name]], linewidths=2.0 if name == "label" else 0.9)


def contoured(slices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks whose contours are drawn: the label and the segmentation: fine, or refined of a network without fine."""
    maps = {"label": "label", "segmentation": "fine" if "fine" in slices else "refined"}
    return {name: slices[key][0] > 0.5 for name, key in maps.items() if key in slices}


def _footer(figure: Figure, slices: dict[str, np.ndarray]) -> None:
    width, height = figure.get_size_inches()
    lines = [Line2D([], [], color=CONTOURS[name], label=name) for name in contoured(slices)]
    if lines:
        figure.legend(handles=lines, loc="lower left", ncols=2, frameon=False, labelcolor=INK, fontsize=8)
    if set(PROBABILITIES) & set(slices):
        axes = figure.add_axes(((width - 1.7) / width, 0.22 / height, 1.4 / width, 0.08 / height))
        scale = ScalarMappable(Normalize(0, 1), PROBABILITY_COLOURS)
        figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=[0, 0.5, 1])
        axes.tick_params(colors=INK, labelsize=7, length=2, pad=1)
        axes.text(-0.06, 0.5, "probability", color=INK, fontsize=8, ha="right", va="center", transform=axes.transAxes)
        axes.spines["outline"].set_visible(False)
