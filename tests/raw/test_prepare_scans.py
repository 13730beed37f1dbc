import nibabel as nib
import numpy as np
import pytest
from dicom_files import save_all, slices_of
from raw.heads import PARTS, head, inside, rigid
from tissnet_components.errors import BadCase
from tissnet_components.raw import atlas
from tissnet_components.raw import prepare_scans as room
from tissnet_components.raw import scans as steps
from tissnet_components.raw.patients import RawPatients, table_of
from tissnet_components.raw.prepare_scans import prepare_scans, to_common
from tissnet_components.raw.scans import RawScan, to_native
from tissnet_components.scans.choice import choose_series
from tissnet_components.scans.nifti import check_readable

REAL_ATLAS = atlas.atlas_brain
LESION = 4
LESION_ML = 4 / 3 * np.pi * np.prod(PARTS[LESION][1]) / 1000
POSES = {"t1": rigid((5, 0, 15), (10, 0, 5)), "t1ce": rigid((-8, 6, 0)), "t2": rigid((0, 12, -10), (0, -12, 8))}
GRIDS = {"t1": (4, 4, 4), "t1ce": (3, 3, 6), "t2": (6, 3, 3)}


@pytest.fixture(autouse=True)
def coarse_common_space(monkeypatch):
    """Of 4 mm, with the model's brain as atlas."""
    brain = head("t1", rigid(shift_mm=(0, 0, -35)), stripped=True)
    monkeypatch.setattr(room, "COMMON_SHAPE", (60, 60, 40))
    monkeypatch.setattr(
        room, "common_affine", lambda: np.array([[-4, 0, 0, 118], [0, -4, 0, 118], [0, 0, 4, -78], [0, 0, 0, 1.0]])
    )
    monkeypatch.setattr(atlas, "atlas_brain", lambda: brain)


def written(folder, contrast, pose, spacing=(4, 4, 4)):
    file = folder / f"{contrast}.nii.gz"
    nib.save(head(contrast, pose, spacing, stripped=True), file)
    return file


def as_dicom(folder, contrast, pose, spacing):
    volume = head(contrast, pose, spacing, stripped=True)
    positive = nib.Nifti1Image(np.clip(np.asarray(volume.dataobj), 0, None), volume.affine)
    save_all(slices_of(positive, description="head"), folder)
    return choose_series(folder, contrast)


def test_turned_scans_are_brought_together_and_the_mask_back_to_each(tmp_path, monkeypatch):
    from_t1ce = np.linalg.inv(POSES["t1ce"])
    found = iter([POSES["t1"] @ from_t1ce, POSES["t2"] @ from_t1ce, POSES["t1"] @ rigid(shift_mm=(0, 0, 35))])
    monkeypatch.setattr(steps, "register", lambda fixed, moving: next(found))
    scans = {name: written(tmp_path, name, POSES[name], GRIDS[name]) for name in ("t1", "t2")}
    scans["t1ce"] = as_dicom(tmp_path / "study", "t1ce", POSES["t1ce"], GRIDS["t1ce"])
    lines = []
    prepared = prepare_scans("anna", scans, tmp_path / "prepared", lines.append)
    assert prepared.reference == "t1ce"
    assert [line.split()[1] for line in lines] == ["registering", "looking", "registering", "resampling"]
    t1ce = check_readable(prepared.files["t1ce"])
    mask = nib.Nifti1Image((np.asarray(t1ce.dataobj) > 80).astype(np.uint8), t1ce.affine)
    for scan in prepared.scans:
        native = to_native(mask, scan) > 0
        expected = inside(LESION, POSES[scan.contrast], scan.grid[1], scan.grid[0])
        assert 2 * (native & expected).sum() / (native.sum() + expected.sum()) > 0.85
        assert native.sum() * np.prod(GRIDS[scan.contrast]) / 1000 == pytest.approx(LESION_ML, rel=0.15)
    rows = table_of(prepared)[1:]
    assert "only one there" in rows[-1]
    assert len({row.index("100%") for row in rows}) == 1


def test_a_scan_of_half_the_brain_fails_with_its_share(tmp_path, monkeypatch):
    found = iter([np.eye(4), rigid(shift_mm=(0, 0, 35))])
    monkeypatch.setattr(steps, "register", lambda fixed, moving: next(found))
    whole = written(tmp_path, "t1", np.eye(4))
    half = head("t2", np.eye(4), stripped=True)
    nib.save(half.slicer[:, :, 34:], tmp_path / "half.nii.gz")
    patients = RawPatients(prepare_scans, ["t1", "t2"], str(tmp_path / "results"))
    with pytest.raises(BadCase, match=r"half\.nii\.gz shows .*% of the brain, expected 95% or more"):
        patients({"case": "anna", "image": [str(whole), str(tmp_path / "half.nii.gz")]})
    assert not list((tmp_path / "results").rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("measures", "covered", "fit", "message"),
    [
        ({"brain_ml": 700.0, "atlas": 0.9}, 1, 3, "700 ml, expected 900 to 2000 ml"),
        ({"brain_ml": 1400.0, "atlas": 0.5}, 1, 3, "Dice of 0.50 with the atlas's, expected 0.8"),
        ({"brain_ml": 1400.0, "atlas": 0.9}, 1, 1.7, "B_t2.nii.gz tells 1.7 times as much"),
    ],
    ids=["small", "elsewhere", "strange"],
)
def test_the_measure_that_fails_is_named(measures, covered, fit, message):
    found = {"covered": covered, "fit": fit}
    scan = RawScan("t2", ((9, 9, 9), np.eye(4)), "B_t2.nii.gz", "given", np.eye(4), found)
    with pytest.raises(BadCase, match=message):
        room._check("anna", [scan], measures)


def test_the_rim_of_a_stripped_brain_is_as_bright_as_its_inside():
    brain = np.zeros((30, 30, 20), np.float32)
    brain[8:22, 8:22, 6:14] = 100
    affine = np.array([[8, 0, 0, -119], [0, 8, 0, -119], [0, 0, 8, -79], [0, 0, 0, 1.0]])
    common = np.asarray(to_common(nib.Nifti1Image(brain, affine), rigid((7, 5, 3), (1, 2, 3))).dataobj)
    np.testing.assert_allclose(np.unique(common.round(2)), [0, 100])
    assert (common > 0).sum() * 64 == pytest.approx((brain > 0).sum() * 512, rel=0.1)


def test_the_front_of_the_atlas_lies_as_high_as_that_of_brats_brains():
    to_front = REAL_ATLAS().affine[:3, 1]
    assert np.degrees(np.arctan2(to_front[2], to_front[1])) == pytest.approx(14, abs=3)  # 16 patients, SD 2 degrees
    assert to_front[0] == pytest.approx(0, abs=1e-9)


def test_labels_stay_apart_on_the_way_back():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:10, 5:15, 5:15], labels[10:15, 5:15, 5:15] = 1, 4
    scan = RawScan("t2", ((40, 40, 40), np.diag([0.5, 0.5, 0.5, 1])), "", "", np.eye(4), {})
    native = to_native(nib.Nifti1Image(labels, np.eye(4)), scan)
    assert set(np.unique(native)) == {0, 1, 4}
    assert (native > 0).sum() / 8 == pytest.approx((labels > 0).sum(), rel=0.15)
