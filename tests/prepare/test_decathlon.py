from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from brats_files import SHAPE, first_voxel, listed_cases, printed, save, scan
from tissnet_components.prepare.brats import prepare_brats
from tissnet_components.scans.datalist import load_datalist


def decathlon(root: Path, cases=("BRATS_001", "BRATS_002", "BRATS_003"), order=("flair", "t1", "t1ce", "t2")) -> Path:
    for case in cases:
        save(root / "imagesTr" / f"{case}.nii.gz", np.stack([scan(kind) for kind in order], axis=-1))
        save(root / "labelsTr" / f"{case}.nii.gz", np.full(SHAPE, 3, np.uint8))
    return root


@pytest.mark.parametrize("below", [".", "Task01_BrainTumour"])
def test_the_decathlon_s_channels_become_one_file_per_modality(tmp_path, below):
    decathlon(tmp_path / "data" / below)
    prepare_brats(tmp_path / "data", tmp_path / "out" / "datalist.json")
    (case,) = load_datalist(tmp_path / "out" / "datalist.json", "training")
    assert [first_voxel(file) for file in (*case["image"], case["target"])] == [10, 11, 12, 13]
    assert nib.load(case["target"]).shape == SHAPE
    assert Path(case["target"]).parents[1] == tmp_path / "out" / "Task01_BrainTumour_3d"
    assert Path(case["label"]).parent.name == "labelsTr"


def test_the_decathlon_s_own_json_gives_the_order_of_channels(tmp_path):
    root = decathlon(tmp_path / "data", order=("t2", "t1ce", "flair", "t1"))
    (root / "dataset.json").write_text('{"modality": {"0": "T2w", "1": "t1gd", "2": "FLAIR", "3": "T1w"}}')
    prepare_brats(root, tmp_path / "datalist.json")
    (case,) = load_datalist(tmp_path / "datalist.json", "test")
    assert [first_voxel(file) for file in (*case["image"], case["target"])] == [10, 11, 12, 13]


def test_a_decathlon_json_of_another_task_is_refused(tmp_path):
    root = decathlon(tmp_path / "data")
    (root / "dataset.json").write_text('{"modality": {"0": "CT"}}')
    with pytest.raises(ValueError, match=r"dataset.json does not give the modalities"):
        prepare_brats(root, tmp_path / "datalist.json")


def test_an_interrupted_decathlon_run_goes_on_where_it_stopped(tmp_path):
    root = decathlon(tmp_path / "data")
    prepare_brats(root, tmp_path / "datalist.json")
    unpacked = sorted((tmp_path / "Task01_BrainTumour_3d").rglob("*.nii.gz"))
    written = {file: file.stat().st_mtime_ns for file in unpacked}
    lost = tmp_path / "Task01_BrainTumour_3d" / "BRATS_002" / "BRATS_002_t2.nii.gz"
    lost.unlink()
    prepare_brats(root, tmp_path / "datalist.json")
    again = {file for file in unpacked if file.stat().st_mtime_ns != written[file]}
    assert lost in again
    assert {file.parent.name for file in again} == {"BRATS_002"}


def test_bad_decathlon_files_are_skipped_with_the_reason(tmp_path, capsys):
    root = decathlon(tmp_path / "data", cases=[f"BRATS_00{number}" for number in range(1, 6)])
    save(root / "imagesTr" / "BRATS_001.nii.gz", np.stack([scan("t1")] * 3, axis=-1))
    (root / "imagesTr" / "BRATS_002.nii.gz").write_text("not an image")
    save(root / "imagesTs" / "BRATS_485.nii.gz", np.stack([scan("t1")] * 4, axis=-1))
    with pytest.raises(ValueError, match="2 of 5 cases are not in the datalist"):
        prepare_brats(root, tmp_path / "datalist.json")
    assert listed_cases(tmp_path / "datalist.json") == ["BRATS_003", "BRATS_004", "BRATS_005"]
    text = printed(capsys)
    for reason in ("imagesTr/BRATS_002.nii.gz", "(4, 5, 3, 3)", "cannot be read", "no seg file", "3 skipped"):
        assert reason in text
