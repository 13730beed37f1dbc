"""Wang et al. 2020 (Medical Image Analysis 65:101787): synthesis and segmentation end to end, from the synthetic image.

The synthesis loss counts the lesion more, and the synthetic image should have the real one's high-level features.
Known from the abstract alone; its feature extractor for raw CT perfusion series has no counterpart here, and its
switchable normalisation and channel calibration give way to the 2.5D U-Net. Weights are guesses.
The network is a ``TissNet`` whose generator gives ``synthetic`` alone and whose segmentor sees nothing else.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from tissnet_components.cascade import TissNet
from tissnet_components.losses import Batch, Maps, Needs, WeightedTerms, dice_loss
from tissnet_components.training import resting
from torch import nn
from torch.nn import functional as F


def lesion_weighted_l1(
    synthetic: torch.Tensor, target: torch.Tensor, label: torch.Tensor, lesion_weight: float
) -> torch.Tensor:
    """Weighted mean absolute difference: a voxel of the lesion counts ``lesion_weight`` times, any other once.

    Shapes:
        synthetic, target, label: (B, 1, X, Y, Z).
        returns: scalar.
    """
    weights = 1 + (lesion_weight - 1) * label
    return (weights * (synthetic - target).abs()).sum() / weights.sum()


def high_level_features(encoder: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The encoder's deepest features, without dropout and without gradients of its own.

    With gradients, the encoder would make all features equal instead of the images.
    """
    was_training = encoder.training
    encoder.eval()
    with resting(encoder.parameters()):
        features = encoder(image)[-1]
    encoder.train(was_training)
    return features


class WangLoss(WeightedTerms):
    """Lesion-weighted synthesis, high-level consistency and segmentation.

    Args:
        loss_weights: of ``lesion_l1``, ``features`` (mean squared difference of the segmentor's deepest features on
            the synthetic and on the real image) and ``fine`` (Dice).
        network: the ``TissNet`` being trained.
        lesion_weight: how often a voxel of the lesion counts.
    """

    NEEDS: ClassVar[dict[str, Needs]] = {"lesion_l1": ("target", "label"), "features": ("target",), "fine": ("label",)}
    SHARED = ("fine",)

    def __init__(self, loss_weights: dict[str, float], network: TissNet, lesion_weight: float) -> None:
        super().__init__(loss_weights)
        self.network = network
        self.lesion_weight = lesion_weight

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        return {
            "lesion_l1": lambda: lesion_weighted_l1(maps["synthetic"], batch.target, batch.label, self.lesion_weight),
            "features": lambda: self.feature_consistency(maps["synthetic"], batch.target),
            "fine": lambda: dice_loss(maps["fine"], batch.label),
        }

    def feature_consistency(self, synthetic: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean squared difference of the two images' high-level features; its gradient reaches ``synthetic`` alone."""
        segmentor: Any = self.network.segmentor
        seen, wanted = (high_level_features(segmentor.encoder, image).float() for image in (synthetic, target))
        return F.mse_loss(seen, wanted)
