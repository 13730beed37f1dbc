"""The 16x70x70 PatchGAN of D_g and D_t (Section 4.1)."""

import torch
from monai.networks.blocks import Convolution
from torch import nn


class PatchGAN(nn.Sequential):
    """Five convolutions of kernel 4 with in-plane strides 2, 2, 2, 1, 1, and 1 across slices.

    Its receptive field is 70 x 70 pixels and 16 slices. MONAI 1.6's ``PatchDiscriminator`` strides along every axis,
    which would leave nothing of 16 slices.

    Args:
        in_channels: source and target together.
        channels: of the first layer; doubled at each of the next three.
        norm: MONAI's name of the normalisation, or None.

    Shapes:
        image: (B, in_channels, X, Y, Z), at least 24 x 24 x 6.
        returns: (B, 1, X', Y', Z') real-or-fake scores, no activation.
    """

    def __init__(self, in_channels: int, channels: int = 64, norm: str | None = "batch") -> None:
        widths = [in_channels, *(channels * 2**level for level in range(4)), 1]
        super().__init__(
            *(
                Convolution(
                    spatial_dims=3,
                    in_channels=widths[layer],
                    out_channels=widths[layer + 1],
                    strides=(2, 2, 1) if layer < 3 else 1,
                    kernel_size=4,
                    padding=1,
                    norm=norm if 0 < layer < 4 else None,
                    act=("leakyrelu", {"negative_slope": 0.2}),
                    bias=norm is None or layer in (0, 4),
                    conv_only=layer == 4,
                )
                for layer in range(5)
            )
        )
        self.apply(_init_normal)


def _init_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02), as in pix2pix (Isola 2017)."""
    if isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)


def discriminate(discriminator: nn.Module, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scores of a target (real or synthetic) conditioned on its source: D(x_s <> x_t).

    Shapes:
        source: (B, C, X, Y, Z); target: (B, 1, X, Y, Z).
    """
    return discriminator(torch.cat([source, target], dim=1)).float()
