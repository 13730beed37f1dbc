"""Several processes train as one with all their batches, and evaluate every case once; gloo, on the CPU."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Process, get_context
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
import torch.distributed as dist
from cohort import write_case, write_datalist
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.engines import Trainer
from test_bundle_configs import BUNDLE, parse
from test_bundle_workflows import run
from test_kill import scalars
from test_resume import same
from test_training import adversarial_update, train_each
from tissnet_components import training
from tissnet_components.distributed import share
from tissnet_components.handlers import SeedEachEpoch, losses_of
from torch import nn


def start_processes(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Process]:
    """A function in several processes that `torch.distributed` connects; each leaves ``RANK.pt``."""
    folder.mkdir(exist_ok=True)

    def work(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        if count > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=count)
        torch.save(function(*arguments), folder / f"{rank}.pt")

    processes = [get_context("fork").Process(target=work, args=(rank,), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def in_processes(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns in each of several processes."""
    for process in start_processes(count, folder, function, *arguments):
        process.join(timeout=500)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def each_sample_alone(module: nn.Module) -> nn.Module:
    """Without dropout, and group norm instead of batch norm, which on a CPU sees its own process's samples only."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        elif isinstance(child, nn.Dropout3d | nn.Dropout):
            setattr(module, name, nn.Identity())
        else:
            each_sample_alone(child)
    return module


@pytest.fixture
def update(network, perceptor, discriminators):
    update = adversarial_update(*map(each_sample_alone, (network, perceptor, discriminators)))
    update.network.loss.cross_entropy = 0.5
    for player in update.players:
        player.optimizer = torch.optim.SGD(player.module.parameters(), 1e-3)
    return update


@pytest.fixture
def batches(sample) -> list[dict[str, Any]]:
    """Two of four samples each, the last of them without tumor."""
    batch = {"image": sample.source, "target": sample.target, "label": sample.label}
    batch = {key: torch.cat([value, value.flip(2)]) for key, value in batch.items()}
    batch["label"][3] = 0
    named = {"case": ["anna", "bert", "carl", "dora"]}
    return [{key: MetaTensor(value) for key, value in batch.items()} | named] * 2


def part_of(batches: list[dict[str, Any]], part: slice) -> list[dict[str, Any]]:
    return [{key: value[part] for key, value in batch.items()} for batch in batches]


def train_own_part(update, batches) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of each iteration and the weights in the end, of a process that sees its half of every batch."""
    first = len(batches[0]["case"]) // idist.get_world_size() * idist.get_rank()
    own = part_of(batches, slice(first, first + len(batches[0]["case"]) // idist.get_world_size()))
    losses = [losses_of(output) for output in train_each(update, own)]
    return losses, {**update.network.module.state_dict(), **update.discriminators.module.state_dict()}


@pytest.mark.parametrize(
    "labelled", [[True] * 4, [True, True, False, False]], ids=["all labelled", "one process without"]
)
def test_two_processes_train_as_one_with_the_doubled_batch(update, batches, labelled, tmp_path):
    for batch in batches:
        batch["has_label"] = torch.tensor(labelled)
    losses, weights = train_own_part(copy.deepcopy(update), batches)
    one, two = in_processes(2, tmp_path, train_own_part, update, batches)
    assert len(losses) == 2
    assert one[0] == two[0]
    for found, expected in zip(one[0], losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=0)
    torch.testing.assert_close(one[1], weights, rtol=1e-4, atol=1e-5)
    assert losses[1]["loss"] != pytest.approx(losses[0]["loss"], rel=1e-3)


def test_a_batch_that_one_process_cannot_use_is_skipped_by_all(update, batches, tmp_path, caplog):
    update.on_non_finite = "skip"
    update.network.loss.weights = {"global_l1": 1.0}
    before = copy.deepcopy(update.network.module.state_dict())
    batches[0]["target"] = batches[0]["target"].clone()
    batches[0]["target"][3] = float("nan")
    train = lambda: (*train_own_part(update, batches[:1]), caplog.text)  # noqa: E731
    for losses, weights, said in in_processes(2, tmp_path, train):
        assert losses == [{}]
        torch.testing.assert_close({name: weights[name] for name in before}, before, rtol=0, atol=0)
        assert "the loss became nan on anna, bert, carl, dora: skipped" in said


def shares_and_chance() -> tuple[list[int], list[int], str, torch.Tensor]:
    try:
        refused = str(share([0], even=False))
    except ValueError as error:
        refused = str(error)
    trainer = Trainer("cpu", 1, [torch.zeros(1)], iteration_update=lambda engine, batch: {}, decollate=False)
    SeedEachEpoch(7, type("Nothing", (), {"set_random_state": lambda self, seed: None})()).attach(trainer)
    trainer.run()
    return share(range(5), even=False), share(range(5), even=True), refused, torch.rand(3)


def test_processes_share_the_cases_and_draw_by_chance_each_on_its_own(tmp_path):
    one, two = in_processes(2, tmp_path, shares_and_chance)
    assert (one[0], two[0]) == ([0, 2, 4], [1, 3])
    assert (one[1], two[1]) == ([0, 2, 4], [1, 3, 0])
    assert one[2] == two[2] == "2 processes cannot share 1 cases; give --nproc_per_node 1"
    assert not torch.equal(one[3], two[3])


TINY = {
    "widths": [2, 2, 2, 2, 2],
    "patch_size": [32, 32, 16],
    "discriminator_channels": 2,
    "norm": "instance",
    "val_interval": 1,
    "epochs": 2,
    "batch_size": 1,
    "learning_rate": 0.01,
    "device": torch.device("cpu"),
}
WITHOUT_CHANCE = {
    "dropout": [0.0] * 5,
    "augmentation": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "ResizeWithPadOrCropd", "keys": ["image", "target", "label"], "spatial_size": [32, 32, 16]}
        ],
    },
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, Any]:
    """A tiny training of two patients, two to validate, three to test, and networks of random weights."""
    folder = tmp_path_factory.mktemp("data")
    cases = [write_case(folder / f"case_{number}", number, (32, 32, 16)) for number in range(7)]
    write_datalist(folder, training=cases[:2], validation=cases[2:4], test=cases[4:])
    for name, definition in {"perceptor": "perceptor_def", "model": "network_def"}.items():
        torch.save(parse("train", **TINY).get_parsed_content(definition).state_dict(), folder / f"{name}.pt")
    return {**TINY, "dataset_dir": str(folder), "perceptor_path": str(folder / "perceptor.pt")}


