import json

import nibabel as nib
import numpy as np
import pytest
from tissnet_components.errors import UserError
from tissnet_components.results.bids import check_bids, entities_of, write_bids
from tissnet_components.results.files import case_file

LABELS = {"necrosis": 1, "edema": 2, "enhancing tumor": 4}


def write_case(out, case, kinds, **summary):
    (out / case).mkdir()
    for kind in kinds:
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), case_file(out, case, kind))
    case_file(out, case, "summary").write_text(json.dumps(summary))


def test_the_mask_of_a_prepared_visit_is_filed_under_subject_and_session(tmp_path):
    write_case(tmp_path, "sub-07_ses-1", ["seg"])
    write_bids(tmp_path, "sub-07_ses-1", LABELS, "TISS-Net", "1.2")
    root = tmp_path / "derivatives" / "tissnet"
    filed = root / "sub-07" / "ses-1" / "anat" / "sub-07_ses-1_space-orig_dseg.nii.gz"
    assert filed.read_bytes() == case_file(tmp_path, "sub-07_ses-1", "seg").read_bytes()
    assert json.loads((root / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert (root / "dseg.tsv").read_text() == "index\tname\n1\tnecrosis\n2\tedema\n4\tenhancing tumor\n"


def test_a_mask_on_a_raw_scan_says_on_which(tmp_path):
    scans = {"t1ce": {"file": "t1_mpr_sag KM"}, "t2": {"file": "t2_tse_tra"}}
    write_case(tmp_path, "P_7", ["seg", "seg_t1ce"], raw={"scans": scans})
    write_bids(tmp_path, "P_7", LABELS, "TISS-Net", "1.2")
    folder = tmp_path / "derivatives" / "tissnet" / "sub-P7" / "anat"
    assert "t1_mpr_sag KM" in (folder / "sub-P7_space-T1wGd_dseg.json").read_text()
    assert not list(folder.glob("*T2w*"))


@pytest.mark.parametrize(
    ("case", "entities"), [("sub-07", ("sub-07",)), ("A_1_2", ("sub-A12",)), ("sub-07_ses-b2", ("sub-07", "ses-b2"))]
)
def test_a_case_is_a_subject(case, entities):
    assert entities_of(case) == entities


@pytest.mark.parametrize("cases", [("A_12", "A1_2"), ("___",)], ids=["two alike", "no letter"])
def test_cases_that_bids_cannot_tell_apart_are_refused(cases):
    with pytest.raises(UserError, match=f"--bids would call {cases[0]} sub-"):
        check_bids(cases)
