"""Which series of a study is taken; where several could be meant, the user decides."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import save_all, slices_of
from tissnet_components.errors import BadCase
from tissnet_components.scans.choice import choose_series, with_series

AXES = {
    "axial": np.diag([1, 1, 5, 1]),
    "coronal": np.array([[1, 0, 0, 0], [0, 0, 5, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "thin": np.eye(4),
}


def study(folder: Path, *series: str | tuple[str, dict[str, object]]) -> Path:
    """All series in one folder, as a PACS exports them: names, or names and attributes, of which `axes` is one."""
    items = []
    for description, tags in [one if isinstance(one, tuple) else (one, {}) for one in series]:
        affine = AXES[tags.get("axes", "thin")]
        shape = (4, 5, tags.get("slices", 3))
        volume = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)
        for item in slices_of(volume, description=description):
            for tag, value in tags.items():
                if tag not in ("axes", "slices"):
                    setattr(item, tag, value)
            items.append(item)
    save_all(items, folder)
    return folder


def taken(folder: Path, modality: str, wanted: str | None = None) -> str:
    return choose_series(folder, modality, wanted).description


def test_an_ordinary_study_gives_its_four_contrasts(tmp_path):
    study(
        tmp_path,
        *("3-plane loc", "Ax DWI", "Ax T2* GRE", "SWI_Images", "Ax T2 PROPELLER", "Ax T2 FLAIR", "Ax T1", "Ax T1 +C"),
        ("ADC", {"ImageType": ["DERIVED", "PRIMARY", "ADC"]}),
    )
    found = {modality: taken(tmp_path, modality) for modality in ("t1", "t1ce", "t2", "flair")}
    assert found == {"t1": "Ax T1", "t1ce": "Ax T1 +C", "t2": "Ax T2 PROPELLER", "flair": "Ax T2 FLAIR"}


def test_a_series_alone_needs_no_telling_name(tmp_path):
    one = choose_series(study(tmp_path, "research 7"), "t2")
    assert one.reason == "its headers do not tell; it is the only one there"


@pytest.mark.parametrize("alone", ["T2* GRE", "localizer", "t2_tirm_tra", "t1_mpr", "AX T1 POST", "T2 Map"])
def test_a_series_alone_that_is_something_else_is_refused(tmp_path, alone):
    with pytest.raises(BadCase, match="holds no series that looks like t2"):
        choose_series(study(tmp_path, alone), "t2")


def test_an_enhanced_t1_alone_may_say_nothing_of_its_agent_but_a_plain_one_may_not_name_one(tmp_path):
    assert taken(study(tmp_path / "one", "t1_fl3d_tra"), "t1ce") == "t1_fl3d_tra"
    with pytest.raises(BadCase, match="no series that looks like t1: 't1_mpr_gd'"):
        choose_series(study(tmp_path / "other", "t1_mpr_gd"), "t1")


@pytest.mark.parametrize(
    ("best", "other", "why"),
    [
        (("T2 a", {}), ("T2 b", {"ImageType": ["DERIVED", "SECONDARY"]}), "original images"),
        (("T2 a", {}), ("T2 b", {"axes": "axial"}), "the thinnest slices"),
        (("T2 a", {"MRAcquisitionType": "3D"}), ("T2 b", {"MRAcquisitionType": "2D"}), "three dimensions"),
        (("T2 a", {"axes": "axial"}), ("T2 b", {"axes": "coronal"}), "axial slices"),
        (("T2 ax", {}), ("T2 cor", {}), "axial slices"),
        (("T2 CUBE", {}), ("T2 a", {}), "three dimensions"),
        (("T2 a", {"ImageType": None}), ("T2 a MPR", {"ImageType": None}), "original images"),
        (("T2 a", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"]}), ("T2 b", {}), "corrected images"),
        (("T2 a", {}), ("T2 b post KM", {}), "no contrast agent in its name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_two_that_fit_the_better_is_taken_and_the_reason_told(tmp_path, best, other, why):
    one = choose_series(study(tmp_path, other, best), "t2")
    assert (one.description, one.reason) == (best[0], f"t2 by its name; of 2 it has {why}")


def test_a_t1_that_says_it_is_plain_is_taken_before_one_that_does_not(tmp_path):
    assert taken(study(tmp_path, "T1 nativ", ("T1", {"MRAcquisitionType": "3D"})), "t1") == "T1 nativ"


def test_a_t1_acquired_after_the_contrast_agent_is_no_plain_one(tmp_path):
    times = {
        name: {"AcquisitionTime": time} for name, time in (("early", "100000"), ("mid", "101000"), ("late", "102000"))
    }
    series = (
        ("T1 ax", times["early"]),
        ("T1 ax +C", times["mid"]),
        ("T1 3D", times["late"] | {"MRAcquisitionType": "3D"}),
    )
    assert taken(study(tmp_path / "both", *series), "t1") == "T1 ax"
    with pytest.raises(BadCase, match=r"'T1 3D' .*acquired after the contrast agent"):
        choose_series(study(tmp_path / "late", *series[1:]), "t1")


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ([], "no DICOM images; give the folder of a series, or a NIfTI file"),
        (
            ["t1_mpr", "localizer"],
            r"no series that looks like t2: 'localizer' \(UID [\d.]+; a localizer by its name\), ",
        ),
        (["t2 a", "t2 b", "t1"], r"2 series that look like t2: 't2 a' \(UID [\d.]+; t2 by its name\), 't2 b' \(UID "),
        (["t2 a", ("t2 b", {"slices": 90})], "2 series that look like t2"),
    ],
    ids=["no image", "none that fits", "two that fit", "a slab and a whole head"],
)
def test_what_is_not_clear_is_refused_with_the_option_that_decides(tmp_path, series, reason):
    with pytest.raises(BadCase, match=f"holds {reason}") as caught:
        choose_series(study(tmp_path, *series), "t2")
    assert not series or str(caught.value).endswith("; choose with --t2-series UID")


def test_the_user_decides_by_uid_its_ending_or_the_description(tmp_path):
    study(tmp_path, ("T2* a", {"SeriesInstanceUID": "1.2.34"}), ("AX T2", {"SeriesInstanceUID": "1.2.5.4"}))
    one = choose_series(tmp_path, "t2", "1.2.34")
    assert (one.description, one.reason) == ("T2* a", "--t2-series names it, though it is T2* by its name")
    assert [taken(tmp_path, "t2", wanted) for wanted in ("34", "5.4", "ax t2", "T2* a")] == [
        *("T2* a", "AX T2", "AX T2", "T2* a")
    ]
    assert choose_series(tmp_path, "t2", "ax t2").reason == "--t2-series names it"
    for wanted, problem in (("4", "2 series"), ("9", "no series"), ("T2", "no series")):
        with pytest.raises(BadCase, match=f"holds {problem} that --t2-series '{wanted}' names: 'AX T2'"):
            choose_series(tmp_path, "t2", wanted)


def test_an_option_for_what_is_no_dicom_folder_is_refused(tmp_path):
    folder = str(study(tmp_path / "study", "T1", "T2"))
    with pytest.raises(BadCase, match="--t1-series chooses from a DICOM folder, but --t1 is none"):
        with_series(["t1.nii", folder], ["t1", "t2"], {"t1": "1.2", "t2": None})
    with pytest.raises(BadCase, match="--t2-series chooses from a DICOM folder"):
        with_series("all.nii", ["t1", "t2"], {"t2": "1.2"})


def test_one_series_is_not_taken_for_two_contrasts(tmp_path):
    folder = str(study(tmp_path, "T1", "T2"))
    with pytest.raises(BadCase, match="would be more than one of t1, t2"):
        with_series([folder, folder], ["t1", "t2"], {"t2": "T1"})


def test_scans_of_two_patients_or_days_are_not_put_together(tmp_path):
    days = study(tmp_path / "days", ("T1", {"StudyDate": "20200101"}), ("T2", {"StudyDate": "20210101"}))
    people = study(tmp_path / "people", "T1", ("T2", {"PatientID": "P2"}))
    with pytest.raises(
        BadCase, match="are of two days by StudyDate, 20200101 and 20210101; choose with --t1-series UID"
    ):
        with_series([str(days)] * 2, ["t1", "t2"])
    with pytest.raises(BadCase, match="are of two patients by PatientID"):
        with_series([str(people)] * 2, ["t1", "t2"])
    assert len(with_series([str(people)] * 2, ["t1", "t2"], {"t1": "T1"})) == 2
