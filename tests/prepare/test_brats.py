import json
from pathlib import Path

import numpy as np
import pytest
from brats_files import (
    FROM_2023,
    SHAPE,
    UNTIL_2021,
    brats_case,
    cohort,
    first_voxel,
    listed,
    listed_cases,
    printed,
    save,
    scan,
    write_csv,
)
from tissnet_components.errors import BadCase
from tissnet_components.prepare.brats import prepare_brats
from tissnet_components.scans.datalist import load_datalist
from tissnet_components.scans.naming import MODALITIES, find_cases
from tissnet_components.scans.splits import split_cases


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "subfolder, case, names",
    [
        pytest.param("HGG/Brats18_TCIA01_201_1", "Brats18_TCIA01_201_1", UNTIL_2021, id="2018"),
        pytest.param("LGG/BraTS19_2013_0_1", "BraTS19_2013_0_1", UNTIL_2021, id="2019"),
        pytest.param("BraTS20_Training_001", "BraTS20_Training_001", UNTIL_2021, id="2020"),
        pytest.param("BraTS2021_00000", "BraTS2021_00000", UNTIL_2021, id="2021"),
        pytest.param("BraTS-GLI-00000-000", "BraTS-GLI-00000-000", FROM_2023, id="2023"),
        pytest.param("training_data1_v2/BraTS-GLI-02060-100", "BraTS-GLI-02060-100", FROM_2023, id="2024"),
        pytest.param("BraTS-MET-00086-000", "BraTS-MET-00086-000", FROM_2023, id="2025"),
        pytest.param(".", "BraTS20_Training_001", UNTIL_2021, id="flat"),
        pytest.param("a/b/c", "BraTS2021_00000", UNTIL_2021, id="deep"),
        pytest.param("patient7", "patient7", {kind: f"../patient7/{kind}" for kind in UNTIL_2021}, id="bare names"),
    ],
)
def test_every_year_s_naming_is_understood(tmp_path, subfolder, case, names, ending):
    if "/" in names["t1"]:
        files = {kind: save(tmp_path / subfolder / f"{kind}{ending}", scan(kind)) for kind in names}
    else:
        files = brats_case(tmp_path / subfolder, case, names, ending)
    assert find_cases(tmp_path) == {case: files}


def test_downloads_of_several_years_below_one_folder_make_one_datalist(tmp_path):
    years = {
        "2018/Brats18_TCIA01_201_1": UNTIL_2021,
        "2021/BraTS2021_01476": UNTIL_2021,
        "2023/BraTS-GLI-00009-000": FROM_2023,
        "tcga/TCGA-DU-7294": UNTIL_2021,
    }
    (tmp_path / "all").mkdir()
    for place, names in years.items():
        year, case = place.split("/")
        brats_case(tmp_path / year / case, case, names)
        (tmp_path / "all" / year).symlink_to(tmp_path / year)
    prepare_brats(str(tmp_path / "all"), str(tmp_path / "datalist.json"))
    assert listed_cases(tmp_path / "datalist.json") == sorted(place.split("/")[1] for place in years)


def test_upper_case_and_gadolinium_names_are_understood(tmp_path):
    names = {"t1": "_T1", "t1ce": "_T1GD", "t2": "_T2", "flair": "_FLAIR"}
    files = brats_case(tmp_path, "p1", names)
    assert find_cases(tmp_path) == {"p1": files}


def test_the_segmentation_that_brats_2020_misnamed_is_found(tmp_path):
    case = "BraTS20_Training_355"
    brats_case(tmp_path / case, case, ending=".nii", without=["seg"])
    seg = save(tmp_path / case / "W39_1998.09.19_Segm.nii", scan("seg"))
    assert find_cases(tmp_path)[case]["seg"] == seg


def test_a_file_in_a_folder_of_its_name_is_found(tmp_path):
    case = "BraTS2021_00621"
    folder = tmp_path / case
    files = {kind: save(folder / f"{case}_{kind}.nii" / f"0000{kind}.nii", scan(kind)) for kind in UNTIL_2021}
    assert find_cases(tmp_path) == {case: files}


