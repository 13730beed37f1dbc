import numpy as np
import pytest

pytest.importorskip("nilearn", reason="the atlas is inside nilearn, in the extra [demo]")

from tissnet_components.phantom.skull_base import (
    CANAL,
    COCHLEA,
    LABEL,
    STRUCTURES,
    Canvas,
    Grid,
    atlas_frame,
    posterior_wall,
    skull_base,
)
from tissnet_components.phantom.solids import Ellipsoid

GRID = Grid((136, 80, 40), (0.82, 0.82, 1.5))


def points(*places) -> np.ndarray:
    return np.float32(places).T.reshape(3, -1, 1, 1)


@pytest.fixture(scope="module")
def anatomy():
    rng = np.random.default_rng(4)
    position = atlas_frame(rng, GRID, (0, -20, -38), GRID.centre_mm)
    return skull_base(rng, GRID, position, position)


def tissue_at(anatomy, place) -> str:
    gap = sum((anatomy.position[axis] - place[axis]) ** 2 for axis in range(3))
    return STRUCTURES[anatomy.labels[np.unravel_index(gap.argmin(), gap.shape)]]


def tissues_within(anatomy, place, radius_mm) -> set[str]:
    gap = sum((anatomy.position[axis] - place[axis]) ** 2 for axis in range(3))
    return {STRUCTURES[label] for label in np.unique(anatomy.labels[gap < radius_mm**2])}


def test_a_solid_is_painted_where_it_is_and_only_over_what_is_allowed():
    position = np.stack(np.meshgrid(*(np.arange(40, dtype=np.float32) for _ in range(3)), indexing="ij"))
    canvas = Canvas(position)
    canvas.labels[:20] = LABEL["bone"]
    ball = Ellipsoid((20, 20, 20), (6, 6, 6))
    canvas.paint("csf", ball, over=("bone",))
    inside = ball.depth(position) > 0
    expected = np.where(position[0] < 20, LABEL["bone"], LABEL["muscle"])
    expected[inside & (position[0] < 20)] = LABEL["csf"]
    np.testing.assert_array_equal(canvas.labels, expected)


def test_a_solid_outside_the_field_of_view_paints_nothing():
    canvas = Canvas(np.zeros((3, 16, 16, 4), np.float32))
    canvas.paint("csf", Ellipsoid((90, 0, 0), (5, 5, 5)))
    assert (canvas.labels == LABEL["muscle"]).all()


def test_x_runs_to_the_left_y_to_the_back_and_z_up(anatomy):
    steps = [np.diff(anatomy.position[axis], axis=axis).mean() for axis in range(3)]
    assert steps[0] < -0.7 and steps[1] < -0.7 and steps[2] > 1.3  # the atlas runs right, anterior, superior


def test_the_target_comes_to_lie_where_it_was_asked_for():
    position = atlas_frame(np.random.default_rng(0), GRID, (20, -23, -37), (40, 30, 20))
    at = tuple(int(mm / size) for mm, size in zip((40, 30, 20), GRID.spacing_mm, strict=True))
    assert np.linalg.norm(position[(slice(None), *at)] - [20, -23, -37]) < 12  # the random fields move it by some mm


def test_every_healthy_tissue_is_there_on_both_sides(anatomy):
    for side in (1, -1):
        half = anatomy.labels[anatomy.position[0] * side > 5]
        assert {STRUCTURES[label] for label in np.unique(half)} == set(STRUCTURES) - {"tumor"}


def test_the_landmarks_are_where_anatomy_has_them(anatomy):
    assert tissue_at(anatomy, (0, -25, -33)) == "brain"  # pons
    assert tissue_at(anatomy, (0, -10, -34)) in ("csf", "artery", "nerve")  # prepontine cistern, basilar artery
    assert tissue_at(anatomy, (0, 0, -40)) in ("marrow", "bone")  # clivus
    assert tissue_at(anatomy, (4, 16, -36)) == "air"  # sphenoid sinus
    assert tissue_at(anatomy, (40, 5, -28)) == "brain"  # temporal lobe


@pytest.mark.parametrize("side", [1, -1], ids=["right", "left"])
def test_a_canal_with_csf_and_nerves_and_a_labyrinth_lie_in_the_petrous_bone(anatomy, side):
    canal = tissues_within(anatomy, np.multiply(CANAL.path[1], [side, 1, 1]), 3)
    assert {"csf", "nerve"} <= canal
    cochlea = tissues_within(anatomy, np.multiply(COCHLEA, [side, 1, 1]), 5)
    assert {"labyrinth", "bone"} <= cochlea


def test_the_bone_behind_which_the_posterior_fossa_lies_runs_backwards_to_both_sides():
    wall = posterior_wall(points((0, -6, -38), (38, -35, -38), (-38, -35, -38), (0, -20, -38)))
    np.testing.assert_allclose(wall.ravel(), [0, 0, 0, -14], atol=1e-5)


def test_fractions_of_white_matter_and_fluid_are_fractions(anatomy):
    brain = anatomy.labels == LABEL["brain"]
    for fraction in (anatomy.white[brain], anatomy.fluid[brain], (anatomy.white + anatomy.fluid)[brain]):
        assert fraction.min() >= 0 and fraction.max() <= 1.0001
    assert anatomy.white[brain].std() > 0.1 and 0 < anatomy.fluid[brain].mean() < 0.2


def test_speckle_has_unit_variance_and_is_finer_than_a_smooth_field():
    rng = np.random.default_rng(0)
    fine, coarse = GRID.speckle(rng, 0.8), GRID.smooth_field(rng, 12)
    assert fine.std() == pytest.approx(1, abs=1e-3)
    rough, smooth = (np.abs(np.diff(field, axis=0)).mean() for field in (fine, coarse))
    assert rough > 5 * smooth