def run_bundle(entry_point: str, names: list[str], folder: Path, settings: dict[str, Any]) -> None:
    """`monai.bundle run ENTRY_POINT` in this process."""
    folders = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    workflow = ConfigWorkflow(config_file=files, logging_file=False, run_id=entry_point, **folders | settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def files_below(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_the_bundle_trains_in_two_processes_as_in_one_with_the_doubled_batch(settings, tmp_path):
    configs = ["train", "direct_segmentation"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    in_processes(1, alone, run_bundle, "training", configs, alone, settings | WITHOUT_CHANCE | {"batch_size": 2})
    in_processes(2, both, run_bundle, "training", [*configs, "multi_gpu_train"], both, settings | WITHOUT_CHANCE)
    expected, found = scalars(alone), scalars(both)
    assert found.keys() == expected.keys()
    for shown, values in expected.items():
        assert [*found[shown]] == pytest.approx([*values], abs=1e-4), shown
    assert len(list(both.glob("eval/*_tensorboard/*"))) == 1
    assert files_below(both / "models") == {"perceptor.pt", "perceptor.json", "perceptor_last.pt"}


@pytest.mark.slow
def test_every_case_is_evaluated_once_whatever_the_number_of_processes(settings, tmp_path):
    configs, weights = ["train", "evaluate"], {"ckpt_dir": settings["dataset_dir"]}
    tables = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        overlay = ["multi_gpu_evaluate"] if count > 1 else []
        in_processes(count, folder, run_bundle, "evaluating", configs + overlay, folder, settings | weights)
        tables[count] = {file.name: file.read_text() for file in folder.glob("eval/*.csv")}
        assert {file.name for file in folder.glob("eval/case_*/*_overview.png")} == {
            f"case_{number}_overview.png" for number in (4, 5, 6)
        }
    assert [row.split(",")[1] for row in tables[2]["cases.csv"].splitlines()] == ["case", "case_4", "case_5", "case_6"]
    assert tables[2] == tables[1]
    assert {"cases.csv", "summary.csv", "calibration.csv"} == set(tables[1])


def die_in_the_second_epoch() -> None:
    """Kills the second of the processes at its fourth step."""
    steps = iter(range(4))
    whole_step = training.step

    def step(*arguments: Any) -> None:
        if next(steps) == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        whole_step(*arguments)

    training.step = step


def run_and_die(*arguments: Any) -> None:
    die_in_the_second_epoch()
    run_bundle(*arguments)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_training_resumes(settings, tmp_path):
    arguments = "training", ["train", "multi_gpu_train"]
    options = settings | {"epochs": 3}
    in_processes(2, tmp_path / "whole", run_bundle, *arguments, tmp_path / "whole", options)
    processes = start_processes(2, tmp_path / "cut", run_and_die, *arguments, tmp_path / "cut", options)
    for process in processes:
        process.join(timeout=100)
    assert processes[1].exitcode == -signal.SIGKILL
    assert processes[0].exitcode not in (0, None)
    last = tmp_path / "cut" / "models" / "model_last.pt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    in_processes(2, tmp_path / "again", run_bundle, *arguments, tmp_path / "cut", options)
    for name in ("model.pt", "model_last.pt"):
        one, two = (torch.load(tmp_path / each / "models" / name, weights_only=True) for each in ("cut", "whole"))
        assert same(one, two), name


def torchrun(folder: Path, settings: dict[str, Any]) -> subprocess.Popen:
    """The documented command, as a user gives it."""
    overlaid = "['configs/train.json','configs/multi_gpu_train.json']"
    options = {name: value for name, value in settings.items() if name not in ("device", "dataset_dir")}
    folders = (Path(settings["dataset_dir"]), folder / "models", folder / "eval")
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    words += run("training", overlaid, *folders, **options)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", *words], cwd=BUNDLE, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.stress
def test_torchrun_ends_when_a_worker_is_killed_and_the_same_command_resumes(settings, tmp_path):
    options, folders = settings | {"epochs": 6}, [tmp_path / "whole", tmp_path / "cut"]
    for folder in folders:
        folder.mkdir()
    assert torchrun(folders[0], options).wait() == 0
    command, last = torchrun(folders[1], options), folders[1] / "models" / "model_last.pt"
    while not last.is_file() and command.poll() is None:
        time.sleep(0.01)
    worker = int(Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()[-1])
    os.kill(worker, signal.SIGKILL)
    assert command.wait(timeout=300) != 0
    assert torch.load(last, weights_only=True)["epoch"] < 6
    assert torchrun(folders[1], options).wait() == 0
    assert "resuming after epoch" in (folders[1] / "log.txt").read_text()
    for name in ("model.pt", "model_last.pt"):
        assert same(*(torch.load(folder / "models" / name, weights_only=True) for folder in folders)), name
