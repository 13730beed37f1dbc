"""The objective: Eqs. 1-6 and 8-11. Each loss is a function of tensors and knows no weight but ``TissNetLoss``."""

from collections.abc import Callable, Sequence

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from tissnet_components.distributed import all_samples, weight_of
from tissnet_components.errors import UserError
from tissnet_components.patchgan import discriminate

TERMS = (
    "global_l1",
    "global_adversarial",
    "tumor_l1",
    "tumor_adversarial",
    "perceptibility",
    "coarse",
    "fine",
    "error",
    "consistency",
)
SEGMENTOR_TERMS = ("fine", "error", "consistency")


def tumor_box(label: torch.Tensor, margin: int = 0) -> torch.Tensor:
    """M: 1 inside each sample's bounding box of the tumor, enlarged by ``margin`` voxels; all 0 without tumor.

    Shapes:
        label: (B, 1, X, Y, Z) in {0, 1}.
        returns: (B, 1, X, Y, Z) of the same dtype.
    """
    box = torch.zeros_like(label)
    for sample, mask in enumerate(label[:, 0]):
        voxels = mask.nonzero()
        if len(voxels):
            low, high = (voxels.amin(0) - margin).clamp(min=0), voxels.amax(0) + margin + 1
            box[sample, 0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    return box


def coarse_mistakes(coarse: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """y != y_c: 1 where ``coarse``, thresholded at 0.5, differs from ``label``; no gradient.

    Shapes:
        coarse, label, returns: (B, 1, X, Y, Z).
    """
    return ((coarse.detach() > 0.5) != (label > 0.5)).to(coarse.dtype)


def dice_loss(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """L_Dice: soft Dice loss, epsilon 1e-5, mean of foreground and background, each over the whole batch.

    As in the group's own toolkit, PyMIC. The foreground alone, sample by sample, would be 1 with next to no gradient on
    every patch without tumor, and nothing would hold back false positives there.

    Shapes:
        probability, label: (B, 1, X, Y, Z).
        returns: scalar.
    """
    pair = (all_samples(foreground) for foreground in (probability, label))
    both_classes = (torch.cat([1 - foreground, foreground], dim=1) for foreground in pair)
    return DiceLoss(batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(*both_classes)


def fool(scores: torch.Tensor) -> torch.Tensor:
    """Eq. 2: the generator wants every patch scored as real, E[(D(fake) - 1)^2]."""
    return F.mse_loss(scores, torch.ones_like(scores))


def tell_apart(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """Eq. 3: E[D(fake)^2] + E[(D(real) - 1)^2]."""
    return F.mse_loss(fake_scores, torch.zeros_like(fake_scores)) + fool(real_scores)


class ErrorPredictionConsistencyLoss(nn.Module):
    """Mean squared difference between the two refined segmentations (Eq. 8).

    The segmentor refines the coarse segmentation twice: directly (``fine``) and by flipping the voxels it
    believes wrong (``refined``). Both describe the same tumor, so they should agree.

    Shapes:
        fine, refined: (B, 1, X, Y, Z) foreground probabilities in [0, 1].
        returns: scalar.
    """

    def forward(self, fine: torch.Tensor, refined: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(fine, refined)


class PerceptibilityLoss(nn.Module):
    """Dice loss of the frozen perceptor on the synthetic image (Eq. 5).

    The perceptor S_p was trained on the real target. Its own parameters get no gradient and it stays in eval mode;
    the gradient passes through it to ``synthetic``.

    Shapes:
        synthetic: (B, 1, X, Y, Z) in [-1, 1].
        label: (B, 1, X, Y, Z) in {0, 1}.
        returns: scalar.
    """

    def __init__(self, perceptor: nn.Module) -> None:
        super().__init__()
        self.perceptor = perceptor.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "PerceptibilityLoss":
        return super().train(False)

    def forward(self, synthetic: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return dice_loss(self.perceptor(synthetic), label)


class InTumorBox:
    """What the tumor-aware terms (Eq. 4) see: images times M, of the samples that hold a tumor.

    ``empty`` tells that no sample does; the terms are then skipped. ``weight`` is 1, but for several processes: there
    it is what these samples count for among those of all.
    """

    def __init__(self, label: torch.Tensor, margin: int = 0) -> None:
        box = tumor_box(label, margin)
        self.samples = box.flatten(1).any(1)
        self.box = box[self.samples]
        count = int(self.samples.sum())
        self.empty, self.weight = count == 0, weight_of(count)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image[self.samples] * self.box


class WeightedTerms(nn.Module):
    """An objective: named terms and their weights. A subclass says what the terms are.

    Args:
        loss_weights: term -> weight; a term of weight zero, or absent, is not computed.
        known: every term there is.
        discriminators: name -> discriminator, needed by the terms ``<name>_adversarial``.

    Shapes:
        maps: what the network's ``cascade`` returns, (B, 1, X, Y, Z) each.
        source: (B, C, X, Y, Z); target, label: (B, 1, X, Y, Z).
        returns: each active term unweighted, and ``loss``, their weighted sum; scalars.

    Raises:
        ValueError: on an unknown term, a term whose discriminator is missing, or no term at all.
    """

    def __init__(
        self, loss_weights: dict[str, float], known: Sequence[str], discriminators: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        if unknown := set(loss_weights) - set(known):
            raise UserError(f"unknown loss terms {sorted(unknown)}; known: {sorted(known)}")
        self.weights = {term: weight for term, weight in loss_weights.items() if weight}
        if not self.weights:
            raise UserError(f"every loss term has weight 0; give one of {sorted(known)} another")
        for term in self.weights:
            name = term.removesuffix("_adversarial")
            if name != term and name not in (discriminators or {}):
                raise UserError(f"the term {term} needs discriminators[{name!r}]; or set its weight to 0")
        self.discriminators = discriminators

    def terms(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, Callable[[], torch.Tensor]]:
        """How to compute each term; one that does not apply to these samples may be left out."""
        raise NotImplementedError

    def forward(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        terms = self.terms(maps, source, target, label)
        values = {term: terms[term]() for term in self.weights if term in terms}
        nothing = source.new_zeros((), requires_grad=True)  # tumor-aware terms alone, on patches without tumor
        return {**values, "loss": sum((self.weights[term] * value for term, value in values.items()), nothing)}


class TissNetLoss(WeightedTerms):
    """The generator's and segmentor's objective (Eqs. 6, 9, 10).

    L = L_syn + lambda_c L_c + lambda_s L_S, with L_syn = L_syn-g (1) + L_syn-t (4) + lambda_p L_p (5).

    Args:
        loss_weights: of ``global_l1`` (alpha_g), ``global_adversarial``, ``tumor_l1`` (alpha_t),
            ``tumor_adversarial``, ``perceptibility`` (lambda_p), ``coarse`` (lambda_c), ``fine``, ``error``,
            ``consistency``.
        segmentor_weight: lambda_s, multiplies the last three.
        perceptor: S_p, needed by ``perceptibility``.
        discriminators: ``global`` and ``tumor``, needed by the adversarial terms.
        tumor_margin: voxels added around the tumor's bounding box.

    Raises:
        ValueError: as ``WeightedTerms``, or without the perceptor that ``perceptibility`` needs.
    """

    def __init__(
        self,
        loss_weights: dict[str, float],
        segmentor_weight: float = 25.0,
        perceptor: nn.Module | None = None,
        discriminators: nn.ModuleDict | None = None,
        tumor_margin: int = 0,
    ) -> None:
        scales = dict.fromkeys(SEGMENTOR_TERMS, segmentor_weight)
        weights = {term: weight * scales.get(term, 1.0) for term, weight in loss_weights.items()}
        super().__init__(weights, TERMS, discriminators)
        if "perceptibility" in self.weights and perceptor is None:
            raise UserError("the term perceptibility needs a perceptor; give one or set its weight to 0")
        self.perceptibility = PerceptibilityLoss(perceptor) if "perceptibility" in self.weights else None
        self.consistency = ErrorPredictionConsistencyLoss()
        self.tumor_margin = tumor_margin

    def terms(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, Callable[[], torch.Tensor]]:
        return {
            **self._synthesis_terms(maps, source, target, label),
            **self._tumor_terms(maps, source, target, label),
            **self._segmentation_terms(maps, label),
        }

    def _synthesis_terms(self, maps, source, target, label) -> dict[str, Callable[[], torch.Tensor]]:
        """Eqs. 1 and 5."""
        return {
            "global_l1": lambda: F.l1_loss(maps["synthetic"], target),
            "global_adversarial": lambda: fool(discriminate(self.discriminators["global"], source, maps["synthetic"])),
            "perceptibility": lambda: self.perceptibility(maps["synthetic"], label),
        }

    def _tumor_terms(self, maps, source, target, label) -> dict[str, Callable[[], torch.Tensor]]:
        """Eq. 4; none when no sample holds a tumor."""
        crop = InTumorBox(label, self.tumor_margin)
        if crop.empty:
            return {}
        return {
            "tumor_l1": lambda: crop.weight * F.l1_loss(crop(maps["synthetic"]), crop(target)),
            "tumor_adversarial": lambda: (
                crop.weight * fool(discriminate(self.discriminators["tumor"], crop(source), crop(maps["synthetic"])))
            ),
        }

    def _segmentation_terms(self, maps, label) -> dict[str, Callable[[], torch.Tensor]]:
        """L_c and Eq. 9."""
        return {
            "coarse": lambda: dice_loss(maps["coarse"], label),
            "fine": lambda: dice_loss(maps["fine"], label),
            "error": lambda: dice_loss(maps["error"], coarse_mistakes(maps["coarse"], label)),
            "consistency": lambda: self.consistency(maps["fine"], maps["refined"]),
        }


class DiscriminatorLoss(nn.Module):
    """The discriminators' objective, L_Dg + L_Dt (Eqs. 3 and 11).

    A discriminator whose adversarial term has weight zero is not trained. Real and synthetic images pass one after
    the other, as in pix2pix: sharing the statistics of a batch norm, they would be told apart by a discriminator that
    cannot do so in the generator's step, where it sees synthetic images alone.

    Shapes:
        maps: as the network's ``cascade`` returns them, detached.
        source: (B, C, X, Y, Z); target, label: (B, 1, X, Y, Z).
        returns: ``<name>_discriminator`` of each discriminator, as far as it applies; scalars.
    """

    tell_apart = staticmethod(tell_apart)

    def __init__(self, discriminators: nn.ModuleDict, loss_weights: dict[str, float], tumor_margin: int = 0) -> None:
        super().__init__()
        self.discriminators = discriminators
        self.names = [name for name in discriminators if loss_weights.get(f"{name}_adversarial", 0)]
        self.tumor_margin = tumor_margin

    def forward(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses, pairs = {}, self.pairs(maps, source, target, label)
        for name in self.names:
            weight = weight_of(len(pairs[name][0]) if name in pairs else 0)
            if name in pairs:
                discriminator, (condition, real, fake) = self.discriminators[name], pairs[name]
                real_scores, fake_scores = (discriminate(discriminator, condition, image) for image in (real, fake))
                losses[f"{name}_discriminator"] = weight * self.tell_apart(real_scores, fake_scores)
        return losses

    def pairs(
        self, maps: dict[str, torch.Tensor], source: torch.Tensor, target: torch.Tensor, label: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """What each discriminator sees: the condition, the real image, the synthetic one."""
        crop = InTumorBox(label, self.tumor_margin)
        whole = {"global": (source, target, maps["synthetic"])}
        in_box = {} if crop.empty else {"tumor": (crop(source), crop(target), crop(maps["synthetic"]))}
        return whole | in_box
