"""Any subset of the contrasts: what a network sees of them, and the cascade that synthesises all that is missing."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from tissnet_components.cascade import TissNet
from tissnet_components.errors import UserError
from torch import nn

ABSENT = -1.0  # the background of a normalised image: a contrast without any signal
FAINTEST = -0.999  # resampling a constant background changes its last digits
Absence = float | Sequence[float]


def is_present(image: torch.Tensor, faintest: float = FAINTEST) -> torch.Tensor:
    """Whether each contrast shows anything: one that is background everywhere is absent.

    Shapes:
        image: (B, C, X, Y, Z).
        returns: (B, C, 1, 1, 1) booleans.
    """
    return (image > faintest).flatten(2).any(2)[:, :, None, None, None]


def random_subsets(samples: int, channels: int, device: torch.device, absence: Absence = 0.5) -> torch.Tensor:
    """(samples, channels) of booleans, each row a non-empty subset.

    Each contrast is absent with its own probability, independently, but never all at once: at 0.5, every subset is
    equally likely.
    """
    subsets = (torch.arange(1, 2**channels, device=device)[:, None] >> torch.arange(channels, device=device)) % 2 == 1
    gone = torch.as_tensor(absence, dtype=torch.float32, device=device).expand(channels)
    return subsets[torch.multinomial(torch.where(subsets, 1 - gone, gone).prod(1), samples, replacement=True)]


class SubsetView(nn.Module):
    """An image of which some contrasts are hidden: they become -1, what "zero-filled" is where the background is -1.

    In training, each sample shows a random subset; what a patient lacks stays hidden, and where nothing would be left,
    everything is shown.

    Args:
        contrasts: names of the channels.
        absence: probability of each contrast, or of all, to be hidden in training, see `random_subsets`.
        present: those that are shown otherwise; by default all.

    Shapes:
        image, returns: (B, C, X, Y, Z).

    Raises:
        ValueError: a probability outside 0 to 1, an unknown contrast, or nothing to see.
    """

    def __init__(self, contrasts: Sequence[str], absence: Absence = 0.5, present: Sequence[str] | None = None) -> None:
        super().__init__()
        chances = [absence] * len(contrasts) if isinstance(absence, int | float) else list(absence)
        if len(chances) != len(contrasts) or not all(0 <= chance <= 1 for chance in chances) or min(chances) == 1:
            raise UserError(f"absence is {absence}; give a probability below 1, or one for each of {list(contrasts)}")
        shown = list(contrasts if present is None else present)
        if not shown or set(shown) - set(contrasts):
            raise UserError(f"present is {shown}; name at least one of {list(contrasts)}")
        self.absence, self.hidden = absence, [name not in shown for name in contrasts]
        self.background = ABSENT

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.draw(image)
        hidden = torch.tensor(self.hidden, device=image.device)[:, None, None, None]
        return torch.where(hidden, torch.full_like(image, self.background), image)

    @torch.jit.unused
    def draw(self, image: torch.Tensor) -> torch.Tensor:
        drawn = random_subsets(len(image), image.shape[1], image.device, self.absence)
        there = is_present(image)[..., 0, 0, 0]
        shown = drawn | ~(drawn & there).any(1, keepdim=True)
        return torch.where(shown[..., None, None, None], image, torch.full_like(image, ABSENT))


class AnySubsetTissNet(TissNet):
    """TISS-Net for any non-empty subset of the contrasts.

    The image has a channel for every contrast; one that is -1 everywhere is absent, and nothing else tells which are.
    The generator synthesises all contrasts. Where one is present it is passed through as it is: ``synthetic`` is the
    completed set, which the segmentor sees with ``coarse``, and the perceptor alone.

    Args:
        generator: gives ``synthetic``, a channel per contrast, and ``coarse``.
        segmentor, segmentor_inputs, detach_coarse, map_dropout: of ``TissNet``.
        contrasts, absence, present: of ``SubsetView``.

    Shapes:
        image: (B, C, X, Y, Z), all contrasts, the absent ones -1.
        returns: ``fine`` alone; ``cascade`` gives every map, and in training also ``source``, what was seen.
    """

    def __init__(
        self,
        generator: nn.Module,
        segmentor: nn.Module | None,
        contrasts: Sequence[str],
        segmentor_inputs: Sequence[str] = ("synthetic", "coarse"),
        detach_coarse: bool = False,
        map_dropout: float = 0.0,
        absence: Absence = 0.5,
        present: Sequence[str] | None = None,
    ) -> None:
        super().__init__(generator, segmentor, segmentor_inputs, detach_coarse, map_dropout)
        self.view = SubsetView(contrasts, absence, present)

    def generate(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        source = self.view(image)
        maps = self.generator(source)
        maps["synthetic"] = torch.where(is_present(source), source, maps["synthetic"])
        if self.training:
            maps["source"] = source
        return maps


class PlaceContrastsd(MapTransform):
    """Put the contrasts that were loaded, ``contrasts`` of the image's metadata, in their channels; the others are -1.

    Args:
        contrasts: names of all channels.

    Shapes:
        image: (those loaded, X, Y, Z) in [-1, 1].
        returns: (C, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, contrasts: Sequence[str]) -> None:
        super().__init__(keys)
        self.contrasts = list(contrasts)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self._placed(data[key]) for key in self.key_iterator(data)}}

    def _placed(self, image: Any) -> Any:
        there = image.meta.get("contrasts", self.contrasts)
        absent = torch.full_like(image[:1], ABSENT)
        placed: Any = torch.cat([image[[there.index(name)]] if name in there else absent for name in self.contrasts])
        placed.meta["contrasts"] = list(there)
        return placed


class KeepSynthesisedd(MapTransform):
    """Leave of a completed set what was synthesised; nothing, where the patient has every contrast.

    Args:
        keys: the set.
        contrasts: names of its channels.
        image_key: the image, whose metadata tell which contrasts the patient has; without them, all is left.
    """

    def __init__(self, keys: KeysCollection, contrasts: Sequence[str], image_key: str = "image") -> None:
        super().__init__(keys)
        self.contrasts, self.image_key = list(contrasts), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        real = data[self.image_key].meta.get("contrasts")
        kept = dict(data)
        for key in self.key_iterator(data) if real is not None else ():
            absent = [number for number, name in enumerate(self.contrasts) if name not in real]
            kept.pop(key)
            if absent:
                kept[key] = data[key][absent]
        return kept
