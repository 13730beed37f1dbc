"""``python -m benchmarks``, or ``make bench``: every benchmark, a JSON file each, and one table of all of them.

A benchmark whose file is there is not run again, so an interrupted run goes on; ``--anew`` forgets the files.
"""

import json
from collections.abc import Callable
from pathlib import Path

import fire

from benchmarks import growth, inference, limit, loading, metrics, segmenting, training
from benchmarks.measure import machine

BENCHMARKS: dict[str, Callable[[], dict]] = {
    "limit": limit.limit,
    "inference of a brain, 240 x 240 x 155 mm": inference.run,
    "inference of a box, 256 x 128 x 40 voxels": inference.run_box,
    "training step": training.run,
    "training data, an epoch of 2 patients": loading.run,
    "metrics of a case, 240 x 240 x 155 voxels": metrics.run,
    "segment, from files to files": segmenting.run,
    "growth": growth.run,
}


def benchmark(out: str = "benchmarks/results", anew: bool = False) -> None:
    """Run what has not been run yet; write OUT/NAME.json, OUT/growth.png and OUT/table.md.

    Args:
        out: folder of the results.
        anew: run everything again.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, run in BENCHMARKS.items():
        file = folder / f"{name.split(',')[0].replace(' ', '_')}.json"
        if anew or not file.is_file():
            file.write_text(json.dumps({"machine": machine(), "results": run()}, indent=2), encoding="utf-8")
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    growth.draw(found.pop("growth")["results"], folder / "growth.png")
    text = table(found)
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


def table(found: dict[str, dict]) -> str:
    """Markdown: the machine and its limit, then a row for each variant."""
    limit_ = found["limit"]
    lines = [
        "; ".join(f"{key}: {value}" for key, value in limit_["machine"].items()) + ".",
        "Limit, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in limit_["results"].items()) + ".",
        "",
        "| | variant | median | times faster | peak memory | |",
        "|---|---|---|---|---|---|",
    ]
    for name, content in found.items():
        if name != "limit":
            lines += [_row(name, variant, result) for variant, result in content["results"].items()]
    return "\n".join([*lines, ""])


def _row(name: str, variant: str, result: dict) -> str:
    shown = {"median", "seconds", "times_faster", "peak_mib"}
    faster = f"{result['times_faster']:.1f}" if "times_faster" in result else ""
    others = ", ".join(f"{key} {_short(value)}" for key, value in result.items() if key not in shown)
    return f"| {name} | {variant} | {result['median']:.3g} s | {faster} | {result['peak_mib']:.0f} MiB | {others} |"


def _short(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    fire.Fire(benchmark)
