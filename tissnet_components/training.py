"""One adversarial iteration, and the learning-rate schedule."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from tissnet_components.distributed import average_gradients, mean_over_processes
from tissnet_components.errors import NotFinite, UserError
from tissnet_components.inference import CascadeInferer
from tissnet_components.losses import Batch, Maps, Objective
from tissnet_components.unet25d import Decoder25D, Encoder25D
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)

ON_NON_FINITE = ("stop", "skip")
MOST_SKIPPED = 10  # in a row; then it is the network that is broken, and not some batches


@dataclass
class Player:
    """One of the two that play against each other: the network, or its discriminators.

    Args:
        module: what learns.
        loss: of the maps and a ``Batch``, a dict of scalars; the step is on its ``loss``, or on the sum of all.
        optimizer, scheduler: of the module, and of its learning rate.
        scaler: of gradients, needed by float16 alone.
        average: of the module's weights over the steps, see `averaged`.
    """

    module: nn.Module
    loss: Objective
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    scaler: torch.amp.GradScaler = field(default_factory=partial(torch.amp.GradScaler, enabled=False))
    average: AveragedModel | None = None

    @property
    def kept(self) -> nn.Module:
        """What is validated and kept: the module, or its average."""
        return self.module if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold besides the module, by name."""
        parts: dict[str, Any] = {"optimizer": self.optimizer, "lr_scheduler": self.scheduler, "scaler": self.scaler}
        parts["averaged_network"] = self.average
        return {name: part for name, part in parts.items() if part is not None}


