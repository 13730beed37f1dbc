from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from scipy import ndimage
from tissnet_components.errors import BadCase
from tissnet_components.scans.plausible import CheckPlausibled, examine

SPACING_MM = (3, 3, 3)
NAMES = ("t1", "t1ce", "t2")
PLACES = np.stack(np.meshgrid(*[np.arange(-84, 84, 3)] * 3, indexing="ij")).astype(float)
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "glioma_brats21" / "BraTS2021_01485"


def head(radius_mm: float = 70) -> dict[str, np.ndarray]:
    """A ball of white matter with a cortex, two ventricles and, in T1ce, bright vessels; fluid around it."""
    distance_mm = np.sqrt((PLACES**2).sum(0))
    random = np.random.default_rng(0)
    folds = ndimage.gaussian_filter(random.normal(0, 1, distance_mm.shape), 1.5)
    folds /= folds.std()
    ventricles = (
        np.min([((PLACES - np.array([x, 0, 0])[:, None, None, None]) ** 2).sum(0) for x in (-16, 16)], 0) < 13**2
    )
    grey = (distance_mm + 6 * folds > 0.8 * radius_mm) | (abs(distance_mm - 30) < 5)
    fluid = ventricles | ((distance_mm > 0.9 * radius_mm) & (folds > 0.5))
    vessels = (random.random(distance_mm.shape) < 0.01) & ~fluid
    tissue = {"t1": (300, 700, 1000), "t1ce": (300, 720, 1000), "t2": (1600, 800, 600), "flair": (250, 1000, 850)}
    scans = {}
    for name, (csf, gm, wm) in tissue.items():
        scan = np.where(fluid, csf, np.where(grey, gm, wm)) + (900 * vessels if name == "t1ce" else 0)
        scan = ndimage.gaussian_filter(scan.astype(float), 0.6) + random.normal(0, 20, scan.shape)
        scans[name] = np.where(distance_mm < radius_mm, scan.clip(1), 0).astype(np.float32)
    return scans


HEAD = head()


def look(*scans: np.ndarray, names: tuple[str, ...] = NAMES):
    return examine(scans, names, SPACING_MM)


def test_scans_that_are_what_they_are_given_as_raise_no_doubt():
    found = look(*(HEAD[name] for name in NAMES))
    assert not found.refused
    assert found.brain_ml == pytest.approx(4 / 3 * np.pi * 7**3, rel=0.02)


@pytest.mark.parametrize("given", [("t2", "t1ce", "t1"), ("t1", "t2", "t1ce"), ("t1ce", "t2", "flair")], ids=" ".join)
def test_wrong_contrasts_are_refused_and_named(given):
    found = look(*(HEAD[name] for name in given))
    assert "given as" in found.refused["contrast"]


@pytest.mark.parametrize("change", [lambda scan: scan, lambda scan: 3 * scan + (scan > 0)], ids=["same", "brighter"])
def test_one_image_under_two_names_is_refused(change):
    assert look(HEAD["t1"], change(HEAD["t1"]), HEAD["t2"]).refused == {"copy": "t1 and t1ce show the same image"}


def test_a_whole_head_is_refused():
    large = head(radius_mm=82)
    assert "not skull-stripped" in look(*(large[name] for name in NAMES)).refused["skull"]


def test_a_thin_skull_and_scalp_are_refused():
    distance_mm = np.sqrt((PLACES**2).sum(0))
    small = head(radius_mm=60)
    shells = [(distance_mm >= 60) & (distance_mm < 65), (distance_mm >= 65) & (distance_mm < 69)]
    found = look(*(np.select(shells, [120, 1100], small[name]) for name in NAMES))
    assert "like a skull" in found.refused["skull"]


def test_a_small_brain_is_doubtful():
    half = [np.where(PLACES[0] < 0, HEAD[name], 0) for name in NAMES]
    assert "ml, expected 900 to 2000 ml" in look(*half).doubtful["brain_volume"]


def test_a_background_other_than_zero_is_doubtful_and_changes_no_other_finding():
    found = look(*(np.where(HEAD[name] == 0, -1024, HEAD[name]) for name in NAMES))
    assert found.doubtful["background"] == "the background should be 0 and is t1 -1024, t1ce -1024, t2 -1024"
    assert found.brain_ml == look(*(HEAD[name] for name in NAMES)).brain_ml


def test_little_and_unknown_images_are_not_judged():
    assert look(*np.random.default_rng(0).random((3, 8, 8, 8))).refused == {}
    assert "contrast" not in look(HEAD["t2"], names=("ct",)).refused


def test_the_check_refuses_or_under_force_notes_what_it_would_refuse():
    image = MetaTensor(torch.from_numpy(np.stack([HEAD["t2"], HEAD["t1ce"], HEAD["t1"]])), affine=np.diag([3, 3, 3, 1]))
    image.meta["case"] = "anna"
    with pytest.raises(BadCase, match="anna: what is given as t1 looks like t2"):
        CheckPlausibled("image", NAMES)({"image": image})
    checked = CheckPlausibled("image", NAMES, force=True)({"image": image})["image"]
    assert "looks like t2" in checked.meta["doubts"]["contrast"]
    assert checked.meta["brain_ml"] > 1000


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real patients of ../shared/data")
@pytest.mark.parametrize(
    ("given", "verdict"),
    [(NAMES, set()), (("t2", "t1ce", "t1"), {"contrast"}), (("t1ce", "t1", "t2"), {"contrast"})],
    ids=lambda value: " ".join(value),
)
def test_a_real_patient_is_judged(given, verdict):
    files = [REAL / f"{REAL.name}_{name}.nii.gz" for name in given]
    scans = [np.asanyarray(nib.load(file).dataobj) for file in files]
    found = examine(scans, NAMES, (1, 1, 1))
    assert set(found.refused) | set(found.doubtful) == verdict


def test_what_is_noted_survives_a_batch():
    image = MetaTensor(torch.from_numpy(np.stack([HEAD[name] for name in NAMES])), affine=np.diag([3, 3, 3, 1]))
    doubtful = MetaTensor(torch.where(image == 0, -5, image), meta=image.meta)
    for given in (image, doubtful):
        checked = CheckPlausibled("image", NAMES)({"image": given})
        noted = {key: checked["image"].meta[key] for key in ("brain_ml", "doubts") if key in checked["image"].meta}
        returned = decollate_batch(list_data_collate([checked]))[0]["image"].meta
        assert {key: returned[key] for key in ("brain_ml", "doubts") if key in returned} == noted
    assert "background" in noted["doubts"]
