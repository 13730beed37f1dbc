"""A cohort of many small simulated heads by one job and by several with ``--shard``: every case once, the same, memory.

python -m benchmarks.shards --cases 1000 --parts 2
"""

import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import fire

from benchmarks.inference import BUNDLES
from benchmarks.measure import show
from benchmarks.scans import small_head
from benchmarks.segmenting import measure


def shards(cases: int = 1000, parts: int = 2, outputs: str = "seg,error") -> None:
    """Segment the cohort in parts, then the same by one job; print seconds, peak memory and what differs.

    Args:
        cases: heads of 32 to 48 voxels a side, three contrasts.
        parts: jobs, one after the other.
        outputs: maps to write.
    """
    with TemporaryDirectory() as folder:
        for number in range(cases):
            small_head(Path(folder) / "scans", number)
        options = ["--bundle", str(BUNDLES / "tissnet_brats"), "--force", "--outputs", outputs]
        options += ["--cases", f"{folder}/scans", "--out"]
        jobs = [measure(*options, f"{folder}/parts", "--shard", f"{part}/{parts}") for part in range(1, parts + 1)]
        one = measure(*options, f"{folder}/one")
        found = {name: _contents(Path(folder) / name) for name in ("parts", "one")}
    show(
        {
            "cases": cases,
            "parts": [{"seconds": seconds, "peak_mib": peak} for seconds, peak in jobs],
            "one job": {"seconds": one[0], "peak_mib": one[1]},
            "files": len(found["one"]),
            "the same": found["parts"] == found["one"],
            "cpu_seconds": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime,
        }
    )


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("*/*")}


if __name__ == "__main__":
    fire.Fire(shards)
