"""PGAN (Dar et al. 2019, IEEE TMI 38:2375): a least-squares conditional GAN with a perceptual loss; then a U-Net.

Two trainings, as in ``pix2pix.py``. The perceptual loss follows the authors' code (icon-lab/pGAN-cGAN): mean absolute
difference of VGG16's features before the second max-pool, of slices whose one channel is repeated three times, without
ImageNet's mean and SD.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from tissnet_components.cascade import Frozen
from tissnet_components.errors import FileMissing
from tissnet_components.losses import Batch, Maps, Needs, WeightedTerms, fool
from tissnet_components.patchgan import discriminate
from tissnet_components.weights import check_weights_fit, read_state
from torch import nn
from torch.nn import functional as F

UNTRAINED = "untrained"


def vgg16_features() -> nn.Sequential:
    """VGG16 (Simonyan and Zisserman 2015) before its second max-pool, with torchvision's names of the weights."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()),
    )


def load_vgg16_features(weights: str) -> nn.Sequential:
    """VGG16's first layers from a file of torchvision's VGG16 weights, or untrained when asked to by that name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds other weights.
    """
    features = vgg16_features()
    if weights == UNTRAINED:
        return features
    if not Path(weights).is_file():
        raise FileMissing(
            f"no VGG16 weights at {weights}: put torchvision's vgg16-397923af.pth there or give --vgg_weights; "
            f"--vgg_weights {UNTRAINED} takes random ones, which is not what PGAN's authors did"
        )
    state = {name.removeprefix("features."): value for name, value in read_state(weights).items()}
    kept = {name: value for name, value in state.items() if name in features.state_dict()}
    check_weights_fit(features, kept, weights)
    features.load_state_dict(kept)
    return features


class PerceptualLoss(nn.Module):
    """Mean absolute difference of VGG16's features, slice by slice.

    Args:
        weights: a file of torchvision's VGG16 weights, or ``untrained``.

    Shapes:
        synthetic, target: (B, 1, X, Y, Z) in [-1, 1].
        returns: scalar.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.features = Frozen(load_vgg16_features(weights))

    def forward(self, synthetic: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.l1_loss(*(self.features(as_pictures(image)).float() for image in (synthetic, target)))


def as_pictures(image: torch.Tensor) -> torch.Tensor:
    """(B, 1, X, Y, Z) -> (B * Z, 3, X, Y): each slice a picture of three equal channels."""
    return image.permute(0, 4, 1, 2, 3).flatten(0, 1).expand(-1, 3, -1, -1)


class PganLoss(WeightedTerms):
    """Adversarial, pixel-wise and perceptual loss of the generator.

    Args:
        loss_weights: of ``global_adversarial``, ``global_l1`` and ``perceptual``.
        discriminators: ``global``, a conditional PatchGAN.
        perceptual: a ``PerceptualLoss``.
    """

    NEEDS: ClassVar[dict[str, Needs]] = {"global_adversarial": (), "global_l1": ("target",), "perceptual": ("target",)}

    def __init__(self, loss_weights: dict[str, float], discriminators: nn.ModuleDict, perceptual: nn.Module) -> None:
        super().__init__(loss_weights, discriminators)
        self.perceptual = perceptual

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        return {
            "global_adversarial": lambda: fool(
                discriminate(self.discriminators["global"], batch.source, maps["synthetic"])
            ),
            "global_l1": lambda: F.l1_loss(maps["synthetic"], batch.target),
            "perceptual": lambda: self.perceptual(maps["synthetic"], batch.target),
        }
