"""One adversarial iteration, and the learning-rate schedule."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from tissnet_components.distributed import average_gradients, mean_over_processes
from tissnet_components.errors import NotFinite, UserError
from tissnet_components.unet25d import Decoder25D, Encoder25D

logger = logging.getLogger(__name__)

ON_NON_FINITE = ("stop", "skip")
MOST_SKIPPED = 10  # in a row; then it is the network that is broken, and not some batches


class AdversarialUpdate:
    """One iteration for ``monai.engines.Trainer(iteration_update=...)``: one cascade, then both players.

    The discriminators step first, on detached maps (Eq. 11); then generator and segmentor, with the discriminators
    frozen (Eq. 10), as in pix2pix. Without discriminators only the network steps: direct segmentation.

    Args:
        network: the ``TissNet``.
        loss_function: ``TissNetLoss``, Eq. 10.
        optimizer: of generator and segmentor.
        inferer: runs the network's cascade, in the precision wanted.
        discriminators, discriminator_loss, discriminator_optimizer: Eq. 11; all or none.
        scaler, discriminator_scaler: gradient scalers, needed by float16 alone.
        on_non_finite: what to do with a batch whose loss or gradient is NaN or infinite. ``stop`` the training, so that
            the last checkpoint stays good; or ``skip`` the step, keep the statistics of batch norm, and go on.
            Gradients that overflow float16 are the scalers' matter.
        checkpointing: less memory, more time, the same numbers: see `checkpoint_levels`.

    Raises:
        ValueError: another ``on_non_finite``.
        FloatingPointError: from an iteration, names the cases: it was to stop, or ten batches in a row were skipped.

    The output, one dict per iteration: ``image``, ``label``, ``target``, every loss term, ``loss``, and every map in
    ``pred``, since a map and its loss term share their name. A skipped batch has no losses.
    """

    def __init__(
        self,
        network: nn.Module,
        loss_function: nn.Module,
        optimizer: Optimizer,
        inferer: Inferer,
        discriminators: nn.Module | None = None,
        discriminator_loss: nn.Module | None = None,
        discriminator_optimizer: Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
        discriminator_scaler: torch.amp.GradScaler | None = None,
        on_non_finite: str = "stop",
        checkpointing: bool = False,
    ) -> None:
        if on_non_finite not in ON_NON_FINITE:
            raise UserError(f"on_non_finite is {on_non_finite!r}; choose one of {', '.join(ON_NON_FINITE)}")
        self.on_non_finite, self.skipped = on_non_finite, 0
        self.network = network
        self.loss_function = loss_function
        self.optimizer = optimizer
        self.inferer = inferer
        self.discriminators = discriminators
        self.discriminator_loss = discriminator_loss
        self.discriminator_optimizer = discriminator_optimizer
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.discriminator_scaler = discriminator_scaler or torch.amp.GradScaler(enabled=False)
        if checkpointing:
            checkpoint_levels(network, loss_function)

    def __call__(self, engine: Trainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        source, target, label = (
            batchdata[key].to(engine.state.device, non_blocking=engine.non_blocking).as_tensor()
            for key in ("image", "target", "label")
        )
        for optimizer in filter(None, (self.optimizer, self.discriminator_optimizer)):
            optimizer.zero_grad(set_to_none=True)  # the cascade has room for its activations instead
        self.network.train()
        statistics = [(buffer, buffer.clone()) for buffer in self._buffers()] if self.on_non_finite == "skip" else []
        maps = self.inferer(source, self.network)
        losses = {}
        try:
            if self.discriminators is not None:
                losses.update(self.update_discriminators(maps, source, target, label))
            losses.update(self.update_network(maps, source, target, label))
            self.skipped = 0
        except FloatingPointError as error:
            self._stop_or_skip(error, batchdata)
            losses = {}
            for buffer, value in statistics:
                buffer.copy_(value)
        maps, losses = ({name: value.detach() for name, value in values.items()} for values in (maps, losses))
        losses = mean_over_processes(losses)
        engine.state.output = {"image": source, "target": target, "label": label, "pred": maps, **losses}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _buffers(self) -> Iterable[torch.Tensor]:
        """Those of both players: the running statistics of batch norm, which a forward pass alone would spoil."""
        for player in (self.network, self.discriminators):
            yield from player.buffers() if player is not None else ()

    def _stop_or_skip(self, error: FloatingPointError, batchdata: dict[str, Any]) -> None:
        self.skipped += 1
        cases = idist.all_gather(", ".join(batchdata.get("case", ["cases without a name"])))
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

    def update_discriminators(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Step D_g and D_t on detached maps; returns their losses."""
        self.discriminators.train()
        detached = {name: value.detach() for name, value in maps.items()}
        with self.inferer.autocast(source.device):
            losses = self.discriminator_loss(detached, source, target, label)
        nothing = source.new_zeros((), requires_grad=True)  # no discriminator applies, but perhaps to other processes'
        step(sum(losses.values(), nothing), self.discriminator_optimizer, self.discriminator_scaler)
        return losses

    def update_network(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Step generator and segmentor; returns every term and ``loss``."""
        with frozen(self.discriminators.parameters() if self.discriminators is not None else ()):
            with self.inferer.autocast(source.device):
                losses = self.loss_function(maps, source, target, label)
            step(losses["loss"], self.optimizer, self.scaler)
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
    total = idist.all_reduce(loss.detach().clone())
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
def frozen(parameters: Iterable[nn.Parameter]):
    """Parameters get no gradient inside; gradients still pass through them."""
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
            for level in part.levels:
                contexts = partial(_first_and_second_time, level)
                level.forward = partial(checkpoint, level.forward, use_reentrant=False, context_fn=contexts)


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
        network: in training; of one that several processes share, the one inside.
        share: from 0, no average (returns None), to 1, the plain mean of all steps.

    Raises:
        ValueError: ``share`` lies outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"averaging is {share}; give a share of the steps from 0, none, to 1")

    def follow(average: torch.Tensor, value: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        return average + (value - average) / (share * (steps + 1)).clamp(min=1)

    return AveragedModel(getattr(network, "module", network), avg_fn=follow, use_buffers=True) if share else None
