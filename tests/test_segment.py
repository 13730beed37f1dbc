import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import oblique_affine, write_case
from monai.bundle import ConfigParser

from tissnet_components import __main__ as command_line
from tissnet_components.errors import mendable_cause
from tissnet_components.segment import segment

BUNDLE = Path(__file__).parents[1] / "bundles" / "tissnet_brats"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The bundle with a tiny network of random weights."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    config = json.loads((folder / "configs" / "inference.json").read_text())
    config |= {"widths": [2, 2, 2, 2, 2], "patch_size": [32, 32, 16]}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    network = ConfigParser(config).get_parsed_content("network_def")
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, str]:
    case = write_case(
        tmp_path_factory.mktemp("scans") / "anna", shape=(34, 36, 10), affine=oblique_affine((1.1, 0.9, 4))
    )
    return dict(zip(("t1", "t1ce", "t2"), case["image"], strict=True))


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


@pytest.fixture(scope="module")
def results(bundle, scans, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    segment(str(bundle), **scans, out=str(out), case="anna", device="cpu")
    return out / "anna"


def sentence(action) -> str:
    with pytest.raises(Exception) as caught:
        action()
    return str(mendable_cause(caught.value))


def test_one_patient_gives_four_maps_a_picture_and_a_summary(results):
    names = {"seg.nii.gz", "synthetic.nii.gz", "error.nii.gz", "disagreement.nii.gz", "overview.png", "summary.json"}
    assert {file.name for file in results.iterdir()} == {f"anna_{name}" for name in names}


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [
        ("seg", np.uint8, 0, 1),
        ("synthetic", np.float32, -1, 1),
        ("error", np.float32, 0, 1),
        ("disagreement", np.float32, 0, 1),
    ],
)
def test_every_map_has_the_scans_geometry(results, scans, name, dtype, low, high):
    scan, saved = nib.load(scans["t1"]), nib.load(results / f"anna_{name}.nii.gz")
    assert saved.shape == scan.shape
    np.testing.assert_allclose(saved.affine, scan.affine, atol=1e-4)
    assert saved.get_data_dtype() == dtype
    values = np.asarray(saved.dataobj)
    assert low <= values.min() <= values.max() <= high
    assert np.unique(values).size > 1 or name == "seg"


def test_the_synthetic_image_is_background_outside_the_brains_box(results, scans):
    brain = np.asarray(nib.load(scans["t1"]).dataobj) != 0
    synthetic = np.asarray(nib.load(results / "anna_synthetic.nii.gz").dataobj)
    corners = synthetic[:: brain.shape[0] - 1, :: brain.shape[1] - 1, :: brain.shape[2] - 1]
    assert corners.tolist() == np.full((2, 2, 2), -1.0).tolist()
    assert synthetic[brain].mean() > -0.9


def test_the_patient_is_named_after_the_first_scan(bundle, scans, tmp_path, capsys):
    segment(str(bundle), **scans, out=str(tmp_path))
    assert (tmp_path / "anna_t1" / "anna_t1_seg.nii.gz").is_file()
    assert f"results in {tmp_path / 'anna_t1'}" in capsys.readouterr().out


def test_a_patient_may_be_called_by_a_number(bundle, scans, tmp_path, monkeypatch):
    scans = [argument for name, file in scans.items() for argument in (f"--{name}", file)]
    options = ["--bundle", str(bundle), *scans, "--case", "7", "--out", str(tmp_path), "--precision", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["tissnet_components", "segment", *options])
    command_line.main()
    assert (tmp_path / "7" / "7_seg.nii.gz").is_file()


def test_a_folder_that_is_no_bundle_is_named(scans, tmp_path):
    assert f"{tmp_path} is not a bundle" in sentence(lambda: segment(str(tmp_path), **scans))


def test_a_scan_that_the_bundle_needs_is_asked_for(bundle, scans):
    assert "give --t1ce, --t2 as well" in sentence(lambda: segment(str(bundle), t1=scans["t1"]))


def test_a_scan_that_the_bundle_does_not_use_is_refused(bundle, scans):
    assert "does not use flair" in sentence(lambda: segment(str(bundle), **scans, flair=scans["t1"]))


def test_a_scan_that_is_not_there_is_named(bundle, scans, tmp_path):
    missing = scans | {"t2": str(tmp_path / "t2.nii.gz")}
    assert f"{tmp_path / 't2.nii.gz'} does not exist" in sentence(
        lambda: segment(str(bundle), **missing, out=str(tmp_path / "out"))
    )
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_are_not_there_are_named(bundle, scans, tmp_path):
    options = {"out": str(tmp_path), "weights": str(tmp_path / "model.pt")}
    assert f"no weights at {tmp_path / 'model.pt'}" in sentence(lambda: segment(str(bundle), **scans, **options))


def test_weights_of_other_widths_are_refused(bundle, scans, tmp_path):
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save(
        {name: value.repeat_interleave(2, 0) if value.ndim else value for name, value in state.items()},
        tmp_path / "w.pt",
    )
    reason = sentence(lambda: segment(str(bundle), **scans, out=str(tmp_path), weights=str(tmp_path / "w.pt")))
    assert f"{tmp_path / 'w.pt'} does not fit the configured network" in reason
    assert "widths" in reason


def test_an_output_folder_that_cannot_be_written_is_named(bundle, scans, tmp_path):
    (tmp_path / "file").touch()
    reason = sentence(lambda: segment(str(bundle), **scans, out=str(tmp_path / "file" / "out")))
    assert reason.startswith(f"cannot write to {tmp_path / 'file' / 'out'}")


def test_the_command_ends_in_one_sentence(monkeypatch, bundle):
    monkeypatch.setattr(sys, "argv", ["tissnet_components", "segment", "--bundle", str(bundle)])
    with pytest.raises(SystemExit, match=r"^error: .* needs the modalities t1, t1ce, t2; give --t1, --t1ce, --t2"):
        command_line.main()
