"""Running cohorts and writing what was found; the inferer itself is tested with the cascade."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort import oblique_affine, save, write_case, write_datalist
from monai.inferers import SimpleInferer
from torch import nn

from tissnet_components.errors import report_failed
from tissnet_components.inference import CascadeInferer
from tissnet_components.scans.cases import CheckedCases, find_scans

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
