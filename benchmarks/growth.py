"""How time and memory grow: with the head's volume, the number of cases, of modalities, and the widths."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.inference import BUNDLES, read
from benchmarks.measure import compare, show
from benchmarks.scans import write_case
from benchmarks.segmenting import measure

SIDES, CASES, MODALITIES, WIDTHS = (48, 64, 96, 128), (1, 2, 4), (1, 3), (8, 16, 32)


def build(variant: tuple[int, int, int]) -> Callable[[], None]:
    """Inference of a cube: (side in voxels, modalities, width of the first level), untrained."""
    side, modalities, width = variant
    names = [f"m{number}" for number in range(modalities)]
    parser = read("tissnet_brats", widths=[width * 2**level for level in range(5)], source_modalities=names)
    network, inferer = parser.get_parsed_content("network_def").eval(), parser.get_parsed_content("inferer")
    network = network.to(memory_format=parser.get_parsed_content("memory_format"))
    image = torch.rand(1, modalities, side, side, side)

    def infer() -> None:
        with torch.inference_mode():
            inferer(image, network)

    return infer


def run() -> dict:
    """Axis -> value on it -> seconds and MiB."""
    cubes = {(side, 3, 16) for side in SIDES} | {(96, count, 16) for count in MODALITIES}
    found = compare(build, sorted(cubes | {(96, 3, width) for width in WIDTHS}), repeats=1)
    point = {cube: {"seconds": result["median"], "peak_mib": result["peak_mib"]} for cube, result in found.items()}
    return {
        "million voxels": {side**3 / 1e6: point[side, 3, 16] for side in SIDES},
        "modalities": {count: point[96, count, 16] for count in MODALITIES},
        "width of the first level": {width: point[96, 3, width] for width in WIDTHS},
        "cases, by segment": {count: _cohort(count) for count in CASES},
    }


def _cohort(cases: int) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        for number in range(cases):
            write_case(Path(folder) / "scans", f"case{number}")
        bundle = ["--bundle", str(BUNDLES / "tissnet_brats"), "--force"]
        seconds, peak = measure(*bundle, "--cases", f"{folder}/scans", "--out", f"{folder}/out")
    return {"seconds": seconds, "peak_mib": peak}


def draw(found: dict, path: Path) -> None:
    """Seconds above, memory below, a column for each axis."""
    figure = Figure(figsize=(3 * len(found), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for column, (axis, points) in enumerate(found.items()):
        for row, key in enumerate(("seconds", "peak_mib")):
            axes = figure.add_subplot(2, len(found), row * len(found) + column + 1)
            x, y = [float(value) for value in points], [point[key] for point in points.values()]
            axes.plot(x, y, "o-")
            axes.set(xlabel=axis, ylabel={"seconds": "seconds", "peak_mib": "peak memory, MiB"}[key])
            axes.set(xlim=(0, 1.1 * max(x)), ylim=(0, 1.1 * max(y)))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    show(run())
