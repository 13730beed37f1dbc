"""The folds of a cross-validation: who trains, who validates, who is tested."""

import json
from pathlib import Path

import pytest
from tissnet_components.study.folds import write_folds


def patients(datalist, section):
    return [case["case"] for case in json.loads(Path(datalist).read_text())[section]]


def entry(name):
    return {"case": name, "image": f"{name}.nii", "target": f"{name}_flair.nii", "label": f"{name}_seg.nii"}


@pytest.fixture
def twelve(tmp_path):
    """Twelve patients in three sections; the first has two time points."""
    names = [f"BraTS-GLI-{number:05}-000" for number in range(12)] + ["BraTS-GLI-00000-001"]
    cases = [entry(name) for name in names]
    sections = {"training": cases[:8], "validation": cases[8:10], "test": cases[10:]}
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"sources": ["t2"], "simulated": True, **sections}))
    return path


def test_every_patient_is_tested_exactly_once(twelve, tmp_path):
    files = write_folds(twelve, tmp_path / "folds", 4)
    assert list(files) == ["fold_1", "fold_2", "fold_3", "fold_4"]
    tested = [name for file in files.values() for name in patients(file, "test")]
    assert len(tested) == len(set(tested)) == 13


def test_no_patient_stands_in_two_sections_and_time_points_stay_together(twelve, tmp_path):
    for file in write_folds(twelve, tmp_path / "folds", 4, validation=2).values():
        groups = [{name[:15] for name in patients(file, section)} for section in ("training", "validation", "test")]
        assert [len(group) for group in groups] == [7, 2, 3]
        assert len(set.union(*groups)) == 12


@pytest.mark.parametrize(("groups", "missed"), [("", 0), ("TCIA..", 1)], ids=["patients", "hospitals"])
def test_partial_patients_train_and_never_beside_a_test_of_their_own_hospital(tmp_path, groups, missed):
    path = hospitals(tmp_path, "TCIA01_1", "TCIA01_2", "TCIA02_1", "TCIA02_2", "TCIA02_partial")
    content = json.loads(path.read_text())
    del content["training"][-1]["label"]
    path.write_text(json.dumps(content))
    files = write_folds(path, tmp_path / "folds", 2, groups=groups).values()
    assert sorted(name for file in files for name in patients(file, "test")) == [
        "TCIA01_1", "TCIA01_2", "TCIA02_1", "TCIA02_2"
    ]  # fmt: skip
    assert not any("TCIA02_partial" in patients(file, "validation") for file in files)
    assert sum("TCIA02_partial" not in patients(file, "training") for file in files) == missed


def test_the_seed_decides_the_folds_and_their_files_point_to_the_scans(twelve, tmp_path):
    first, again, other = (
        write_folds(twelve, tmp_path / name, 4, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert Path(first["fold_1"]).read_bytes() == Path(again["fold_1"]).read_bytes()
    assert patients(first["fold_1"], "test") != patients(other["fold_1"], "test")
    content = json.loads(Path(first["fold_1"]).read_text())
    assert content["simulated"] is True
    assert content["test"][0]["image"] == [str(tmp_path / f"{content['test'][0]['case']}.nii")]


def hospitals(tmp_path, *names):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": [entry(name) for name in names]}))
    return path


def test_hospitals_are_tested_whole_and_the_smaller_ones_together(tmp_path):
    sizes = {"TCIA01": 4, "TCIA02": 3, "TCIA10": 3, "TCIA03": 1, "TCIA13": 1}
    names = [f"Brats18_{place}_{number}_1" for place, size in sizes.items() for number in range(100, 100 + size)]
    tested = []
    for file in write_folds(hospitals(tmp_path, *names), tmp_path / "folds", 4, groups="TCIA..").values():
        there, elsewhere = ({name[8:14] for name in patients(file, s)} for s in ("test", "training"))
        assert not there & elsewhere and len(patients(file, "validation")) == 1
        tested.append((sorted(there), len(patients(file, "test"))))
    assert sorted(tested) == [(["TCIA01"], 4), (["TCIA02"], 3), (["TCIA03", "TCIA13"], 2), (["TCIA10"], 3)]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("UCSF..", "'groups' of the study, 'UCSF..', finds nothing in the name"),
        ("(", "'groups' of the study, '\\(', finds nothing"),
        ("_", "4 patients in groups of one '_' in .* cannot give 2 folds with 1"),
        ("^.", "4 patients in groups of one '\\^.' in .* cannot give 2 folds with 1"),
    ],
)
def test_groups_that_the_names_do_not_have_or_that_leave_none_to_train_are_refused(tmp_path, groups, said):
    with pytest.raises(ValueError, match=said):
        write_folds(hospitals(tmp_path, "a_1", "a_2", "a_3", "b_1"), tmp_path / "folds", 2, groups=groups)


def test_folds_that_were_made_otherwise_are_not_overwritten(twelve, tmp_path):
    write_folds(twelve, tmp_path / "folds", 4)
    with pytest.raises(ValueError, match=r"fold_1.json was made from another datalist, seed, number of folds"):
        write_folds(twelve, tmp_path / "folds", 4, seed=1)


@pytest.mark.parametrize(("folds", "validation"), [(13, 1), (1, 1), (2, 6), (4, 0)], ids=str)
def test_folds_that_patients_do_not_suffice_for_are_refused(twelve, tmp_path, folds, validation):
    with pytest.raises(ValueError, match=f"12 patients in .* cannot give {folds} folds with {validation}"):
        write_folds(twelve, tmp_path / "folds", folds, validation=validation)


def test_a_datalist_that_is_a_list_is_named(tmp_path):
    (tmp_path / "datalist.json").write_text("[]")
    with pytest.raises(ValueError, match=r"datalist.json holds a list, expected sections"):
        write_folds(tmp_path / "datalist.json", tmp_path / "folds", 4)


def test_a_missing_datalist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.json does not exist"):
        write_folds(tmp_path / "nowhere.json", tmp_path / "folds", 4)
