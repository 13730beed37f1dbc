"""Pix2Pix (Isola et al. 2017, arXiv 1611.07004): a conditional GAN synthesises, then a separate U-Net segments.

Two trainings. The first one's network is a ``TissNet`` without segmentor; in the second one's, the generator is frozen
(``load_generator``) and the segmentor sees source and synthetic image.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from tissnet_components.cascade import Frozen, TissNet
from tissnet_components.losses import Batch, DiscriminatorLoss, Maps, Needs, WeightedTerms
from tissnet_components.patchgan import discriminate
from tissnet_components.weights import load_weights
from torch import nn
from torch.nn import functional as F


def fool(scores: torch.Tensor) -> torch.Tensor:
    """The generator's cross-entropy: maximise log D(x, G(x)) (Section 3.3 there)."""
    return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))


def tell_apart(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """The discriminator's cross-entropy (Eq. 1 there), halved to slow it down (Section 3.3 there)."""
    fake = F.binary_cross_entropy_with_logits(fake_scores, torch.zeros_like(fake_scores))
    return (fool(real_scores) + fake) / 2


class Pix2PixLoss(WeightedTerms):
    """G* = arg min max L_cGAN(G, D) + lambda L_L1(G) (Eqs. 3 and 4 there).

    Args:
        loss_weights: of ``global_adversarial`` and ``global_l1`` (lambda).
        discriminators: ``global``, a conditional PatchGAN.
    """

    NEEDS: ClassVar[dict[str, Needs]] = {"global_adversarial": (), "global_l1": ("target",)}

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        return {
            "global_adversarial": lambda: fool(
                discriminate(self.discriminators["global"], batch.source, maps["synthetic"])
            ),
            "global_l1": lambda: F.l1_loss(maps["synthetic"], batch.target),
        }


class Pix2PixDiscriminatorLoss(DiscriminatorLoss):
    """``DiscriminatorLoss`` by cross-entropy instead of least squares."""

    tell_apart = staticmethod(tell_apart)


def load_generator(generator: nn.Module, path: str, recipe: Mapping[str, Any] | None = None) -> Frozen:
    """Load the generator that a first training left (a ``TissNet`` without segmentor) and freeze it."""
    command = (
        "train the generator first: python -m monai.bundle run training "
        f"--config_file \"['configs/train.json','configs/comparators/{Path(path).stem}.json']\" --dataset_dir DIR "
        "(with the same widths and spacing)"
    )
    return Frozen(load_weights(TissNet(generator, None), path, recipe, missing=command).generator)
