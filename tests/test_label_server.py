"""Requests of MONAI Label, without the server; environment_tests/test_monai_label.py asks a real one."""

import json
import shutil
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from bundle_copies import TINY, any_subset_weights, read_config, tiny_bundle
from cohort import save, write_case
from monai.transforms import SaveImaged
from tissnet_components.label_server import ChooseMapd, LoadImageServed, label_bundle
from tissnet_components.regions import LABELS_OF_REGIONS
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
    with pytest.raises(ValueError, match="this network gives no map 'disagreement' of these scans; choose mask"):
        ChooseMapd("disagreement")(MAPS)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """A bundle for any subset and three regions, as the server finds it."""
    bundle = tiny_bundle("tissnet_brats", tmp_path_factory.mktemp("model"))
    any_subset_weights(bundle, regions=list(LABELS_OF_REGIONS), widths=list(TINY), window_size=[32, 32, 16])
    (bundle / "models" / "any_missing_last.pt").touch()  # what resumes a training
    label_bundle(bundle)
    return bundle.with_name("tissnet_brats_any_missing")


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    return Path(write_case(tmp_path_factory.mktemp("studies") / "anna", shape=(30, 32, 12))["target"]).parent


def test_the_server_gets_the_weights_and_their_perceptor_alone(served):
    names = ("model", "model_perceptor")
    assert {file.name for file in (served / "models").iterdir()} == {f"{n}.{e}" for n in names for e in ("pt", "json")}


def answer(served: Path, scan: Path, **asked: object) -> dict:
    """What the server does with a bundle: it reads inference.json alone, and fills the network with models/model.pt."""
    parser = read_config(served)
    parser["bundle_root"] = str(served)
    parser["device"] = torch.device("cpu")
    parser["force"] = True
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(served / "models" / "model.pt", weights_only=True))
    data = {"image": str(scan), "image_path": str(scan), "map": "mask", **asked}
    parser["displayable_configs::map"] = data["map"]
    data = parser.get_parsed_content("preprocessing")(data)
    with torch.no_grad():
        outputs = parser.get_parsed_content("inferer")(data["image"][None], network.eval())
    data["pred"] = {name: value[0] for name, value in outputs.items()}
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = data if isinstance(transform, SaveImaged) else transform(data)
    return data


def test_the_server_segments_from_the_scans_that_a_patient_has(served, studies, tmp_path):
    for name in ("t1ce", "flair"):
        shutil.copy(studies / f"anna_{name}.nii.gz", tmp_path)
    found = answer(served, tmp_path / "anna_flair.nii.gz")
    assert found["image"].meta["contrasts"] == ["t1ce", "flair"]
    assert found["pred"].shape == (1, 30, 32, 12)
    assert set(found["pred"].unique().tolist()) <= {0, 1, 2, 4}
    assert found["pred"].any()


def test_the_server_takes_every_subset(served, studies, tmp_path):
    contrasts = ["t1", "t1ce", "t2", "flair"]
    for some in (some for size in range(1, 5) for some in combinations(contrasts, size)):
        folder = tmp_path / "_".join(some)
        folder.mkdir()
        for name in some:
            shutil.copy(studies / f"anna_{name}.nii.gz", folder)
        found = answer(served, folder / f"anna_{some[0]}.nii.gz")
        assert found["image"].meta["contrasts"] == list(some)
        assert found["pred"].any()


@pytest.mark.parametrize("name", ["error", "synthetic"])
def test_of_a_map_of_several_channels_the_first_is_sent(served, studies, tmp_path, name):
    shutil.copy(studies / "anna_t2.nii.gz", tmp_path)
    assert answer(served, tmp_path / "anna_t2.nii.gz", map=name)["pred"].shape == (1, 30, 32, 12)


def test_of_a_patient_with_every_contrast_no_synthetic_one_is_sent(served, studies):
    with pytest.raises(HTTPException) as caught:
        answer(served, studies / "anna_t2.nii.gz", map="synthetic")
    assert (caught.value.status, "no map 'synthetic' of these scans" in caught.value.detail) == (422, True)


def test_the_labels_are_the_parts_of_the_tumor(served):
    formats = json.loads((served / "configs" / "metadata.json").read_text())["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "2": "edema",
        "1": "necrosis",
        "4": "enhancing tumor",
    }
    assert list(formats["inputs"]["image"]["channel_def"].values()) == ["t1", "t1ce", "t2", "flair"]


def test_a_bundle_without_such_weights_is_named_and_none_is_overwritten(served, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no models/any_missing.pt: train them"):
        label_bundle(tmp_path)
    with pytest.raises(ValueError, match=r"tissnet_brats_any_missing is there already; remove it"):
        label_bundle(served.with_name("tissnet_brats"))
