from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import oblique_affine, save
from monai.data import MetaTensor
from monai.transforms import Compose, RandScaleIntensity
from tissnet_components.errors import BadCase
from tissnet_components.scans.loading import LoadCased, LoadImageCased
from tissnet_components.transforms import (
    AbsoluteDifferenced,
    NormalizeBrain,
    NormalizeBraind,
    RandContrastCurve,
    RandEachChanneld,
    RandFieldOfViewd,
    RandPasteTumord,
    match_brightness,
    tumor_or_everything,
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


def test_a_file_that_is_named_twice_fills_two_channels(case):
    image = LoadCased("image")({"image": [case["image"][0]] * 2})["image"]
    np.testing.assert_array_equal(image, [scan(), scan()])


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


@pytest.mark.parametrize("lacking", [("target",), ("label",), ("image",), ("target", "label"), ()], ids=str)
def test_what_a_case_lacks_becomes_zeros_on_its_grid_and_is_marked(case, lacking):
    given = {key: value for key, value in case.items() if key not in lacking}
    loaded = LoadCased(["image", "target", "label"], fill_missing=True)(given)
    for key in ("image", "target", "label"):
        assert loaded[f"has_{key}"] == (key not in lacking)
        assert loaded[key].any() == (key not in lacking)
        assert loaded[key].shape[1:] == SHAPE
        np.testing.assert_allclose(loaded[key].affine, OBLIQUE, rtol=1e-6)


def test_a_case_with_nothing_to_load_is_refused_all_the_same():
    with pytest.raises(BadCase, match="case p has no image, target"):
        LoadCased(["image", "target"], fill_missing=True)({"case": "p"})


def test_the_map_of_a_missing_contrast_becomes_background():
    assert (NormalizeBrain()(torch.zeros(1, 8, 8, 4)) == -1).all()


def test_a_training_box_is_drawn_around_the_tumor_or_else_around_everything():
    label = torch.zeros(1, 4, 4, 2)
    assert tumor_or_everything(label).all()
    label[0, 1, 2, 0] = 1
    assert tumor_or_everything(label).nonzero().tolist() == [[0, 1, 2, 0]]


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


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_the_unit_of_the_intensities_does_not_matter(unit):
    image = torch.tensor([[0.0, 1, 2, 3]])
    torch.testing.assert_close(NormalizeBrain(0, 100)(image * unit), NormalizeBrain(0, 100)(image))


def test_only_the_given_keys_are_normalised():
    data = {"image": torch.tensor([[0.0, 10, 30]]), "label": torch.tensor([[0.0, 1, 4]])}
    normalized = NormalizeBraind("image", 0, 100)(data)
    assert normalized["image"].tolist() == [[-1, -1, 1]]
    assert normalized["label"] is data["label"]


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


class Donors:
    """One patch with a bright tumor, as a dataset of crops gives it."""

    transform = Compose([])

    def __init__(self, image, label):
        self.patch = {"image": MetaTensor(image), "target": MetaTensor(image[:1]), "label": MetaTensor(label)}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return [self.patch]


def halves(left: float, right: float) -> torch.Tensor:
    """Two channels of 16 x 16 x 8; along X the first half differs from the second."""
    image = torch.full((2, 16, 16, 8), left)
    image[:, 8:] = right
    return image


def ball(at: int) -> torch.Tensor:
    label = torch.zeros(1, 16, 16, 8)
    label[:, at : at + 4, 6:10, 2:6] = 1
    return label


@pytest.fixture
def patch() -> dict[str, torch.Tensor]:
    image = torch.where(torch.arange(8) % 2 == 0, -0.1, 0.1).expand(2, 16, 16, 8).clone()
    return {key: MetaTensor(value) for key, value in {"image": image, "target": image[:1], "label": ball(1)}.items()}


def donors(patch: dict, tumor: float = 0.4) -> Donors:
    label = ball(9)
    return Donors(torch.where(label > 0, tumor, patch["image"].as_tensor()), label)


def test_the_donors_tumor_is_pasted_in_every_contrast_and_joins_the_label(patch):
    pasted = RandPasteTumord(["image", "target"], donors(patch), prob=1)(patch)
    assert torch.equal(pasted["label"].as_tensor(), ball(1) + ball(9))
    for key in ("image", "target"):
        assert pasted[key][ball(9).bool().expand_as(pasted[key])].numpy() == pytest.approx(0.4, abs=1e-3)
        assert torch.equal(pasted[key][:, :5], patch[key][:, :5])


def test_the_edge_of_a_pasted_tumor_fades_outside_it(patch):
    donor = donors(patch)
    donor.patch["image"][:, 7:9, 6:10, 2:6] = 0.4  # a rim as bright as the tumor that the label leaves out
    pasted = RandPasteTumord("image", donor, prob=1)(patch)
    far, near, inside = pasted["image"][0, 7:10, 8, 4].tolist()
    assert patch["image"][0, 7, 8, 4] < far < near < inside


def test_nothing_is_pasted_outside_the_brain(patch):
    for key in ("image", "target"):
        patch[key][:, 11:] = -1
    pasted = RandPasteTumord(["image", "target"], donors(patch), prob=1)(patch)
    assert (pasted["image"][:, 11:] == -1).all()
    assert not pasted["label"][:, 11:].any()
    assert pasted["label"][:, 9:11].any()


def test_without_a_donor_or_a_chance_the_patch_stays_as_it_is(patch):
    for paste in (RandPasteTumord("image", donors(patch), prob=0), RandPasteTumord("image", None, prob=1)):
        assert all(torch.equal(paste(patch)[key], patch[key]) for key in patch)


def test_brightness_follows_the_reference_channel_by_channel():
    image, reference = torch.tensor([[0.0, 0.2, 0.6], [-0.5, -0.3, 0.1]]), torch.tensor([[0.1, 0.2, 9], [0.0, 0.4, 9]])
    where = torch.tensor([[True, True, False]])
    there, here = (values[:, :, None, None] for values in (image, reference))
    matched = match_brightness(there, here, where[:, :, None, None], where[:, :, None, None])
    torch.testing.assert_close(matched[:, :, 0, 0], torch.tensor([[0.1, 0.2, 0.4], [0.0, 0.4, 1.0]]))


def test_where_there_is_nothing_to_compare_brightness_stays():
    image, nowhere = torch.rand(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    assert torch.equal(match_brightness(image, image / 2, nowhere, ~nowhere), image)


@pytest.fixture
def studies(tmp_path) -> Path:
    """A folder of single scans, as a lab has them: anna complete, ben without t1ce, carl with two t2."""
    folder = tmp_path / "studies"
    names = ["anna_t1", "anna_t1ce", "anna_t2", "anna_flair", "annabel_t1", "ben_t1", "ben_t2", "carl_t1", "carl_t1ce"]
    for number, name in enumerate([*names, "carl_t2", "carl_t2w"]):
        save(folder / f"{name}.nii.gz", scan(1000 * number), OBLIQUE)
    save(folder / "labels" / "anna_t1.nii.gz", scan(), OBLIQUE)  # where MONAI Label puts what its users draw
    return folder


MODALITIES = ["t1", "t1ce", "t2"]


@pytest.mark.parametrize("chosen", ["anna_t1", "anna_t1ce", "anna_t2", "anna_flair"])
def test_any_scan_of_a_patient_finds_its_siblings_in_their_order(studies, chosen):
    image = LoadImageCased("image", MODALITIES)({"image": str(studies / f"{chosen}.nii.gz")})["image"]
    assert [int(channel.flatten()[0]) for channel in image] == [0, 1000, 2000]


def test_siblings_may_stand_in_a_folder_of_the_patients_name(tmp_path):
    for number, name in enumerate(MODALITIES):
        save(tmp_path / "dora" / f"{name}.nii", scan(1000 * number), OBLIQUE)
    image = LoadImageCased("image", MODALITIES)({"image": str(tmp_path / "dora" / "t2.nii")})["image"]
    assert [int(channel.flatten()[0]) for channel in image] == [0, 1000, 2000]


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ("ben_t2", r"ben has no t1ce in .*studies; add the file"),
        ("carl_t1", r"both .*carl_t2.nii.gz and .*carl_t2w.nii.gz are t2 of carl; keep one of them"),
        ("nobody", r"nobody.nii.gz does not exist; correct the path"),
    ],
)
def test_a_missing_or_doubled_sibling_is_named(studies, chosen, sentence):
    with pytest.raises(BadCase, match=sentence):
        LoadImageCased("image", MODALITIES)({"image": str(studies / f"{chosen}.nii.gz")})