class AdversarialUpdate:
    """One iteration for ``monai.engines.Trainer(iteration_update=...)``: one cascade, then both players.

    The discriminators step first, on detached maps (Eq. 11); then generator and segmentor, with the discriminators
    resting (Eq. 10), as in pix2pix. Without discriminators only the network steps: direct segmentation.

    Args:
        network: the ``TissNet``, by Eq. 10.
        inferer: runs the network's cascade, in the precision wanted.
        discriminators: by Eq. 11.
        on_non_finite: what to do with a batch whose loss or gradient is NaN or infinite. ``stop`` the training, so that
            the last checkpoint stays good; or ``skip`` the step, keep the statistics of batch norm, and go on.
            Gradients that overflow float16 are the scalers' matter.
        checkpointing: less memory, more time, the same numbers: see `checkpoint_levels`.
        discriminator_interval: in every so many iterations the discriminators step; in the paper's, in each.

    Raises:
        ValueError: another ``on_non_finite``, or no interval.
        FloatingPointError: from an iteration, names the cases: it was to stop, or ten batches in a row were skipped.

    The output, one dict per iteration: ``image``, ``label``, ``target``, every loss term, ``loss``, and every map in
    ``pred``, since a map and its loss term share their name. A skipped batch has no losses. ``engine.state.samples``
    tells how many samples each term was computed on.
    """

    def __init__(
        self,
        network: Player,
        inferer: CascadeInferer,
        discriminators: Player | None = None,
        on_non_finite: str = "stop",
        checkpointing: bool = False,
        discriminator_interval: int = 1,
    ) -> None:
        if on_non_finite not in ON_NON_FINITE:
            raise UserError(f"on_non_finite is {on_non_finite!r}; choose one of {', '.join(ON_NON_FINITE)}")
        if discriminator_interval < 1:
            raise UserError(f"discriminator_interval is {discriminator_interval}; give a number of iterations from 1")
        self.discriminator_interval = discriminator_interval
        self.on_non_finite, self.skipped = on_non_finite, 0
        self.network, self.discriminators, self.inferer = network, discriminators, inferer
        self.players = [player for player in (network, discriminators) if player is not None]
        if checkpointing:
            checkpoint_levels(network.module, network.loss)

    def __call__(self, engine: Trainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = self.prepare(engine, batchdata)
        for player in self.players:
            player.optimizer.zero_grad(set_to_none=True)  # the cascade has room for its activations instead
        self.network.module.train()
        statistics = [(buffer, buffer.clone()) for buffer in self._buffers()] if self.on_non_finite == "skip" else []
        maps = self.inferer(batch.source, self.network.module)
        batch = (batch.of_subset(maps) if "source" in maps else batch).of_all_processes()
        stepping = self.players
        if (engine.state.iteration - 1) % self.discriminator_interval:
            stepping = [self.network]
        try:
            losses = self.update_discriminators(maps, batch) if self.discriminators in stepping else {}
            losses |= self.update_network(maps, batch)
            self.skipped = 0
        except FloatingPointError as error:
            self._stop_or_skip(error, batchdata)
            losses = {}
            for buffer, value in statistics:
                buffer.copy_(value)
        counts = [player.loss.counts(batch) for player in stepping] if losses else []
        engine.state.samples = {term: count for part in counts for term, count in part.items()}
        maps, losses = ({name: value.detach() for name, value in values.items()} for values in (maps, losses))
        losses = mean_over_processes(losses)
        seen = {"image": batch.source, "target": batch.target, "label": batch.label}
        engine.state.output = {**seen, "pred": maps, **losses}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    @staticmethod
    def prepare(engine: Trainer, batchdata: dict[str, Any]) -> Batch:
        """What the loader gives, on the engine's device."""
        source, target, label = (
            batchdata[key].to(engine.state.device, non_blocking=engine.non_blocking).as_tensor()
            for key in ("image", "target", "label")
        )
        return Batch(source, target, label, batchdata.get("has_target"), batchdata.get("has_label"))

    def _buffers(self) -> Iterable[torch.Tensor]:
        """Those of both players: the running statistics of batch norm, which a forward pass alone would spoil."""
        for player in self.players:
            yield from player.module.buffers()

    def _stop_or_skip(self, error: FloatingPointError, batchdata: dict[str, Any]) -> None:
        self.skipped += 1
        cases: Any = idist.all_gather(", ".join(batchdata.get("case", ["cases without a name"])))
        found = f"{error} on {', '.join(cases)}"
        if self.on_non_finite == "stop":
            raise NotFinite(
                f"{found}; look at these, then resume with --on_non_finite skip or --precision float32, or start over "
                f"with a smaller --learning_rate"
            ) from error
        if self.skipped == MOST_SKIPPED:
            raise NotFinite(
                f"{found}, as in {MOST_SKIPPED} batches in a row; resume with --precision float32, or start over with "
                f"a smaller --learning_rate"
            ) from error
        logger.warning(f"{found}: skipped")

    def update_discriminators(self, maps: Maps, batch: Batch) -> dict[str, torch.Tensor]:
        """Step D_g and D_t, if there are any, on detached maps; returns their losses."""
        player = self.discriminators
        if player is None:
            return {}
        player.module.train()
        detached = {name: value.detach() for name, value in maps.items()}
        with self.inferer.autocast(batch.source.device):
            losses = player.loss(detached, batch)
        nothing = batch.source.new_zeros((), requires_grad=True)  # none applies here, but perhaps in another process
        step(sum(losses.values(), nothing), player.optimizer, player.scaler)
        return losses

    def update_network(self, maps: Maps, batch: Batch) -> dict[str, torch.Tensor]:
        """Step generator and segmentor; returns every term and ``loss``."""
        player = self.network
        with resting(self.discriminators.module.parameters() if self.discriminators is not None else ()):
            with self.inferer.autocast(batch.source.device):
                losses = player.loss(maps, batch)
            step(losses["loss"], player.optimizer, player.scaler)
        return losses


def step(loss: torch.Tensor, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Backward and one optimizer step, on the gradient over all processes; none where there is no gradient.

    An enabled scaler itself skips a step whose gradient overflowed, and lowers its scale.

    Raises:
        FloatingPointError: the loss is not finite, or the gradient without a scaler; there was no step.
    """
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average_gradients(parameters)
    total: Any = idist.all_reduce(loss.detach().clone())
    norm = gradient_norm([] if scaler.is_enabled() else parameters)
    if not torch.isfinite(total + norm):  # one look at both: each look makes the CPU wait for the GPU
        kind, value = ("gradient", norm) if torch.isfinite(total) else ("loss", total)
        raise NotFinite(f"the {kind} became {value.item()}")
    if any(parameter.grad is not None for parameter in parameters):
        scaler.step(optimizer)
        scaler.update()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Euclidean norm of the gradient; a scalar, 0 without any."""
    norms = [torch.linalg.vector_norm(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


@contextmanager
def resting(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters get no gradient inside; gradients still pass through them. For good, see ``cascade.Frozen``."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def checkpoint_levels(*modules: nn.Module) -> None:
    """Let every level of every U-Net in these keep its input alone, and compute what is between anew for the gradient.

    The second time, dropout draws the same, batch norm's running statistics stay, and a level that was in eval mode,
    such as the perceptor's, is so again.
    """
    for part in nn.ModuleList(modules).modules():
        if isinstance(part, (Encoder25D, Decoder25D)):
            for index, level in enumerate(part.levels):
                contexts = partial(_first_and_second_time, level)
                part.levels[index] = checkpoint_wrapper(level, context_fn=contexts)


def _first_and_second_time(level: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _again(level, level.training)


@contextmanager
def _again(level: nn.Module, training: bool) -> Iterator[None]:
    now, statistics = level.training, [(buffer, buffer.clone()) for buffer in level.buffers()]
    level.train(training)
    try:
        yield
    finally:  # PyTorch leaves by an exception as soon as it has what it needs
        level.train(now)
        for buffer, value in statistics:
            buffer.copy_(value)


def constant_then_linear(optimizer: Optimizer, epochs: int, constant_epochs: int) -> LambdaLR:
    """The initial learning rate for ``constant_epochs``, then linearly to 0 at ``epochs`` (Section 4.1).

    Raises:
        ValueError: ``constant_epochs`` is negative or exceeds ``epochs``.
    """
    if not 0 <= constant_epochs <= epochs:
        raise UserError(f"constant_epochs is {constant_epochs}; give a number from 0 to epochs, {epochs}")
    decay_epochs = max(epochs - constant_epochs, 1)
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0.0, (epochs - epoch) / decay_epochs)))


def averaged(network: nn.Module, share: float) -> AveragedModel | None:
    """A running average of a network's weights and running statistics, over the last ``share`` of the steps so far.

    The average is exponential, and its window grows with the training: after n steps it spans share * n of them, so
    that it forgets the beginning, and a training twice as long is averaged over twice as many. PyTorch counts the steps
    in ``n_averaged``, which a checkpoint keeps.

    Args:
        network: in training.
        share: from 0, no average (returns None), to 1, the plain mean of all steps.

    Raises:
        ValueError: ``share`` lies outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"averaging is {share}; give a share of the steps from 0, none, to 1")

    def follow(average: torch.Tensor, value: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        return average + (value - average) / torch.as_tensor(share * (steps + 1)).clamp(min=1)

    return AveragedModel(network, avg_fn=follow, use_buffers=True) if share else None
