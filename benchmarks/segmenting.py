"""``segment`` from the shell, from three files of 240 x 240 x 155 voxels to every result: start, time and memory."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.inference import BUNDLES
from benchmarks.measure import in_mib, show
from benchmarks.scans import MODALITIES, write_case

VARIANTS = {"package": [], "float32": ["--precision", "float32"]}


def measure(*options: str) -> tuple[float, float]:
    """Seconds and peak MiB of ``segment`` with these options, as a process."""
    command = [sys.executable, "-W", "ignore", "-m", "tissnet_components", "segment", *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=BUNDLES.parent)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, in_mib(usage)


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
