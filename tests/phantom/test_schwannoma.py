import json

import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("nilearn", reason="the atlas is inside nilearn, in the extra [demo]")

from tissnet_components.phantom import schwannoma as module
from tissnet_components.phantom.physics import TISSUES_1_5T
from tissnet_components.phantom.schwannoma import (
    AGENT_MMOL_L,
    Schwannoma,
    band_limited,
    compose_tumor,
    grow_tumor,
    place_contours,
    pulsation,
    scan,
    signal,
    t1_weighted,
    t2_weighted,
    tumor_contours,
    varied_grid,
    vary_contrast,
    vestibular_patient,
    volume_ml,
    with_tumor,
)
from tissnet_components.phantom.skull_base import LABEL, STRUCTURES, Anatomy, Grid

GRID = Grid((136, 80, 40), (0.82, 0.82, 1.5))
BLOCK = Grid((24, 24, 12), (1.0, 1.0, 1.5))
WEDGE = [  # a prism 9 mm high whose section points to the left, area 10 x 8 / 2 = 40 mm2: 0.36 ml
    np.array([[15.0, -4, z], [15, 4, z], [25, 0, z]]) for z in np.arange(6) * 1.5
]


@pytest.fixture(scope="module")
def patients():
    return [vestibular_patient(np.random.default_rng(seed), grid=GRID) for seed in range(4)]


