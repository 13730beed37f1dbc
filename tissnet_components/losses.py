"""The objective: Eqs. 1-6 and 8-11. Each loss is a function of tensors and knows no weight but ``TissNetLoss``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import ignite.distributed as idist
import torch
from monai.losses import DiceLoss
from tissnet_components.cascade import Frozen
from tissnet_components.distributed import all_samples
from tissnet_components.errors import UserError
from tissnet_components.patchgan import discriminate
from tissnet_components.subsets import is_present
from torch import nn
from torch.nn import functional as F

SEGMENTOR_TERMS = ("fine", "error", "consistency")
Maps = dict[str, torch.Tensor]
Needs = tuple[str, ...]
PARTS = ("target", "label", "tumor", "synthetic")  # what a sample may lack


@dataclass(frozen=True)
class Batch:
    """Samples as the losses see them; a sample may lack its target or its label, and then holds a filler instead.

    Args:
        has_target, has_label: what each sample has; by default everything.
        everyone: ``samples`` of all processes, see `of_all_processes`.
        absent: where any contrast may be missing, those that were synthesised and are known, see `of_subset`.
        has_synthetic: where any contrast may be missing, whether one was, and so was synthesised.

    Shapes:
        source: (B, C, X, Y, Z), the available modalities.
        target: (B, 1, X, Y, Z), the real missing modality; of any subset, (B, C, X, Y, Z), all contrasts.
        label: (B, R, X, Y, Z), the mask of each region, {0, 1}; one region is the paper's case.
        has_target, has_label, has_synthetic: (B,) booleans.
        everyone: (B of all processes, 4) booleans.
        absent: (B, C) booleans.
    """

    source: torch.Tensor
    target: torch.Tensor
    label: torch.Tensor
    has_target: torch.Tensor | None = None
    has_label: torch.Tensor | None = None
    everyone: torch.Tensor | None = None
    absent: torch.Tensor | None = None
    has_synthetic: torch.Tensor | None = None

    @cached_property
    def samples(self) -> torch.Tensor:
        """(B, 4) booleans: whether each sample has its target, its label, a tumor in it, and anything synthetic."""
        every = torch.ones(len(self.label), dtype=torch.bool)
        told = self.has_target, self.has_label, self.has_synthetic
        target, label, synthetic = (every if has is None else has.cpu() for has in told)
        return torch.stack([target, label, label & self.label.flatten(1).any(1).cpu(), synthetic], dim=1)

    def of_all_processes(self) -> "Batch":
        """The same samples, knowing what those of the other processes have: a collective."""
        everyone: Any = idist.all_gather(self.samples)
        return replace(self, everyone=everyone.cpu())

    def of_subset(self, maps: Maps) -> "Batch":
        """The same samples as the losses see them where the network saw a subset of the contrasts, the map ``source``.

        x_s is that subset, x_t' the completed set, and x_t holds the real contrasts in place of the absent ones. One
        that the patient lacks is held against nothing.
        """
        synthesised = ~is_present(maps["source"])
        absent = is_present(self.target) & synthesised
        target = torch.where(absent, self.target, maps["synthetic"].detach())
        absent, synthesised = absent[..., 0, 0, 0], synthesised[..., 0, 0, 0]
        has = {"has_target": absent.any(1), "has_synthetic": synthesised.any(1)}
        return replace(self, source=maps["source"], target=target, absent=absent, **has)

    def having(self, needs: Needs, maps: Maps) -> tuple[Maps, "Batch"]:
        """The samples that have all of ``PARTS`` named, and their maps."""
        kept = _have(self.samples, needs)
        if kept.all():
            return maps, self
        own = kept.to(self.label.device)
        absent = None if self.absent is None else self.absent[own]
        chosen = Batch(self.source[own], self.target[own], self.label[own], absent=absent)
        return {name: value[own] for name, value in maps.items()}, chosen

    def count(self, needs: Needs) -> int:
        """How many samples of all processes have all of these."""
        return int(_have(self.samples if self.everyone is None else self.everyone, needs).sum())

    def weight(self, needs: Needs) -> float:
        """What a mean over this process's samples that have all of these counts for; 1 on average, 0 for none."""
        return idist.get_world_size() * int(_have(self.samples, needs).sum()) / max(self.count(needs), 1)