def test_a_name_without_a_contrast_is_explained(tmp_path):
    file = save(tmp_path / "scan.nii.gz", scan(), OBLIQUE)
    with pytest.raises(BadCase, match=r"its name tells no contrast, but t1, t1ce, t2 are needed; .* or give one 4-D"):
        LoadImageCased("image", MODALITIES)({"image": file})


def test_one_modality_needs_no_name(tmp_path):
    file = save(tmp_path / "scan 7.nii.gz", scan(7), OBLIQUE)
    image = LoadImageCased("image", ["t2"])({"image": file})["image"]
    assert image.shape == (1, *SHAPE)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)


def test_a_file_of_four_axes_holds_the_modalities_in_order(tmp_path):
    file = save(tmp_path / "all.nii.gz", np.stack([scan(), scan(1000), scan(2000)], axis=-1), OBLIQUE)
    image = LoadImageCased("image", MODALITIES)({"image": file})["image"]
    np.testing.assert_array_equal(image, [scan(), scan(1000), scan(2000)])
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)


def test_four_axes_with_another_number_of_channels_are_refused(tmp_path):
    file = save(tmp_path / "all.nii.gz", np.stack([scan()] * 4, axis=-1), OBLIQUE)
    sentence = r"all.nii.gz has 4 channels, expected 3 along its fourth axis: t1, t1ce, t2, in this order"
    with pytest.raises(BadCase, match=sentence):
        LoadImageCased("image", MODALITIES)({"image": file})


