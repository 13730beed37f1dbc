"""A cohort of many small simulated heads by one job and by several with ``--shard``: every case once, the same, memory.

python -m benchmarks.shards --cases 1000 --parts 2 --folder /tmp/shards     # the same command goes on after a stop
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import fire

from benchmarks.inference import BUNDLES
from benchmarks.measure import show
from benchmarks.scans import small_head
from benchmarks.segmenting import measure


def shards(cases: int = 1000, parts: int = 2, outputs: str = "seg,error", folder: str = "") -> None:
    """Segment the cohort in parts, then the same by one job; print seconds, peak memory and what differs.

    Args:
        cases: heads of 32 to 48 voxels a side, three contrasts.
        parts: jobs, one after the other.
        outputs: maps to write.
        folder: keeps scans, results and what was measured, and a stopped run goes on there; by default a passing one.
    """
    with TemporaryDirectory() as passing:
        _shards(cases, parts, outputs, Path(folder or passing))


def _shards(cases: int, parts: int, outputs: str, folder: Path) -> None:
    for number in range(cases):
        if not (folder / "scans" / f"head{number:04d}_t2.nii.gz").is_file():
            small_head(folder / "scans", number)
    options = ["--bundle", str(BUNDLES / "tissnet_brats"), "--force", "--outputs", outputs, "--resume"]
    options += ["--cases", f"{folder}/scans", "--out"]
    jobs = [[f"{folder}/parts", "--shard", f"{part}/{parts}"] for part in range(1, parts + 1)]
    measured = [_measure(folder, [*options, *job]) for job in [*jobs, [f"{folder}/one"]]]
    found = {name: _contents(folder / name) for name in ("parts", "one")}
    show(
        {
            "cases": cases,
            "parts": measured[:-1],
            "one job": measured[-1],
            "files": len(found["one"]),
            "the same": found["parts"] == found["one"],
        }
    )


def _measure(folder: Path, options: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a job, from a run before if it ended there, and how many files that run had left."""
    log = folder / "measured.json"
    known = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {}
    name = " ".join(options)
    if name not in known:
        before = len(_contents(folder / Path(options[options.index("--out") + 1]).name))
        seconds, peak = measure(*options)
        known[name] = {"seconds": seconds, "peak_mib": peak, "files before": before}
        log.write_text(json.dumps(known), encoding="utf-8")
    return known[name]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("*/*")}


if __name__ == "__main__":
    fire.Fire(shards)
