"""``make gpu-check``: what this package does on a GPU, in minutes, without a download; prints a table for the docs.

Networks are untrained, images are simulated. Every row is measured after a first, unmeasured run. On a CPU a short form
of the same runs, which shows that it can be run. A row that fails says why, and the others go on.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import fire
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch.profiler import ProfilerActivity, profile

from benchmarks.inference import BUNDLES, brain
from benchmarks.scans import small_head
from benchmarks.training import CONFIGS, Engine, random_batch

FORMATS = {"channels last": "$torch.channels_last_3d", "contiguous": "$torch.contiguous_format"}
Row = dict[str, object]


def training(
    device: str, precision: str, layout: str, compiled: bool, steps: int, patch: list[int], **settings: object
) -> Row:
    """Iterations of `train.json` and `recipe.json`, each of two patches of noise."""
    set_determinism(0)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "recipe.json")])
    own = {"device": f"$torch.device('{device}')", "precision": precision, "memory_format": FORMATS[layout]}
    perceptor = {"perceptor": "$@perceptor_def.to(device=@device, memory_format=@memory_format)"}
    parser.update(perceptor | own | {"patch_size": patch} | settings)
    update, batch = parser.get_parsed_content("train::update"), random_batch(patch)
    if compiled:
        for part in update.network.module.children():
            part.compile()
    engine = Engine(parser.get_parsed_content("device"))
    return timed(lambda: update(engine, batch), device, steps)


def case(device: str, precision: str, scale_mm: float, steps: int, **settings: object) -> Row:
    """Every map of a brain of 240 x 240 x 155 mm at this spacing."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "tissnet_brats" / "configs" / "inference.json"))
    parser.update({"device": f"$torch.device('{device}')", "precision": precision, "inferer::inferer::progress": False})
    parser.update({"bundle_root": str(BUNDLES / "tissnet_brats")} | settings)
    network = parser.get_parsed_content("network_def").to(device=device, memory_format=torch.channels_last_3d).eval()
    inferer, image = parser.get_parsed_content("inferer"), brain(scale_mm, 3).to(device)
    with torch.inference_mode():
        return timed(lambda: inferer(image, network), device, steps)


def cohort(device: str, cases: int, *options: str) -> Row:
    """`segment` of many small simulated heads, from files to files, as a process."""
    with TemporaryDirectory() as folder:
        for number in range(cases):
            small_head(Path(folder) / "scans", number)
        bundle = ["--bundle", str(BUNDLES / "tissnet_brats"), "--device", device, "--force"]
        start = time.perf_counter()
        _run("-m", "tissnet_components", "segment", *bundle, "--cases", f"{folder}/scans", "--out", f"{folder}/out")
        seconds = time.perf_counter() - start
        written = len(list(Path(folder, "out").glob("*/*_seg.nii.gz")))
    return {"seconds": seconds / cases, "cases": f"{written} of {cases}"}


def tensorrt() -> Row:
    """`inferring` with `inference_trt.json`; the first run builds the engines."""
    bundle = BUNDLES / "tissnet_brats"
    with TemporaryDirectory() as folder:
        small_head(Path(folder) / "scans", 0)
        options = ["--dataset_dir", f"{folder}/scans", "--output_dir", f"{folder}/out", "--force", "true"]
        configs = [str(bundle / "configs" / f"{name}.json") for name in ("inference", "inference_trt")]
        command = ["-m", "monai.bundle", "run", "inferring", "--bundle_root", str(bundle)]
        options += ["--config_file", str(configs)]
        _run(*command, *options)
        start = time.perf_counter()
        _run(*command, *options)
        return {"seconds": time.perf_counter() - start}


def gpu_tests() -> Row:
    """The tests that need a GPU."""
    start = time.perf_counter()
    told = _run("-m", "pytest", "-q", "-m", "gpu", str(Path(__file__).parents[1] / "tests" / "test_gpu.py"))
    return {"seconds": time.perf_counter() - start, "told": told.strip().splitlines()[-1].strip("= ")}


def timed(action: Callable[[], object], device: str, steps: int) -> Row:
    """Seconds of an action, its peak memory on a GPU, and which share of the time no kernel runs."""
    action()
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        action()
    if cuda:
        torch.cuda.synchronize()
    row: Row = {"seconds": (time.perf_counter() - start) / steps}
    if cuda:
        row["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return row | {"outside kernels": f"{outside_kernels(action, cuda):.0%}"}


def outside_kernels(action: Callable[[], object], cuda: bool) -> float:
    """The share of an action's time in which no kernel of PyTorch runs: Python, launching and waiting."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        action()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    events = profiler.key_averages()
    spent = sum(event.self_device_time_total if cuda else event.self_cpu_time_total for event in events) / 1e6
    return max(0.0, 1 - spent / seconds)


def rows(device: str, short: bool) -> dict[str, Callable[[], Row]]:
    """Name -> what measures it; in the short form networks of two channels, which say nothing but that they run."""
    cuda = torch.device(device).type == "cuda"
    best, *others = ["bfloat16", "float32", "float16"] if cuda else ["float32", "bfloat16"]
    if short:
        tiny = {"widths": [2] * 5, "discriminator_channels": 2, "norm": "batch"}
        return {
            "training step": lambda: training(device, best, "channels last", False, 1, [32, 32, 16], **tiny),
            "inference of a brain": lambda: case(device, best, 6, 1, widths=[2] * 5, norm="batch"),
        }
    found: dict[str, Callable[[], Row]] = {"tests marked gpu": gpu_tests}
    for precision in (best, *others):
        for layout in FORMATS:
            name = f"training step, 64 x 64 x 16, batch 2, {precision}, {layout}"
            found[name] = partial(training, device, precision, layout, False, 20, [64, 64, 16])
    name = f"training step, 64 x 64 x 16, batch 2, {best}, torch.compile"
    found[name] = partial(training, device, best, "channels last", True, 20, [64, 64, 16])
    for precision in (best, *others):
        found[f"inference of a brain, 1.5 mm, {precision}"] = partial(case, device, precision, 1.5, 5)
    found["segment, 200 small heads, files to files"] = partial(cohort, device, 200)
    if cuda and importlib.util.find_spec("tensorrt"):
        found["inferring with TensorRT, a small head, files to files"] = tensorrt
    return found


def gpu_check(device: str = "", short: bool = False) -> None:
    """Measure and print a table in Markdown.

    Args:
        device: by default a GPU where there is one.
        short: a few seconds, to see that it runs; on a CPU always so.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    short = short or torch.device(device).type == "cpu"
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"
    print(f"{name}; PyTorch {torch.__version__}; {'short form' if short else 'in full'}.\n")
    columns = ["seconds", "peak MiB", "outside kernels"]
    print("| | " + " | ".join(columns) + " | |\n|---|---:|---:|---:|---|")
    for title, measure in rows(device, short).items():
        try:
            row = measure()
        except Exception as error:  # a GPU may lack what one row needs
            row = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        shown = [f"{row[key]:.3g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in columns]
        rest = ", ".join(f"{key} {value}" for key, value in row.items() if key not in columns)
        print(f"| {title} | {' | '.join(shown)} | {rest} |", flush=True)


def _run(*arguments: str) -> str:
    """Python in a process of its own, whose errors are ours."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, cwd=BUNDLES.parent, env=os.environ
    )
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout


if __name__ == "__main__":
    fire.Fire(gpu_check)