def test_scans_without_label_and_hidden_files_and_link_loops_do_no_harm(tmp_path):
    files = brats_case(tmp_path / "p", "p", without=["seg", "flair"])
    (tmp_path / "p" / "._p_flair.nii.gz").write_text("macOS's shadow")
    (tmp_path / "p" / "notes.txt").write_text("")
    (tmp_path / "p" / "loop").symlink_to(tmp_path)
    assert find_cases(tmp_path) == {"p": files}


def test_two_files_for_one_modality_are_refused(tmp_path):
    brats_case(tmp_path / "one", "p")
    save(tmp_path / "one" / "p_t1.nii", scan("t1"))
    with pytest.raises(BadCase, match=r"one/p_t1.nii and .*one/p_t1.nii.gz are t1 of p"):
        find_cases(tmp_path)


def test_the_datalist_names_each_case_s_files_in_order(tmp_path):
    cohort(tmp_path / "data")
    prepare_brats(tmp_path / "data", tmp_path / "datalist.json")
    content = json.loads((tmp_path / "datalist.json").read_text())
    assert content["sources"] == ["t1", "t1ce", "t2"]
    assert content["target_modality"] == "flair"
    assert content["labels"] == {"0": "background", "1": "whole tumor"}
    (entry,) = content["training"]
    stem = f"data/{entry['case']}/{entry['case']}_"
    assert entry["image"] == [f"{stem}t1.nii.gz", f"{stem}t1ce.nii.gz", f"{stem}t2.nii.gz"]
    assert (entry["target"], entry["label"]) == (f"{stem}flair.nii.gz", f"{stem}seg.nii.gz")
    assert Path(load_datalist(tmp_path / "datalist.json", "training")[0]["label"]).is_file()


def test_files_outside_the_datalist_s_folder_keep_absolute_paths(tmp_path):
    cohort(tmp_path / "data")
    prepare_brats(tmp_path / "lists" / ".." / "data", tmp_path / "lists" / "datalist.json")
    entry = json.loads((tmp_path / "lists" / "datalist.json").read_text())["test"][0]
    assert entry["target"] == str(tmp_path / "data" / entry["case"] / f"{entry['case']}_flair.nii.gz")


@pytest.mark.parametrize(
    "target, source, expected",
    [
        ("flair", None, ["t1", "t1ce", "t2"]),
        ("t1ce", None, ["t1", "t2", "flair"]),
        ("t1ce", "t2", ["t2"]),
        ("t1", "flair, t2", ["flair", "t2"]),
        ("t2", ("t1", "flair"), ["t1", "flair"]),
    ],
)
def test_any_modality_may_be_the_missing_one(tmp_path, target, source, expected):
    cohort(tmp_path)
    prepare_brats(tmp_path, tmp_path / "datalist.json", target=target, source=source)
    (case,) = load_datalist(tmp_path / "datalist.json", "test")
    assert [first_voxel(file) for file in case["image"]] == [10 + MODALITIES.index(source) for source in expected]
    assert first_voxel(case["target"]) == 10 + MODALITIES.index(target)


def test_a_modality_that_is_not_needed_may_be_missing(tmp_path):
    for name in "abc":
        brats_case(tmp_path, name, without=["t1", "t1ce"])
    prepare_brats(tmp_path, tmp_path / "datalist.json", source="t2")
    assert listed(tmp_path / "datalist.json").keys() == {"training", "validation", "test"}


