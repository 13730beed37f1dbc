"""Both bundles trained by NVFLARE's simulator; `make federated-test` runs this in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_copies import BUNDLES, NAMES
from hospitals import SETTINGS, SITES, write_site
from tissnet_components.federated import federate, new_network
from tissnet_components.weights import load_weights

pytest.importorskip("nvflare", reason="needs NVFLARE: make federated-test")

WEIGHTS = "DXO/data/"
MESSAGES = {"sent": "task_data_filters", "received": "task_result_filters"}  # by the server


def keep_messages(job: Path, folder: Path) -> None:
    """Let the job's server write down what it sends and receives."""
    shutil.copy(Path(__file__).with_name("received.py"), job / "app" / "custom")
    config = job / "app" / "config" / "config_fed_server.json"
    content = json.loads(config.read_text())
    for name, filters in MESSAGES.items():
        (folder / name).mkdir()
        keep = {"path": "received.Keep", "args": {"folder": str(folder / name)}}
        content[filters] = [{"tasks": ["train"], "filters": [keep]}]
    config.write_text(json.dumps(content))


def simulate(job: Path, out: Path) -> subprocess.CompletedProcess:
    """A server and the sites, each site in a process of its own."""
    command = [Path(sys.executable).with_name("nvflare"), "simulator", job, "--workspace", out]
    command += ["--clients", ",".join(SITES), "--threads", str(len(SITES))]
    return subprocess.run(command, cwd=out.parent, env=dict(os.environ), text=True, capture_output=True, timeout=600)


@pytest.fixture(scope="module", params=NAMES)
def federation(request, tmp_path_factory) -> Iterator[Path]:
    """What two rounds leave; ``there`` has two patients to train, ``here`` one. The glioma's starts from weights."""
    bundle, folder = request.param, tmp_path_factory.mktemp(request.param)
    for site, training in zip(SITES, (1, 2), strict=True):
        (folder / f"{site}.json").write_text(json.dumps(write_site(site, bundle, folder, training)))
    (folder / "tiny.json").write_text(json.dumps(SETTINGS))
    configs = ["configs/train.json", str(folder / "tiny.json")]
    network = new_network(str(BUNDLES / bundle), configs)
    weights = None
    if bundle == "tissnet_brats":
        with torch.no_grad():
            network.segmentor.decoders["fine"].head.bias += 1
        weights = str(folder / "start.pt")
    torch.save(network.state_dict(), folder / "start.pt")
    federate(
        str(BUNDLES / bundle),
        str(folder / "{site}.json"),
        rounds=2,
        config_file=configs,
        weights=weights,
        out=str(folder / "jobs"),
    )
    keep_messages(folder / "jobs" / bundle, folder)
    ended = simulate(folder / "jobs" / bundle, folder / "work")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
    yield folder


def messages(federation: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(file.read_text()) for file in sorted((federation / name).iterdir())]


def weights_of(message: dict[str, object]) -> dict[str, np.ndarray]:
    return {name.removeprefix(WEIGHTS): np.array(value) for name, value in message.items() if name.startswith(WEIGHTS)}


def answers(federation: Path, number: int) -> dict[str, dict[str, object]]:
    """Each site's message to the server in a round, counted from 0."""
    received = [each for each in messages(federation, "received") if each["__headers__/current_round"] == number]
    assert len(received) == len(SITES)
    return {each["__headers__/__peer_props__/__client_name__"]: each for each in received}


def saved(federation: Path, name: str = "FL_global_model.pt") -> dict[str, torch.Tensor]:
    (file,) = (federation / "work" / "server").rglob(name)
    return torch.load(file, weights_only=True)["model"]


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(found[name], dtype=float), value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_server_begins_with_the_given_weights_or_the_seeds(federation):
    first = messages(federation, "sent")[0]
    assert first["__headers__/current_round"] == 0
    assert_same(weights_of(first), torch.load(federation / "start.pt", weights_only=True))


def test_the_sites_train_one_epoch_a_round_and_the_mean_is_weighted_by_their_iterations(federation):
    for number, after in enumerate((messages(federation, "sent")[-1], None)):
        trained = answers(federation, number)
        assert [trained[site]["DXO/meta/NUM_STEPS_CURRENT_ROUND"] for site in SITES] == [1, 2]
        here, there = (weights_of(trained[site]) for site in SITES)
        assert any((here[name] != there[name]).any() for name in here)
        mean = {name: (here[name] + 2 * there[name]) / 3 for name in here}
        assert_same(weights_of(after) if after else saved(federation), mean)
    for site in SITES:
        checkpoint = torch.load(federation / site / "models" / "model_last.pt", weights_only=True)
        assert checkpoint["epoch"] == 2


def test_a_site_sends_weights_and_two_numbers_and_nothing_else(federation):
    expected = torch.load(federation / "start.pt", weights_only=True)
    for number in (0, 1):
        for message in answers(federation, number).values():
            body = {name: value for name, value in message.items() if not name.startswith(("__headers__/", WEIGHTS))}
            dice = body.pop("DXO/meta/initial_metrics/val_dice")
            assert isinstance(dice, float) and 0 <= dice <= 1
            assert isinstance(body.pop("DXO/meta/NUM_STEPS_CURRENT_ROUND"), int)
            assert body.keys() == {"DXO/kind"}
            shapes = {name: value.shape for name, value in weights_of(message).items()}
            assert shapes == {name: tuple(value.shape) for name, value in expected.items()}


def test_no_message_and_no_file_elsewhere_names_a_sites_patient_or_folder(federation):
    for site in SITES:
        words = (f"{site}_0", f"{site}_1", str(federation / site))
        places = ["work/server", "sent", "received", *(f"work/{other}" for other in SITES if other != site)]
        files = [file for place in places for file in (federation / place).rglob("*") if file.is_file()]
        assert len(files) > 20
        assert not [file for file in files for word in words if word.encode() in file.read_bytes()]


def test_the_best_network_is_the_mean_that_the_sites_measured_best(federation):
    measured = weights_of(
        messages(federation, "sent")[-1]
    )  # NVFLARE leaves out the first round; the second is the last
    assert_same(saved(federation, "best_FL_global_model.pt"), measured)


def test_the_servers_network_is_one_of_the_bundles(federation, request):
    configs = ["configs/train.json", str(federation / "tiny.json")]
    bundle = str(BUNDLES / request.node.callspec.params["federation"])
    for name in ("FL_global_model.pt", "best_FL_global_model.pt"):
        torch.save(saved(federation, name), federation / "model.pt")
        network = load_weights(new_network(bundle, configs), str(federation / "model.pt"))
        assert network.state_dict().keys() == saved(federation).keys()


def test_a_site_with_an_earlier_checkpoint_is_refused_in_its_own_log_alone(federation, request):
    bundle = request.node.callspec.params["federation"]
    again = federation / "again"
    simulate(federation / "jobs" / bundle, again)
    sentence = "here resumes an earlier training; give an empty ckpt_dir"
    logs = {place: (again / place / "log.txt").read_text() for place in ("server", "here")}
    assert sentence in logs["here"]
    assert sentence not in logs["server"]
