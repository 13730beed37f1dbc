import json

import pytest
from brats_files import brats_case, cohort, write_csv
from tissnet_components.prepare.brats import prepare_brats
from tissnet_components.scans.splits import SECTIONS, patients_of, read_patients, read_split, split_cases


@pytest.mark.parametrize(
    "patients, counts", [(369, [258, 37, 74]), (12, [9, 1, 2]), (3, [1, 1, 1]), (2, [2, 0, 0]), (100, [70, 10, 20])]
)
def test_patients_are_drawn_in_the_paper_s_proportions(patients, counts):
    names = [f"p{number}" for number in range(patients)]
    sections = split_cases(names, seed=0)
    assert [len(cases) for cases in sections.values()] == counts
    assert sorted(name for cases in sections.values() for name in cases) == sorted(names)


def test_the_seed_and_not_the_order_of_names_decides_the_draw():
    names = [f"p{number}" for number in range(30)]
    assert split_cases(names, 1) == split_cases(names[::-1], 1)
    assert split_cases(names, 1) != split_cases(names, 2)


def test_time_points_of_a_patient_stay_together():
    names = [f"BraTS-GLI-{patient:05d}-{point:03d}" for patient in range(20) for point in range(3)]
    sections = split_cases(names, 0)
    assert [len(cases) for cases in sections.values()] == [42, 6, 12]  # 14, 2 and 4 patients
    patients = [{name[:-4] for name in cases} for cases in sections.values()]
    assert not (patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2])


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00005-001", "BraTS-GLI-00005"),
        ("UPENN-GBM-00001_21", "UPENN-GBM-00001"),
        ("sub-01_ses-02", "sub-01"),
        ("Patient-001_week-000-1", "Patient-001"),
        ("Patient-001_week-012", "Patient-001"),
        ("PatientID_0003_Timepoint_1", "PatientID_0003"),
        ("anna_preop", "anna"),
        ("p1_2020-01-01", "p1"),
        ("p1_20200101", "p1"),
        ("Brats18_TCIA01_201_1", "Brats18_TCIA01_201_1"),
        ("BraTS2021_01476", "BraTS2021_01476"),
        ("TCGA-DU-7294", "TCGA-DU-7294"),
        ("glioma_12345678", "glioma_12345678"),
        ("VS-SEG-001", "VS-SEG-001"),
    ],
)
def test_a_case_s_name_tells_its_patient(case, patient):
    assert patients_of([case]) == {case: patient}


def test_patients_may_be_named_in_a_file(tmp_path):
    file = write_csv(tmp_path / "p.csv", ("a", "anna"), ("b", "anna"), header=("case", "patient"))
    assert read_patients(file, ["a", "b", "c_week-1"]) == {"a": "anna", "b": "anna", "c_week-1": "c"}


def test_a_split_that_parts_a_patient_is_refused(tmp_path):
    cases = [f"p{number}_week-{week}" for number in range(3) for week in range(2)]
    for case in cases:
        brats_case(tmp_path / case, case)
    split = write_csv(tmp_path / "s.csv", *((case, "test" if case.endswith("1") else "train") for case in cases))
    with pytest.raises(ValueError, match=r"s.csv has p0_week-0 in training and p0_week-1 in test.* one patient, p0;"):
        prepare_brats(tmp_path, tmp_path / "datalist.json", split=split)


def test_the_datalist_names_each_case_s_patient_and_the_rule_is_printed(tmp_path, capsys):
    cases = [f"UPENN-GBM-0000{number}_{visit}" for number in range(3) for visit in (11, 21)]
    for case in cases:
        brats_case(tmp_path / case, case)
    prepare_brats(tmp_path, tmp_path / "datalist.json")
    content = json.loads((tmp_path / "datalist.json").read_text())
    sections = [{case["patient"] for case in content[section]} for section in SECTIONS]
    assert sorted(map(len, sections)) == [1, 1, 1]
    assert "3 patients in 6 cases, by: UPENN-GBM (6 cases)" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["val", "valid", "validation", " Validation "])
def test_a_split_may_be_called_by_its_synonyms(tmp_path, word):
    assert read_split(write_csv(tmp_path / "split.csv", ("p", word))) == {"p": "validation"}


@pytest.mark.parametrize(
    "rows, header, sentence",
    [
        pytest.param(
            [("p", "train"), ("p", "test")], ("case", "split"), "line 3: case p is named a second", id="twice"
        ),
        pytest.param([("p", "holdout")], ("case", "split"), "line 2: .*holdout.* expected", id="unknown split"),
        pytest.param(
            [("p", "train")],
            ("patient", "fold"),
            "has the columns patient,fold, expected case,split",
            id="other columns",
        ),
        pytest.param([], ("case", "split"), "names no case", id="empty"),
        pytest.param(
            [("nobody", "train")], ("case", "split"), "names 1 cases that were not found, first nobody", id="who"
        ),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, rows, header, sentence):
    cohort(tmp_path)
    split = write_csv(tmp_path / "split.csv", *rows, header=header)
    with pytest.raises(ValueError, match=sentence):
        prepare_brats(tmp_path, tmp_path / "datalist.json", split=str(split))
    assert not (tmp_path / "datalist.json").exists()


def test_a_split_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.csv cannot be read"):
        read_split(tmp_path / "nowhere.csv")
