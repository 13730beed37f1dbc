import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from raw.heads import head, rigid
from tissnet_components.errors import BadCase
from tissnet_components.raw import atlas
from tissnet_components.raw import scans as steps
from tissnet_components.raw.canals import CENTRE_MM, SHAPE, SPACING_MM, crop_grid, prepare_canals
from tissnet_components.raw.scans import to_native
from tissnet_components.scans.nifti import check_readable

CENTRE = apply_affine(atlas.from_atlas(), CENTRE_MM)  # between the canals, in the common space
UP = rigid(shift_mm=(0, 0, 35))  # from the atlas's brain to that of the model head
TURNED = rigid((10, 5, -20), (8, -12, 15))


@pytest.fixture(autouse=True)
def model_as_atlas(monkeypatch):
    brain = head("t1", rigid(shift_mm=(0, 0, -35)), stripped=True)
    monkeypatch.setattr(atlas, "atlas_brain", lambda: brain)


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Prepares a T2 of the model head, of which it is known where it lies."""

    brain = head("t1", TURNED, stripped=True)

    def prepare(volume, pose):
        monkeypatch.setattr(steps, "register", lambda fixed, moving: pose @ UP)
        monkeypatch.setattr(steps, "brain_mask_of", lambda volume, contrast: resample_from_to(brain, volume, order=0))
        nib.save(volume, tmp_path / "anna_t2.nii.gz")
        return prepare_canals("anna", {"t2": tmp_path / "anna_t2.nii.gz"}, tmp_path / "prepared", lambda line: None)

    return prepare


def spot_in(volume: nib.Nifti1Image, place) -> tuple[int, ...]:
    """The voxel of the turned head in which a place of the common space lies."""
    return tuple(np.rint(apply_affine(np.linalg.inv(volume.affine) @ TURNED @ UP, place)).astype(int))


def marked() -> nib.Nifti1Image:
    """The turned head in cubes of 4 mm, bright at one spot between the canals and at one in the neck."""
    volume = head("t2", TURNED)
    array = np.asarray(volume.dataobj)
    for place in (CENTRE, CENTRE - (0, 0, 60)):
        array[spot_in(volume, place)] = 1000
    return nib.Nifti1Image(array, volume.affine)


@pytest.mark.parametrize("axes", ["RAS", "PIR"], ids=["axial", "sagittal"])
def test_a_head_is_cropped_to_the_canals_and_a_mask_goes_back_to_its_own_grid(prepare, axes):
    axial = marked()
    way = nib.orientations.ornt_transform(nib.io_orientation(axial.affine), nib.orientations.axcodes2ornt(tuple(axes)))
    volume = axial.as_reoriented(way)
    prepared = prepare(volume, TURNED)
    crop = check_readable(prepared.files["t2"])
    assert crop.shape == SHAPE
    bright = np.asarray(crop.dataobj) > 300
    np.testing.assert_allclose(np.argwhere(bright).mean(0) * SPACING_MM, np.array(SHAPE) * SPACING_MM / 2, atol=3)
    native = to_native(nib.Nifti1Image(bright.astype(np.uint8), crop.affine), prepared.scans[0])
    assert [tuple(voxel) for voxel in np.argwhere(native)] == [spot_in(volume, CENTRE)]


def test_a_scan_that_is_as_narrow_as_a_crop_stays_as_it_is(prepare):
    narrow = marked().slicer[10:38, 10:34, 20:34]
    crop = check_readable(prepare(narrow, TURNED).files["t2"])
    np.testing.assert_allclose(np.asarray(crop.dataobj), np.asarray(narrow.dataobj), rtol=1e-6)
    np.testing.assert_allclose(crop.affine, narrow.affine)


def test_a_crop_ends_where_the_scan_does(prepare):
    volume = marked()
    upper = volume.slicer[:, :, spot_in(volume, CENTRE)[2] - 5 :]
    crop = check_readable(prepare(upper, TURNED).files["t2"])
    to_scan = np.linalg.inv(upper.affine) @ TURNED @ UP
    assert apply_affine(to_scan @ crop_grid()[1], (70, 42, 0))[2] < -1
    assert apply_affine(to_scan @ crop.affine, (70, 42, 0))[2] == pytest.approx(0, abs=1)


def test_a_scan_without_the_canals_is_refused_with_what_it_shows(prepare):
    volume = marked()
    with pytest.raises(BadCase, match=r"anna_t2\.nii\.gz shows 0% of the auditory canals, expected 95% or more"):
        prepare(volume.slicer[:, :, spot_in(volume, CENTRE)[2] + 10 :], TURNED)


def test_a_brain_that_lies_elsewhere_than_the_atlas_is_refused(prepare):
    with pytest.raises(BadCase, match=r"anna: .* has a Dice of 0\.\d\d with the atlas's, expected 0.8"):
        prepare(marked(), rigid((10, 5, -20), (8, -12, 75)))
