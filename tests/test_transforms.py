from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import oblique_affine, save
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, RandScaleIntensity

from tissnet_components.datasets.cases import BadCase
from tissnet_components.transforms import (
    AbsoluteDifferenced,
    LoadCased,
    NormalizeBrain,
    NormalizeBraind,
    RandEachChanneld,
)

SHAPE = (4, 5, 6)
OBLIQUE = oblique_affine((0.9, 1.1, 5))


def scan(offset: int = 0) -> np.ndarray:
    return (np.arange(np.prod(SHAPE)) + offset).reshape(SHAPE).astype(np.int16)


@pytest.fixture
def case(tmp_path) -> dict:
    image = [save(tmp_path / f"p_{name}.nii.gz", scan(offset), OBLIQUE) for name, offset in (("t1", 0), ("t2", 1000))]
    label = save(tmp_path / "p_seg.nii.gz", (scan() % 5).astype(np.uint8), OBLIQUE)
    return {"case": "p", "image": image, "target": save(tmp_path / "p_flair.nii.gz", scan(5), OBLIQUE), "label": label}


def test_the_files_of_a_case_become_channels_in_their_order(case):
    loaded = LoadCased(["image", "target", "label"])(case)
    assert loaded["image"].shape == (2, *SHAPE)
    assert loaded["image"].dtype == torch.float32
    np.testing.assert_array_equal(loaded["image"][0], scan())
    np.testing.assert_array_equal(loaded["image"][1], scan(1000))
    np.testing.assert_array_equal(loaded["target"][0], scan(5))


def test_a_loaded_case_knows_its_place_in_space_and_its_name(case):
    image = LoadCased("image")(case)["image"]
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    assert image.meta["case"] == "p"
    assert image.meta["filename_or_obj"] == case["image"][0]


def test_a_scaled_file_gives_its_real_values(case, tmp_path):
    packed = nib.Nifti1Image(scan(), OBLIQUE)
    packed.header.set_slope_inter(0.5, -1)
    nib.save(packed, tmp_path / "packed.nii")
    assert LoadCased("image")({"image": str(tmp_path / "packed.nii")})["image"][0, 0, 0, 4] == pytest.approx(
        0.5 * 4 - 1
    )


def test_keys_that_may_be_missing_are_passed_over(case):
    del case["label"]
    assert "label" not in LoadCased(["image", "label"], allow_missing_keys=True)(case)


def test_a_case_without_a_needed_key_is_named(case):
    del case["target"]
    with pytest.raises(BadCase, match="case p has no target; add it to the datalist"):
        LoadCased(["image", "target"])(case)