@pytest.fixture
def position():
    """Atlas coordinates of `GRID` without any deformation, the skull base in its middle."""
    axes = [centre - mm for centre, mm in zip(GRID.centre_mm, GRID.points_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.float32([x, y - 22, -z - 37])


def brain_beside(image, seg):
    """Median between 2 and 6 mm from the tumor: mostly brain and CSF."""
    gap = ndimage.distance_transform_edt(seg == 0, sampling=GRID.spacing_mm)
    return np.median(image[(gap > 2) & (gap < 6)])


def test_the_three_volumes_lie_on_one_grid(patients):
    for patient in patients:
        assert {name: (volume.shape, volume.dtype.name) for name, volume in patient.items()} == {
            "t2": (GRID.shape, "int16"),
            "t1ce": (GRID.shape, "int16"),
            "seg": (GRID.shape, "uint8"),
        }
        assert set(np.unique(patient["seg"])) == {0, 1}


def test_tumors_measure_a_tenth_to_twenty_millilitres(patients):
    assert all(0.09 < patient["seg"].sum() * GRID.voxel_ml < 20.1 for patient in patients)


def test_volumes_are_spread_as_in_the_collection():
    volumes = [volume_ml(np.random.default_rng(seed)) for seed in range(500)]
    assert np.median(volumes) == pytest.approx(1.4, rel=0.2)
    assert min(volumes) >= 0.1 and max(volumes) <= 20


def test_the_tumor_is_brighter_than_its_surroundings_in_contrast_enhanced_t1(patients):
    ratios = [np.median(p["t1ce"][p["seg"] > 0]) / brain_beside(p["t1ce"], p["seg"]) for p in patients]
    assert np.median(ratios) > 1.3


def test_the_brightest_of_t2_is_dark_in_contrast_enhanced_t1(patients):
    """CSF: near the tumor, where neither fat nor marrow is."""
    for patient in patients:
        gap = ndimage.distance_transform_edt(patient["seg"] == 0, sampling=GRID.spacing_mm)
        near = (gap > 1) & (gap < 8)
        brightest = near & (patient["t2"] > np.quantile(patient["t2"][near], 0.9))
        assert np.median(patient["t1ce"][brightest]) < 0.8 * np.median(patient["t1ce"][patient["seg"] > 0])


def test_a_seed_is_a_patient(patients):
    again = vestibular_patient(np.random.default_rng(0), grid=GRID)
    assert all((again[name] == patients[0][name]).all() for name in again)
    assert (patients[0]["t2"] != patients[1]["t2"]).any()


def test_tumors_occur_on_the_left_and_on_the_right(monkeypatch):
    class Stop(Exception):
        pass

    def noted(rng, grid, position, side, volume):
        sides.append(side)
        raise Stop

    sides = []
    monkeypatch.setattr(module, "grow_tumor", noted)
    for seed in range(16):
        with pytest.raises(Stop):
            vestibular_patient(np.random.default_rng(seed), grid=BLOCK)
    assert 3 <= sides.count(1) <= 13 and set(sides) == {-1, 1}


@pytest.mark.parametrize("volume", [0.1, 1.0, 8.0])
def test_a_tumor_has_the_volume_asked_for_in_one_piece_and_reaches_into_the_canal(position, volume):
    mask = grow_tumor(np.random.default_rng(0), GRID, position, 1, volume)
    assert mask.sum() * GRID.voxel_ml == pytest.approx(volume, abs=GRID.voxel_ml)
    pieces, _ = ndimage.label(mask)
    assert np.bincount(pieces[mask]).max() > 0.97 * mask.sum()
    assert position[0][mask].max() > 18  # the canal opens 17 mm to the right of the midline


@pytest.mark.parametrize("side", [1, -1], ids=["right", "left"])
def test_real_contours_keep_volume_and_shape_on_either_side(position, side):
    mask = place_contours(np.random.default_rng(0), GRID, position, side, WEDGE)
    assert mask.sum() * GRID.voxel_ml == pytest.approx(0.36, rel=0.03)
    assert np.ptp(np.flatnonzero(mask.any((0, 1)))) + 1 in (6, 7)  # six planes, wherever they lie between the slices
    outwards = side * position[0][mask]
    inner, outer = (mask[side * position[0] == end].sum() for end in (outwards.min(), outwards.max()))
    assert outwards.min() > 0 and inner > 3 * outer  # the point of the wedge is lateral, as it was
    assert 20 < outwards.max() < 30


def test_contours_stay_within_the_field_of_view(position):
    beside = position + np.float32([60, 0, 0]).reshape(3, 1, 1, 1)  # the right canal lies outside of it
    mask = place_contours(np.random.default_rng(0), GRID, beside, 1, WEDGE)
    assert mask.sum() * GRID.voxel_ml == pytest.approx(0.36, rel=0.03)


@pytest.mark.parametrize("name", ["sub-001_contours_space-individual_T2w.json", "vs_gk_1_t2/contours.json"])
def test_contours_are_read_from_a_download_and_unclear_ones_left_out(tmp_path, name):
    content = [{"structure_name": "TV", "LPS_contour_points": [loop.tolist() for loop in WEDGE]}]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "sub-002_contours_space-individual_T2w.json").write_text("not JSON")
    (contours,) = tumor_contours(tmp_path)
    np.testing.assert_array_equal(contours, WEDGE)


def test_a_folder_without_contours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no contours of a tumor; expected the contours of"):
        tumor_contours(tmp_path)


def flat_anatomy(labels) -> Anatomy:
    nothing = np.zeros(labels.shape, np.float32)
    return Anatomy(np.zeros((3, *labels.shape), np.float32), labels.astype(np.uint8), nothing, nothing)


def test_a_tumor_replaces_what_was_there_and_its_cleft_replaces_brain_only():
    labels = np.full(BLOCK.shape, LABEL["brain"])
    labels[:, :12] = LABEL["bone"]
    mask = np.zeros(BLOCK.shape, bool)
    mask[8:16, 8:16, 3:9] = True
    clefts = np.zeros(BLOCK.shape, bool)
    for seed in range(6):
        after = with_tumor(np.random.default_rng(seed), BLOCK, flat_anatomy(labels), mask).labels
        assert (after[mask] == LABEL["tumor"]).all()
        assert set(np.unique(after[:, :12][~mask[:, :12]])) == {LABEL["bone"]}
        clefts |= after == LABEL["csf"]
    assert 1 <= ndimage.distance_transform_edt(~mask, sampling=BLOCK.spacing_mm)[clefts].max() < 4


def test_cysts_are_full_of_fluid_and_take_up_less_agent():
    for seed in range(8):
        tumor = compose_tumor(np.random.default_rng(seed), BLOCK, np.ones(BLOCK.shape, bool))
        assert tumor.cystic.min() >= 0 and tumor.cystic.max() < 1 and tumor.agent.min() >= 0
        cysts = tumor.cystic > 0.94
        if cysts.sum() > 20:
            assert tumor.agent[cysts].mean() < 0.5 * tumor.agent[~cysts].mean()


@pytest.fixture
def row():
    """One voxel of each tissue, and the function that measures their signals by name."""
    anatomy = flat_anatomy(np.arange(len(STRUCTURES)).reshape(-1, 1, 1))
    tumor = Schwannoma(anatomy.labels == LABEL["tumor"], np.array([0.2]), np.array([0.4]))
    agents = {name: (low + high) / 2 for name, (low, high) in AGENT_MMOL_L.items()}

    def measured(sequence, flow):
        values = signal(anatomy, tumor, TISSUES_1_5T, agents, sequence, np.zeros(anatomy.labels.shape), flow)
        return dict(zip(STRUCTURES, values.ravel(), strict=True))

    return measured


@pytest.mark.parametrize("seed", range(8))
def test_t2_shows_bright_fluid_a_grey_tumor_darker_brain_and_black_bone_and_arteries(row, seed):
    t2 = row(t2_weighted(np.random.default_rng(seed))[0], {"artery": 0.1})
    assert t2["csf"] > t2["tumor"] > t2["brain"] > t2["muscle"] > t2["bone"]
    assert t2["labyrinth"] == pytest.approx(t2["csf"]) and t2["artery"] < t2["brain"] and t2["air"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_contrast_enhanced_t1_shows_tumor_vessels_mucosa_and_dura_above_brain_above_fluid(row, seed):
    t1 = row(t1_weighted(np.random.default_rng(seed)), {})
    assert all(t1[name] > t1["brain"] for name in ("tumor", "artery", "vein", "mucosa"))
    assert t1["dura"] > t1["csf"] and t1["brain"] > 1.3 * t1["csf"] and t1["bone"] < t1["csf"]


def test_a_varied_tumor_is_darker_than_brain_or_nearly_as_bright_as_fluid_or_anything_between():
    labels = np.repeat(np.arange(len(STRUCTURES)), 4).reshape(-1, 4, 1)
    anatomy = flat_anatomy(labels)
    tumor = Schwannoma(labels == LABEL["tumor"], np.zeros(4), np.full(4, 0.4))
    seen = {"over brain": [], "over fluid": [], "marrow": [], "mucosa": [], "fat": []}
    for seed in range(200):
        t2 = vary_contrast(np.random.default_rng(seed), np.float32(labels + 5.0), anatomy, tumor)
        value = dict(zip(STRUCTURES, t2.mean((1, 2)), strict=True))
        seen["over brain"].append(value["tumor"] / value["brain"])
        for name, tissue in (("over fluid", "tumor"), ("marrow", "marrow"), ("mucosa", "mucosa"), ("fat", "fat")):
            seen[name].append(value[tissue] / value["csf"])
        assert value["labyrinth"] == pytest.approx(value["csf"]) and value["csf"] > value["brain"]
    assert min(seen["over brain"]) < 0.85 and max(seen["over brain"]) > 4 and 0.75 < max(seen["over fluid"]) < 1.1
    assert all(min(seen[name]) < 0.15 and max(seen[name]) > 1 for name in ("marrow", "mucosa", "fat"))


def test_cysts_of_a_varied_tumor_stay_brighter_than_its_solid_part():
    labels = np.where(
        np.arange(400) < 200, LABEL["tumor"], np.where(np.arange(400) < 300, LABEL["csf"], LABEL["brain"])
    )
    t2 = np.float32(np.where(labels == LABEL["brain"], 0.2, 1)).reshape(-1, 1, 1)
    t2[:150] = 0.4
    tumor = Schwannoma(np.arange(400).reshape(-1, 1, 1) < 200, np.where(np.arange(200) < 150, 0, 0.95), np.zeros(200))
    for seed in range(20):
        varied = vary_contrast(np.random.default_rng(seed), t2, flat_anatomy(labels.reshape(-1, 1, 1)), tumor)
        assert varied[150:200].mean() > varied[:150].mean()


def test_varied_grids_reach_from_close_crops_to_whole_heads():
    grids = [varied_grid(np.random.default_rng(seed)) for seed in range(100)]
    extents = np.array([np.multiply(grid.shape, grid.spacing_mm) for grid in grids])
    assert extents[:, 0].min() < 60 and extents[:, 0].max() > 180 and extents[:, 1].max() > 190
    assert max(grid.shape[0] for grid in grids) <= 301 and 30 < extents[:, 2].min() < extents[:, 2].max() < 70


def test_a_varied_patient_fits_its_close_crop():
    grid = Grid((64, 64, 20), (0.9, 0.9, 2.0))
    for seed in range(3):
        patient = vestibular_patient(np.random.default_rng(seed), grid=grid, varied=True)
        assert patient["seg"].any() and patient["t2"].shape == patient["t1ce"].shape == grid.shape


def test_some_varied_patients_keep_the_contrast_of_their_sequence(monkeypatch):
    contrasts = []
    monkeypatch.setattr(module, "vary_contrast", lambda rng, t2, *_: contrasts.append("drawn anew") or t2)
    for seed in range(6):
        vestibular_patient(np.random.default_rng(seed), grid=Grid((32, 32, 12), (1.6, 1.6, 3.0)), varied=True)
    assert 0 < len(contrasts) < 6


def test_only_moving_csf_loses_signal():
    labels = np.full(BLOCK.shape, LABEL["csf"])
    labels[:12] = LABEL["brain"]
    anatomy = flat_anatomy(labels)
    anatomy.position[1] = -22
    factor = pulsation(np.random.default_rng(0), BLOCK, anatomy)
    assert (factor[:12] == 1).all() and factor.max() <= 1 and 0.05 <= factor[12:].min() < 0.95


def test_the_band_keeps_what_is_smooth_and_stops_what_alternates():
    even, alternating = np.ones((16, 16, 2)), np.indices((16, 16, 2))[:2].sum(0) % 2 * 2.0 - 1
    np.testing.assert_allclose(np.abs(band_limited(even, 0.7, 0.03)), 1, atol=1e-6)
    assert np.abs(band_limited(alternating, 0.7, 0.03)).max() < 1e-3


def test_a_scan_of_nothing_but_one_tissue_shows_its_noise():
    flat = np.ones((64, 64, 4), np.float32)
    grid = Grid(flat.shape, (1, 1, 1.5))
    quiet, loud = (scan(np.random.default_rng(0), grid, flat, 0.3, 0.9, noise) for noise in (0.01, 0.1))
    edges = [np.abs(np.diff(image.astype(float), axis=0)).mean() / image.mean() for image in (quiet, loud)]
    assert edges[1] == pytest.approx(10 * edges[0], rel=0.15)
