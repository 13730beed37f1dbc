"""PSCGAN-style (after Xu et al. 2020, Medical Image Analysis 62:101668): a cascade of three GANs, trained together.

A prior mask guides the synthesis, and the segmentation is made from the synthesis; each stage has a discriminator.
Known from the abstract alone: losses and weights here are guesses, and no result of it is one of PSCGAN itself.
The network is a ``TissNet``: its generator is ``PriorThenSynthesis``, its segmentor sees the synthetic image alone.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from tissnet_components.losses import Batch, DiscriminatorLoss, Maps, Needs, WeightedTerms, dice_loss, fool
from tissnet_components.patchgan import discriminate
from torch import nn
from torch.nn import functional as F


class PriorThenSynthesis(nn.Module):
    """The first two stages: a prior mask from the source, then the synthetic image from source and mask.

    Args:
        prior: maps the source to ``coarse``.
        synthesis: maps source and ``coarse``, by channel, to ``synthetic``.

    Shapes:
        image: (B, C, X, Y, Z).
        returns: ``coarse`` and ``synthetic``, (B, 1, X, Y, Z) each.
    """

    def __init__(self, prior: nn.Module, synthesis: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.synthesis = synthesis

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        coarse = self.prior(image)["coarse"]
        return {"coarse": coarse, **self.synthesis(torch.cat([image, coarse], dim=1))}


def stage_pairs(maps: Maps, batch: Batch) -> dict[str, Callable[[], Sequence[torch.Tensor]]]:
    """What each stage's discriminator sees: what the stage was given, what it should have made, what it made."""
    source_and_prior = torch.cat([batch.source, maps["coarse"]], dim=1)
    return {
        "coarse": lambda: (batch.source, batch.label, maps["coarse"]),
        "synthetic": lambda: (source_and_prior, batch.target, maps["synthetic"]),
        "fine": lambda: (maps["synthetic"], batch.label, maps["fine"]),
    }


class PscganLoss(WeightedTerms):
    """Of each stage, how far it is from the truth and how well it fools its discriminator.

    Args:
        loss_weights: of ``coarse`` and ``fine`` (Dice), ``synthetic_l1``, and ``coarse_adversarial``,
            ``synthetic_adversarial``, ``fine_adversarial`` (least squares).
        discriminators: ``coarse``, ``synthetic`` and ``fine``.
    """

    NEEDS: ClassVar[dict[str, Needs]] = dict.fromkeys(
        ("coarse", "synthetic_l1", "fine", "coarse_adversarial", "synthetic_adversarial", "fine_adversarial"),
        ("target", "label"),
    )
    SHARED = ("coarse", "fine")

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        pairs = stage_pairs(maps, batch)

        def adversarial(stage: str) -> torch.Tensor:
            condition, _, fake = pairs[stage]()
            return fool(discriminate(self.discriminators[stage], condition, fake))

        return {
            "coarse": lambda: dice_loss(maps["coarse"], batch.label),
            "synthetic_l1": lambda: F.l1_loss(maps["synthetic"], batch.target),
            "fine": lambda: dice_loss(maps["fine"], batch.label),
            "coarse_adversarial": lambda: adversarial("coarse"),
            "synthetic_adversarial": lambda: adversarial("synthetic"),
            "fine_adversarial": lambda: adversarial("fine"),
        }


class PscganDiscriminatorLoss(DiscriminatorLoss):
    """``DiscriminatorLoss`` (least squares) of the three stages."""

    NEEDS: ClassVar[dict[str, Needs]] = dict.fromkeys(("coarse", "synthetic", "fine"), ("target", "label"))

    pairs = staticmethod(stage_pairs)
