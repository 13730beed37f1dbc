"""What MONAI Label needs of a bundle: one file per patient, refusals that it passes on, one map as the answer.

A request is refused before the network runs, in one sentence under an HTTP status: any other error MONAI Label answers
with 500, without a word. The server reads a bundle's ``inference.json`` alone; `label_bundle` writes one for any subset
of the contrasts. Nothing else in this package knows of a server.
"""

import json
import os
import shutil
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.config import KeysCollection
from monai.transforms import MapTransform
from tissnet_components.errors import FileMissing, UserError
from tissnet_components.regions import WHOLE, label_names
from tissnet_components.scans.loading import LoadImageCased
from tissnet_components.scans.plausible import CheckPlausibled
from tissnet_components.weights import check_weights_fit, read_recipe, read_state
from torch import nn

SERVED_MAPS = {"mask": "fine", "synthetic": "synthetic", "error": "error", "disagreement": "disagreement"}


def label_bundle(bundle: Path, out: Path | None = None) -> None:
    """Write a bundle for MONAI Label that segments from any subset of the contrasts, beside the one that does not.

    Example:
        tissnet label_bundle --bundle monaibundle/model/tissnet_brats

    Its weights are the bundle's models/any_missing.pt, its labels the parts of the tumor that these name. For research;
    not a medical device.

    Args:
        bundle: folder of the bundle.
        out: folder to write; by default the bundle's name with _any_missing, beside it.

    Raises:
        FileNotFoundError: no such bundle or weights.
        ValueError: the folder is there already.
    """
    bundle = Path(bundle).resolve()
    out = Path(out or bundle.with_name(f"{bundle.name}_any_missing"))
    weights = bundle / "models" / "any_missing.pt"
    if not weights.is_file():
        raise FileMissing(f"{bundle} has no models/any_missing.pt: train them, or take a bundle that has them")
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or give another --out")
    recipe = read_recipe(weights, {"regions": [WHOLE]})
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    given, answered_with = (next(iter(metadata["network_data_format"][way].values())) for way in ("inputs", "outputs"))
    given["num_channels"] = len(recipe["source_modalities"])
    given["channel_def"] = dict(enumerate(recipe["source_modalities"]))
    if len(recipe["regions"]) > 1:
        names = label_names(recipe["regions"])
        answered_with["channel_def"] = {0: "background"} | {value: name for name, value in names.items()}
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", "inference_any_missing")])
    parser["model_name"] = "model"  # the name by which the server loads weights
    shutil.copytree(bundle, out, ignore=shutil.ignore_patterns("models", "eval", "SHA256SUMS", "__pycache__"))
    for name, content in (("inference", parser.config), ("metadata", metadata)):
        (out / "configs" / f"{name}.json").write_text(f"{json.dumps(content, indent=4)}\n", encoding="utf-8")
    (out / "models").mkdir()
    for part, ending in product(("", "_perceptor"), ("pt", "json")):
        file = bundle / "models" / f"any_missing{part}.{ending}"
        if file.is_file() or not part:  # weights may have no perceptor
            shutil.copy(file, out / "models" / f"model{part}.{ending}")
    labels = [name for name in answered_with["channel_def"].values() if name != "background"]
    print(f"{out}: {', '.join(labels)}, from any of {', '.join(recipe['source_modalities'])}")


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
    """Copy one map to ``pred``, which MONAI Label sends back; of several contrasts or regions the first.

    Args:
        choice: ``mask``, ``synthetic``, ``error`` or ``disagreement``; of a list, what MONAI Label offers, the first.

    Raises:
        ValueError: another name, or a map that the network does not give.
    """

    def __init__(self, choice: str | Sequence[str]) -> None:
        super().__init__(tuple(SERVED_MAPS.values()))
        self.choice = chosen_map(choice)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        with answered(422) if "image_path" in data else nullcontext():
            if SERVED_MAPS[self.choice] not in data:
                raise UserError(f"this network gives no map {self.choice!r} of these scans; choose mask")
        dtype = "uint8" if self.choice == "mask" else "float32"
        return {**data, "pred": data[SERVED_MAPS[self.choice]][:1], "result_dtype": dtype}


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
