import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("nilearn", reason="the atlas is inside nilearn, in the extra [demo]")

from tissnet_components.phantom.atlas import Anatomy, Grid
from tissnet_components.phantom.glioma import (
    Compartment,
    Site,
    after_injection,
    diffusion,
    glioma_patient,
    grow_core,
    grow_oedema,
    measure_signal,
    push_aside,
    radius_of,
    vary,
)
from tissnet_components.phantom.physics import TISSUES, Tissue

GRID = Grid(4)
CENTRE = (30, 30, 19)


@pytest.fixture(scope="module")
def patients():
    return [glioma_patient(np.random.default_rng(seed), 4.0) for seed in range(6)]


def median_over_patients(patients, modality, ratio):
    return np.median([ratio(patient[modality].astype(float), patient["seg"]) for patient in patients])


def healthy(image, seg):
    return np.median(image[(image > 0) & (ndimage.binary_dilation(seg > 0, iterations=2) == 0)])


def test_the_five_volumes_lie_on_one_grid_in_the_types_of_brats(patients):
    for patient in patients:
        assert {name: (volume.shape, volume.dtype.name) for name, volume in patient.items()} == {
            "t1": (GRID.shape, "int16"),
            "t1ce": (GRID.shape, "int16"),
            "t2": (GRID.shape, "int16"),
            "flair": (GRID.shape, "int16"),
            "seg": (GRID.shape, "uint8"),
        }


def test_every_modality_is_zero_outside_the_same_brain_which_holds_the_tumor(patients):
    for patient in patients:
        brain = patient["t1"] > 0
        assert all(((patient[modality] > 0) == brain).all() for modality in ("t1ce", "t2", "flair"))
        assert brain[patient["seg"] > 0].all()


def test_labels_are_those_of_brats_and_every_tumor_has_a_core_and_oedema(patients):
    for patient in patients:
        assert set(np.unique(patient["seg"])) <= {0, 1, 2, 4}
        assert (patient["seg"] == 2).any() and np.isin(patient["seg"], (1, 4)).any()


def test_tumors_measure_ten_to_two_hundred_millilitres(patients):
    assert all(10 < (patient["seg"] > 0).sum() * GRID.voxel_ml < 200 for patient in patients)


def test_oedema_is_clearest_in_flair_less_so_in_t2_and_barely_seen_in_t1(patients):
    def clarity(image, seg):
        """Difference between oedema and the rest of the brain, in units of the spread of the latter."""
        rest = image[(image > 0) & (seg == 0)]
        return (np.median(image[seg == 2]) - np.median(rest)) / np.ptp(np.percentile(rest, [5, 95]))

    flair, t2, t1 = (median_over_patients(patients, modality, clarity) for modality in ("flair", "t2", "t1"))
    assert flair > 1.5 * t2 > 0
    assert t2 > 1.5 * abs(t1)


def test_the_rim_brightens_after_the_injection(patients):
    def rim(image, seg):
        return np.median(image[seg == 4]) / healthy(image, seg)

    ringed = [patient for patient in patients if (patient["seg"] == 4).sum() > 20]
    assert len(ringed) >= 2
    before, after = (median_over_patients(ringed, modality, rim) for modality in ("t1", "t1ce"))
    assert after > 1.2 * before


def test_a_seed_is_a_patient():
    first, again, other = (glioma_patient(np.random.default_rng(seed), 6.0) for seed in (3, 3, 4))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["t1"] != other["t1"]).any()


def test_the_same_patient_at_two_spacings_has_the_same_tumor():
    coarse, fine = (glioma_patient(np.random.default_rng(7), spacing)["seg"] > 0 for spacing in (4.0, 2.0))
    volumes = coarse.sum() * Grid(4).voxel_ml, fine.sum() * Grid(2).voxel_ml
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)
    centres = np.array(ndimage.center_of_mass(coarse)) * 4, np.array(ndimage.center_of_mass(fine)) * 2
    np.testing.assert_allclose(*centres, atol=4)


def anatomy_of(white, grey=None, csf=None) -> Anatomy:
    nothing = np.zeros_like(white)
    right = np.broadcast_to(np.float32(98 + 40), (3, *white.shape))  # far from the midline
    grey, csf = (nothing if part is None else part for part in (grey, csf))
    return Anatomy(np.ones(white.shape, bool), grey, white, csf, right, nothing + 50)