def test_the_same_seed_writes_the_same_file(tmp_path):
    cohort(tmp_path / "data", 8)
    texts = []
    for seed, workers in ((3, 1), (3, 4), (4, 1)):
        prepare_brats(tmp_path / "data", tmp_path / "datalist.json", seed=seed, workers=workers)
        texts.append((tmp_path / "datalist.json").read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_unusable_cases_are_left_out_and_printed_with_the_reason(tmp_path, capsys):
    cohort(tmp_path / "data", 4)
    brats_case(tmp_path / "data" / "unlabelled", "unlabelled", without=["seg"])
    brats_case(tmp_path / "data" / "partial", "partial", without=["t2"])
    brats_case(tmp_path / "data" / "twice", "twice")
    brats_case(tmp_path / "data" / "twice", "twice", ending=".nii", without=["t1ce", "t2", "flair", "seg"])
    zero = brats_case(tmp_path / "data" / "zero", "zero")
    save(zero["flair"], np.zeros(SHAPE, np.int16))
    label = brats_case(tmp_path / "data" / "label", "label")
    save(label["seg"], np.full(SHAPE, 7, np.uint8))
    cut = brats_case(tmp_path / "data" / "cut", "cut")
    cut["t1"].write_bytes(cut["t1"].read_bytes()[:60])
    with pytest.raises(ValueError, match="5 of 9 cases are not in the datalist, see the reasons above"):
        prepare_brats(tmp_path / "data", tmp_path / "datalist.json")
    assert listed_cases(tmp_path / "datalist.json") == cohort(tmp_path / "data", 4)
    text = printed(capsys)
    for reason in ("no seg file", "no t2 file", "keep one", "only the value 0", "of value 7", "NIfTI", "6 skipped"):
        assert reason in text


def test_partial_cases_train_when_asked_and_change_no_draw(tmp_path, capsys):
    cohort(tmp_path / "data", 4)
    prepare_brats(tmp_path / "data", tmp_path / "datalist.json")
    drawn = listed(tmp_path / "datalist.json")
    lacking = {"a": ["flair"], "b": ["seg"], "c": ["t2"], "d": ["t1", "seg"], "e": ["flair", "seg"]}
    for name, kinds in lacking.items():
        brats_case(tmp_path / "data" / name, name, without=kinds)
    with pytest.raises(ValueError, match="2 of 9 cases are not in the datalist"):
        prepare_brats(tmp_path / "data", tmp_path / "datalist.json", partial=True)
    assert listed(tmp_path / "datalist.json") == drawn | {"training": [*drawn["training"], "a", "b", "c"]}
    assert "3 partial: 1 without image, 1 without label, 1 without target" in printed(capsys)
    cases = {case["case"]: case for case in load_datalist(tmp_path / "datalist.json", "training")}
    assert {name: sorted({"image", "target", "label"} - set(cases[name])) for name in "abc"} == {
        "a": ["target"],
        "b": ["label"],
        "c": ["image"],
    }


def test_a_partial_case_of_a_patient_to_test_is_left_out(tmp_path, capsys):
    for patient in range(1, 5):
        brats_case(tmp_path / "data", f"BraTS-GLI-0000{patient}-000", FROM_2023)
    prepare_brats(tmp_path / "data", tmp_path / "datalist.json")
    drawn = listed(tmp_path / "datalist.json")
    for patient in range(1, 5):
        brats_case(tmp_path / "data", f"BraTS-GLI-0000{patient}-001", FROM_2023, without=["seg"])
    prepare_brats(tmp_path / "data", tmp_path / "datalist.json", partial=True)
    again = [f"{case.removesuffix('-000')}-001" for case in drawn["training"]]
    assert listed(tmp_path / "datalist.json") == drawn | {"training": sorted([*drawn["training"], *again])}
    assert "another scan of its patient is in test" in printed(capsys)


def test_a_split_decides_of_partial_cases_too(tmp_path):
    one, two, three = cohort(tmp_path)
    brats_case(tmp_path, "a", without=["flair"])
    split = write_csv(tmp_path / "split.csv", (one, "test"), (two, "val"), (three, "train"), ("a", "test"))
    prepare_brats(tmp_path, tmp_path / "datalist.json", split=split, partial=True)
    assert listed(tmp_path / "datalist.json")["test"] == [one, "a"]


def test_a_case_whose_name_is_no_folder_s_is_left_out(tmp_path, capsys):
    good = cohort(tmp_path)
    brats_case(tmp_path / "odd", "a\nb")
    with pytest.raises(ValueError, match="1 of 4 cases are not in the datalist"):
        prepare_brats(str(tmp_path), str(tmp_path / "datalist.json"))
    assert listed_cases(tmp_path / "datalist.json") == good
    assert "cannot be a folder's name" in " ".join(capsys.readouterr().out.split())


def test_unlabelled_cases_share_one_line(tmp_path, capsys):
    cohort(tmp_path)
    for number in range(10, 30):
        brats_case(tmp_path, f"BraTS20_Validation_0{number}", without=["seg"])
    prepare_brats(tmp_path, tmp_path / "datalist.json")
    assert printed(capsys).count("no seg") == 1


def test_a_split_file_decides_and_leaves_out_what_it_does_not_name(tmp_path, capsys):
    one, two, three, four = cohort(tmp_path, 4)
    (tmp_path / four / f"{four}_t2.nii.gz").unlink()
    split = write_csv(tmp_path / "split.csv", (one, "test"), (two, "Val"), (three, "train"))
    prepare_brats(tmp_path, tmp_path / "datalist.json", split=str(split))
    assert listed(tmp_path / "datalist.json") == {"training": [three], "validation": [two], "test": [one]}
    assert "not named in split.csv" in printed(capsys)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        pytest.param({"target": "pd"}, "unknown modality 'pd'; known: t1, t1ce, t2, flair", id="unknown target"),
        pytest.param({"source": "t1,adc"}, "unknown modality 'adc'", id="unknown source"),
        pytest.param({"source": "t1,flair"}, "the target not among them", id="target among sources"),
        pytest.param({"source": "t1,t1"}, "name each source once", id="source twice"),
        pytest.param({"out": "."}, "is a folder; give the file", id="out is a folder"),
        pytest.param({"out": "file.txt/datalist.json"}, "cannot be written", id="out not writable"),
        pytest.param({"workers": "two"}, "workers is 'two', expected an integer of at least 1", id="workers no number"),
        pytest.param({"workers": 0}, "workers is 0, expected an integer of at least 1", id="no workers"),
        pytest.param({"root": "nowhere"}, "nowhere is not a folder", id="no root"),
        pytest.param({"root": "empty"}, "holds no BraTS case: expected files called like", id="nothing in root"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_read(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tissnet_components.prepare.brats.usable_cases", lambda *_: pytest.fail("files were read"))
    cohort(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=sentence):
        prepare_brats(**{"root": "data", **arguments})


def test_nothing_usable_is_an_error_and_keeps_the_old_datalist(tmp_path):
    brats_case(tmp_path, "p", without=["seg"])
    (tmp_path / "datalist.json").write_text("old")
    with pytest.raises(ValueError, match="none of the 1 cases"):
        prepare_brats(tmp_path, tmp_path / "datalist.json")
    assert (tmp_path / "datalist.json").read_text() == "old"


def test_a_datalist_that_cannot_be_completed_leaves_nothing_behind(tmp_path, monkeypatch):
    cohort(tmp_path / "data")

    def full_disk(path, *_, **__):
        path.write_bytes(b"{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(ValueError, match=r"datalist.json cannot be written .No space left"):
        prepare_brats(tmp_path / "data", tmp_path / "out" / "datalist.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_fewer_than_three_patients_are_said_to_leave_sections_empty(tmp_path, capsys):
    cohort(tmp_path, 2)
    prepare_brats(tmp_path, tmp_path / "datalist.json")
    assert "no case for validation and test" in printed(capsys)


def test_the_twelve_real_patients_are_found_and_split_nine_one_two(real_gliomas):
    found = find_cases(real_gliomas)
    assert all(set(files) == {*MODALITIES, "seg"} for files in found.values())
    assert [len(cases) for cases in split_cases(list(found), 0).values()] == [9, 1, 2]
