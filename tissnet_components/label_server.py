"""What MONAI Label needs of a bundle: one file per patient, refusals that it passes on, one map as the answer.

A request is refused before the network runs, in one sentence under an HTTP status: any other error MONAI Label answers
with 500, without a word. Nothing else in this package knows of a server.
"""

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from tissnet_components.errors import UserError
from tissnet_components.scans.loading import LoadImageCased
from tissnet_components.scans.plausible import CheckPlausibled
from tissnet_components.weights import check_weights_fit, read_state
from torch import nn

SERVED_MAPS = {"mask": "fine", "synthetic": "synthetic", "error": "error", "disagreement": "disagreement"}


class LoadImageServed(LoadImageCased):
    """``LoadImageCased`` that first checks a request of MONAI Label; data without ``image_path`` is no request.

    Args:
        keys, modalities, series, any_subset: of ``LoadImageCased``.
        network: what the server will fill with the weights.
        weights: the bundle's file of weights, ``models/model.pt``.

    Raises:
        HTTPException: in a request; 404 without an image, 422 for scans or a map that cannot be served, 500 for weights
            that are damaged or do not fit.
        BadCase: elsewhere, as ``LoadImageCased``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modalities: Sequence[str],
        network: nn.Module,
        weights: str,
        series: Mapping[str, str] | None = None,
        any_subset: bool = False,
    ) -> None:
        super().__init__(keys, modalities, series, any_subset)
        self.network, self.weights = network, Path(weights)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "image_path" not in data:
            return super().__call__(data)
        with answered(422):
            chosen_map(data.get("map", "mask"))
        with answered(404):
            check_image(data["image_path"])
        with answered(500):
            check_served_weights(self.network, self._weights(data))
        with answered(422):
            return super().__call__(data)

    def _weights(self, data: Mapping[Hashable, Any]) -> Path:
        """The file that the server will take: the one that the user chose beside the bundle's, if it is there."""
        chosen = data.get("model_filename")
        names = [chosen] if isinstance(chosen, str) else chosen or []
        beside = [self.weights.with_name(name) for name in names[:1]]
        return next((file for file in beside if file.is_file()), self.weights)


class CheckServedd(CheckPlausibled):
    """``CheckPlausibled`` whose refusal is an answer, 422, in a request of MONAI Label; see ``LoadImageServed``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "image_path" not in data:
            return super().__call__(data)
        with answered(422):
            return super().__call__(data)


class ChooseMapd(MapTransform):
    """Copy one map to ``pred``, which MONAI Label sends back.

    Args:
        choice: ``mask``, ``synthetic``, ``error`` or ``disagreement``; of a list, what MONAI Label offers, the first.

    Raises:
        ValueError: another name, or a map that the network does not give.
    """

    def __init__(self, choice: str | Sequence[str]) -> None:
        super().__init__(tuple(SERVED_MAPS.values()))
        self.choice = chosen_map(choice)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if SERVED_MAPS[self.choice] not in data:
            raise UserError(f"this network gives no map {self.choice!r}; choose mask")
        dtype = "uint8" if self.choice == "mask" else "float32"
        return {**data, "pred": data[SERVED_MAPS[self.choice]], "result_dtype": dtype}


def chosen_map(choice: object) -> str:
    """The map that a request names, or of a list the first; raises ValueError where there is none of that name."""
    name = choice[0] if isinstance(choice, list | tuple) and choice else choice
    if not isinstance(name, str) or name not in SERVED_MAPS:
        raise UserError(f"there is no map {name!r}; choose one of {', '.join(SERVED_MAPS)}")
    return name


def check_image(path: str) -> None:
    """Raise ValueError unless there is such a file; MONAI Label's path of a name that it does not know is empty."""
    if not path:
        raise UserError("the studies folder holds no image of that name; choose one that the server lists")
    if not os.path.isfile(path):
        raise UserError(f"{path} is no file; put NIfTI files into the studies folder")


def check_served_weights(network: nn.Module, file: Path) -> None:
    """Raise ValueError for weights that are damaged, not finite or of another network, which MONAI Label would take."""
    state = _finite_state(file, os.stat(file).st_mtime_ns)
    check_weights_fit(network, state, str(file))


@lru_cache(maxsize=2)
def _finite_state(file: Path, changed: int) -> dict[str, torch.Tensor]:
    state = read_state(file)
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            raise UserError(f"{file} holds NaN or infinity in {name}; copy the weights again")
    return state


@contextmanager
def answered(status: int) -> Iterator[None]:
    """Let a mistake become the server's answer: its sentence, under this HTTP status."""
    try:
        yield
    except ValueError as error:
        from starlette.exceptions import HTTPException  # MONAI Label brings it along

        raise HTTPException(status, str(error)) from error
