"""Running cohorts and writing what was found; the inferer itself is tested with the cascade."""

import math
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import oblique_affine, save, write_case, write_datalist
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import nn

from tissnet_components.inference import (
    CascadeInferer,
    CheckedCases,
    ChooseMapd,
    SaveImageCased,
    SaveImageOverviewd,
    WholeFileWriter,
    find_scans,
    report_failed,
)

SOURCES = ["t1", "t1ce", "t2"]
OBLIQUE = oblique_affine((0.9, 1.1, 5))


@pytest.fixture
def cases(tmp_path) -> list[dict]:
    return [write_case(tmp_path / name, seed) for seed, name in enumerate(("anna", "bert", "carl"))]


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_sound_cases_keep_only_what_is_needed(cases):
    checked = CheckedCases(cases)
    assert checked.good == [{"case": case["case"], "image": case["image"]} for case in cases]
    assert checked.failed == {}


def test_a_bad_case_is_set_aside_with_the_reason_and_the_others_stay(cases):
    Path(cases[1]["image"][2]).write_bytes(b"no image")
    checked = CheckedCases(cases)
    assert [case["case"] for case in checked.good] == ["anna", "carl"]
    assert list(checked.failed) == ["bert"]
    assert "bert_t2.nii.gz cannot be read as NIfTI" in checked.failed["bert"]


def test_a_bad_label_does_not_matter_where_no_label_is_needed(cases):
    Path(cases[0]["label"]).unlink()
    assert not CheckedCases(cases, keys=["image"]).failed
    assert list(CheckedCases(cases, keys=["image", "target", "label"]).failed) == ["anna"]


def test_a_case_without_a_needed_entry_is_set_aside(cases):
    del cases[2]["label"], cases[2]["target"]
    checked = CheckedCases(cases, keys=["image", "target", "label"])
    assert [case["case"] for case in checked.good] == ["anna", "bert"]
    assert "no target and no label" in checked.failed["carl"]


def test_a_cohort_of_bad_cases_alone_is_refused_with_every_reason(cases):
    for case in cases:
        Path(case["image"][0]).unlink()
    with pytest.raises(ValueError, match="none of the 3 cases can be run") as caught:
        CheckedCases(cases)
    assert all(case["image"][0] in str(caught.value) for case in cases)


def test_a_datalist_says_what_to_run(tmp_path, cases):
    datalist = write_datalist(tmp_path, training=cases[:1], test=cases[1:])
    assert [case["case"] for case in find_scans(str(tmp_path), SOURCES, str(datalist), "test")] == ["bert", "carl"]


def test_no_case_of_a_datalist_or_folder_is_filed_outside_the_results(tmp_path, cases):
    datalist = write_datalist(tmp_path, test=[cases[0] | {"case": "../anna"}])
    with pytest.raises(ValueError, match=r"datalist.json names a case '../anna', which cannot be a folder's name"):
        find_scans(str(tmp_path), SOURCES, str(datalist), "test")
    write_case(tmp_path / "a\nb")
    with pytest.raises(ValueError, match=r"names a case 'a\\nb'"):
        find_scans(str(tmp_path), SOURCES, "none.json", "test")


def test_without_a_datalist_every_scan_of_the_folder_is_run(tmp_path, cases):
    found = find_scans(str(tmp_path), SOURCES, str(tmp_path / "datalist.json"), "test")
    assert found == [{"case": case["case"], "image": case["image"]} for case in cases]


def test_modalities_come_in_the_networks_order(tmp_path, cases):
    found = find_scans(str(tmp_path), ["flair", "t1"], "none.json", "test")
    assert found[0]["image"] == [cases[0]["target"], cases[0]["image"][0]]


def test_a_scan_without_a_modality_fails_alone_under_the_name_that_is_missing(tmp_path, cases):
    Path(cases[1]["image"][2]).unlink()
    checked = CheckedCases(find_scans(str(tmp_path), SOURCES, "none.json", "test"))
    assert [case["case"] for case in checked.good] == ["anna", "carl"]
    assert f"{cases[1]['image'][2]} does not exist" in checked.failed["bert"]


def test_a_case_with_two_files_of_a_modality_fails_alone(tmp_path, cases):
    twin = save(Path(cases[1]["image"][0].removesuffix(".gz")), np.ones((4, 4, 4), np.int16), np.eye(4))
    checked = CheckedCases(find_scans(str(tmp_path), SOURCES, "none.json", "test"))
    assert [case["case"] for case in checked.good] == ["anna", "carl"]
    assert checked.failed == {"bert": f"both {twin} and {cases[1]['image'][0]} are t1 of bert; keep one of them"}


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds neither datalist"):
        find_scans(str(tmp_path), SOURCES, "none.json", "test")