def test_an_empty_channel_is_named(tmp_path):
    file = save(tmp_path / "all.nii.gz", np.stack([scan(), scan() * 0, scan()], axis=-1), OBLIQUE)
    with pytest.raises(BadCase, match=r"all.nii.gz, t1ce holds only the value 0"):
        LoadImageCased("image", MODALITIES)({"image": file})


def test_a_list_of_files_is_taken_as_it_is(case):
    loaded = LoadImageCased("image", ["t1", "t2"])(case)["image"]
    np.testing.assert_array_equal(loaded, LoadCased("image")(case)["image"])


def test_a_contrast_curve_changes_which_of_two_values_is_brighter():
    image = torch.linspace(-1, 1, 21).reshape(1, 21, 1, 1)
    curve, rising = RandContrastCurve(prob=1), []
    for seed in range(20):
        curve.set_random_state(seed)
        remapped = curve(image)
        assert remapped[0, 0] == -1 and remapped.abs().max() <= 1
        rising.append(bool((remapped.diff(dim=1) >= 0).all()))
    assert rising.count(True) < 10
    assert torch.equal(RandContrastCurve(prob=0)(image), image)


def test_a_narrowed_view_holds_some_tumor_and_is_scaled_anew():
    image = torch.rand(1, 32, 32, 16, generator=torch.Generator().manual_seed(0)) * 0.2
    label = torch.zeros(1, 32, 32, 16)
    label[:, 4:8, 4:8, 4:8] = 1
    narrow = RandFieldOfViewd(["image", "target"], prob=1)
    for seed in range(10):
        narrow.set_random_state(seed)
        seen = narrow({"image": image, "target": image, "label": label})
        inside = seen["target"] > -1
        sides = [int(inside.any(tuple({1, 2, 3} - {axis})).sum()) for axis in (1, 2, 3)]
        assert sides[0] * sides[1] * sides[2] == inside.sum()
        assert (np.array(sides) >= (13, 13, 10)).all()
        assert seen["label"].any() and not (seen["label"].bool() & ~inside).any()
        assert seen["image"][inside].min() == -1 and seen["image"][inside].max() == 1
        assert torch.equal(seen["target"][inside], image[inside]) and (seen["image"][~inside] == -1).all()
