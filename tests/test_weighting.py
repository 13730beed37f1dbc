"""Telling the series of a study apart by their headers; nothing is guessed."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import save_all, slices_of

from tissnet_components.datasets.cases import BadCase
from tissnet_components.datasets.dicom import Series
from tissnet_components.datasets.weighting import choose_series, weighting


@pytest.mark.parametrize(
    ("description", "agent", "expected"),
    [
        ("t1_mprage_sag", "", "t1"),
        ("T1 AX SE", "Gadovist", "t1ce"),
        ("t1_mpr_tra_gd", "", "t1ce"),
        ("AX T1 POST", "", "t1ce"),
        ("t1ce", "", "t1ce"),
        ("Ax T1 +C", "", "t1ce"),
        ("t2_ci3d_tra_1.5mm", "", "t2"),
        ("3D FIESTA IAC", "Gadovist", "t2"),
        ("t2_tirm_tra_dark-fluid", "", "flair"),
        ("AX T2 FLAIR", "", "flair"),
        ("FLAIR post gad", "", "flair"),
        ("Ax T1 FLAIR", "", "t1"),
        ("Ax T1 FLAIR +C", "", "t1ce"),
        ("T1 MPRAGE C+", "", "t1ce"),
        ("T1 with contrast", "", "t1ce"),
        ("t1c_tra", "", "t1ce"),
        ("t1_tfe_km", "", "t1ce"),
        ("AX T1 PRE GAD", "", "t1"),
        ("AX T1 PRE", "Gadovist", "t1"),
        ("AX T1 W/O GAD", "", "t1"),
        ("AX T1 W/O", "", "t1"),
        ("T1 no Gd", "", "t1"),
        ("t1 non-contrast", "", "t1"),
        ("T1 without contrast", "", "t1"),
        ("T1 AX SE", "NONE", "t1"),
        ("T1 non fatsat GAD", "", "t1ce"),
        ("T1 pre-op gad", "", "t1ce"),
        ("T1 post-op", "", "t1"),
        ("T1 pre and post", "Gadovist", None),
        ("localizer", "", None),
        ("T1 T2 mapping", "", None),
        ("", "Gadovist", None),
    ],
)
def test_description_and_agent_tell_the_weighting(description, agent, expected):
    assert weighting(Series("1.2", "MR", description, "P1", agent, (Path("1.dcm"),))) == expected


def study(folder: Path, *descriptions: str) -> Path:
    """All series in one folder, as a PACS exports them."""
    volume = nib.Nifti1Image(np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3), np.eye(4))
    items = [item for description in descriptions for item in slices_of(volume, description=description)]
    save_all(items, folder)
    return folder


def test_the_one_series_that_fits_is_chosen_from_a_study(tmp_path):
    study(tmp_path, "localizer", "t1_mpr_gd", "t2_ci3d_tra")
    assert choose_series(tmp_path, "t2").description == "t2_ci3d_tra"
    assert choose_series(tmp_path, "t1ce").description == "t1_mpr_gd"


def test_a_series_alone_needs_no_telling_name(tmp_path):
    assert choose_series(study(tmp_path, "research 7"), "t2").description == "research 7"


def test_an_enhanced_t1_alone_may_say_nothing_of_its_agent_but_a_plain_one_may_not_name_one(tmp_path):
    assert choose_series(study(tmp_path / "one", "t1_fl3d_tra"), "t1ce").description == "t1_fl3d_tra"
    with pytest.raises(BadCase, match="no series that looks like t1: 't1_mpr_gd'"):
        choose_series(study(tmp_path / "other", "t1_mpr_gd"), "t1")


@pytest.mark.parametrize(
    ("descriptions", "reason"),
    [
        ([], "no DICOM images; give the folder of a series, or a NIfTI file"),
        (["t1_mpr", "localizer"], "no series that looks like t2: 'localizer', 't1_mpr'; give the folder"),
        (["t2_tra", "t2_cor", "t1"], "2 series that look like t2: 't2_cor', 't2_tra'; give the folder"),
        (["t1_mpr"], "no series that looks like t2: 't1_mpr'; give another folder, or the scan as NIfTI file"),
    ],
    ids=["no image", "none that fits", "two that fit", "another alone"],
)
def test_what_is_not_clear_is_refused(tmp_path, descriptions, reason):
    with pytest.raises(BadCase) as caught:
        choose_series(study(tmp_path, *descriptions), "t2")
    assert str(caught.value).startswith(f"{tmp_path} holds {reason}")
