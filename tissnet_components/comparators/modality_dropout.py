"""Direct segmentation with modality dropout: one U-Net for any subset of the contrasts, the honest rival of synthesis.

Trained on random subsets of source and target contrasts, the others filled in; run on the source contrasts. What the
successors of TISS-Net that segment from any subset have in common (such as RFNet and mmFormer).
"""

from collections.abc import Sequence

import torch
from tissnet_components.unet25d import DROPOUT, Norm, UNet25D

ABSENT = -1.0  # the background of a normalised image: a contrast without any signal


class ModalityDropoutUNet25D(UNet25D):
    """A 2.5D U-Net that sees source and target while it is trained, each at random, and the source alone otherwise.

    Every non-empty subset is equally likely, drawn for each sample. An absent contrast is -1 everywhere: that is what
    "zero-filled" becomes in images whose background is -1.

    Args:
        source_channels: how many contrasts there are besides the target.

    Shapes:
        image: (B, source_channels + 1, X, Y, Z), the target last; in eval mode the target may be left out and is
            never looked at.
        returns: (B, 1, X, Y, Z) foreground probability.
    """

    def __init__(
        self,
        source_channels: int,
        widths: Sequence[int],
        dropout: Sequence[float] = DROPOUT,
        upsampling: str = "interpolation",
        norm: Norm = "batch",
    ) -> None:
        super().__init__(source_channels + 1, widths, dropout, upsampling, norm)
        self.source_channels = source_channels

    def decode(self, image: torch.Tensor, branches: list[str] | None = None) -> dict[str, torch.Tensor]:
        return super().decode(self.drop(image) if self.training else self.without_target(image), branches)

    def drop(self, image: torch.Tensor) -> torch.Tensor:
        """A random subset of each sample's contrasts."""
        kept = random_subsets(len(image), image.shape[1], image.device)[..., None, None, None]
        return torch.where(kept, image, torch.full_like(image, ABSENT))

    def without_target(self, image: torch.Tensor) -> torch.Tensor:
        """The source contrasts, and an absent one in the target's place."""
        source = image[:, : self.source_channels]
        return torch.cat([source, torch.full_like(source[:, :1], ABSENT)], dim=1)


def random_subsets(samples: int, channels: int, device: torch.device) -> torch.Tensor:
    """(samples, channels) of booleans, each row a non-empty subset; all are equally likely."""
    number = torch.randint(1, 2**channels, (samples, 1), device=device)
    return (number >> torch.arange(channels, device=device)) % 2 == 1
