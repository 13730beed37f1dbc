"""The network and its training as the literature's implementations have them: what the package is compared with.

float32, contiguous, slices first; planar levels as 2D convolutions over slices folded into the batch. The same weights
give the same maps. A training iteration runs the cascade twice, once for each player, and lets the discriminators'
parameters collect gradients in the generator's step, which nobody uses.
"""

import copy
from typing import Any

import torch
from monai.engines import Trainer
from tissnet_components.training import AdversarialUpdate, step
from tissnet_components.unet25d import PReLU
from torch import nn

SLICES_FIRST = (0, 1, 4, 2, 3)  # (B, C, X, Y, Z) -> (B, C, Z, X, Y)
SLICES_LAST = (0, 1, 3, 4, 2)


class FoldedSlices(nn.Module):
    """A 2D block over every slice: (B, C, Z, X, Y) -> (B Z, C, X, Y), the block, and back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        batch, channels, depth, *plane = image.shape
        slices = self.block(image.transpose(1, 2).reshape(batch * depth, channels, *plane))
        return slices.reshape(batch, depth, -1, *plane).transpose(1, 2).contiguous()


class SlicesFirst(nn.Module):
    """A network that works slices first, for callers that do not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.network.cascade(image.permute(SLICES_FIRST).contiguous())
        return {name: value.permute(SLICES_LAST) for name, value in maps.items()}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image.permute(SLICES_FIRST).contiguous()).permute(SLICES_LAST)


def plain(network: nn.Module) -> SlicesFirst:
    """The reference of a ``TissNet`` or ``UNet25D``, with its weights."""
    return SlicesFirst(_plain(copy.deepcopy(network)))


def _plain(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Sequential) and _is_planar(module):
        return FoldedSlices(nn.Sequential(*map(_flat, module)))
    if isinstance(module, nn.Conv3d):
        return _with_weight(module, nn.Conv3d, module.weight.permute(SLICES_FIRST), module.kernel_size)
    if isinstance(module, nn.MaxPool3d):
        return nn.MaxPool3d(_slices_first(module.kernel_size))
    if isinstance(module, nn.Upsample):
        return nn.Upsample(scale_factor=_slices_first(module.scale_factor), mode="trilinear", align_corners=False)
    if isinstance(module, PReLU):
        return _prelu(module)
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    if hasattr(module, "stride"):
        module.stride = _slices_first(module.stride)
    return module


def _is_planar(block: nn.Sequential) -> bool:
    return isinstance(block[0], nn.Conv3d) and block[0].kernel_size == (3, 3, 1)


def _flat(layer: nn.Module) -> nn.Module:
    """The 2D version of a layer of a planar block."""
    if isinstance(layer, nn.Conv3d):
        return _with_weight(layer, nn.Conv2d, layer.weight[..., 0], layer.kernel_size[:2])
    if isinstance(layer, nn.BatchNorm3d):
        norm = nn.BatchNorm2d(layer.num_features)
        norm.load_state_dict(layer.state_dict())
        return norm.train(layer.training)
    return _prelu(layer) if isinstance(layer, PReLU) else layer


def _with_weight(layer: nn.Conv3d, kind: type, weight: torch.Tensor, kernel_size: tuple[int, ...]) -> nn.Module:
    convolution = kind(layer.in_channels, layer.out_channels, kernel_size, padding=kernel_size[0] // 2)
    convolution.load_state_dict({"weight": weight.contiguous(), "bias": layer.bias})
    return convolution


def _prelu(layer: PReLU) -> nn.PReLU:
    activation = nn.PReLU()
    activation.load_state_dict(layer.state_dict())
    return activation


def _slices_first(lengths: int | tuple) -> int | tuple:
    return (lengths[2], lengths[0], lengths[1]) if isinstance(lengths, tuple) else lengths


class PlainUpdate(AdversarialUpdate):
    """One iteration with a cascade for each player, and gradients that nobody uses."""

    def __call__(self, engine: Trainer, batchdata: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch = self.prepare(engine, batchdata)
        network = self.network.module.train()
        losses = self.update_discriminators(self.inferer(batch.source, network), batch)
        losses |= self.network.loss(self.inferer(batch.source, network), batch)
        step(losses["loss"], self.network.optimizer, self.network.scaler)
        return losses
