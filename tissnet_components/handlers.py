"""What the bundles attach to their engines and MONAI and Ignite lack."""

import io
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import matplotlib.image
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import Evaluator, Trainer
from monai.handlers import StatsHandler
from monai.transforms import Randomizable
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tissnet_components.errors import UserError
from tissnet_components.files import write_atomic
from tissnet_components.results.overview import overview
from tissnet_components.training import Player
from tissnet_components.weights import check_recipe, check_weights_fit, keep_recipe, read_state
from torch import nn
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


def losses_of(output: list[dict[str, Any]]) -> dict[str, float]:
    """Every loss term of an iteration: the scalars of its (decollated) output."""
    values = {name: value for name, value in output[0].items() if not isinstance(value, dict)}
    return {name: float(value) for name, value in values.items() if torch.as_tensor(value).ndim == 0}


class StatsWithoutTraceback(StatsHandler):
    """MONAI's ``StatsHandler``, which leaves it to the end of the run to report what ended it, Ctrl-C too."""

    def exception_raised(self, _engine: Engine, e: Exception) -> None:
        raise e


class LossProgressBar(ProgressBar):
    """Ignite's progress bar, showing every loss term."""

    def attach(self, engine: Engine) -> None:
        super().attach(engine, output_transform=losses_of)


class SamplesSeen:
    """Logs after every epoch how many samples each loss term was computed on: patients may lack what a term needs."""

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def forget(self, _engine: Trainer) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, engine: Trainer) -> None:
        self.counts.update(engine.state.samples)

    def __call__(self, engine: Trainer) -> None:
        terms = defaultdict(list)
        for term, count in self.counts.items():
            terms[count].append(term)
        seen = "; ".join(f"{count}: {', '.join(terms[count])}" for count in sorted(terms, reverse=True))
        logger.info(f"epoch {engine.state.epoch}, samples that each loss term saw: {seen or 'none'}")


class LearningRates:
    """Steps every player's schedule of learning rates at the end of an epoch.

    Args:
        players: the network's and the discriminators'; None is left out.
    """

    def __init__(self, players: Sequence[Player | None]) -> None:
        schedulers = [player.scheduler for player in players if player is not None]
        self.schedulers = [scheduler for scheduler in schedulers if scheduler is not None]

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        for scheduler in self.schedulers:
            scheduler.step()


class SeedEachEpoch:
    """Seeds every source of chance anew at the start of each epoch, from the seed, the epoch and the process.

    An epoch then draws the same patches, augmentation, order and dropout whether the training ran up to it or was
    resumed before it: on CPU, a resumed training is the uninterrupted one, bit by bit.

    Args:
        seed: of the training.
        transform: the random transforms of the training's data.
    """

    def __init__(self, seed: int, transform: Randomizable) -> None:
        self.seed, self.transform = seed, transform

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Trainer) -> None:
        seed = (self.seed + 1_000_003 * engine.state.epoch + idist.get_rank()) % 2**32
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.transform.set_random_state(seed)


class AverageWeights:
    """Brings a player's average up to date after each iteration: see `training.averaged`."""

    def __init__(self, player: Player) -> None:
        self.player = player

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        if self.player.average is not None:
            self.player.average.update_parameters(self.player.module)