def _have(samples: torch.Tensor, needs: Needs) -> torch.Tensor:
    return samples[:, [PARTS.index(part) for part in needs]].all(1)


def tumor_box(label: torch.Tensor, margin: int = 0) -> torch.Tensor:
    """M: 1 inside each sample's bounding box of the tumor, enlarged by ``margin`` voxels; all 0 without tumor.

    Of several regions it is the box of all, the whole tumor's.

    Shapes:
        label: (B, R, X, Y, Z) in {0, 1}.
        returns: (B, 1, X, Y, Z) of the same dtype.
    """
    box = torch.zeros_like(label[:, :1])
    for sample, mask in enumerate(label.amax(1)):
        voxels = mask.nonzero()
        if len(voxels):
            low, high = (voxels.amin(0) - margin).clamp(min=0), voxels.amax(0) + margin + 1
            box[sample, 0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    return box


def coarse_mistakes(coarse: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """y != y_c: 1 where ``coarse``, thresholded at 0.5, differs from ``label``; no gradient.

    Shapes:
        coarse, label, returns: (B, R, X, Y, Z).
    """
    return ((coarse.detach() > 0.5) != (label > 0.5)).to(coarse.dtype)


def dice_loss(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """L_Dice: soft Dice loss, epsilon 1e-5, mean of foreground and background, each over the whole batch.

    As in the group's own toolkit, PyMIC. The foreground alone, sample by sample, would be 1 with next to no gradient on
    every patch without tumor, and nothing would hold back false positives there. Of several regions it is the mean.

    Shapes:
        probability, label: (B, R, X, Y, Z).
        returns: scalar.
    """
    pair = (all_samples(foreground) for foreground in (probability, label))
    both_classes = (torch.cat([1 - foreground, foreground], dim=1) for foreground in pair)
    return DiceLoss(batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(*both_classes)


def cross_entropy(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy, which also sees what is found in a batch without tumor; beside Dice in nnU-Net.

    Shapes:
        probability, label: (B, R, X, Y, Z), float32.
        returns: scalar.
    """
    return F.binary_cross_entropy(all_samples(probability), all_samples(label))


def l1(synthetic: torch.Tensor, target: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
    """The L1 norm of Eqs. 1 and 4, a mean over voxels; of several contrasts, over those that were absent alone.

    Every sample counts alike, however many of its contrasts were absent.

    Shapes:
        synthetic, target: (B, C, X, Y, Z).
        absent: (B, C) booleans, at least one of each sample.
        returns: scalar.
    """
    if absent is None:
        return F.l1_loss(synthetic, target)
    errors = F.l1_loss(synthetic, target, reduction="none").flatten(2).mean(2)
    return ((errors * absent).sum(1) / absent.sum(1)).mean()


def fool(scores: torch.Tensor) -> torch.Tensor:
    """Eq. 2: the generator wants every patch scored as real, E[(D(fake) - 1)^2]."""
    return F.mse_loss(scores, torch.ones_like(scores))


def tell_apart(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """Eq. 3: E[D(fake)^2] + E[(D(real) - 1)^2]."""
    return F.mse_loss(fake_scores, torch.zeros_like(fake_scores)) + fool(real_scores)


def in_tumor_box(label: torch.Tensor, margin: int, *images: torch.Tensor) -> list[torch.Tensor]:
    """What the tumor-aware terms (Eq. 4) see: images times M."""
    box = tumor_box(label, margin)
    return [image * box for image in images]


class ErrorPredictionConsistencyLoss(nn.Module):
    """Mean squared difference between the two refined segmentations (Eq. 8).

    The segmentor refines the coarse segmentation twice: directly (``fine``) and by flipping the voxels it
    believes wrong (``refined``). Both describe the same tumor, so they should agree.

    Shapes:
        fine, refined: (B, R, X, Y, Z) foreground probabilities in [0, 1].
        returns: scalar.
    """

    def forward(self, fine: torch.Tensor, refined: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(fine, refined)


class PerceptibilityLoss(nn.Module):
    """Dice loss of the frozen perceptor on the synthetic image (Eq. 5).

    The perceptor S_p was trained on the real target. The gradient passes through it to ``synthetic``.

    Shapes:
        synthetic: (B, 1, X, Y, Z) in [-1, 1], or the completed set of contrasts where any may be missing.
        label: (B, R, X, Y, Z) in {0, 1}.
        returns: scalar.
    """

    def __init__(self, perceptor: nn.Module) -> None:
        super().__init__()
        self.perceptor = Frozen(perceptor)

    def forward(self, synthetic: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return dice_loss(self.perceptor(synthetic), label)


class Objective(nn.Module):
    """What a player learns by: of the maps and a ``Batch``, a dict of scalars."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many samples, of all processes, each term is computed on."""
        raise NotImplementedError


class WeightedTerms(Objective):
    """An objective: named terms and their weights. A subclass says what the terms are.

    Each term is computed on the samples that have what it needs, and not at all where no sample does.

    Args:
        loss_weights: term -> weight; a term of weight zero, or absent, is not computed.
        discriminators: name -> discriminator, needed by the terms ``<name>_adversarial``.

    Shapes:
        maps: what the network's ``cascade`` returns, (B, R, X, Y, Z) each segmentation.
        returns: each active term unweighted, and ``loss``, their weighted sum; scalars.

    Raises:
        ValueError: on an unknown term, a term whose discriminator is missing, or no term at all.
    """

    NEEDS: ClassVar[dict[str, Needs]] = {}  # every term there is -> what a sample must have for it
    SHARED: ClassVar[tuple[str, ...]] = ()  # terms that look at the samples of all processes at once: those of Dice

    def __init__(self, loss_weights: dict[str, float], discriminators: nn.ModuleDict | None = None) -> None:
        super().__init__()
        if unknown := set(loss_weights) - set(self.NEEDS):
            raise UserError(f"unknown loss terms {sorted(unknown)}; known: {sorted(self.NEEDS)}")
        self.discriminators = discriminators or nn.ModuleDict()
        self.weights = {term: weight for term, weight in loss_weights.items() if weight}
        if not self.weights:
            raise UserError(f"every loss term has weight 0; give one of {sorted(self.NEEDS)} another")
        for term in self.weights:
            name = term.removesuffix("_adversarial")
            if name != term and name not in self.discriminators:
                raise UserError(f"the term {term} needs discriminators[{name!r}]; or set its weight to 0")

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        """How to compute each term from samples that have what it needs."""
        raise NotImplementedError

    def forward(self, maps: Maps, batch: Batch) -> dict[str, torch.Tensor]:
        terms = cache(lambda needs: self.terms(*batch.having(needs, maps)))
        values = {}
        for term in self.weights:
            needs = self.NEEDS[term]
            weight = batch.weight(needs)
            if weight or (term in self.SHARED and batch.count(needs)):
                values[term] = weight * terms(needs)[term]()
        nothing = batch.source.new_zeros((), requires_grad=True)  # no term applies to these samples
        return {**values, "loss": sum((self.weights[term] * value for term, value in values.items()), nothing)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many samples, of all processes, each term is computed on."""
        return {term: batch.count(self.NEEDS[term]) for term in self.weights}


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
        cross_entropy: weight of the cross-entropy that ``coarse`` and ``fine`` contain beside Dice; the paper's is 0.

    Raises:
        ValueError: as ``WeightedTerms``, or without the perceptor that ``perceptibility`` needs.
    """

    NEEDS: ClassVar[dict[str, Needs]] = {
        "global_l1": ("target",),
        "global_adversarial": ("synthetic",),
        "tumor_l1": ("target", "tumor"),
        "tumor_adversarial": ("tumor", "synthetic"),
        "perceptibility": ("label",),
        "coarse": ("label",),
        "fine": ("label",),
        "error": ("label",),
        "consistency": (),
    }
    SHARED = ("perceptibility", "coarse", "fine", "error")

    def __init__(
        self,
        loss_weights: dict[str, float],
        segmentor_weight: float = 25.0,
        perceptor: nn.Module | None = None,
        discriminators: nn.ModuleDict | None = None,
        tumor_margin: int = 0,
        cross_entropy: float = 0.0,
    ) -> None:
        scales = dict.fromkeys(SEGMENTOR_TERMS, segmentor_weight)
        weights = {term: weight * scales.get(term, 1.0) for term, weight in loss_weights.items()}
        super().__init__(weights, discriminators)
        if "perceptibility" in self.weights:
            if perceptor is None:
                raise UserError("the term perceptibility needs a perceptor; give one or set its weight to 0")
            self.perceptibility = PerceptibilityLoss(perceptor)
        self.consistency = ErrorPredictionConsistencyLoss()
        self.tumor_margin = tumor_margin
        self.cross_entropy = cross_entropy

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        return {
            **self._synthesis_terms(maps, batch),
            **self._tumor_terms(maps, batch),
            **self._segmentation_terms(maps, batch.label),
        }

    def _synthesis_terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        """Eqs. 1 and 5."""
        return {
            "global_l1": lambda: l1(maps["synthetic"], batch.target, batch.absent),
            "global_adversarial": lambda: fool(
                discriminate(self.discriminators["global"], batch.source, maps["synthetic"])
            ),
            "perceptibility": lambda: self.perceptibility(maps["synthetic"], batch.label),
        }

    def _tumor_terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        """Eq. 4."""
        box = cache(lambda: tumor_box(batch.label, self.tumor_margin))

        def masked(image: torch.Tensor) -> torch.Tensor:
            return image * box()

        return {
            "tumor_l1": lambda: l1(masked(maps["synthetic"]), masked(batch.target), batch.absent),
            "tumor_adversarial": lambda: fool(
                discriminate(self.discriminators["tumor"], masked(batch.source), masked(maps["synthetic"]))
            ),
        }

    def _segmentation_terms(self, maps: Maps, label: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
        """L_c and Eq. 9."""
        return {
            "coarse": lambda: self._segmentation_loss(maps["coarse"], label),
            "fine": lambda: self._segmentation_loss(maps["fine"], label),
            "error": lambda: dice_loss(maps["error"], coarse_mistakes(maps["coarse"], label)),
            "consistency": lambda: self.consistency(maps["fine"], maps["refined"]),
        }

    def _segmentation_loss(self, probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """L_Dice and, where asked for, cross-entropy."""
        dice = dice_loss(probability, label)
        return dice + self.cross_entropy * cross_entropy(probability, label) if self.cross_entropy else dice


class DiscriminatorLoss(Objective):
    """The discriminators' objective, L_Dg + L_Dt (Eqs. 3 and 11).

    A discriminator whose adversarial term has weight zero is not trained. Real and synthetic images pass one after
    the other, as in pix2pix: sharing the statistics of a batch norm, they would be told apart by a discriminator that
    cannot do so in the generator's step, where it sees synthetic images alone.

    Shapes:
        maps: as the network's ``cascade`` returns them, detached.
        returns: ``<name>_discriminator`` of each discriminator, as far as it applies; scalars.
    """

    NEEDS: ClassVar[dict[str, Needs]] = {"global": ("target",), "tumor": ("target", "tumor")}

    tell_apart = staticmethod(tell_apart)

    def __init__(self, discriminators: nn.ModuleDict, loss_weights: dict[str, float], tumor_margin: int = 0) -> None:
        super().__init__()
        self.discriminators = discriminators
        self.names = [name for name in discriminators if loss_weights.get(f"{name}_adversarial", 0)]
        self.tumor_margin = tumor_margin

    def forward(self, maps: Maps, batch: Batch) -> dict[str, torch.Tensor]:
        losses = {}
        for name in self.names:
            weight = batch.weight(self.NEEDS[name])
            if weight:
                condition, real, fake = self.pairs(*batch.having(self.NEEDS[name], maps))[name]()
                seen = (discriminate(self.discriminators[name], condition, image) for image in (real, fake))
                losses[f"{name}_discriminator"] = weight * self.tell_apart(*seen)
        return losses

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many samples, of all processes, each discriminator learns from."""
        return {f"{name}_discriminator": batch.count(self.NEEDS[name]) for name in self.names}

    def pairs(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], Sequence[torch.Tensor]]]:
        """What each discriminator sees: the condition, the real image, the synthetic one."""
        images = batch.source, batch.target, maps["synthetic"]
        return {"global": lambda: images, "tumor": lambda: in_tumor_box(batch.label, self.tumor_margin, *images)}
