"""Read and write weights, and the recipe of their training, which stands beside them."""

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from tissnet_components.errors import FileMissing, UserError
from tissnet_components.files import atomic_write, write_atomic
from torch import nn

SIZES = ("patch_size", "window_size")  # of a recipe; a network takes any
OF_UNET = ("encoder.", "decoders.coarse.", "decoders.fine.")  # what a part of the cascade takes from a U-Net
LISTED_NAMES = ("source_modalities", "regions")
logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


def load_weights(
    network: Network,
    path: str,
    recipe: Mapping[str, Any] | None = None,
    missing: str = "train the network first (run training)",
) -> Network:
    """Load a state dict strictly, with ``weights_only=True``, and return the network.

    Args:
        recipe: how this run is set, which no shape in the file can tell: see `check_recipe`.
        missing: what to tell the user to do when there is no such file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a state dict, does not fit the network, or was trained otherwise.
    """
    _check_there(path, missing)
    check_recipe(path, recipe or {})
    state = read_state(path)
    check_weights_fit(network, state, path)
    network.load_state_dict(state)
    return network


def _check_there(path: str, missing: str) -> None:
    if os.path.isfile(path):
        return
    if not os.path.isdir(os.path.dirname(path) or ".") and not os.path.isabs(path):
        missing = f"there is no such folder below {os.getcwd()}; start in the bundle's folder, or give --bundle_root"
    raise FileMissing(f"no weights at {path}: {missing}")


def started_from(network: Network, weights: str | Mapping[str, str] | None) -> Network:
    """The network as a training begins: by chance, with another's weights, or with a U-Net's in parts of the cascade.

    Args:
        weights: None; a file, of any voxel size; or for ``generator`` or ``segmentor``, each a file of direct
            segmentation: the part takes its encoder, and each segmentation (``coarse`` or ``fine``) its decoder. What
            the part sees beyond the U-Net's input, the last channels, counts for nothing at first.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`; or the network has no such part.
    """
    missing = "give --start_from another file"
    if not isinstance(weights, Mapping):
        return network if weights is None else load_weights(network, weights, missing=missing)
    for name, path in weights.items():
        part = getattr(network, name, None)
        if not isinstance(part, nn.Module):
            raise UserError(f"--start_from names {name!r}; the parts of this network are generator and segmentor")
        _check_there(path, missing)
        own = {key: value for key, value in part.state_dict().items() if not key.startswith(OF_UNET)}
        state = own | _widened(read_state(path), part.state_dict())
        check_weights_fit(part, state, path)
        part.load_state_dict(state)
    return network


def _widened(unet: Mapping[str, torch.Tensor], part: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A U-Net's state under a part's names, the first convolution's missing input channels 0."""
    state = {}
    for name, value in unet.items():
        branches = [name.replace(".fine.", f".{branch}.") for branch in ("coarse", "fine")]
        for known in {branch for branch in branches if branch in part} or {name}:
            state[known] = value
    first = "encoder.levels.0.0.weight"
    if first in state and first in part and state[first].ndim == part[first].ndim:
        missing = part[first].shape[1] - state[first].shape[1]
        state[first] = nn.functional.pad(state[first], [0, 0] * 3 + [0, max(missing, 0)])
    return state


def keep_recipe(weights: str | Path, recipe: Mapping[str, Any]) -> None:
    """Write, as JSON beside its weights, what no shape in them tells of a training and every later use needs."""
    write_atomic(Path(weights).with_suffix(".json"), f"{json.dumps(dict(recipe))}\n".encode())


def read_recipe(weights: str | Path, default: Mapping[str, Any]) -> dict[str, Any]:
    """How these weights were trained; what the file beside them does not tell, as an older one, is ``default``.

    Returns:
        ``source_modalities`` and ``regions`` in their order, ``spacing_mm``, ``percentiles`` of the brain beyond which
        images are clipped, ``patch_size`` and ``window_size`` in voxels, ``widths``, ``upsampling``, ``norm``.
    """
    path = Path(weights).with_suffix(".json")
    if not path.is_file():
        return dict(default)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or not all(map(_is_plain, told, told.values())):
        raise UserError(f"{path} does not tell how {weights} was trained: copy it again, or remove it")
    return {**default, **told}


def _is_plain(name: str, value: Any) -> bool:
    if name == "norm" and isinstance(value, list):  # MONAI's way to give a norm's arguments
        return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)
    kinds = (str,) if name in LISTED_NAMES else (int, float)
    return isinstance(value, str) or (isinstance(value, list) and all(type(one) in kinds for one in value))


def check_recipe(weights: str | Path, recipe: Mapping[str, Any]) -> None:
    """Raise ValueError when the file beside the weights says that they were trained otherwise than this run is set.

    A network accepts images of any voxel size, and is wrong without a word at another than it was trained with.
    """
    for name, trained in read_recipe(weights, recipe).items():
        set_to = recipe.get(name, trained)
        if name not in SIZES and list(set_to) != list(trained):
            option = trained if isinstance(trained, str) else json.dumps(trained)
            shown = set_to if isinstance(set_to, str) else list(set_to)
            raise UserError(
                f"{weights} was trained with {name} {trained} (says the .json beside it), and this run uses "
                f"{shown}; give --{name} '{option}', or the configs of its training"
            )