class TrainingCheckpoint:
    """Writes ``<name>_last.pt`` (everything) and ``<name>.pt`` (the best network's weights); resumes from the former.

    Beside the weights, ``<name>.json`` tells how images were prepared, which every later use is held against.

    The best network is the one with the highest key metric of the evaluator, which must run earlier in the epoch.
    Both files are replaced atomically: killed at any moment, or with a full disk, at most the epochs since the last
    checkpoint are lost. Of several processes the first writes, and all resume. Attach it last, after the schedulers.

    Args:
        save_dir: folder of both files, made if needed.
        name: stem of both files.
        network: the player whose weights are kept, or their average.
        evaluator: validates during training.
        discriminators: the other player, if there is one.
        interval: epochs between two writings of the last checkpoint.
        recipe: of the training, see `read_recipe`.
        writer: of TensorBoard; what it logged reaches the disk before a checkpoint does, and what it logged after the
            checkpoint that a training resumes from is withdrawn.

    Raises:
        ValueError: the last checkpoint is damaged, of other networks or of other images, and nothing is overwritten; or
            a checkpoint cannot be written.
    """

    MEMORY = ("best_metric", "best_metric_epoch", "picture_epoch")  # of the evaluator

    def __init__(
        self,
        save_dir: str,
        name: str,
        network: Player,
        evaluator: Evaluator,
        discriminators: Player | None = None,
        interval: int = 1,
        recipe: Mapping[str, Any] | None = None,
        writer: SummaryWriter | None = None,
    ) -> None:
        self.recipe = dict(recipe or {})
        self.folder, self.name, self.interval, self.writer = Path(save_dir), name, interval, writer
        self.kept, self.evaluator = network.kept, evaluator
        self.objects = {"network": network.module, **network.state()}
        if discriminators is not None:
            self.objects["discriminators"] = discriminators.module
            self.objects |= {f"discriminator_{name}": part for name, part in discriminators.state().items()}

    def attach(self, engine: Trainer) -> None:
        last = self.folder / f"{self.name}_last.pt"
        if last.is_file():
            self._resume(engine, last)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @idist.one_rank_only()
    def __call__(self, engine: Trainer) -> None:
        if self.evaluator.state.best_metric_epoch == engine.state.epoch:
            self._save(self.kept.state_dict(), f"{self.name}.pt")
            keep_recipe(self.folder / f"{self.name}.pt", self.recipe)
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            if self.writer is not None:
                self.writer.flush()
            self._save(self._checkpoint(engine), f"{self.name}_last.pt")

    def _save(self, state: dict[str, Any], name: str) -> None:
        content = io.BytesIO()  # PyTorch's own writing to a full disk fails without saying so
        torch.save(state, content)
        write_atomic(self.folder / name, content.getbuffer())

    def _checkpoint(self, engine: Trainer) -> dict[str, Any]:
        best = {key: getattr(self.evaluator.state, key, None) for key in self.MEMORY}
        states = {key: value.state_dict() for key, value in self.objects.items()}
        return {**states, "epoch": engine.state.epoch, "best": best}

    def _resume(self, engine: Trainer, path: Path) -> None:
        check_recipe(self.folder / f"{self.name}.pt", self.recipe)
        checkpoint = read_state(path)
        if absent := [key for key in (*self.objects, "epoch", "best") if key not in checkpoint]:
            raise UserError(f"{path} lacks {absent[0]!r}, so no training can resume from it; remove it to start anew")
        for key, value in self.objects.items():
            if isinstance(value, nn.Module):
                check_weights_fit(value, checkpoint[key], str(path))
            if checkpoint[key]:  # a scaler that was off has no state, and one that is on refuses that
                value.load_state_dict(checkpoint[key])
        for key, value in checkpoint["best"].items():
            setattr(self.evaluator.state, key, value)
        engine.state.epoch = min(checkpoint["epoch"], engine.state.max_epochs)
        engine.state.iteration = engine.state.epoch * (engine.state.epoch_length or 0)
        if engine.state.epoch >= engine.state.max_epochs:
            self._refuse_to_start_over(engine, path)
        else:
            self._withdraw_logs_after(engine.state.iteration)
            logger.info(f"resuming after epoch {engine.state.epoch} from {path}")

    def _withdraw_logs_after(self, iteration: int) -> None:
        """TensorBoard's own way to say that a run was restarted: readers drop what came later."""
        if self.writer is not None:
            restarted = Event(session_log=SessionLog(status=SessionLog.START))
            events: Any = self.writer.file_writer
            events.add_event(restarted, step=iteration + 1)

    @staticmethod
    def _refuse_to_start_over(engine: Trainer, path: Path) -> None:
        """Ignite would begin again from epoch 1; end the run instead."""
        logger.info(f"{path} has finished {engine.state.epoch} epochs or more; raise --epochs to go on, or remove it")
        engine.add_event_handler(Events.STARTED, lambda trainer: trainer.terminate())


class ValidationPictures:
    """Every few epochs, an overview of the first validation case: as PNG, and in TensorBoard.

    The epoch of the latest is kept as ``engine.state.picture_epoch``, which `TrainingCheckpoint` saves.

    Args:
        output_dir: gets ``epoch_0001.png``...
        interval: epochs between two pictures; the first validation always gives one.
        writer: of TensorBoard, if wanted.
        source_names: titles of the source channels.
    """

    MAPS = ("image", "synthetic", "target", "coarse", "fine", "error", "label")

    def __init__(
        self, output_dir: str, interval: int = 10, writer: SummaryWriter | None = None, source_names: Sequence[str] = ()
    ) -> None:
        self.output_dir, self.interval, self.writer = Path(output_dir), interval, writer
        self.source_names = source_names

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Evaluator) -> None:
        epoch, last = engine.state.epoch, getattr(engine.state, "picture_epoch", None)
        if engine.state.iteration != 1 or (last is not None and epoch < last + self.interval):
            return
        engine.state.picture_epoch = epoch
        case = {**engine.state.batch[0], **engine.state.output[0]}
        maps = {name: case[name].cpu().numpy() for name in self.MAPS if name in case}
        maps = {"source" if name == "image" else name: value for name, value in maps.items()}
        title, affine = f"{case.get('case', '')}, epoch {epoch}", np.asarray(case["image"].affine)
        path = overview(
            maps, self.output_dir / f"epoch_{epoch:04d}.png", title, affine=affine, source_names=self.source_names
        )
        if self.writer is not None:
            self.writer.add_image("validation", matplotlib.image.imread(path), epoch, dataformats="HWC")
