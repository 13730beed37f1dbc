"""Direct segmentation with modality dropout: one U-Net for any subset of the contrasts, the honest rival of synthesis.

Trained on random subsets of source and target contrasts, the others filled in; run on the source contrasts. What the
successors of TISS-Net that segment from any subset have in common (such as RFNet and mmFormer).
"""

from collections.abc import Sequence

import torch
from tissnet_components.subsets import ABSENT, Absence, SubsetView
from tissnet_components.unet25d import DROPOUT, Norm, UNet25D


class ModalityDropoutUNet25D(UNet25D):
    """A 2.5D U-Net that sees each contrast at random while it is trained, and otherwise a subset of them.

    An absent contrast is -1 everywhere: that is what "zero-filled" becomes in images whose background is -1.

    Args:
        contrasts, absence, present: of ``SubsetView``.
        widths, dropout, upsampling, norm, regions: of ``UNet25D``.

    Shapes:
        image: (B, C, X, Y, Z); the last contrasts may be left out where they are not looked at.
        returns: (B, regions, X, Y, Z) foreground probability.
    """

    def __init__(
        self,
        contrasts: Sequence[str],
        widths: Sequence[int],
        dropout: Sequence[float] = DROPOUT,
        upsampling: str = "interpolation",
        norm: Norm = "batch",
        regions: int = 1,
        absence: Absence = 0.5,
        present: Sequence[str] | None = None,
    ) -> None:
        super().__init__(len(contrasts), widths, dropout, upsampling, norm, regions)
        self.contrasts = len(contrasts)
        self.view = SubsetView(contrasts, absence, present)

    def decode(self, image: torch.Tensor, branches: list[str] | None = None) -> dict[str, torch.Tensor]:
        left_out = torch.full_like(image[:, :1], ABSENT).expand(-1, self.contrasts - image.shape[1], -1, -1, -1)
        return super().decode(self.view(torch.cat([image, left_out], dim=1)), branches)
