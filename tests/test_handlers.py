import json
import random
import resource
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, State
from monai.data import MetaTensor
from monai.engines import Trainer
from monai.transforms import RandSpatialCrop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tissnet_components.handlers import (
    AverageWeights,
    LossProgressBar,
    SamplesSeen,
    SeedEachEpoch,
    StatsWithoutTraceback,
    TrainingCheckpoint,
    ValidationPictures,
    losses_of,
)
from tissnet_components.training import Player, averaged
from torch import nn
from torch.utils.tensorboard import SummaryWriter

BATCHES = [torch.zeros(1)] * 3


class Run:
    """A training of three iterations an epoch that adds one to a weight each; ``dice`` is what validation finds."""

    def __init__(
        self, folder, epochs, dice=(), interval=1, size=1, network=None, images=None, writer=None, average=None
    ):
        self.network = network or nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: 1 / (1 + epoch))
        self.evaluator = SimpleNamespace(state=State(best_metric=-1, best_metric_epoch=-1))
        self.dice, self.updates = dict(enumerate(dice, 1)), 0
        self.player = Player(self.network, None, self.optimizer, self.scheduler, average=average)
        kept = (str(folder), "model", self.player, self.evaluator, None)
        checkpoint = TrainingCheckpoint(*kept, interval, images, writer)
        self.trainer = Trainer("cpu", epochs, BATCHES, iteration_update=self.update, decollate=False)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        checkpoint.attach(self.trainer)

    def update(self, engine, batch):
        self.updates += 1
        with torch.no_grad():
            next(self.network.parameters()).add_(1)
        self.optimizer.step()  # without gradients it does nothing, but PyTorch warns of a schedule without it
        return {}

    def validate(self, engine):
        self.scheduler.step()
        dice, state = self.dice.get(engine.state.epoch, -2), self.evaluator.state
        if dice > state.best_metric:
            state.best_metric, state.best_metric_epoch = dice, engine.state.epoch

    def train(self):
        self.trainer.run()
        return self


def test_the_weights_tell_how_their_images_were_prepared_and_a_resume_at_another_voxel_size_is_refused(tmp_path):
    Run(tmp_path, epochs=1, dice=[0.5], images={"spacing_mm": [1, 1, 3]}).train()
    assert json.loads((tmp_path / "model.json").read_text()) == {"spacing_mm": [1, 1, 3]}
    with pytest.raises(ValueError, match=r"model.pt was trained with spacing_mm \[1, 1, 3\]"):
        Run(tmp_path, epochs=2, images={"spacing_mm": [1, 1, 1]})
    Run(tmp_path, epochs=2, images={"spacing_mm": [1, 1, 3]}).train()


def weight(path) -> float:
    return torch.load(path, weights_only=True)["weight"].item()


def test_the_losses_of_an_iteration_are_its_scalars():
    output = [{"image": torch.zeros(1, 2, 2, 2), "fine": torch.tensor(0.5), "loss": torch.tensor(2.0)}]
    assert losses_of(output) == {"fine": 0.5, "loss": 2.0}


def test_the_progress_bar_shows_every_loss_term(capsys):
    engine = Engine(lambda engine, batch: [{"fine": torch.tensor(0.25), "loss": torch.tensor(2.5)}])
    LossProgressBar(persist=True).attach(engine)
    engine.run([0, 1])
    shown = capsys.readouterr().err
    assert "fine=0.25" in shown
    assert "loss=2.5" in shown


def test_the_log_counts_each_epochs_samples_by_loss_term(caplog):
    caplog.set_level("INFO")
    seen = iter([{"fine": 2, "tumor_l1": 0}, {"fine": 1, "tumor_l1": 0}, {}, {"fine": 2, "tumor_l1": 2}])

    def update(engine: Engine, batch: torch.Tensor) -> dict:
        engine.state.samples = next(seen)
        return {}

    trainer = Trainer("cpu", 2, BATCHES[:2], iteration_update=update, decollate=False)
    SamplesSeen().attach(trainer)
    trainer.run()
    said = [record.message for record in caplog.records if record.name == "tissnet_components.handlers"]
    assert said == [
        "epoch 1, samples that each loss term saw: 3: fine; 0: tumor_l1",
        "epoch 2, samples that each loss term saw: 2: fine, tumor_l1",
    ]


def test_the_best_network_is_the_one_of_the_highest_metric(tmp_path):
    Run(tmp_path / "models", 3, dice=[0.5, 0.9, 0.7]).train()
    assert weight(tmp_path / "models" / "model.pt") == 2 * len(BATCHES)


def test_of_an_averaged_training_the_average_is_kept_and_both_go_on_when_it_resumes(tmp_path):
    for epochs in (1, 2):
        network = nn.Linear(1, 1, bias=False)
        average = averaged(network, share=1)
        run = Run(tmp_path, epochs, dice=[0.5, 0.6], network=network, average=average)
        AverageWeights(run.player).attach(run.trainer)
        run.train()
    assert network.weight.item() == 6
    assert weight(tmp_path / "model.pt") == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)


