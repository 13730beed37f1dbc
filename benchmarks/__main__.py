"""``python -m benchmarks [--repeats 5] [--out benchmarks.md]``: how layout, precision and upsampling change the speed.

Variants run in turn, A B C A B C, and medians are compared with the first variant of the same run, because machines
drift. What is timed: the cascade on one training patch (inference), and one whole adversarial iteration of batch 2.
"""

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import fire
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import set_determinism
from tqdm import tqdm

TRAIN = Path(__file__).parents[1] / "bundles" / "tissnet_brats" / "configs" / "train.json"
VARIANTS = {
    "float32, contiguous": {"memory_format": "$torch.contiguous_format"},
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, transposed convolutions": {"precision": "bfloat16", "upsampling": "transposed"},
    "bfloat16, 16 discriminator channels": {"precision": "bfloat16", "discriminator_channels": 16},
}


class Engine:
    """As much of a trainer as one iteration needs."""

    non_blocking = False

    def __init__(self, device: torch.device) -> None:
        self.state = type("State", (), {"device": device, "output": None})()

    def fire_event(self, event: object) -> None:
        """Nothing listens."""


def build(settings: dict) -> dict[str, Callable[[], object]]:
    """What to time, for one variant of the bundle's training config, with an untrained perceptor."""
    set_determinism(0)
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser.update({"perceptor": "$@perceptor_def.to(device=@device, memory_format=@memory_format)", **settings})
    network, update, device = (parser.get_parsed_content(name) for name in ("network", "train::update", "device"))
    inferer, engine = parser.get_parsed_content("train::inferer"), Engine(device)
    batch = random_batch(parser["patch_size"], parser.get_parsed_content("source_channels"))

    def infer() -> None:
        network.eval()
        with torch.inference_mode():
            inferer(batch["image"][:1].to(device), network)

    return {"inference of a patch": infer, "training iteration": lambda: update(engine, batch)}


def random_batch(patch_size: list[int], channels: int) -> dict[str, MetaTensor]:
    """Two patches of noise, each with a box for a tumor."""
    label = torch.zeros(2, 1, *patch_size)
    label[:, :, 32:64, 32:64, 4:12] = 1
    image, target = (torch.rand(2, count, *patch_size) * 2 - 1 for count in (channels, 1))
    return {"image": MetaTensor(image), "target": MetaTensor(target), "label": MetaTensor(label)}


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def benchmark(repeats: int = 5, out: str = "benchmarks.md") -> None:
    """Time every variant and write a Markdown table, and the numbers as JSON beside it.

    Args:
        repeats: timed rounds after one warm-up round; medians are reported.
        out: the table's file.
    """
    actions = {variant: build(settings) for variant, settings in VARIANTS.items()}
    times: dict[str, dict[str, list[float]]] = {variant: {task: [] for task in actions[variant]} for variant in actions}
    for round_, variant in tqdm(list(itertools.product(range(repeats + 1), actions)), desc="timing"):
        for task, action in actions[variant].items():
            taken = seconds(action)
            if round_:
                times[variant][task].append(taken)
    Path(out).write_text(table(times), encoding="utf-8")
    machine = {"machine": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    Path(out).with_suffix(".json").write_text(json.dumps({**machine, "seconds": times}, indent=2), encoding="utf-8")
    print(table(times))


def table(times: dict[str, dict[str, list[float]]]) -> str:
    """Median seconds, and how many times faster than the first variant."""
    tasks = list(next(iter(times.values())))
    reference = {task: statistics.median(next(iter(times.values()))[task]) for task in tasks}
    lines = [f"| variant | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for variant, measured in times.items():
        medians = {task: statistics.median(measured[task]) for task in tasks}
        cells = (f"{medians[task]:.2f} s ({reference[task] / medians[task]:.2f}x)" for task in tasks)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return "\n".join([*lines, "", f"Medians; in brackets, times faster than the first row. {threads}.", ""])


if __name__ == "__main__":
    fire.Fire(benchmark)
