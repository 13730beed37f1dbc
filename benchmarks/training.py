"""One training iteration with the settings of the shipped weights: 64 x 64 x 16 voxels, two patches."""

from collections.abc import Callable
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import set_determinism
from tissnet_components.inference import best_precision

from benchmarks.measure import compare, show

CONFIGS = Path(__file__).parents[1] / "bundles" / "tissnet_brats" / "configs"
CPU = {"device": "$torch.device('cpu')"}
PLAIN = "benchmarks.reference.plain"
REFERENCE = {
    "memory_format": "$torch.contiguous_format",
    "network": {"_target_": PLAIN, "network": "@network_def"},
    "perceptor": {"_target_": PLAIN, "network": "@perceptor_def"},
    "train::update::_target_": "benchmarks.reference.PlainUpdate",
}
OWN = {"perceptor": "$@perceptor_def.to(memory_format=@memory_format)"}  # untrained
BEST = OWN | {"precision": best_precision(torch.device("cpu"))}
VARIANTS = {
    "reference": REFERENCE,
    "one cascade, no unused gradients": OWN | {"memory_format": "$torch.contiguous_format"},
    "channels last": OWN,
    "best precision (package)": BEST,
    "checkpointing": BEST | {"checkpointing": True},
}


class Engine:
    """As much of a trainer as one iteration needs."""

    non_blocking = False

    def __init__(self, device: torch.device) -> None:
        self.state = type("State", (), {"device": device, "output": None, "iteration": 0})()

    def fire_event(self, event: object) -> None:
        """Nothing listens."""


def build(variant: str, **settings: object) -> Callable[[], dict]:
    """An iteration on patches of noise; gives the loss."""
    set_determinism(0)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "recipe.json")])
    parser.update(CPU | VARIANTS[variant] | settings)
    update, batch = parser.get_parsed_content("train::update"), random_batch(parser["patch_size"])
    engine = Engine(parser.get_parsed_content("device"))

    def iterate() -> dict:
        engine.state.iteration += 1
        return {"loss": float(update(engine, batch)["loss"])}

    return iterate


def random_batch(patch_size: list[int]) -> dict[str, MetaTensor]:
    """Two patches of noise, each with a box for a tumor."""
    label = torch.zeros(2, 1, *patch_size)
    label[:, :, 16:48, 16:48, 4:12] = 1
    image, target = (torch.rand(2, count, *patch_size) * 2 - 1 for count in (3, 1))
    return {"image": MetaTensor(image), "target": MetaTensor(target), "label": MetaTensor(label)}


def run(repeats: int = 3) -> dict:
    """Every variant, each with a step more than the one before."""
    return compare(build, list(VARIANTS), repeats)


def four(interval: int) -> Callable[[], dict]:
    """Four iterations, of which the discriminators step in every so many."""
    iterate = build("best precision (package)", discriminator_interval=interval)
    return lambda: [iterate() for _ in range(4)][-1]


def intervals(repeats: int = 4) -> dict:
    """What resting discriminators save."""
    return compare(four, [1, 2, 4], repeats)


if __name__ == "__main__":
    show(run())