def test_no_best_network_is_written_before_a_validation(tmp_path):
    Run(tmp_path, 2).train()
    assert [file.name for file in tmp_path.iterdir()] == ["model_last.pt"]


def test_the_last_checkpoint_is_written_every_few_epochs_and_at_the_end(tmp_path):
    run, seen = Run(tmp_path, 5, interval=2), []
    look = lambda: seen.append(torch.load(tmp_path / "model_last.pt", weights_only=True)["epoch"])  # noqa: E731
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED(event_filter=lambda _, epoch: epoch > 1), look)
    run.train()
    assert seen == [2, 2, 4, 5]


def test_a_second_start_goes_on_where_the_first_stopped(tmp_path):
    stopped = Run(tmp_path, 5, dice=[0.5])
    stopped.trainer.add_event_handler(Events.EPOCH_STARTED(once=3), lambda engine: engine.terminate())
    stopped.train()
    resumed = Run(tmp_path, 5)
    assert resumed.network.weight.item() == 2 * len(BATCHES)
    assert resumed.trainer.state.epoch == 2
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1 / 3)
    assert (resumed.evaluator.state.best_metric, resumed.evaluator.state.best_metric_epoch) == (0.5, 1)
    resumed.train()
    assert resumed.network.weight.item() == 5 * len(BATCHES)
    assert resumed.trainer.state.iteration == 5 * len(BATCHES)


def test_an_epochs_chance_depends_on_the_seed_and_its_number_alone():
    draws = {}
    for first, last in ((1, 3), (3, 3), (1, 1)):
        trainer = Trainer("cpu", last, BATCHES[:1], iteration_update=lambda engine, batch: {}, decollate=False)
        crop = RandSpatialCrop([2], random_size=False)
        SeedEachEpoch(7, crop).attach(trainer)
        trainer.state.epoch = first - 1
        random.random(), torch.rand(1), crop.randomize([100])  # whatever came before
        drawn = draws.setdefault((first, last), [])

        @trainer.on(Events.EPOCH_COMPLETED)
        def draw(engine, crop=crop, drawn=drawn):
            crop.randomize([100])
            drawn.append((random.random(), np.random.random(), torch.rand(1).item(), crop._slices))

        trainer.run()
    assert draws[1, 3][2:] == draws[3, 3]
    assert draws[1, 3][:1] == draws[1, 1]
    assert draws[1, 3][0] != draws[1, 3][1]


def test_a_worse_network_after_resuming_does_not_replace_the_best(tmp_path):
    Run(tmp_path, 2, dice=[0.5, 0.9]).train()
    Run(tmp_path, 3, dice=[0, 0, 0.8]).train()
    assert weight(tmp_path / "model.pt") == 2 * len(BATCHES)


def test_a_finished_training_does_not_start_over(tmp_path, caplog):
    Run(tmp_path, 2, dice=[0.5, 0.9]).train()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with caplog.at_level("INFO"):
        again = Run(tmp_path, 2, dice=[1.0, 1.0]).train()
    assert again.updates == 0
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "has finished 2 epochs or more; raise --epochs" in caplog.text
    assert "resuming after epoch" not in caplog.text


def test_a_checkpoint_of_another_network_is_refused_and_kept(tmp_path):
    Run(tmp_path, 1).train()
    before = (tmp_path / "model_last.pt").read_bytes()
    with pytest.raises(ValueError, match=r"model_last.pt does not fit the configured network.*widths"):
        Run(tmp_path, 2, size=2)
    assert (tmp_path / "model_last.pt").read_bytes() == before


def test_weights_in_the_place_of_the_last_checkpoint_are_refused(tmp_path):
    Run(tmp_path, epochs=1, dice=[0.5]).train()
    shutil.copy(tmp_path / "model.pt", tmp_path / "model_last.pt")
    with pytest.raises(ValueError, match=r"model_last.pt lacks 'network', so no training can resume from it"):
        Run(tmp_path, epochs=2)


def test_a_damaged_last_checkpoint_is_named(tmp_path):
    (tmp_path / "model_last.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model_last.pt is not a file of PyTorch weights"):
        Run(tmp_path, 1)


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a full disk, nothing larger than 100 kB can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_the_newest_checkpoint_alone_and_says_so(tmp_path, small_files):
    Run(tmp_path, 1, dice=[0.5], size=10_000).train()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    full = Run(tmp_path, 2, size=10_000)
    full.optimizer.param_groups[0]["more"] = torch.zeros(100_000)
    with pytest.raises(ValueError, match=r"model_last.pt cannot be written \(File too large\); make room"):
        full.train()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert Run(tmp_path, 2, size=10_000).train().trainer.state.epoch == 2