def test_failed_cases_are_listed_and_end_with_status_1(capsys):
    with pytest.raises(SystemExit) as ended:
        report_failed({"bert": "b_t2.nii.gz does not exist", "carl": "c_t1.nii.gz is empty"})
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "2 not run:",
        "  bert: b_t2.nii.gz does not exist",
        "  carl: c_t1.nii.gz is empty",
    ]


def test_a_run_without_failures_ends_quietly(capsys):
    report_failed({})
    assert capsys.readouterr() == ("", "")


def test_a_file_that_could_not_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    def run_out_of_space(image, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nib, "save", run_out_of_space)
    writer = WholeFileWriter()
    writer.set_data_array(np.zeros((1, 4, 4, 4)), channel_dim=0)
    writer.set_metadata({"affine": np.eye(4)})
    with pytest.raises(ValueError, match=r"seg.nii.gz cannot be written \(no space left\)"):
        writer.write(tmp_path / "seg.nii.gz")
    assert not files_below(tmp_path)


def test_a_file_that_could_not_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    writer = WholeFileWriter()
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


class Unsure(nn.Module):
    """Answers NaN."""

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"fine": image, "error": image * math.nan}


def test_an_answer_that_is_no_number_is_refused_but_for_a_training():
    inferer, image = CascadeInferer(SimpleInferer()), torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"the network answers with NaN or infinity \(error\): its weights are damaged"
    ):
        inferer(image, Unsure().eval())
    assert inferer(image, Unsure().train())["error"].isnan().all()


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


def test_results_below_the_scans_are_not_taken_for_scans(tmp_path):
    write_case(tmp_path / "anna")
    write_case(tmp_path / "results" / "anna")
    for name in SOURCES:
        (tmp_path / "results" / "anna" / f"anna_{name}.nii.gz").unlink()
    assert [case["case"] for case in find_scans(str(tmp_path), SOURCES, "none.json", "test")] == ["anna"]


def test_a_datalist_of_other_sources_is_refused(tmp_path):
    datalist = tmp_path / "datalist.json"
    datalist.write_text('{"sources": ["t2"], "test": [{"case": "anna", "image": ["anna_t2.nii.gz"]}]}')
    with pytest.raises(ValueError, match=r"has the sources \['t2'\], expected .*; set --source_modalities"):
        find_scans(str(tmp_path), SOURCES, str(datalist), "test")
    assert len(find_scans(str(tmp_path), ["t2"], str(datalist), "test")) == 1


MAPS = {name: torch.full((1, 2, 2, 2), float(value)) for value, name in enumerate(("fine", "synthetic", "error"))}


@pytest.mark.parametrize(
    ("choice", "value", "kind"),
    [("mask", 0, "uint8"), ("synthetic", 1, "float32"), ("error", 2, "float32"), (["mask", "error"], 0, "uint8")],
    ids=str,
)
def test_the_chosen_map_is_sent_back(choice, value, kind):
    sent = ChooseMapd(choice)(MAPS)
    assert (sent["pred"].unique().tolist(), sent["result_dtype"]) == ([value], kind)


def test_an_unknown_map_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="there is no map 'flair'; choose one of mask, synthetic, error, disagreement"):
        ChooseMapd("flair")(MAPS)


def test_a_network_of_fewer_sources_takes_its_own_out_of_a_datalist(tmp_path):
    datalist = tmp_path / "datalist.json"
    entry = '{"case": "anna", "image": ["anna_t1.nii.gz", "anna_t2.nii.gz"]}'
    datalist.write_text(f'{{"sources": ["t1", "t2"], "test": [{entry}]}}')
    (case,) = find_scans(str(tmp_path), ["t2"], str(datalist), "test")
    assert case["image"] == [str(tmp_path / "anna_t2.nii.gz")]
    (case,) = find_scans(str(tmp_path), ["t2", "t1"], str(datalist), "test")
    assert case["image"] == [str(tmp_path / "anna_t2.nii.gz"), str(tmp_path / "anna_t1.nii.gz")]


def test_a_case_with_fewer_images_than_named_sources_is_refused(tmp_path):
    datalist = tmp_path / "datalist.json"
    datalist.write_text('{"sources": ["t1", "t2"], "test": [{"case": "anna", "image": ["anna_t2.nii.gz"]}]}')
    with pytest.raises(ValueError, match=r"names the sources \['t1', 't2'\], but anna has 1 images"):
        find_scans(str(tmp_path), ["t2"], str(datalist), "test")
