"""Both bundles train across sites by MONAI's federated client, which NVFLARE and others run; here the sites in turn."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bundle_copies import BUNDLES
from hospitals import SETTINGS, SITES, write_site
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism
from tissnet_components.federated import federate, new_network, train_at_site


@pytest.fixture(autouse=True)
def untouched_interpreter(monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    yield
    set_determinism(None)


def site(name: str, bundle: str, folder: Path) -> MonaiAlgo:
    """A hospital with two patients of its own, one to train and one to validate."""
    settings = SETTINGS | write_site(name, bundle, folder)
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


@pytest.mark.slow
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


def with_stand_in(monkeypatch, name: str, **content: object) -> None:
    """A module of NVFLARE, which is not installed here; environment_tests/test_nvflare.py has the real one."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:length]), ModuleType(parts[length - 1]))
    for key, value in content.items():
        setattr(sys.modules[name], key, value)
    if len(parts) == 2:
        setattr(sys.modules[parts[0]], parts[1], sys.modules[name])


def with_server(monkeypatch, weights: dict[str, torch.Tensor]) -> list[SimpleNamespace]:
    """A server that asks ``here`` for one round; returns what it is sent."""
    sent = []
    with_stand_in(
        monkeypatch,
        "nvflare.client",
        init=lambda: None,
        get_site_name=lambda: "here",
        is_running=lambda: not sent,
        receive=lambda: SimpleNamespace(params={name: value.clone() for name, value in weights.items()}),
        send=sent.append,
        FLModel=SimpleNamespace,
    )
    return sent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:executing the bundle config")  # MONAI's, on what a server may run at a site
@pytest.mark.parametrize("overlays", [[], ["configs/direct_segmentation.json"]], ids=["cascade", "perceptor"])
def test_a_site_sends_its_weights_one_dice_and_its_steps_and_refuses_to_begin_twice(tmp_path, monkeypatch, overlays):
    bundle = str(BUNDLES / "tissnet_vs")
    (tmp_path / "here.json").write_text(json.dumps(SETTINGS | write_site("here", "tissnet_vs", tmp_path, training=2)))
    start = new_network(bundle, ["configs/train.json", *overlays, str(tmp_path / "here.json")]).state_dict()
    configs = ("configs/train.json", *overlays, f"{tmp_path}/{{site}}.json")
    sent = with_server(monkeypatch, start)
    train_at_site(bundle, *configs)
    (message,) = sent
    assert vars(message).keys() == {"params", "metrics", "meta"}
    assert {name: value.shape for name, value in message.params.items()} == {n: v.shape for n, v in start.items()}
    assert not torch.equal(flat(message.params), flat(start))
    assert message.metrics.keys() == {"val_dice"} and 0 <= message.metrics["val_dice"] <= 1
    assert message.meta == {"NUM_STEPS_CURRENT_ROUND": 2}
    with_server(monkeypatch, start)
    with pytest.raises(ValueError, match=r"here resumes an earlier training; give an empty ckpt_dir in .*here\.json"):
        train_at_site(bundle, *configs)


def test_a_job_has_one_path_for_all_sites_and_is_made_from_any_folder(tmp_path, monkeypatch):
    made = {}

    class Recipe(SimpleNamespace):
        def export(self, out: str) -> None:
            made.update(vars(self), out=out, script=Path(self.train_script).resolve())

    with_stand_in(monkeypatch, "nvflare.app_opt.pt.recipes.fedavg", FedAvgRecipe=Recipe)
    monkeypatch.chdir(tmp_path)
    federate("tissnet_vs", "/srv/{site}.json", rounds=5, sites=3, weights="start.pt")
    assert Path.cwd() == tmp_path and made["out"] == str(tmp_path / "jobs")
    assert made["train_args"] == f"{tmp_path}/tissnet_vs configs/train.json /srv/{{site}}.json"
    assert (made["min_clients"], made["num_rounds"], made["initial_ckpt"]) == (3, 5, str(tmp_path / "start.pt"))
    assert made["script"] == Path(sys.modules[train_at_site.__module__].__file__)
    assert made["model"]["class_path"] == "tissnet_components.federated.new_network"


def test_new_networks_of_one_config_are_equal(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(SETTINGS))
    configs = ["configs/train.json", str(tmp_path / "tiny.json")]
    one, two = (flat(new_network(str(BUNDLES / "tissnet_vs"), configs).state_dict()) for _ in range(2))
    assert torch.equal(one, two)


def test_a_blank_in_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="contains a blank, at which NVFLARE would part it"):
        federate("tissnet_vs", "/my data/{site}.json", rounds=1)


def test_without_nvflare_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvflare", None)
    with pytest.raises(ImportError, match=r"needs NVFLARE; pip install -e \"\.\[federated\]\""):
        federate("tissnet_vs", "/srv/{site}.json", rounds=1)
