"""An epoch's patches of two patients: with the scans prepared anew each epoch, and prepared once."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from monai.bundle import ConfigParser

from benchmarks.measure import compare, show
from benchmarks.scans import write_datalist
from benchmarks.training import CONFIGS

CASES = 2
VARIANTS = {"prepared each epoch (reference)": {"cache_rate": 0.0}, "prepared once (package)": {}}


def build(variant: str) -> Callable[[], dict]:
    """Draw every patch of an epoch; the scans are written first, and prepared if that is done once."""
    folder = TemporaryDirectory()
    write_datalist(Path(folder.name), CASES)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "recipe.json")])
    parser.update({"dataset_dir": folder.name, "tumor_paste": 0, **VARIANTS[variant]})
    start = time.perf_counter()
    loader = parser.get_parsed_content("train::dataloader")
    prepared = time.perf_counter() - start

    def epoch() -> dict:
        assert folder.name  # the scans stay until the process ends
        return {"batches": sum(1 for _ in loader), "seconds of preparation": prepared}

    return epoch


def run(repeats: int = 3) -> dict:
    """Seconds of an epoch, and per batch."""
    results = compare(build, list(VARIANTS), repeats)
    for result in results.values():
        result["seconds of a batch"] = result["median"] / result["batches"]
    return results


if __name__ == "__main__":
    show(run())
