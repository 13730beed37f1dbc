"""One adversarial iteration, and the learning-rate schedule."""

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


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

    The output, one dict per iteration: ``image``, ``label``, ``target``, every loss term, ``loss``, and every map in
    ``pred``, since a map and its loss term share their name.
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
    ) -> None:
        self.network = network
        self.loss_function = loss_function
        self.optimizer = optimizer
        self.inferer = inferer
        self.discriminators = discriminators
        self.discriminator_loss = discriminator_loss
        self.discriminator_optimizer = discriminator_optimizer
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.discriminator_scaler = discriminator_scaler or torch.amp.GradScaler(enabled=False)

    def __call__(self, engine: Trainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        source, target, label = (
            batchdata[key].to(engine.state.device, non_blocking=engine.non_blocking).as_tensor()
            for key in ("image", "target", "label")
        )
        self.network.train()
        maps = self.inferer(source, self.network)
        losses = {}
        if self.discriminators is not None:
            losses.update(self.update_discriminators(maps, source, target, label))
        losses.update(self.update_network(maps, source, target, label))
        engine.state.output = {"image": source, "target": target, "label": label, "pred": maps, **losses}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def update_discriminators(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Step D_g and D_t on detached maps; returns their losses."""
        self.discriminators.train()
        detached = {name: value.detach() for name, value in maps.items()}
        with self.inferer.autocast(source.device):
            losses = self.discriminator_loss(detached, source, target, label)
        if losses:
            step(sum(losses.values()), self.discriminator_optimizer, self.discriminator_scaler)
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
    """Backward and one optimizer step.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss.item()}; resume with --precision float32, or start over with "
            f"a smaller --learning_rate"
        )
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


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


def constant_then_linear(optimizer: Optimizer, epochs: int, constant_epochs: int) -> LambdaLR:
    """The initial learning rate for ``constant_epochs``, then linearly to 0 at ``epochs`` (Section 4.1).

    Raises:
        ValueError: ``constant_epochs`` is negative or exceeds ``epochs``.
    """
    if not 0 <= constant_epochs <= epochs:
        raise ValueError(f"constant_epochs is {constant_epochs}; give a number from 0 to epochs, {epochs}")
    decay_epochs = max(epochs - constant_epochs, 1)
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0.0, (epochs - epoch) / decay_epochs)))
