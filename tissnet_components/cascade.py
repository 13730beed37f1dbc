"""The cascade: generator, then segmentor (Fig. 2d), and loading what was trained."""

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tissnet_components.errors import answered
from tissnet_components.files import whole, write_whole

SEGMENTOR_INPUTS = ("source", "synthetic", "coarse")


def refine_with_error(coarse: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Flip the coarse segmentation where it is believed wrong (Eq. 7): (1 - y_c) y_e + y_c (1 - y_e).

    Shapes:
        coarse, error: (B, 1, X, Y, Z) probabilities; gradients flow to both.
        returns: (B, 1, X, Y, Z) foreground probability.
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

    Shapes:
        image: (B, C, X, Y, Z), the source modalities in [-1, 1]; any spatial size.
        returns: (B, 1, X, Y, Z), ``fine`` alone; the segmentor's other branch is not computed.

    Raises:
        ValueError: on an unknown name in ``segmentor_inputs``.
        KeyError: in ``forward``, where nothing gives ``fine``; ``cascade`` gives what there is.
    """

    def __init__(
        self,
        generator: nn.Module,
        segmentor: nn.Module | None,
        segmentor_inputs: Sequence[str] = SEGMENTOR_INPUTS,
        detach_coarse: bool = False,
    ) -> None:
        super().__init__()
        unknown = set(segmentor_inputs) - set(SEGMENTOR_INPUTS)
        if unknown or not segmentor_inputs:
            raise ValueError(f"segmentor_inputs are {list(segmentor_inputs)}; choose among {list(SEGMENTOR_INPUTS)}")
        self.generator = generator
        self.segmentor = segmentor
        self.segmentor_inputs = list(segmentor_inputs)
        self.detach_coarse = detach_coarse

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.segment(image, self.generator(image), ["fine"])["fine"]

    @torch.jit.export
    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every map: ``synthetic``, ``coarse``, ``fine``, ``error`` and ``refined`` (Eq. 7)."""
        maps = self.generator(image)
        generated = dict(maps)
        if self.detach_coarse and "coarse" in maps:
            generated["coarse"] = maps["coarse"].detach()
        maps.update(self.segment(image, generated))
        if "error" in maps:
            maps["refined"] = refine_with_error(generated["coarse"], maps["error"])
        return maps

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights that fit, and no others: MONAI Label asks with ``strict=False`` and would answer with noise.

        Raises:
            ValueError: the weights do not fit.
        """
        with answered(500):
            check_weights_fit(self, state_dict, "models/model.pt")
        return super().load_state_dict(state_dict, True, assign)

    def segment(
        self, image: torch.Tensor, generated: dict[str, torch.Tensor], branches: list[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """The segmentor's maps from x-tilde, the concatenation of what it may see; none without a segmentor."""
        visible = {"source": image}
        visible.update(generated)
        if self.segmentor is None:
            return {}
        return self.segmentor(torch.cat([visible[name] for name in self.segmentor_inputs], dim=1), branches)


class PerceivedCascade(nn.Module):
    """A cascade and the perceptor's view of its synthetic image, for evaluating perceptibility.

    ``cascade`` adds ``perceived``, (B, 1, X, Y, Z): S_p(x_t'). Without a perceptor (direct segmentation has no
    synthetic image) it adds nothing.
    """

    def __init__(self, network: nn.Module, perceptor: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.perceptor = perceptor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image)

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.network.cascade(image)
        if self.perceptor is not None:
            maps["perceived"] = self.perceptor(maps["synthetic"])
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


def load_weights(
    network: nn.Module,
    path: str,
    image_settings: Mapping[str, Any] | None = None,
    missing: str = "train the network first (run training)",
) -> nn.Module:
    """Load a state dict strictly, with ``weights_only=True``, and return the network.

    Args:
        image_settings: how this run prepares images, which no shape in the file can tell: see `check_image_settings`.
        missing: what to tell the user to do when there is no such file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a state dict, does not fit the network, or was trained on other images.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weights at {path}: {missing}")
    check_image_settings(path, image_settings or {})
    state = read_state(path)
    check_weights_fit(network, state, path)
    network.load_state_dict(state)
    return network


def keep_image_settings(weights: str | Path, settings: Mapping[str, Any]) -> None:
    """Write how a training prepared its images (``spacing_mm``, ``percentiles``) beside its weights, as JSON."""
    write_whole(Path(weights).with_suffix(".json"), f"{json.dumps(dict(settings))}\n".encode())


def read_image_settings(weights: str | Path, default: Mapping[str, Any]) -> dict[str, Any]:
    """How the training of these weights prepared its images; what the file beside them does not tell is ``default``."""
    path = Path(weights).with_suffix(".json")
    if not path.is_file():
        return dict(default)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        told = None
    lists = told.values() if isinstance(told, dict) else [None]
    if not all(isinstance(values, list) and all(type(v) in (int, float) for v in values) for values in lists):
        raise ValueError(f"{path} does not tell how images were prepared for {weights}: copy it again, or remove it")
    return {**default, **told}


def check_image_settings(weights: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError when the file beside the weights says that they were trained on images prepared otherwise.

    A network accepts images of any voxel size, and is wrong without a word at another than it was trained with.
    """
    for name, trained in read_image_settings(weights, settings).items():
        if name in settings and list(settings[name]) != list(trained):
            raise ValueError(
                f"{weights} was trained with {name} {trained} (says the .json beside it), and this run uses "
                f"{list(settings[name])}; give --{name} '{json.dumps(trained)}', or the configs of its training"
            )


def read_state(path: str | Path) -> dict:
    """Read a saved dict of tensors and plain values, with ``weights_only=True``, to the CPU.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make torch's restricted unpickler raise almost anything
        raise ValueError(f"{path} is not a file of PyTorch weights ({type(error).__name__}): copy it again") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict; save network.state_dict()")
    return state


def compact(weights: str, out: str) -> None:
    """Write weights in half precision and deflated, about 45 percent of their size, as the bundles ship them.

    Example:
        python -m tissnet_components compact --weights runs/models/model.pt --out bundles/tissnet_brats/models/model.pt

    ``torch.load`` reads the result as any other file; a network takes it up in its own precision. The file of image
    settings beside the weights goes along.

    Args:
        weights: file of weights, as training writes it.
        out: file to write.

    Raises:
        ValueError: not a file of weights, or a value too large for half precision.
    """
    state = read_state(weights)
    if others := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(
            f"{weights} holds {others[0]!r}, which is no tensor; give the weights, not what resumes a training"
        )
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    overflown = [name for name, value in state.items() if not value.isfinite().all()]
    if overflown:
        raise ValueError(f"{overflown[0]} of {weights} does not fit half precision; ship the weights as they are")
    stored = io.BytesIO()
    torch.save(state, stored)
    with whole(out) as unfinished, zipfile.ZipFile(stored) as plain, zipfile.ZipFile(unfinished, "w") as dense:
        for entry in plain.namelist():
            dense.writestr(zipfile.ZipInfo(entry), plain.read(entry), zipfile.ZIP_DEFLATED, compresslevel=9)
    beside = Path(weights).with_suffix(".json")
    if beside.is_file():
        write_whole(Path(out).with_suffix(".json"), beside.read_bytes())


def check_weights_fit(network: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Raise ValueError, naming the first difference, when a state dict does not fit a network."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} does not fit the configured network: {name} is {found.get(name, 'absent')} in the file and "
                f"{expected.get(name, 'absent')} in the network; use the `widths` (or configs/wide.json), "
                f"`source_modalities` and `upsampling` it was trained with"
            )


def load_generator(generator: nn.Module, path: str, image_settings: Mapping[str, Any] | None = None) -> Frozen:
    """Load the generator that a first training left (a ``TissNet`` without segmentor) and freeze it."""
    command = (
        "train the generator first: python -m monai.bundle run training "
        f"--config_file \"['configs/train.json','configs/comparators/{Path(path).stem}.json']\" --dataset_dir DIR "
        "(with the same widths and spacing)"
    )
    return Frozen(load_weights(TissNet(generator, None), path, image_settings, missing=command).generator)


def load_perceptor(perceptor: nn.Module, path: str, image_settings: Mapping[str, Any] | None = None) -> nn.Module:
    """Load S_p and freeze it: eval mode, no gradients of its own; gradients pass through to its input (Eq. 5)."""
    command = (
        "train the perceptor first: python -m monai.bundle run training "
        "--config_file \"['configs/train.json','configs/direct_segmentation.json']\" --dataset_dir DIR "
        "(with the same widths and spacing)"
    )
    return load_weights(perceptor, path, image_settings, missing=command).eval().requires_grad_(False)
