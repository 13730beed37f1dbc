import numpy as np
import pytest

pytest.importorskip("nilearn", reason="the atlas is inside nilearn, in the extra [demo]")

from tissnet_components.phantom.atlas import ATLAS_ORIGIN, Grid, anatomy_at, brain_mask, deformed_positions, load_atlas


@pytest.mark.parametrize(
    ("spacing", "shape"), [(1, (240, 240, 155)), (2, (120, 120, 78)), (2.5, (96, 96, 62)), (4, (60, 60, 39))]
)
def test_the_grid_fills_the_field_of_view_of_brats_rounding_up(spacing, shape):
    assert Grid(spacing).shape == shape


def test_a_smooth_field_is_the_same_field_on_a_coarse_and_on_a_fine_grid():
    coarse, fine = (Grid(spacing).smooth_field(np.random.default_rng(1), 20) for spacing in (4, 2))
    np.testing.assert_allclose(coarse, fine[::2, ::2, ::2], atol=1e-5)


def test_a_smooth_field_has_zero_mean_and_unit_variance():
    field = Grid(4).smooth_field(np.random.default_rng(2), 8)
    assert field.mean() == pytest.approx(0, abs=0.1)  # four standard deviations of the mean of its 16000 coefficients
    assert field.std() == pytest.approx(1, abs=0.05)


def test_a_longer_length_makes_a_smoother_field():
    fields = (Grid(4).smooth_field(np.random.default_rng(3), length_mm) for length_mm in (8, 40))
    rough, smooth = (np.abs(np.diff(field, axis=0)).mean() for field in fields)
    assert smooth < rough / 3


@pytest.fixture(scope="module")
def anatomy():
    grid = Grid(4)
    position = deformed_positions(np.random.default_rng(5), grid)
    return anatomy_at(position, brain_mask(position), grid, atrophy=1.5)


def test_the_fractions_fill_the_brain_and_nothing_else(anatomy):
    total = anatomy.grey + anatomy.white + anatomy.csf
    np.testing.assert_allclose(total, anatomy.brain, atol=1e-5)


def test_a_brain_has_the_volume_of_a_brain(anatomy):
    assert 1000 < anatomy.brain.sum() * Grid(4).voxel_ml < 2000


def test_x_runs_to_the_left_y_to_the_back_and_z_up(anatomy):
    def steps(atlas_axis, axis):
        return np.diff(anatomy.atlas_position[atlas_axis], axis=axis).mean()

    assert steps(0, 0) < -3 and steps(1, 1) < -3 and steps(2, 2) > 3  # the atlas runs right, anterior, superior


def test_ventricles_are_deep_csf_near_the_midline(anatomy):
    ventricles = anatomy.ventricles > 0.5
    assert 3 < ventricles.sum() * Grid(4).voxel_ml < 120
    assert np.abs(anatomy.right_mm[ventricles]).max() < 50


def test_more_atrophy_means_more_csf():
    grid = Grid(6)
    position = deformed_positions(np.random.default_rng(5), grid)
    brain = brain_mask(position)
    young, old = (anatomy_at(position, brain, grid, atrophy).csf.sum() for atrophy in (1, 2))
    assert old > 1.3 * young


def test_the_atlas_has_white_matter_beside_and_no_brain_beyond_the_commissure():
    atlas = load_atlas()
    x, y, z = ATLAS_ORIGIN
    assert atlas.white[x - 24, y, z + 24] > 0.8 and atlas.white[x + 24, y, z + 24] > 0.8
    assert not atlas.brain[0].any()
