"""Both bundles train across sites by MONAI's federated client, which NVFLARE and others run; here the sites in turn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_copies import BUNDLES
from cohort import write_case, write_datalist
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism

pytestmark = pytest.mark.slow

SITES = ("here", "there")
TINY = {
    "widths": [2, 2, 2, 2, 2],
    "patch_size": [32, 32, 8],
    "box_size": [32, 32, 12],
    "spacing_mm": [1.0, 1.0, 1.0],
    "discriminator_channels": 2,
    "val_interval": 1,
    "learning_rate": 0.01,
    "loss_weights::perceptibility": 0,
    "device": torch.device("cpu"),
}


@pytest.fixture(autouse=True)
def untouched_interpreter(monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    yield
    set_determinism(None)


def site(name: str, bundle: str, folder: Path) -> MonaiAlgo:
    """A hospital with two patients of its own, one to train and one to validate."""
    seed = 2 * SITES.index(name)
    cases = [write_case(folder / name / f"{name}_{number}", seed + number, (32, 32, 12)) for number in range(2)]
    data = write_datalist(folder / name, training=cases[:1], validation=cases[1:])
    if bundle == "tissnet_vs":
        for case in cases:
            case["image"] = case["image"][2:]
        data = write_datalist(folder / name, training=cases[:1], validation=cases[1:], sources=["t2"])
    folders = {"dataset_dir": data.parent, "ckpt_dir": folder / name / "models", "output_dir": folder / name / "eval"}
    settings = TINY | {key: str(path) for key, path in folders.items()}
    algorithm = MonaiAlgo(
        str(BUNDLES / bundle),
        send_weight_diff=False,
        train_kwargs=dict(settings),
        config_evaluate_filename="configs/train.json",
        eval_kwargs=settings | {"output_dir": str(folder / name / "federated")},
    )
    algorithm.initialize({ExtraItems.CLIENT_NAME: name})
    return algorithm


def mean(exchanged: list[ExchangeObject]) -> dict[str, Any]:
    """What a server makes of the sites' weights: federated averaging, of sites of the same size."""
    first = exchanged[0].weights
    return {name: sum(each.weights[name] for each in exchanged) / len(exchanged) for name in first}


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in weights.values()])


@pytest.mark.parametrize(
    "bundle", ["tissnet_brats", pytest.param("tissnet_vs", marks=pytest.mark.stress)], ids=lambda name: name
)
def test_two_sites_train_one_network_for_two_rounds_and_exchange_weights_alone(bundle, tmp_path):
    sites = {name: site(name, bundle, tmp_path) for name in SITES}
    shared = sites["here"].get_weights().weights
    for number in (1, 2):
        before = {name: value.clone() for name, value in shared.items()}
        for algorithm in sites.values():
            algorithm.train(ExchangeObject(weights=before))
        exchanged = [algorithm.get_weights() for algorithm in sites.values()]
        assert [algorithm.trainer.state.epoch for algorithm in sites.values()] == [number, number]
        assert [each.weight_type for each in exchanged] == [WeightType.WEIGHTS] * 2
        assert [each.weights.keys() for each in exchanged] == [before.keys()] * 2
        shared = mean(exchanged)
        start, here, there, middle = map(flat, (before, *(each.weights for each in exchanged), shared))
        assert len({tuple(weights.tolist()) for weights in (start, here, there)}) == 3
        torch.testing.assert_close(middle, (here + there) / 2)
    for name, algorithm in sites.items():
        assert 0 <= algorithm.evaluate(ExchangeObject(weights=shared)).metrics["val_dice"] <= 1
        cases = [*algorithm.trainer.data_loader.dataset.data, *algorithm.evaluator.data_loader.dataset.data]
        assert {case["case"] for case in cases} == {f"{name}_0", f"{name}_1"}
        algorithm.finalize()
