"""``python -m benchmarks.picture --patient FOLDER --results FOLDER --out FILE``: the picture of the README.

What the network is given, what it returns, and what was kept from it: the real FLAIR and the expert's label.
"""

from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tissnet_components.results.overview import BACKGROUND, CONTOURS, INK, PROBABILITY_COLOURS

ROWS = {
    "given": {"t1": "T1", "t1ce": "contrast-enhanced T1", "t2": "T2", "flair": "kept back: the real FLAIR"},
    "returned": {
        "synthetic": "synthetic FLAIR",
        "mask": "segmentation",
        "error": "predicted error",
        "compared": "kept back: the expert's outline",
    },
}
PANEL, GAP, HEADER = 2.5, 0.06, 0.3  # inches


def picture(patient: str, results: str, out: str, slice_index: int | None = None) -> None:
    """Draw one patient whose real FLAIR and label are known.

    Args:
        patient: folder with the four contrasts and the label, as BraTS unpacks it.
        results: what `segment` wrote about this patient.
        out: the PNG to write.
        slice_index: axial slice from below; by default the one with the largest tumor.
    """
    files = {name: next(Path(patient).glob(f"*_{name}.nii*")) for name in ("t1", "t1ce", "t2", "flair")}
    files |= {name: next(Path(results).glob(f"*_{name}.nii.gz")) for name in ("synthetic", "error")}
    files |= {"label": next(Path(patient).glob("*_seg.nii*")), "mask": next(Path(results).glob("*_seg.nii.gz"))}
    volumes = {name: nib.as_closest_canonical(nib.load(file)).get_fdata() for name, file in files.items()}
    index = slice_index if slice_index is not None else int((volumes["label"] > 0).sum(axis=(0, 1)).argmax())
    slices = {name: np.flip(volume[..., index]).T for name, volume in volumes.items()}  # the patient's left is right
    rows, columns = (np.flatnonzero((slices["t2"] > 0).any(axis=axis)) for axis in (1, 0))
    head = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    draw({name: image[head] for name, image in slices.items()}).savefig(out)


def draw(slices: dict[str, np.ndarray]) -> Figure:
    """Given above returned, and on the right, a little apart, what was kept back."""
    height = PANEL * slices["t2"].shape[0] / slices["t2"].shape[1]
    size = np.array([HEADER + 4 * (PANEL + GAP) + 2 * GAP, 2 * (height + HEADER + GAP)])
    figure = Figure(figsize=size, dpi=100, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for row, (heading, titles) in enumerate(ROWS.items()):
        bottom = size[1] - (row + 1) * (height + HEADER) - row * GAP
        middle = (HEADER / 2 / size[0], (bottom + height / 2) / size[1])
        figure.text(*middle, heading, color=INK, fontsize=12, rotation=90, ha="center", va="center")
        for column, (name, title) in enumerate(titles.items()):
            left = HEADER + column * (PANEL + GAP) + (2 * GAP if column == 3 else 0)
            axes = figure.add_axes((left / size[0], bottom / size[1], PANEL / size[0], height / size[1]))
            axes.set_title(title, color=INK, fontsize=10, pad=4)
            axes.set_axis_off()
            panel(axes, name, slices)
    return figure


def panel(axes: Axes, name: str, slices: dict[str, np.ndarray]) -> None:
    """One picture: an image, and on the anatomy the segmentation, the predicted error, or both outlines."""
    behind = {"mask": "t2", "error": "synthetic", "compared": "flair"}.get(name, name)
    low, high = np.percentile(slices[behind][slices["t2"] > 0], (0.5, 99.8))
    dimmed = 1.6 if name == "error" else 1
    axes.imshow(slices[behind], cmap="gray", vmin=low, vmax=low + dimmed * (high - low), interpolation="bilinear")
    if name == "error":
        error = np.clip(slices["error"], 0, 1)
        axes.imshow(error, cmap=PROBABILITY_COLOURS, vmin=0, vmax=1, alpha=error**0.5, interpolation="bilinear")
    if name == "compared":
        axes.contour(slices["label"] > 0, levels=[0.5], colors=[CONTOURS["label"]], linewidths=1.8)
    if name in ("mask", "compared"):
        axes.contour(slices["mask"] > 0, levels=[0.5], colors=[CONTOURS["segmentation"]], linewidths=1.2)
    if name == "mask":
        axes.contourf(slices["mask"] > 0, levels=[0.5, np.inf], colors=[CONTOURS["segmentation"]], alpha=0.25)


if __name__ == "__main__":
    fire.Fire(picture)