def read_state(path: str | Path) -> dict:
    """Read a saved dict of tensors and plain values, with ``weights_only=True``, to the CPU.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make torch's restricted unpickler raise almost anything
        raise UserError(f"{path} is not a file of PyTorch weights ({type(error).__name__}): copy it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict; save network.state_dict()")
    return state


def engine_path(weights: str | Path, precision: str, window_size: Sequence[int]) -> str:
    """Where TensorRT's engines of these weights stand, without their ending; the name holds what they depend on.

    Example:
        ``models/model.fp16.64x64x56.1b2c3d4e``, whose last part begins the SHA-256 sum of the weights.
    """
    window = "x".join(map(str, window_size))
    begin = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:8]
    return str(Path(weights).with_suffix(f".{precision}.{window}.{begin}"))


def compact(weights: Path, out: Path) -> None:
    """Write weights in half precision without its last bit and deflated, about 43 percent of their size.

    Example:
        python -m tissnet_components compact --weights runs/models/model.pt --out bundles/tissnet_brats/models/model.pt

    ``torch.load`` reads the result as any other file; a network takes it up in its own precision. The recipe
    beside the weights goes along.

    Args:
        weights: file of weights, as training writes it.
        out: file to write.

    Raises:
        ValueError: not a file of weights, or a value too large for half precision.
    """
    state = read_state(weights)
    if others := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(
            f"{weights} holds {others[0]!r}, which is no tensor; give the weights, not what resumes a training"
        )
    state = {name: _shortened(value) if value.is_floating_point() else value for name, value in state.items()}
    overflown = [name for name, value in state.items() if not value.isfinite().all()]
    if overflown:
        raise UserError(f"{overflown[0]} of {weights} does not fit half precision; ship the weights as they are")
    stored = io.BytesIO()
    torch.save(state, stored)
    with atomic_write(out) as unfinished, zipfile.ZipFile(stored) as plain, zipfile.ZipFile(unfinished, "w") as dense:
        for entry in plain.namelist():
            dense.writestr(zipfile.ZipInfo(entry), plain.read(entry), zipfile.ZIP_DEFLATED, compresslevel=9)
    beside = Path(weights).with_suffix(".json")
    if beside.is_file():
        write_atomic(Path(out).with_suffix(".json"), beside.read_bytes())


def _shortened(value: torch.Tensor) -> torch.Tensor:
    """The nearest halves of 10 significant bits, ties to even: within 0.15 percent, and deflate saves the last bit."""
    bits = value.half().view(torch.int16)
    return (bits + (bits >> 1 & 1) & ~1).view(torch.float16)


def check_weights_fit(network: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Raise ValueError, naming the first difference, when a state dict does not fit a network."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{path} does not fit the configured network: {name} is {found.get(name, 'absent')} in the file and "
                f"{expected.get(name, 'absent')} in the network; use the `widths` (or configs/wide.json), "
                f"`source_modalities`, `regions` and `upsampling` it was trained with"
            )


def load_perceptor(perceptor: nn.Module, path: str, recipe: Mapping[str, Any] | None = None) -> nn.Module:
    """Load S_p, which ``PerceptibilityLoss`` and ``PerceivedCascade`` freeze.

    One that was trained at another voxel size sees the image at its own, see `AtSpacing`.

    Args:
        recipe: of this run, with the perceptor's own norm; it sees the target alone, whatever the sources.
    """
    command = (
        "train the perceptor first: python -m monai.bundle run training "
        "--config_file \"['configs/train.json','configs/direct_segmentation.json']\" --dataset_dir DIR "
        "(with the same widths and spacing)"
    )
    recipe = dict(recipe or {})
    spacing_mm = recipe.pop("spacing_mm", None)
    recipe.pop("source_modalities", None)
    perceptor = load_weights(perceptor, path, recipe, missing=command)
    own_mm = read_recipe(path, {}).get("spacing_mm", spacing_mm)
    if spacing_mm is None or list(own_mm) == list(spacing_mm):
        return perceptor
    logger.warning(
        f"{path} was trained at {own_mm} mm and this run is at {list(spacing_mm)} mm: it sees the synthetic image "
        f"resampled; to train one at this spacing, add configs/direct_segmentation.json"
    )
    return AtSpacing(perceptor, [here / own for here, own in zip(spacing_mm, own_mm, strict=True)])


class AtSpacing(nn.Module):
    """A network that sees its input resampled, and whose answer is resampled back, each linearly.

    Args:
        zoom: voxels of the network per voxel of the input, along X, Y, Z.

    Shapes:
        image: (B, C, X, Y, Z).
        returns: the network's channels on the same grid.
    """

    def __init__(self, network: nn.Module, zoom: Sequence[float]) -> None:
        super().__init__()
        self.network, self.zoom = network, tuple(zoom)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        size = [max(1, round(length * zoom)) for length, zoom in zip(image.shape[2:], self.zoom, strict=True)]
        answer = self.network(F.interpolate(image, size, mode="trilinear"))
        return F.interpolate(answer, image.shape[2:], mode="trilinear")
