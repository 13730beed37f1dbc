"""Running a cascade over whole volumes, one case or many."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer, SlidingWindowInferer
from tissnet_components.cascade import PerceivedCascade
from tissnet_components.errors import UserError, in_one_sentence
from tissnet_components.moved import forwarding
from torch import nn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_precision(device: torch.device) -> str:
    """``bfloat16`` where the device has instructions for it, else ``float32``."""
    if device.type == "cuda":  # since Ampere; PyTorch's own question asks the current GPU, not this one
        able = torch.cuda.get_device_capability(device)[0] >= 8
    else:  # PyTorch before 2.6 cannot tell
        able = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return "bfloat16" if able else "float32"


class CascadeInferer(Inferer):
    """Runs another inferer on ``network.cascade`` (every map) instead of ``forward``, in a chosen precision.

    Args:
        inferer: such as ``SimpleInferer`` (patches) or ``SlidingWindowInferer`` (whole volumes).
        precision: ``float32``, ``bfloat16`` (CPU, CUDA) or ``float16`` (CUDA); mixed, by ``torch.autocast``. ``auto``
            is what `best_precision` says of the device.
        flips: axes, such as ``[[0], [0, 1]]``: the cascade is also run on the inputs flipped along axis 0 (X), and
            along axes 0 and 1, and every map is the mean of all, each flipped back.
        perceptor: if given, the answer ``fine`` becomes the mean of itself and the perceptor's view of ``synthetic``.

    Shapes:
        inputs: (B, C, X, Y, Z).
        returns: map name -> (B, 1, X, Y, Z) float32.

    Raises:
        ValueError: on an unknown precision, flips that are no lists of the axes 0, 1 and 2, or, of a network in eval
            mode, an answer that is not finite.
    """

    def __init__(
        self,
        inferer: Inferer,
        precision: str = "float32",
        flips: Sequence[Sequence[int]] = (),
        perceptor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if precision not in (*PRECISIONS, "auto"):
            raise UserError(f"unknown precision {precision!r}; known: {[*PRECISIONS, 'auto']}")
        self.inferer = inferer
        self.precision = precision
        self.flips = _checked_flips(flips)
        self.perceptor = perceptor

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context that gives the chosen precision on a device."""
        precision = best_precision(device) if self.precision == "auto" else self.precision
        return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        seen = network if self.perceptor is None else PerceivedCascade(network, self.perceptor, consensus=True)
        cascade = seen.cascade
        with self.autocast(inputs.device):
            maps = self.inferer(inputs, cascade, *args, **kwargs)
            if self.flips:
                maps = {name: values.float() for name, values in maps.items()}
            for axes in self.flips:
                flipped = self.inferer(inputs.flip(axes), cascade, *args, **kwargs)
                maps = {name: values + flipped[name].float().flip(axes) for name, values in maps.items()}
        if self.flips:
            maps = {name: values / (1 + len(self.flips)) for name, values in maps.items()}
        if not network.training:
            self._refuse_non_finite(maps)
        return maps

    def _refuse_non_finite(self, maps: Mapping[str, torch.Tensor]) -> None:
        """A mask of NaN would look like one without tumor."""
        if bad := [name for name, values in maps.items() if not values.isfinite().all()]:
            raise UserError(
                f"the network answers with NaN or infinity ({', '.join(bad)}): its weights are damaged, or "
                f"{self.precision} is too coarse for them; fetch the weights again, or give --precision float32"
            )


def _checked_flips(flips: Sequence[Sequence[int]]) -> list[list[int]]:
    """The dimensions of (B, C, X, Y, Z) that each list of spatial axes names."""
    for axes in flips if isinstance(flips, (list, tuple)) else [flips]:
        axes_alone = isinstance(axes, (list, tuple)) and axes and all(type(axis) is int for axis in axes)
        if not axes_alone or not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
            raise UserError(f"flips is {flips}, expected lists of axes, 0, 1 or 2, such as [[0]], or [] for none")
    return [[axis + 2 for axis in axes] for axes in flips]


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator of one case at a time, which a case that cannot be run does not end.

    Reads what `CaseDataset` gives. ``failed`` tells the cases that were not run, name -> reason.
    """

    def run(self, global_epoch: int = 1) -> None:
        self.failed: dict[str, str] = {}
        if self.state.epoch_length:  # else no case is left, or there are more shards than cases
            super().run(global_epoch)

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> list | dict:
        (case,), (reason,) = batchdata["case"], batchdata.get("failed", [None])
        if reason is None:
            try:
                return super()._iteration(engine, batchdata)
            except Exception as error:  # whatever it is, the other cases go on
                reason = in_one_sentence(error)
        self.failed[case] = reason
        engine.state.batch = []  # as decollated: handlers find no case in it, and none in the output
        return []


class FittedWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window, which pads a volume smaller than the window to it; this one shrinks the window instead.

    So a generous window takes a usual head in one piece, and bounds the memory that an unusual one needs. It shrinks to
    the patches of the training and no further: in windows smaller than those, networks find nothing.

    Args:
        roi_size: the largest window, in voxels.
        smallest: the size of the training's patches; a smaller volume is padded to it.
        stride: multiples of which the network needs a window to be; what they add to a volume is padding.
        args, kwargs: of ``SlidingWindowInferer``.

    Shapes:
        inputs: (B, C, X, Y, Z).
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *args: Any,
        smallest: Sequence[int] = (0, 0, 0),
        stride: Sequence[int] = (16, 16, 4),
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, *args, **kwargs)
        self.largest, self.smallest, self.stride = tuple(roi_size), tuple(smallest), tuple(stride)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        lengths = map(max, self.smallest, inputs.shape[2:])
        needed = (-(-length // stride) * stride for length, stride in zip(lengths, self.stride, strict=True))
        self.roi_size = tuple(map(min, self.largest, needed))
        return super().__call__(inputs, network, *args, **kwargs)


__getattr__ = forwarding(__name__)
