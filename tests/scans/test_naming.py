"""Which case and contrast a file's name and place tell."""

import json
from pathlib import Path

import pytest
from tissnet_components.scans.naming import case_of, find_candidates, find_cases

ALL = ("t1", "t1ce", "t2", "flair", "seg")


def touch(root: Path, *files: str) -> Path:
    """Empty files: names are told without opening any."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def found(root: Path) -> dict[str, str]:
    """Case -> its contrasts in order."""
    return {case: " ".join(sorted(files)) for case, files in find_cases(root).items()}


@pytest.mark.parametrize(
    ("name", "case", "modality"),
    [
        ("UCSF-PDGM-0004_tumor_segmentation", "UCSF-PDGM-0004", "seg"),
        ("UCSF-PDGM-0004_T1c", "UCSF-PDGM-0004", "t1ce"),
        ("UPENN-GBM-00001_11_T1GD", "UPENN-GBM-00001_11", "t1ce"),
        ("UPENN-GBM-00001_11_segm", "UPENN-GBM-00001_11", "seg"),
        ("sub-01_ce-gadolinium_T1w", "sub-01", "t1ce"),
        ("sub-01_ses-02_acq-mprage_run-1_T1w", "sub-01_ses-02", "t1"),
        ("sub-01_ses-02_space-T1w_T2w", "sub-01_ses-02", "t2"),
        ("sub-01_FLAIR", "sub-01", "flair"),
        ("anna_T2-FLAIR", "anna", "flair"),
        ("anna_t1_post", "anna", "t1ce"),
        ("P1.2_T2w", "P1.2", "t2"),
    ],
)
def test_the_names_of_public_collections_are_understood(tmp_path, name, case, modality):
    touch(tmp_path, f"{name}.nii.gz")
    assert found(tmp_path) == {case: modality}


@pytest.mark.parametrize(
    ("scan", "case"),
    [
        ("anna_t1.nii.gz", "anna"),
        ("sub-01_ce-gd_T1w.nii", "sub-01"),
        ("p1/anat/t1.nii.gz", "p1"),
        ("p1/baseline/t2", "p1_baseline"),
        ("p1/scan 7.nii.gz", "scan 7"),
    ],
)
def test_one_scan_tells_its_case(scan, case):
    assert case_of(Path("/data", scan)) == case


@pytest.mark.parametrize("name", ["UCSF-PDGM-0004_brain_segmentation", "PDGM-0004_T1_bias", "sub-01_dwi", "p_0001"])
def test_what_is_no_known_contrast_is_passed_over(tmp_path, name):
    touch(tmp_path, f"{name}.nii.gz")
    assert find_candidates(tmp_path, ALL) == {}


def test_nnunet_s_channels_are_named_by_its_dataset(tmp_path):
    touch(tmp_path, *(f"imagesTr/P7_000{channel}.nii.gz" for channel in range(3)))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR", "2": "T1ce"}}))
    assert found(tmp_path) == {"P7": "flair t1 t1ce"}


def test_scans_of_two_patients_folders_are_two_cases(tmp_path):
    touch(tmp_path, "p1/anat/t1.nii.gz", "p1/anat/t1ce.nii.gz", "p2/anat/t2.nii.gz")
    assert found(tmp_path) == {"p1": "t1 t1ce", "p2": "t2"}


def test_equal_names_are_told_apart_by_the_folders_above(tmp_path):
    touch(tmp_path, "siteA/001/t2.nii.gz", "siteB/001/t2.nii.gz", "siteB/002/t2.nii.gz")
    assert found(tmp_path) == {"002": "t2", "siteA_001": "t2", "siteB_001": "t2"}


def test_equal_names_in_files_are_told_apart_too(tmp_path):
    touch(tmp_path, "siteA/x/001_t1.nii.gz", "siteB/x/001_t2.nii.gz")
    assert found(tmp_path) == {"siteA_x_001": "t1", "siteB_x_001": "t2"}


def test_a_visit_keeps_its_patient_s_name(tmp_path):
    touch(tmp_path, "p1/2020-01-01/t2.nii.gz", "p2/2020-01-01/t2.nii.gz", "p3/week-000/t2.nii.gz")
    assert found(tmp_path) == {"p1_2020-01-01": "t2", "p2_2020-01-01": "t2", "p3_week-000": "t2"}


@pytest.mark.parametrize("place", ["{kind}/p1_{kind}", "p1/{kind}/p1_{kind}", "p1/{kind}/{kind}"])
def test_folders_of_single_contrasts_part_no_patient(tmp_path, place):
    touch(tmp_path, *(f"{place.format(kind=kind)}.nii.gz" for kind in ("t1", "t2", "seg")))
    assert found(tmp_path) == {"p1": "seg t1 t2"}


def test_images_and_labels_of_two_folders_are_one_case(tmp_path):
    touch(tmp_path, "imagesTr/p1_t2.nii.gz", "labelsTr/p1_seg.nii.gz")
    assert found(tmp_path) == {"p1": "seg t2"}