def test_a_folder_that_vanishes_or_becomes_unwritable_is_named(tmp_path):
    run = Run(tmp_path / "models", 3)

    @run.trainer.on(Events.EPOCH_STARTED(once=3))
    def replace_by_a_file():
        (tmp_path / "models").rename(tmp_path / "kept")
        (tmp_path / "models").write_text("")

    with pytest.raises(ValueError, match=r"model_last.pt cannot be written \(File exists\)"):
        run.train()
    assert torch.load(tmp_path / "kept" / "model_last.pt", weights_only=True)["epoch"] == 2


def test_a_checkpoint_reaches_the_disk_after_what_was_logged_before_it(tmp_path):
    run, seen = Run(tmp_path, 1), []
    writer = SimpleNamespace(flush=lambda: seen.append([file.name for file in tmp_path.iterdir()]))
    TrainingCheckpoint(str(tmp_path), "other", run.player, run.evaluator, writer=writer).attach(run.trainer)
    run.train()
    assert seen == [["model_last.pt"]]


def test_what_was_logged_after_the_checkpoint_that_is_resumed_is_withdrawn(tmp_path):
    for epochs, value in ((1, 1.0), (2, 2.0)):
        with SummaryWriter(str(tmp_path / "logs"), filename_suffix=str(epochs)) as writer:
            Run(tmp_path / "models", epochs, writer=writer).train()
            for step in (3, 4)[epochs - 1 :]:  # the last iteration of the first epoch, and one of the second
                writer.add_scalar("loss", value, step)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.0), (4, 2.0)]


def test_fewer_epochs_than_were_trained_end_at_once(tmp_path, caplog):
    Run(tmp_path, 3).train()
    with caplog.at_level("INFO"):
        assert Run(tmp_path, 2).train().updates == 0
    assert "has finished 2 epochs or more" in caplog.text


def test_mixed_precision_may_be_switched_on_when_resuming(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    evaluator = SimpleNamespace(state=State(best_metric=-1, best_metric_epoch=-1))
    for enabled, epochs in ((False, 1), (True, 2)):
        scaler = SimpleNamespace(
            state_dict=lambda on=enabled: {"scale": 1.0} if on else {}, load_state_dict=pytest.fail
        )
        trainer = Trainer("cpu", epochs, BATCHES, iteration_update=lambda engine, batch: {}, decollate=False)
        player = Player(network, None, torch.optim.SGD(network.parameters(), 1), scaler=scaler)
        TrainingCheckpoint(str(tmp_path), "model", player, evaluator).attach(trainer)
        trainer.run()
    assert torch.load(tmp_path / "model_last.pt", weights_only=True)["scaler"] == {"scale": 1.0}


@pytest.fixture
def evaluator() -> SimpleNamespace:
    def volume(value: float, channels: int = 1) -> MetaTensor:
        return MetaTensor(torch.full((channels, 16, 16, 4), value), affine=torch.eye(4))

    batch = [{"case": "patient", "image": volume(0.5, 2), "target": volume(0.2), "label": volume(1.0)}]
    output = [{name: volume(0.7) for name in ("synthetic", "coarse", "fine", "error", "mask")}]
    return SimpleNamespace(state=State(epoch=1, iteration=1, batch=batch, output=output))


def validate(pictures: ValidationPictures, evaluator: SimpleNamespace, epochs: list[int], cases: int = 2) -> None:
    for evaluator.state.epoch in epochs:
        for evaluator.state.iteration in range(1, cases + 1):
            pictures(evaluator)


def test_pictures_are_drawn_of_the_first_validation_and_then_every_few_epochs(tmp_path, evaluator):
    validate(ValidationPictures(str(tmp_path), interval=10), evaluator, [5, 10, 15, 20, 25])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch_0005.png", "epoch_0015.png", "epoch_0025.png"]


def test_pictures_go_on_in_the_rhythm_that_a_resumed_evaluator_remembers(tmp_path, evaluator):
    evaluator.state.picture_epoch = 5
    validate(ValidationPictures(str(tmp_path), interval=10), evaluator, [10, 15, 20, 25])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch_0015.png", "epoch_0025.png"]


def test_a_picture_goes_to_tensorboard_too(tmp_path, evaluator):
    images = []
    writer = SimpleNamespace(add_image=lambda *arguments, **_: images.append(arguments))
    validate(ValidationPictures(str(tmp_path), interval=10, writer=writer), evaluator, [3])
    [(tag, image, epoch)] = images
    assert (tag, epoch) == ("validation", 3)
    assert image.shape == matplotlib.image.imread(tmp_path / "epoch_0003.png").shape


def test_what_ends_a_run_is_raised_without_a_traceback_in_the_log(monkeypatch):
    def stop(engine, batch):
        raise KeyboardInterrupt

    engine, logged, handler = Engine(stop), [], StatsWithoutTraceback(iteration_log=False, epoch_log=False)
    monkeypatch.setattr(handler.logger, "exception", logged.append)
    handler.attach(engine)
    with pytest.raises(KeyboardInterrupt):
        engine.run([0])
    assert logged == []
