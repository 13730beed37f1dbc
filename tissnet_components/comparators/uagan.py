"""UAGAN (Yuan et al. 2019, MICCAI): one network translates between contrasts and segments, two streams that exchange.

Checked against the authors' code (mangoyuan/UAGAN): both streams have an encoder and a decoder of their own, share the
bottleneck, and add to each skip the other stream's features, convolved and gated. The critic is WGAN-GP and names the
contrast; the translated image is translated back (cycle) and segmented (shape).

The original has one channel and no pairs: any contrast into any other. Here the image holds the C source contrasts,
contrast C is the target, and the way is source -> target -> one source contrast chosen at random; a translated image
takes the place of the C channels by repetition. With one source contrast both are the same. Segmentation losses are
this package's Dice instead of cross-entropy. Training takes complete patients alone.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from monai.networks.blocks import Convolution
from monai.networks.utils import one_hot
from tissnet_components.losses import Batch, Maps, Needs, Objective, WeightedTerms, dice_loss
from tissnet_components.patchgan import PatchGAN
from tissnet_components.unet25d import DROPOUT, PLANAR_LEVELS, DualBranchUNet25D, Encoder25D, Norm, pad_far_ends
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler


class GatedExchange(nn.Module):
    """A stream's skip and what the other stream has to say: own + convolved other * gate of other.

    Shapes:
        own, other, returns: (B, channels, X, Y, Z).
    """

    def __init__(self, channels: int, planar: bool, norm: Norm = "batch") -> None:
        super().__init__()
        kernel = (3, 3, 1) if planar else 3
        self.convolve = Convolution(3, channels, channels, kernel_size=kernel, norm=norm, act="prelu")
        self.gate = Convolution(3, channels, channels, kernel_size=kernel, norm=None, act="sigmoid")

    def forward(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return own + self.convolve(other) * self.gate(other)


class Uagan(DualBranchUNet25D):
    """The two streams; what ``DualBranchUNet25D`` brings is the segmentation encoder and both decoders.

    Args:
        source_channels: C, the source contrasts; the target is contrast C.
        widths, dropout, upsampling, norm, regions: as in ``DualBranchUNet25D``.

    Shapes:
        image: (B, C, X, Y, Z); any spatial size.
        returns: (B, regions, X, Y, Z), ``fine``.
    """

    def __init__(
        self,
        source_channels: int,
        widths: Sequence[int],
        dropout: Sequence[float] = DROPOUT,
        upsampling: str = "interpolation",
        norm: Norm = "batch",
        regions: int = 1,
    ) -> None:
        decoders = {"synthetic": "tanh", "fine": "sigmoid"}
        super().__init__(source_channels, widths, decoders, dropout, upsampling, norm, regions)
        self.contrasts = source_channels + 1
        self.translation_encoder = Encoder25D(source_channels + self.contrasts, widths, dropout, norm)
        self.translation_encoder.levels[-1] = self.encoder.levels[-1]  # the shared bottleneck
        self.exchanges = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    GatedExchange(w, level < PLANAR_LEVELS, norm) for level, w in enumerate(widths[:-1])
                )
                for name in self.decoders
            }
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.cascade(image)["fine"]

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """``synthetic``, the image as the target contrast, and ``fine``."""
        return self.translate(image, torch.full((len(image),), self.contrasts - 1, device=image.device))

    def translate(self, image: torch.Tensor, contrast: torch.Tensor) -> dict[str, torch.Tensor]:
        """``synthetic``, each sample's image as its ``contrast``, (B,) numbers from 0 to C, and ``fine``."""
        x, y, z = image.shape[2:]
        padded = pad_far_ends(image, self.stride)
        wanted = one_hot(contrast[:, None], self.contrasts)[..., None, None, None].expand(-1, -1, *padded.shape[2:])
        segmenting = self.encoder(padded)
        translating = self.translation_encoder(torch.cat([padded, wanted], dim=1))
        streams = {"synthetic": (translating, segmenting), "fine": (segmenting, translating)}
        features = {name: self.exchange(name, own, other) for name, (own, other) in streams.items()}
        return {name: self.decoders[name](features[name])[:, :, :x, :y, :z] for name in streams}

    def exchange(self, name: str, own: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
        """A decoder's features: gated skips, and its own bottleneck."""
        return [
            *(gate(*skips) for gate, *skips in zip(self.exchanges[name].children(), own, other, strict=False)),
            own[-1],
        ]


class ContrastCritic(nn.Module):
    """Scores an image's patches (higher is more real) and says which contrast it is; no norm, as WGAN-GP needs.

    Shapes:
        image: (B, 1, X, Y, Z).
        returns: (B, 1, X', Y', Z') scores; (B, contrasts) logits.
    """

    def __init__(self, contrasts: int, channels: int = 64) -> None:
        super().__init__()
        *trunk, self.realness = PatchGAN(1, channels, norm=None)
        self.trunk = nn.Sequential(*trunk)
        self.contrast = nn.Conv3d(8 * channels, contrasts, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.trunk(image)
        return self.realness(features).float(), self.contrast(features).float().mean((2, 3, 4))


def gradient_penalty(critic: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """WGAN-GP: E[(|gradient of the scores at a random point between real and fake| - 1)^2]."""
    place = torch.rand(len(real), 1, 1, 1, 1, device=real.device)
    between = (place * real + (1 - place) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between)[0].sum(), between, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


class UaganLoss(WeightedTerms):
    """The network's objective.

    Args:
        loss_weights: of ``adversarial``, ``contrast`` (cross-entropy of the critic naming the target contrast),
            ``cycle`` (L1 to the source contrast it was translated back to), ``fine`` (Dice) and ``shape`` (Dice of the
            translated image's segmentation).
        network: the ``Uagan`` being trained.
        critic: a ``ContrastCritic``.
        lr_scheduler: of the network's optimizer; it counts the epochs.
        shape_epochs: over which ``shape`` grows linearly to its weight.
    """

    NEEDS: ClassVar[dict[str, Needs]] = dict.fromkeys(("adversarial", "contrast", "cycle", "fine", "shape"), ())

    def __init__(
        self,
        loss_weights: dict[str, float],
        network: Uagan,
        critic: nn.Module,
        lr_scheduler: LRScheduler,
        shape_epochs: int = 60,
    ) -> None:
        super().__init__(loss_weights)
        self.network = network
        self.critic = critic
        self.lr_scheduler = lr_scheduler
        self.shape_epochs = shape_epochs

    @property
    def shape_ramp(self) -> float:
        """The share of its weight that ``shape`` has in this epoch."""
        return min(1.0, (self.lr_scheduler.last_epoch + 1) / self.shape_epochs)

    def terms(self, maps: Maps, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        scores, contrast = self.critic(maps["synthetic"])
        samples, channels = batch.source.shape[:2]
        origin = torch.randint(channels, (samples,), device=batch.source.device)
        back = self.network.translate(maps["synthetic"].expand(-1, channels, -1, -1, -1), origin)
        original = batch.source[torch.arange(samples, device=origin.device), origin].unsqueeze(1)
        return {
            "adversarial": lambda: -scores.mean(),
            "contrast": lambda: F.cross_entropy(contrast, torch.full_like(origin, channels)),
            "cycle": lambda: F.l1_loss(back["synthetic"], original),
            "fine": lambda: dice_loss(maps["fine"], batch.label),
            "shape": lambda: self.shape_ramp * dice_loss(back["fine"], batch.label),
        }


class ContrastCriticLoss(Objective):
    """The critic's objective: the Wasserstein distance, the gradient penalty, and naming real contrasts.

    Args:
        critic: a ``ContrastCritic``.
        critic_weights: of ``wasserstein``, ``gradient_penalty`` and ``real_contrast``.

    Shapes:
        maps: as in ``DiscriminatorLoss``.
        returns: the three terms, each with its weight; scalars.
    """

    def __init__(self, critic: nn.Module, critic_weights: dict[str, float]) -> None:
        super().__init__()
        self.critic = critic
        self.weights = critic_weights

    def forward(self, maps: Maps, batch: Batch) -> dict[str, torch.Tensor]:
        real = torch.cat([batch.source, batch.target], dim=1)
        samples, contrasts = real.shape[:2]
        scores, named = self.critic(real.flatten(0, 1).unsqueeze(1))
        contrast = torch.arange(contrasts, device=real.device).repeat(samples)
        terms = {
            "wasserstein": self.critic(maps["synthetic"])[0].mean() - scores[contrasts - 1 :: contrasts].mean(),
            "gradient_penalty": gradient_penalty(self.critic, batch.target, maps["synthetic"]),
            "real_contrast": F.cross_entropy(named, contrast),
        }
        return {name: self.weights[name] * value for name, value in terms.items()}

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many samples, of all processes, each term is computed on."""
        return dict.fromkeys(self.weights, batch.count(()))