def site_at(voxel) -> Site:
    gap = sum((points - v * GRID.spacing) ** 2 for points, v in zip(GRID.points_mm, voxel, strict=True))
    return Site(voxel, np.sqrt(gap))


def test_a_ball_of_four_thirds_pi_litres_has_a_radius_of_a_decimetre():
    assert radius_of(4 / 3 * np.pi * 1000) == pytest.approx(100)


def test_the_core_has_the_volume_asked_for_around_its_site():
    anatomy = anatomy_of(np.ones(GRID.shape, np.float32))
    depth = grow_core(np.random.default_rng(0), GRID, anatomy, site_at(CENTRE), volume_ml=40)
    assert (depth > 0).sum() * GRID.voxel_ml == pytest.approx(40, abs=0.2)
    assert depth[CENTRE] > 0


def test_oedema_follows_a_tract_of_white_matter_and_stops_at_csf():
    white, csf = np.zeros((2, *GRID.shape), np.float32)
    white[28:33, :36, 17:22] = 1  # 20 x 20 mm across, dammed by CSF at y = 36
    csf[28:33, 36:, 17:22] = 1
    core = (site_at(CENTRE).distance_mm < 9).astype(np.float32)  # y from 28 to 32
    oedema = grow_oedema(np.random.default_rng(0), GRID, anatomy_of(white, csf=csf), core, volume_ml=28) > 0.5
    x, y, z = (np.flatnonzero(oedema.any(axis)) for axis in ((1, 2), (0, 2), (0, 1)))
    assert len(y) >= 12  # 28 ml would fill 70 mm of the tract
    assert 34 <= y.max() <= 36  # resampling may blur the dam by one voxel, and the walls as well
    assert x.min() >= 27 and x.max() <= 33 and z.min() >= 16 and z.max() <= 22


def test_core_and_oedema_together_fill_the_volume_asked_for():
    core = (site_at(CENTRE).distance_mm < 16).astype(np.float32)
    oedema = grow_oedema(np.random.default_rng(0), GRID, anatomy_of(np.ones(GRID.shape, np.float32)), core, 100)
    assert (oedema > 0.5).sum() * GRID.voxel_ml == pytest.approx(100, rel=0.1)


def test_diffusion_moves_but_neither_makes_nor_loses():
    u = np.zeros((3, 1, 1))
    u[1] = 6
    conductivity = np.array([1.0, 1.0, 0.0]).reshape(3, 1, 1)
    np.testing.assert_allclose(diffusion(u, conductivity).ravel(), [6, -6, 0], atol=1e-6)


def test_mass_effect_shows_at_each_place_what_lay_nearer_to_the_centre():
    position = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in GRID.shape), indexing="ij"))
    pushed = push_aside(position, site_at(CENTRE), radius_mm=20, strength=0.3)
    assert pushed[0, 34, 30, 19] == pytest.approx(34 - 4 * 0.3 * np.exp(-((16 / 20) ** 2)), abs=1e-3)
    np.testing.assert_array_equal(pushed[(slice(None), *CENTRE)], CENTRE)
    assert (np.diff(pushed[0, :, 30, 19]) > 0).all()  # no folding


def test_a_voxel_of_two_tissues_shows_their_weighted_sum_and_moving_blood_is_dark():
    half = np.full(1, 0.5, np.float32)
    parts = [Compartment(half, Tissue(1, 1, 1), 0), Compartment(half, Tissue(0.4, 1, 1), 0)]
    assert measure_signal(parts, lambda tissue: tissue.pd, flow_void=0) == pytest.approx(0.7)
    assert measure_signal(parts, lambda tissue: tissue.pd, flow_void=1) == pytest.approx(0.5)


def test_the_injection_shortens_t1_only_where_the_agent_is():
    parts = [Compartment(np.ones(1), Tissue(1, 1000, 100), agent) for agent in (0, 1)]
    assert [part.tissue.t1_ms for part in after_injection(parts)] == pytest.approx([1000, 200])  # 1 + 4 x 1 per second


def test_patients_differ_in_their_relaxation_times_by_some_percent():
    varied = vary(np.random.default_rng(0))
    assert varied.keys() == TISSUES.keys()
    ratios = [varied[name].t1_ms / TISSUES[name].t1_ms for name in TISSUES]
    assert 0.01 < np.std(ratios) < 0.15
