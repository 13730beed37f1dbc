"""The 2.5D U-Net and its dual-branch variant (Fig. 3): planar convolutions at the two finest levels, 3D below."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.utils import get_norm_layer
from tissnet_components.errors import UserError
from torch import nn
from torch.nn import functional as F

PLANAR_LEVELS = 2
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
FOREGROUND_PRIOR = 0.1
DROPOUT = (0.0, 0.0, 0.3, 0.4, 0.5)  # per encoder level, finest first
Norm = str | tuple[str, dict]  # or a list of these two, as JSON has it


class PReLU(nn.PReLU):
    """``nn.PReLU`` of one slope, with a fast gradient on CPU: PyTorch 2.13's took a quarter of a training step."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves this branch out only when it stands alone)
            if image.requires_grad and image.device.type == "cpu" and not torch.compiler.is_compiling():
                return _LeakyByOneSlope.apply(image, self.weight)
        return F.prelu(image, self.weight)


class _LeakyByOneSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(image, slope)
        return F.leaky_relu(image, slope.item())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image, slope = ctx.saved_tensors
        to_slope = (gradient * image.clamp(max=0)).sum(dtype=slope.dtype).reshape(slope.shape)
        return torch.ops.aten.leaky_relu_backward(gradient, image, slope.item(), False), to_slope


class ConvBlock(nn.Sequential):
    """Twice (convolution 3, norm, PReLU), with dropout in between; planar blocks do not mix slices."""

    def __init__(
        self, in_channels: int, out_channels: int, planar: bool, dropout: float = 0.0, norm: Norm = "batch"
    ) -> None:
        super().__init__(
            *self._convolve(in_channels, out_channels, planar, norm),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            *self._convolve(out_channels, out_channels, planar, norm),
        )

    @staticmethod
    def _convolve(in_channels: int, out_channels: int, planar: bool, norm: Norm) -> list[nn.Module]:
        kernel, padding = ((3, 3, 1), (1, 1, 0)) if planar else (3, 1)
        convolution = nn.Conv3d(in_channels, out_channels, kernel, padding=padding)
        return [convolution, get_norm_layer(norm, 3, out_channels), PReLU()]


