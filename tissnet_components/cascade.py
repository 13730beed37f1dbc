"""The cascade: generator, then segmentor (Fig. 2d), and loading what was trained."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from tissnet_components.errors import UserError
from tissnet_components.moved import forwarding
from torch import nn

SEGMENTOR_INPUTS = ("source", "synthetic", "coarse")


def refine_with_error(coarse: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Flip the coarse segmentation where it is believed wrong (Eq. 7): (1 - y_c) y_e + y_c (1 - y_e).

    Shapes:
        coarse, error: (B, R, X, Y, Z) probabilities of R regions; gradients flow to both.
        returns: the same, foreground probability.
    """
    return (1 - coarse) * error + coarse * (1 - error)


class TissNet(nn.Module):
    """Generator G then segmentor S, end to end (Section 3).

    Args:
        generator: maps the source to ``synthetic`` and ``coarse``; ``coarse`` may be absent if nothing needs it.
        segmentor: maps the concatenated ``segmentor_inputs`` to ``fine`` and ``error``, or one of them; None for
            synthesis alone (Tables 1 and 5).
        segmentor_inputs: what the segmentor sees, among ``source``, ``synthetic`` and ``coarse`` (Tables 2 and 6).
        detach_coarse: the segmentor and Eq. 7 take ``coarse`` as given, so that their losses reach the generator
            through ``synthetic`` alone; docs/why/design.md tells when this is needed.
        map_dropout: in training, the share of samples of which the segmentor sees the source alone. The generator's
            maps are better on training patients than on others; a segmentor that must do without them now and then
            does not come to believe them.

    Shapes:
        image: (B, C, X, Y, Z), the source modalities in [-1, 1]; any spatial size.
        returns: (B, 1, X, Y, Z), ``fine`` alone; the segmentor's other branch is not computed.

    Raises:
        ValueError: on an unknown name in ``segmentor_inputs``, or a share outside [0, 1].
        KeyError: in ``forward``, where nothing gives ``fine``; ``cascade`` gives what there is.
    """

    def __init__(
        self,
        generator: nn.Module,
        segmentor: nn.Module | None,
        segmentor_inputs: Sequence[str] = SEGMENTOR_INPUTS,
        detach_coarse: bool = False,
        map_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        unknown = set(segmentor_inputs) - set(SEGMENTOR_INPUTS)
        if unknown or not segmentor_inputs:
            raise UserError(f"segmentor_inputs are {list(segmentor_inputs)}; choose among {list(SEGMENTOR_INPUTS)}")
        if not 0 <= map_dropout <= 1:
            raise UserError(f"map_dropout is {map_dropout}, expected a share from 0 to 1")
        self.generator = generator
        self.segmentor = segmentor
        self.segmentor_inputs = list(segmentor_inputs)
        self.detach_coarse = detach_coarse
        self.map_dropout = float(map_dropout)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.segment(image, self.generate(image), ["fine"])["fine"]

    @torch.jit.export
    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every map: ``synthetic``, ``coarse``, ``fine``, ``error`` and ``refined`` (Eq. 7)."""
        maps = self.generate(image)
        generated = dict(maps)
        if self.detach_coarse and "coarse" in maps:
            generated["coarse"] = maps["coarse"].detach()
        maps.update(self.segment(image, self.withhold(generated)))
        if "error" in maps:
            maps["refined"] = refine_with_error(generated["coarse"], maps["error"])
        return maps

    def withhold(self, generated: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """In training, the generator's maps without those of some samples: background, and no tumor, instead.

        Of a set that real contrasts complete, these stay.
        """
        if not self.training or self.map_dropout == 0:
            return generated
        synthetic = generated["synthetic"]
        withheld = torch.rand([synthetic.shape[0], 1, 1, 1, 1], device=synthetic.device) < self.map_dropout
        seen = dict(generated)
        real = generated["source"] if "source" in generated else torch.full_like(synthetic, -1.0)
        seen["synthetic"] = torch.where(withheld, real, synthetic)
        if "coarse" in generated:
            seen["coarse"] = generated["coarse"].masked_fill(withheld, 0.0)
        return seen

    def generate(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's maps; named so that a subclass may choose what it sees."""
        return self.generator(image)

    def segment(
        self, image: torch.Tensor, generated: dict[str, torch.Tensor], branches: list[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """The segmentor's maps from x-tilde, the concatenation of what it may see; none without a segmentor."""
        visible = {"source": image}
        visible.update(generated)
        if self.segmentor is None:
            return {}
        return self.segmentor(torch.cat([visible[name] for name in self.segmentor_inputs], dim=1), branches)


class Cascading(Protocol):
    """A network that gives its answer, or every map by name."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """``fine``."""

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """``fine`` and the others."""


class PerceivedCascade(nn.Module):
    """A cascade and the perceptor's view of its synthetic image.

    ``cascade`` adds ``perceived``, (B, 1, X, Y, Z): S_p(x_t'). Without a perceptor (direct segmentation has no
    synthetic image) it adds nothing.

    Args:
        consensus: the answer ``fine`` becomes the mean of itself and ``perceived``.
    """

    def __init__(self, network: Cascading, perceptor: nn.Module | None = None, consensus: bool = False) -> None:
        super().__init__()
        self.network = network
        self.perceptor = None if perceptor is None else Frozen(perceptor)
        self.consensus = consensus

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.cascade(image)["fine"] if self.consensus else self.network(image)

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.network.cascade(image)
        if self.perceptor is not None:
            maps["perceived"] = self.perceptor(maps["synthetic"])
        if self.consensus:
            maps["fine"] = (maps["fine"] + maps["perceived"]) / 2
        return maps


class Frozen(nn.Module):
    """A trained network that stays as it is: eval mode, no gradients of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def forward(self, image: torch.Tensor) -> Any:
        return self.network(image)


__getattr__ = forwarding(__name__)
