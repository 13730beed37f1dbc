"""A training that is cut off anywhere and started again is, bit by bit, the training that was left alone."""

import logging
from pathlib import Path

import pytest
import torch
from cohort import write_cohort
from ignite.engine import Events
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).parents[2] / "bundles" / "tissnet_brats" / "configs"
PERCEPTOR = ["train", "direct_segmentation", "strong_augmentation"]
TISSNET = ["train", "strong_augmentation"]
TINY = {
    "widths": [2, 2, 2, 2, 2],
    "patch_size": [32, 32, 16],
    "discriminator_channels": 2,
    "batch_size": 1,
    "val_interval": 1,
    "epochs": 3,
    "learning_rate": 0.01,
    "averaging": 0.5,
    "tumor_paste": 0.5,
    "discriminator_interval": 2,
    "device": torch.device("cpu"),
}


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    logging.getLogger("ignite").setLevel(logging.ERROR)
    return str(write_cohort(tmp_path_factory.mktemp("data")))


def train(configs: list[str], folder: Path, data: str, cut_after: int | None = None) -> dict:
    """Run the bundle's training to its end, or to an iteration; returns the last checkpoint and the best weights."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in configs])
    folders = {"dataset_dir": data, "ckpt_dir": str(folder), "output_dir": str(folder / "out")}
    parser.update(TINY | folders | {"perceptor_path": str(folder.parent / "perceptor.pt")})
    torch.manual_seed(0)
    trainer = parser.get_parsed_content("train::trainer")
    if cut_after is None:
        trainer.run()
    else:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=cut_after), cut)
        with pytest.raises(PowerCut):
            trainer.run()
    return {file.name: torch.load(file, weights_only=True) for file in folder.glob("*.pt")}


def cut() -> None:
    raise PowerCut


def same(one: object, other: object) -> bool:
    """Equal to the last bit, whatever is nested in it."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("whole")
    perceptor = train(PERCEPTOR, folder / "perceptor", data)
    torch.save(perceptor["perceptor.pt"], folder / "perceptor.pt")
    return {"perceptor": perceptor, "tissnet": train(TISSNET, folder / "tissnet", data), "folder": folder}


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [[2], [9], [5, 4]], ids=lambda cuts: "+".join(map(str, cuts)))
@pytest.mark.parametrize(("name", "configs"), [("perceptor", PERCEPTOR), ("tissnet", TISSNET)], ids=lambda value: value)
def test_a_training_cut_off_and_resumed_is_the_uninterrupted_one(name, configs, cuts, whole, data, tmp_path):
    torch.save(torch.load(whole["folder"] / "perceptor.pt", weights_only=True), tmp_path / "perceptor.pt")
    for iteration in cuts:
        train(configs, tmp_path / "run", data, cut_after=iteration)
    resumed = train(configs, tmp_path / "run", data)
    assert resumed.keys() == whole[name].keys()
    assert resumed[next(file for file in resumed if file.endswith("_last.pt"))]["epoch"] == TINY["epochs"]
    for file in resumed:
        assert same(resumed[file], whole[name][file]), file