class UpBlock(nn.Module):
    """Upsamples by two (in plane only where planar), concatenates the skip, convolves."""

    def __init__(
        self, in_channels: int, skip_channels: int, planar: bool, upsampling: str, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        scale = (2, 2, 1) if planar else (2, 2, 2)
        if upsampling == "transposed":
            self.up: nn.Module = nn.ConvTranspose3d(in_channels, skip_channels, scale, stride=scale)
        elif upsampling == "interpolation":
            interpolation = nn.Upsample(scale_factor=scale, mode="trilinear", align_corners=False)
            self.up = nn.Sequential(nn.Conv3d(in_channels, skip_channels, 1), interpolation)
        else:
            raise UserError(f"unknown upsampling {upsampling!r}; known: 'interpolation', 'transposed'")
        self.convolve = ConvBlock(2 * skip_channels, skip_channels, planar, norm=norm)

    def forward(self, features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        upsampled = self.up(features).to(skip.dtype)  # on CPU, autocast interpolates in float32
        return self.convolve(torch.cat([skip, upsampled], dim=1))


def pad_far_ends(image: torch.Tensor, stride: tuple[int, int, int]) -> torch.Tensor:
    """Repeat the edge values at the far ends of (B, C, X, Y, Z) until every side is a multiple of the stride."""
    x, y, z = image.shape[2], image.shape[3], image.shape[4]
    sx, sy, sz = stride
    return F.pad(image, [0, -z % sz, 0, -y % sy, 0, -x % sx], mode="replicate")


class Encoder25D(nn.Module):
    """Contracting path.

    Shapes:
        image: (B, in_channels, X, Y, Z) with X, Y, Z multiples of ``stride``.
        returns: one feature map per level, finest first; level l has ``widths[l]`` channels.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], dropout: Sequence[float] = DROPOUT, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        if len(dropout) != len(widths):
            raise UserError(f"dropout has {len(dropout)} values for {len(widths)} widths; give one per level")
        channels = [in_channels, *widths]
        self.levels = nn.ModuleList(
            ConvBlock(channels[level], channels[level + 1], level < PLANAR_LEVELS, dropout[level], norm)
            for level in range(len(widths))
        )
        pools = [nn.MaxPool3d((2, 2, 1) if level < PLANAR_LEVELS else 2) for level in range(len(widths) - 1)]
        self.pools = nn.ModuleList([nn.Identity(), *pools])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        for pool, level in zip(self.pools, self.levels):  # noqa: B905 (TorchScript knows no `strict`)
            image = level(pool(image))
            features.append(image)
        return features


class Decoder25D(nn.Module):
    """Expanding path and head; it receives the encoder's features and does not keep the encoder.

    A segmentation starts near the probability ``FOREGROUND_PRIOR`` (as in Lin 2017, focal loss). Started at one half,
    an inverted ``coarse`` that ``error`` flips back everywhere is as good for Eqs. 8 and 9 as a right one, and training
    did end there; with few errors expected, ``refined`` starts as ``coarse`` and the two agree on the right side.

    Shapes:
        features: as returned by ``Encoder25D``.
        returns: (B, out_channels, X, Y, Z) float32, in [0, 1] (``sigmoid``) or [-1, 1] (``tanh``).
    """

    def __init__(
        self,
        out_channels: int,
        widths: Sequence[int],
        activation: str,
        upsampling: str = "interpolation",
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}; known: {sorted(ACTIVATIONS)}")
        self.levels = nn.ModuleList(
            UpBlock(widths[level + 1], widths[level], level < PLANAR_LEVELS, upsampling, norm)
            for level in reversed(range(len(widths) - 1))
        )
        self.head = nn.Conv3d(widths[0], out_channels, 1)
        self.activation = ACTIVATIONS[activation]()
        if activation == "sigmoid":
            nn.init.constant_(self.head.get_parameter("bias"), math.log(FOREGROUND_PRIOR / (1 - FOREGROUND_PRIOR)))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        decoded = features[-1]
        for index, level in enumerate(self.levels):
            decoded = level(decoded, features[-2 - index])
        return self.activation(self.head(decoded).float())


class DualBranchUNet25D(nn.Module):
    """One encoder, one named decoder per task: 2.5D DB-Net (Fig. 3), the generator G and the segmentor S.

    Any spatial size works: the image is padded at its far ends (edge values repeated) to what the pooling needs,
    and the maps are cropped back.

    Args:
        in_channels: channels of the image.
        widths: channels per level, finest first.
        decoders: name -> activation (``tanh`` for an image, ``sigmoid`` for a segmentation).
        dropout: probability per encoder level.
        upsampling: ``interpolation`` (1x1 convolution, trilinear) or ``transposed`` convolution.
        norm: one of MONAI's normalisation layers, such as ``instance`` or ``["group", {"num_groups": 8}]``.
        regions: channels of each segmentation.
        contrasts: channels of each image.

    Shapes:
        image: (B, in_channels, X, Y, Z).
        returns: name -> (B, regions or contrasts, X, Y, Z), for ``branches`` or, by default, for all.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        decoders: dict[str, str],
        dropout: Sequence[float] = DROPOUT,
        upsampling: str = "interpolation",
        norm: Norm = "batch",
        regions: int = 1,
        contrasts: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = Encoder25D(in_channels, widths, dropout, norm)
        channels = {"sigmoid": regions, "tanh": contrasts}
        self.decoders = nn.ModuleDict(
            {
                name: Decoder25D(channels.get(activation, 1), widths, activation, upsampling, norm)
                for name, activation in decoders.items()
            }
        )
        planar_stride, stride = 2 ** (len(widths) - 1), 2 ** max(len(widths) - 1 - PLANAR_LEVELS, 0)
        self.stride = (planar_stride, planar_stride, stride)

    def forward(self, image: torch.Tensor, branches: list[str] | None = None) -> dict[str, torch.Tensor]:
        return self.decode(image, branches)

    def decode(self, image: torch.Tensor, branches: list[str] | None = None) -> dict[str, torch.Tensor]:
        """What ``forward`` returns; named so that a subclass may return something else."""
        x, y, z = image.shape[2], image.shape[3], image.shape[4]
        features = self.encoder(pad_far_ends(image, self.stride))
        maps: dict[str, torch.Tensor] = {}
        for name, decoder in self.decoders.items():
            if branches is None or name in branches:
                maps[name] = decoder(features)[:, :, :x, :y, :z]
        return maps


class UNet25D(DualBranchUNet25D):
    """The 2.5D U-Net: one branch, ``fine``. The perceptor S_p, direct segmentation and baselines.

    Shapes:
        image: (B, in_channels, X, Y, Z).
        returns: (B, regions, X, Y, Z) foreground probability.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        dropout: Sequence[float] = DROPOUT,
        upsampling: str = "interpolation",
        norm: Norm = "batch",
        regions: int = 1,
    ) -> None:
        super().__init__(in_channels, widths, {"fine": "sigmoid"}, dropout, upsampling, norm, regions)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decode(image)["fine"]

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every map by name, as ``TissNet.cascade`` gives them: here only ``fine``."""
        return self.decode(image)
