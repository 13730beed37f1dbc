import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from raw.heads import head, rigid
from tissnet_components.raw.register import moved, register, write_transform

POINTS_MM = np.array([[60, 0, 0], [-60, 0, 0], [0, 80, 0], [0, -80, 0], [0, 0, 60], [0, 0, -60.0]])


def test_a_head_that_turned_between_two_contrasts_is_found_within_a_millimetre():
    pose = rigid((15, -12, 18), (20, -30, 25))
    fixed, moving = head("t1", np.eye(4), (6, 6, 6)), head("t2", pose, (4, 4, 6))
    found = apply_affine(register(fixed, moving), POINTS_MM)
    assert np.linalg.norm(found - apply_affine(pose, POINTS_MM), axis=1).mean() < 1


def test_moving_a_volume_brings_what_was_found_to_where_it_was_looked_for():
    transform = rigid((10, 0, 0), (5, 6, 7))
    there = nib.Nifti1Image(np.zeros((2, 2, 2)), transform)
    np.testing.assert_allclose(moved(there, transform).affine, np.eye(4), atol=1e-12)


def test_other_programs_read_a_transform_in_their_own_axes(tmp_path):
    transform = rigid((10, 20, -5), (5, 6, 7))
    write_transform(transform, tmp_path / "t2.tfm")
    read = sitk.ReadTransform(str(tmp_path / "t2.tfm"))
    left, posterior, superior = read.TransformPoint([-10.0, -20.0, 30.0])
    np.testing.assert_allclose([-left, -posterior, superior], apply_affine(transform, [10, 20, 30]), atol=1e-6)
