import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tissnet_components.errors import BadCase
from tissnet_components.patients import find_patients
from tissnet_components.scans.choice import contrasts_below, with_series
from tissnet_components.scans.dicom import read_series

STUDY = {  # as dcm2niix 1.0.20230411 names and describes the series of a study, -ba y
    "anna_t1_se_tra_20200101120000_2": {"SeriesDescription": "t1_se_tra", "EchoTime": 0.011, "RepetitionTime": 0.5},
    "anna_t1_mpr_sag_km_20200101120000_9": {"SeriesDescription": "t1_mpr_sag KM", "MRAcquisitionType": "3D"},
    "anna_TSE_20200101120000_4": {"SeriesDescription": "TSE", "EchoTime": 0.1, "RepetitionTime": 4.0},
    "anna_tirm_20200101120000_5": {"ProtocolName": "t2_tirm_FLAIR", "EchoTime": 0.1, "InversionTime": 2.5},
    "anna_ep2d_diff_20200101120000_6": {"SeriesDescription": "ep2d_diff", "ScanningSequence": "EP"},
}


def converted(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, (name, tags) in enumerate(STUDY.items()):
        image = nib.Nifti1Image(np.full((4, 4, 30), number, np.int16), np.diag([1, 1, 5, 1]))
        nib.save(image, folder / f"{name}.nii.gz")
        common = {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M"], "AcquisitionTime": "12:00:01.5"}
        (folder / f"{name}.json").write_text(json.dumps(common | tags))
    return folder


def test_the_attributes_beside_a_file_tell_its_contrast(tmp_path):
    folder = str(converted(tmp_path / "anna"))
    names = ["t1", "t1ce", "t2", "flair"]
    assert [read_series(one).get_fdata().max() for one in with_series([folder] * 4, names)] == [0, 1, 2, 3]
    (named,) = with_series([folder], ["t2"], {"t2": "t1_se_tra"})
    assert "though it is t1 by EchoTime 11 ms, RepetitionTime 500 ms and its name" in named.reason
    assert contrasts_below(folder) == {"t1", "t1ce", "t2", "flair", "other"}


def test_a_folder_per_patient_is_a_cohort_beside_files_whose_names_tell(tmp_path):
    converted(tmp_path / "anna")
    (tmp_path / "bert").mkdir()
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4)), np.eye(4)), tmp_path / "bert" / "bert_t2.nii.gz")
    patients, passed_over = find_patients(tmp_path, ["t2"], tmp_path / "out")
    assert {patient["case"] for patient in patients} == {"anna", "bert"} and passed_over == {}


@pytest.mark.parametrize("text", ['{"SpatialReference": "orig"}', "[]", "{"], ids=["other", "list", "broken"])
def test_other_json_files_describe_no_series(tmp_path, text):
    converted(tmp_path / "anna")
    for file in (tmp_path / "anna").glob("*.json"):
        file.write_text(text)
    with pytest.raises(BadCase, match="holds no DICOM images"):
        with_series([str(tmp_path / "anna")], ["t2"])
