"""Requests of MONAI Label, without the server; environment_tests/test_monai_label.py asks a real one."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from cohort import save
from tissnet_components.label_server import ChooseMapd, LoadImageServed
from tissnet_components.scans.nifti import BadCase
from torch import nn

MAPS = {name: torch.full((1, 2, 2, 2), float(value)) for value, name in enumerate(("fine", "synthetic", "error"))}


class HTTPException(Exception):
    """Starlette's, which MONAI Label brings along."""

    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail


@pytest.fixture(autouse=True)
def starlette(monkeypatch):
    exceptions = ModuleType("starlette.exceptions")
    exceptions.HTTPException = HTTPException
    monkeypatch.setitem(sys.modules, "starlette", ModuleType("starlette"))
    monkeypatch.setitem(sys.modules, "starlette.exceptions", exceptions)


@pytest.fixture
def loader(tmp_path) -> LoadImageServed:
    network = nn.Linear(2, 1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return LoadImageServed("image", ["t2"], network, str(tmp_path / "model.pt"))


@pytest.fixture
def request_of_a_scan(tmp_path) -> dict:
    scan = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    file = save(tmp_path / "scan.nii.gz", scan, np.eye(4))
    return {"image": file, "image_path": file, "map": ["mask", "error"], "model_filename": ["model.pt"]}


def refusal(loader: LoadImageServed, asked: dict) -> tuple[int, str]:
    with pytest.raises(HTTPException) as caught:
        loader(asked)
    return caught.value.status, caught.value.detail


def test_a_request_that_can_be_served_loads_its_scan(loader, request_of_a_scan):
    assert loader(request_of_a_scan)["image"].shape == (1, 3, 4, 5)


@pytest.mark.parametrize("name", ["coarse", "", None, [], 7, "$1 / 0", "@network_def"], ids=repr)
def test_a_map_that_is_not_offered_is_refused_before_the_scan_is_looked_for(loader, name):
    status, sentence = refusal(loader, {"image": "nowhere", "image_path": "nowhere", "map": name})
    assert (status, sentence) == (422, f"there is no map {name!r}; choose one of mask, synthetic, error, disagreement")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "the studies folder holds no image of that name; choose one that the server lists"),
        ("/nowhere/scan.nii.gz", "/nowhere/scan.nii.gz is no file; put NIfTI files into the studies folder"),
    ],
)
def test_an_image_that_is_not_there_is_refused_without_an_empty_name(loader, path, sentence):
    assert refusal(loader, {"image": path, "image_path": path}) == (404, sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no weights", "is not a file of PyTorch weights"),
        ({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, "does not fit the configured network: weight is (1, 3)"),
        ({"weight": torch.ones(1, 2)}, "does not fit the configured network: bias is absent in the file"),
        ({"weight": torch.tensor([[1.0, np.nan]]), "bias": torch.ones(1)}, "holds NaN or infinity in weight"),
    ],
    ids=["damaged", "another shape", "incomplete", "not finite"],
)
@pytest.mark.parametrize("chosen", ["model.pt", "other.pt"])
def test_the_weights_that_the_server_will_take_are_checked_first(loader, request_of_a_scan, content, sentence, chosen):
    file = loader.weights.with_name(chosen)
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    status, found = refusal(loader, request_of_a_scan | {"model_filename": chosen})
    assert status == 500
    assert str(file) in found and sentence in found


def test_weights_that_were_replaced_are_read_again(loader, request_of_a_scan):
    loader(request_of_a_scan)
    Path(loader.weights).write_bytes(b"no weights")
    assert refusal(loader, request_of_a_scan)[0] == 500


def test_a_bad_scan_is_answered_with_its_sentence(loader, request_of_a_scan, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"not a scan")
    status, sentence = refusal(loader, request_of_a_scan)
    assert status == 422 and "cannot be read as NIfTI" in sentence


def test_outside_a_server_a_mistake_stays_what_it_is(loader):
    with pytest.raises(BadCase, match="does not exist"):
        loader({"case": "anna", "image": ["nowhere.nii.gz"]})


@pytest.mark.parametrize(
    ("choice", "value", "kind"),
    [("mask", 0, "uint8"), ("synthetic", 1, "float32"), ("error", 2, "float32"), (["mask", "error"], 0, "uint8")],
    ids=str,
)
def test_the_chosen_map_is_sent_back(choice, value, kind):
    sent = ChooseMapd(choice)(MAPS)
    assert (sent["pred"].unique().tolist(), sent["result_dtype"]) == ([value], kind)


def test_an_unknown_map_is_refused_when_the_config_is_read():
    with pytest.raises(ValueError, match="there is no map 'flair'; choose one of mask, synthetic, error, disagreement"):
        ChooseMapd("flair")


def test_a_map_that_the_network_does_not_give_is_named():
    with pytest.raises(ValueError, match="this network gives no map 'disagreement'; choose mask"):
        ChooseMapd("disagreement")(MAPS)