def spoil(case: dict, key: str, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> str:
    file = case[key] if isinstance(case[key], str) else case[key][1]
    return save(Path(file), array, affine)


@pytest.mark.parametrize(
    ("key", "array", "affine", "reason"),
    [
        pytest.param("image", scan()[..., None].repeat(2, -1), OBLIQUE, "expected three axes", id="4-D"),
        pytest.param("image", np.zeros(SHAPE, np.int16), OBLIQUE, "no image in it", id="all zero"),
        pytest.param("target", np.full(SHAPE, np.nan, np.float32), OBLIQUE, "NaN", id="not a number"),
        pytest.param("label", scan().astype(np.uint8), OBLIQUE, "a label map holds only", id="unknown label"),
        pytest.param("label", np.zeros((4, 5, 7), np.uint8), OBLIQUE, "resample", id="label of another shape"),
        pytest.param("target", scan(), np.eye(4), "affine", id="target elsewhere in space"),
    ],
)
def test_a_bad_file_is_named(case, key, array, affine, reason):
    file = spoil(case, key, array, affine)
    with pytest.raises(BadCase, match=reason) as caught:
        LoadCased(["image", "target", "label"])(case)
    assert file in str(caught.value)


def test_the_brain_is_scaled_to_its_range_and_the_background_is_minus_one():
    image = torch.tensor([[0.0, 10, 20, 30]])  # brain 10 to 30: the middle is 0
    assert NormalizeBrain(0, 100)(image).tolist() == [[-1, -1, 0, 1]]


def test_each_channel_has_its_own_range():
    image = torch.tensor([[0.0, 10, 20, 30], [0, 1000, 3000, 2000]])
    assert NormalizeBrain(0, 100)(image).tolist() == [[-1, -1, 0, 1], [-1, -1, 1, 0]]


def test_outliers_beyond_the_percentiles_are_clipped():
    image = torch.arange(0.0, 102)[None]  # brain 1 to 101: percentiles 10 and 90 are 11 and 91
    normalized = NormalizeBrain(10, 90)(image)[0]
    assert normalized[[1, 11, 51, 91, 101]].tolist() == pytest.approx([-1, -1, 0, 1, 1])


def test_the_background_does_not_count_for_the_percentiles():
    image = torch.cat([torch.zeros(10_000), torch.arange(1.0, 102)])[None]
    assert NormalizeBrain(10, 90)(image)[0, -101:].tolist() == NormalizeBrain(10, 90)(image[:, -101:])[0].tolist()


def test_intensities_may_be_negative():
    image = torch.tensor([[0.0, -10, -5, 10]])
    assert NormalizeBrain(0, 100)(image).tolist() == [[-1, -1, -0.5, 1]]


def test_a_brain_of_one_value_stays_finite():
    assert NormalizeBrain()(torch.tensor([[0.0, 7, 7]])).isfinite().all()


def test_only_the_given_keys_are_normalised():
    data = {"image": torch.tensor([[0.0, 10, 30]]), "label": torch.tensor([[0.0, 1, 4]])}
    normalized = NormalizeBraind("image", 0, 100)(data)
    assert normalized["image"].tolist() == [[-1, -1, 1]]
    assert normalized["label"] is data["label"]


def test_what_was_cropped_before_normalising_can_be_put_back():
    volume = torch.zeros(1, 8, 8, 8)
    volume[:, 2:6, 2:6, 2:6] = torch.arange(1, 65).reshape(4, 4, 4)
    crop = CropForegroundd("image", source_key="image", select_fn=lambda image: image > -1, allow_smaller=True)
    preprocessing = Compose([NormalizeBraind("image", 0, 100), crop])
    data = preprocessing({"image": MetaTensor(volume, affine=torch.from_numpy(OBLIQUE))})
    assert data["image"].shape[1:] == (4, 4, 4)
    restored = Invertd("map", preprocessing, orig_keys="image", nearest_interp=False)(
        {**data, "map": data["image"] + 1}
    )
    assert restored["map"].shape == volume.shape
    torch.testing.assert_close(restored["map"].as_tensor() - 1, NormalizeBrain(0, 100)(volume))
    np.testing.assert_allclose(restored["map"].affine, OBLIQUE)


def test_two_maps_differ_by_their_absolute_difference():
    data = {"fine": torch.tensor([0.25, 1.0]), "refined": torch.tensor([0.75, 0.5])}
    difference = AbsoluteDifferenced(["fine", "refined"], "disagreement")(data)
    assert difference["disagreement"].tolist() == [0.5, 0.5]
    assert difference["fine"] is data["fine"]


def test_there_is_no_difference_to_a_map_that_is_not_there():
    data = {"fine": torch.tensor([0.75, 0.0])}
    assert AbsoluteDifferenced(["fine", "refined"], "disagreement")(data) == data


def test_a_difference_needs_two_maps():
    with pytest.raises(ValueError, match="two keys"):
        AbsoluteDifferenced("fine", "disagreement")


def test_each_channel_is_changed_by_a_factor_of_its_own_and_the_same_seed_repeats_it():
    image = torch.ones(3, 2, 2, 2)
    transform = RandEachChanneld("image", RandScaleIntensity(factors=0.5, prob=1.0))
    first, second = (transform.set_random_state(seed=3)({"image": image})["image"] for _ in range(2))
    factors = [set(channel.flatten().tolist()) for channel in first]
    assert all(len(factor) == 1 for factor in factors)
    assert len(set.union(*factors)) == 3
    assert torch.equal(first, second)
    assert torch.equal(image, torch.ones(3, 2, 2, 2))
