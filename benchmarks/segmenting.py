"""``segment`` from the shell, from three files of 240 x 240 x 155 voxels to every result: start, time and memory."""

import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.inference import BUNDLES
from benchmarks.measure import run_process, show
from benchmarks.scans import MODALITIES, write_case

VARIANTS = {"package": [], "float32": ["--precision", "float32"]}


def measure(*options: str) -> tuple[float, float]:
    """Seconds and peak MiB of ``segment`` with these options, as a process."""
    command = [sys.executable, "-W", "ignore", "-m", "tissnet_components", "segment", *options]
    used = run_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=BUNDLES.parent)
    return used["seconds"], used["peak_mib"]


def run(repeats: int = 1) -> dict:
    """Of one case, in each precision, and of the start alone (imports and ``--help``)."""
    with TemporaryDirectory() as folder:
        case = write_case(Path(folder), "case")
        scans = [part for name, file in zip(MODALITIES[:3], case["image"], strict=True) for part in (f"--{name}", file)]
        options = [
            "--bundle",
            str(BUNDLES / "tissnet_brats"),
            "--out",
            f"{folder}/out",
            "--overwrite",
            "--force",
            *scans,
        ]
        variants = {name: [*options, *extra] for name, extra in VARIANTS.items()} | {"start alone": ["--help"]}
        measured = {name: [] for name in variants}
        for name in list(variants) * repeats:
            measured[name].append(measure(*variants[name]))
    seconds = {name: [time for time, _ in runs] for name, runs in measured.items()}
    return {
        name: {"median": median(seconds[name]), "seconds": seconds[name], "peak_mib": max(peak for _, peak in runs)}
        for name, runs in measured.items()
    }


if __name__ == "__main__":
    show(run())
