"""Writing what a cascade found, each map under its case, whole, and never over a file of others."""

from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import oblique_affine
from monai.data import MetaTensor
from tissnet_components.results.maps import AtomicNiftiWriter, SaveImageCased, SaveImageOverviewd

OBLIQUE = oblique_affine((0.9, 1.1, 5))


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_file_that_could_not_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    def run_out_of_space(image, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nib, "save", run_out_of_space)
    writer = AtomicNiftiWriter()
    writer.set_data_array(np.zeros((1, 4, 4, 4)), channel_dim=0)
    writer.set_metadata({"affine": np.eye(4)})
    with pytest.raises(ValueError, match=r"seg.nii.gz cannot be written \(no space left\)"):
        writer.write(tmp_path / "seg.nii.gz")
    assert not files_below(tmp_path)


def test_a_file_that_could_not_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    writer = AtomicNiftiWriter()
    writer.set_data_array(np.zeros((1, 4, 4, 4)), channel_dim=0)
    writer.set_metadata({"affine": np.eye(4)})
    writer.write(tmp_path / "seg.nii.gz")
    former = (tmp_path / "seg.nii.gz").read_bytes()
    writer.set_data_array(np.ones((1, 4, 4, 4)), channel_dim=0)
    monkeypatch.setattr(nib, "save", lambda image, file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.write(tmp_path / "seg.nii.gz")
    assert (tmp_path / "seg.nii.gz").read_bytes() == former


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_map_is_saved_under_its_case_in_its_own_geometry(tmp_path, dtype):
    values = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    image = MetaTensor(values, affine=torch.from_numpy(OBLIQUE), meta={"case": "anna", "filename_or_obj": "x_t1.nii"})
    SaveImageCased("fine", str(tmp_path), "seg", dtype)({"fine": image})
    assert files_below(tmp_path) == {"anna/anna_seg.nii.gz"}
    saved = nib.load(tmp_path / "anna" / "anna_seg.nii.gz")
    np.testing.assert_array_equal(saved.dataobj, values[0])
    np.testing.assert_allclose(saved.affine, OBLIQUE, atol=1e-5)
    assert saved.get_data_dtype() == dtype


def test_several_maps_are_written_together_those_that_are_wanted_and_there(tmp_path):
    meta = {"case": "anna", "filename_or_obj": "x_t1.nii"}
    image = MetaTensor(torch.rand(1, 2, 3, 4), affine=torch.eye(4), meta=meta)
    names, types = ["seg", "synthetic", "error"], [np.uint8, np.float32, np.float32]
    save = SaveImageCased(["fine", "synthetic", "error"], str(tmp_path), names, types, ["seg", "error"])
    save({"fine": image.round(), "synthetic": image})
    assert files_below(tmp_path) == {"anna/anna_seg.nii.gz"}
    save({"fine": image.round(), "error": image})
    assert files_below(tmp_path) == {"anna/anna_seg.nii.gz", "anna/anna_error.nii.gz"}
    np.testing.assert_array_equal(nib.load(tmp_path / "anna" / "anna_error.nii.gz").dataobj, image[0])


def test_a_map_of_a_sagittal_scan_is_saved_in_its_own_geometry(tmp_path):
    sagittal = np.array([[0.0, 0, -1, 5], [0, 1, 0, 6], [1, 0, 0, 7], [0, 0, 0, 1]])
    values = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    image = MetaTensor(values, affine=torch.from_numpy(sagittal), meta={"case": "anna", "filename_or_obj": "x_t1.nii"})
    SaveImageCased("fine", str(tmp_path), "seg")({"fine": image})
    saved = nib.load(tmp_path / "anna" / "anna_seg.nii.gz")
    np.testing.assert_array_equal(saved.dataobj, values[0])
    np.testing.assert_array_equal(saved.affine, sagittal)


def test_a_map_is_written_over_a_former_result_and_never_over_an_experts_label(tmp_path):
    meta = {"case": "anna", "filename_or_obj": "x_t1.nii"}
    image = MetaTensor(torch.ones(1, 2, 3, 4), affine=torch.eye(4), meta=meta)
    save, label = SaveImageCased("fine", str(tmp_path), "seg", np.uint8), tmp_path / "anna" / "anna_seg.nii.gz"
    save({"fine": image})
    save({"fine": image})
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), 2, np.uint8), np.eye(4)), label)
    with pytest.raises(ValueError, match=r"anna_seg.nii.gz is there and is no result of TISS-Net; give another folder"):
        save({"fine": image})
    label.write_bytes(b"no NIfTI at all")
    with pytest.raises(ValueError, match=r"anna_seg.nii.gz is there and is no result of TISS-Net"):
        save({"fine": image})


def test_a_map_that_a_network_does_not_have_is_not_written(tmp_path):
    SaveImageCased("error", str(tmp_path), "error")({"fine": torch.zeros(1, 2, 3, 4)})
    assert files_below(tmp_path) == set()


def test_an_overview_shows_the_maps_that_are_there(tmp_path):
    image = MetaTensor(torch.rand(2, 16, 16, 4), affine=torch.eye(4), meta={"case": "anna"})
    data = {"image": image, "fine": image[:1]}
    SaveImageOverviewd(["image", "synthetic", "fine"], str(tmp_path), ["t1", "t2"])(data)
    assert files_below(tmp_path) == {"anna/anna_overview.png"}
    assert matplotlib.image.imread(tmp_path / "anna" / "anna_overview.png").std() > 0.05


def test_the_slice_of_an_overview_is_kept_when_asked_for(tmp_path):
    image = MetaTensor(
        torch.rand(2, 16, 12, 4), affine=torch.diag(torch.tensor([-1.0, -2, 3, 1])), meta={"case": "anna"}
    )
    fine = torch.zeros(1, 16, 12, 4)
    fine[0, 3, 5, 1] = 1
    SaveImageOverviewd(["image", "fine"], str(tmp_path), slices=True)({"image": image, "fine": fine})
    kept = np.load(tmp_path / "anna" / "anna_slice.npz")
    assert (kept["source"].shape, kept["index"], kept["aspect"]) == ((2, 12, 16), 1, 2)
    assert kept["fine"][0, 5, 3] == 1
