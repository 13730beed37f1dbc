import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.metrics.regression import compute_ssim_and_cs
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tissnet_components.metrics import (
    box_around,
    case_metrics,
    dice,
    error_calibration,
    predicted_dice,
    psnr,
    ssim,
    ssim_map,
    surface_distances_mm,
)
from volumes import MILLIMETRE, cube, noisy_pair, voxels


def test_two_of_three_voxels_in_common_is_a_dice_of_two_thirds():
    assert dice(voxels((1, 1, 1), (1, 1, 2), (1, 1, 3)), voxels((1, 1, 2), (1, 1, 3), (1, 1, 4))) == pytest.approx(
        2 / 3
    )


def test_a_probability_of_one_half_is_not_tumor():
    assert dice(0.5 * cube(2, 5), cube(2, 5)) == 0
    assert dice(0.51 * cube(2, 5), cube(2, 5)) == 1


def test_distances_two_slices_apart_are_three_millimetres():
    found = surface_distances_mm(voxels((5, 5, 2)), voxels((5, 5, 4)), (0.41, 0.41, 1.5))
    assert found == pytest.approx({"assd_mm": 3.0, "hd95_mm": 3.0})


def test_spacing_belongs_to_its_own_axis():
    found = surface_distances_mm(voxels((2, 5, 5)), voxels((5, 5, 5)), (2.0, 1.0, 1.0))
    assert found == pytest.approx({"assd_mm": 6.0, "hd95_mm": 6.0})


def test_hd95_is_the_larger_directed_percentile_and_assd_pools_both_directions():
    """One voxel against itself and a second one 4 mm away: directed distances [0] and [0, 4]."""
    found = surface_distances_mm(voxels((5, 5, 5)), voxels((5, 5, 5), (9, 5, 5)), MILLIMETRE)
    assert found["assd_mm"] == pytest.approx(4 / 3)
    assert found["hd95_mm"] == pytest.approx(0.95 * 4)


def surface_points_mm(mask, spacing_mm):
    """Voxels of a mask with a neighbour, across a face, outside it."""
    mask = np.pad(mask.numpy() > 0.5, 1)
    return np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.asarray(spacing_mm)


def directed_distances_mm(prediction, label, spacing_mm):
    """Every distance from one surface to the other, by brute force; independent of MONAI."""
    distances = cdist(surface_points_mm(prediction, spacing_mm), surface_points_mm(label, spacing_mm))
    return distances.min(axis=1), distances.min(axis=0)


def blob(seed, shape=(20, 18, 9)):
    noise = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy((ndimage.gaussian_filter(noise, 2) > 0.02).astype(np.float32))


ANISOTROPIC = [(0.41, 0.41, 1.5), (1.0, 1.0, 1.0), (2.0, 1.0, 0.5)]


@pytest.mark.parametrize("spacing_mm", ANISOTROPIC, ids=str)
def test_assd_and_hd95_equal_a_brute_force_over_all_pairs_of_surface_voxels(spacing_mm):
    there, back = directed_distances_mm(blob(0), blob(1), spacing_mm)
    found = surface_distances_mm(blob(0), blob(1), spacing_mm)
    assert found["assd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert found["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)


@pytest.mark.parametrize("spacing_mm", ANISOTROPIC, ids=str)
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_assd_and_hd95_equal_monais(spacing_mm):
    masks, settings = (blob(0)[None, None], blob(1)[None, None]), {"include_background": True, "spacing": spacing_mm}
    found = surface_distances_mm(blob(0), blob(1), spacing_mm)
    assd = compute_average_surface_distance(*masks, symmetric=True, **settings)
    assert found["assd_mm"] == pytest.approx(float(assd), rel=1e-5)
    hd95 = compute_hausdorff_distance(*masks, percentile=95, **settings)
    assert found["hd95_mm"] == pytest.approx(float(hd95), rel=1e-5)


@pytest.mark.parametrize("spacing_mm", ANISOTROPIC, ids=str)
def test_hd95_is_pymics_and_not_medpys(spacing_mm):
    """PyMIC: the larger of sorted(distances)[int(0.95 n)] of the two directions; no interpolation between ranks."""
    masks = cube(2, 7) + voxels((12, 12, 10), (13, 12, 10), (12, 13, 9), (9, 9, 9), (8, 8, 8), (7, 7, 9)), cube(2, 7)
    there, back = directed_distances_mm(*masks, spacing_mm)
    found = surface_distances_mm(*masks, spacing_mm)["hd95_mm"]
    ranks = [int(0.95 * len(side)) for side in (there, back)]
    pymic = max(np.sort(side)[rank] for side, rank in zip((there, back), ranks, strict=True))
    below = max(np.sort(side)[max(rank - 1, 0)] for side, rank in zip((there, back), ranks, strict=True))
    assert below - 1e-4 <= found <= pymic + 1e-4
    assert found != pytest.approx(np.percentile(np.concatenate([there, back]), 95), rel=1e-3)


def test_dice_equals_twice_the_intersection_over_the_sum_of_sizes():
    """MedPy's dc, written out."""
    one, other = blob(0).numpy().astype(bool), blob(1).numpy().astype(bool)
    medpy = 2.0 * np.count_nonzero(one & other) / float(np.count_nonzero(one) + np.count_nonzero(other))
    assert dice(blob(0), blob(1)) == pytest.approx(medpy)
    assert 0.2 < medpy < 0.8


def test_the_boxes_similarities_equal_scikit_image_on_the_cut_images():
    synthetic, target = noisy_pair((24, 26, 20))
    target[:, :3] = synthetic[:, :3] = -1
    label = torch.zeros_like(target)
    label[4:20, 6:19, 3:6] = 1
    found = case_metrics({"synthetic": synthetic}, target, label, MILLIMETRE)
    boxes = {"": np.s_[:], "brain_": np.s_[:, 3:], "local_": np.s_[4:20, 6:19, 0:11]}
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2}
    for prefix, box in boxes.items():
        images = target[box].double().numpy(), synthetic[box].double().numpy()
        assert found[f"{prefix}ssim"] == pytest.approx(structural_similarity(*images, **settings), abs=1e-5)
        assert found[f"{prefix}psnr"] == pytest.approx(peak_signal_noise_ratio(*images, data_range=2), abs=1e-4)


def test_distances_do_not_depend_on_how_far_the_volume_reaches():
    small = surface_distances_mm(cube(0, 4), cube(1, 6), MILLIMETRE)
    padded = [torch.nn.functional.pad(mask, [7] * 6) for mask in (cube(0, 4), cube(1, 6))]
    assert surface_distances_mm(*padded, MILLIMETRE) == pytest.approx(small)


@pytest.mark.parametrize(
    ("prediction", "label", "overlap", "distance"),
    [
        pytest.param(cube(0, 0), cube(2, 5), 0, math.nan, id="empty prediction"),
        pytest.param(cube(2, 5), cube(0, 0), 0, math.nan, id="empty label"),
        pytest.param(cube(0, 0), cube(0, 0), 1, 0, id="both empty"),
    ],
)
def test_empty_masks_follow_the_policy(prediction, label, overlap, distance):
    found = surface_distances_mm(prediction, label, MILLIMETRE)
    assert dice(prediction, label) == overlap
    assert found == pytest.approx({"assd_mm": distance, "hd95_mm": distance}, nan_ok=True)


def test_psnr_of_a_constant_difference_of_one_fifth_is_twenty_decibels():
    """10 log10(2^2 / 0.2^2) = 20: the data range is 2, not 1."""
    assert psnr(torch.full((4, 4, 4), 0.3), torch.full((4, 4, 4), 0.1)) == pytest.approx(20, abs=1e-4)
    assert psnr(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)) == math.inf


def test_ssim_and_psnr_equal_scikit_image():
    synthetic, target = noisy_pair()
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2}
    reference = structural_similarity(target.double().numpy(), synthetic.double().numpy(), **settings)
    assert ssim(synthetic, target) == pytest.approx(reference, abs=1e-5)
    decibels = peak_signal_noise_ratio(target.numpy(), synthetic.numpy(), data_range=2)
    assert psnr(synthetic, target) == pytest.approx(decibels, abs=1e-4)


def test_the_ssim_map_cut_to_a_box_is_that_of_the_cut_images():
    synthetic, target = noisy_pair()
    box = (slice(3, 17), slice(2, 20), slice(4, 16))
    inside = ssim_map(synthetic, target)[3:7, 2:10, 4:6]
    assert torch.allclose(inside, ssim_map(synthetic[box], target[box]), atol=1e-5)


@pytest.mark.parametrize("equal", [np.s_[:0], np.s_[:9], np.s_[:, :, 12:], np.s_[:]], ids=str)
def test_the_ssim_map_equals_monais_also_where_the_images_are_equal(equal):
    synthetic, target = noisy_pair((48, 22, 24))
    synthetic[equal] = target[equal]
    monai = compute_ssim_and_cs(synthetic[None, None], target[None, None], 3, [11] * 3, [1.5] * 3, data_range=2)[0]
    assert torch.allclose(ssim_map(synthetic, target), monai[0, 0], atol=1e-5)


def test_an_image_thinner_than_the_window_has_no_ssim():
    assert math.isnan(ssim(torch.zeros(16, 16, 8), torch.zeros(16, 16, 8)))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        pytest.param((10, 10, 10), slice(5, 16), id="in the middle"),
        pytest.param((1, 1, 1), slice(0, 11), id="at the near edge"),
        pytest.param((18, 18, 18), slice(9, 20), id="at the far edge"),
    ],
)
def test_a_box_grows_to_eleven_voxels_and_stays_inside(where, expected):
    assert box_around(voxels(where, shape=(20, 20, 20)), 11) == (expected,) * 3


def test_a_box_cannot_outgrow_the_volume_and_a_large_one_stays_as_it_is():
    assert box_around(voxels((3, 3, 3), shape=(8, 8, 8)), 11) == (slice(0, 8),) * 3
    assert box_around(cube(1, 12, shape=(16, 16, 16)), 5) == (slice(1, 12),) * 3
    assert box_around(torch.zeros(4, 4, 4)) is None


def test_local_values_look_only_at_the_tumor_and_brain_values_only_at_the_brain():
    target = torch.full((40, 16, 16), -1.0)
    target[:30] = 0.0
    synthetic = target.clone()
    synthetic[:12] += 0.2
    label = torch.zeros_like(target)
    label[:11, :11, :11] = 1
    found = case_metrics({"synthetic": synthetic}, target, label, MILLIMETRE)
    assert found["local_psnr"] == pytest.approx(20, abs=1e-3)
    assert found["brain_psnr"] == pytest.approx(10 * math.log10(4 / (0.04 * 12 / 30)), abs=1e-3)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / (0.04 * 12 / 40)), abs=1e-3)
    assert found["local_ssim"] < found["brain_ssim"] < found["ssim"] < 1


def test_a_tumor_of_one_voxel_is_judged_in_a_box_of_eleven():
    synthetic, target = noisy_pair()
    found = case_metrics({"synthetic": synthetic}, target, voxels((10, 10, 8), shape=tuple(target.shape)), MILLIMETRE)
    box = (slice(5, 16), slice(5, 16), slice(3, 14))
    assert found["local_ssim"] == pytest.approx(ssim(synthetic[box], target[box]), abs=1e-5)
    assert found["local_psnr"] == pytest.approx(psnr(synthetic[box], target[box]), abs=1e-4)


def test_without_a_tumor_local_values_are_missing():
    synthetic, target = noisy_pair()
    found = case_metrics({"synthetic": synthetic}, target, torch.zeros_like(target), MILLIMETRE)
    assert math.isnan(found["local_ssim"]) and math.isnan(found["local_psnr"])
    assert not math.isnan(found["ssim"])


def test_only_what_is_there_is_measured():
    found = case_metrics({"fine": cube(2, 5)[None]}, None, cube(2, 5)[None], (1.0, 1.0, 2.0))
    assert found == pytest.approx(
        {"label_ml": 0.054, "fine_dice": 1, "fine_assd_mm": 0, "fine_hd95_mm": 0, "fine_ml": 0.054}
    )


@pytest.mark.parametrize(
    ("other", "column", "mean"),
    [("refined", "refined", "average"), ("perceived", "perceptibility", "consensus")],
    ids=["average", "consensus"],
)
def test_a_mean_of_two_segmentations_is_taken_of_their_probabilities(other, column, mean):
    """0.9 and 0.2 average to 0.55: tumor, although the other alone is not."""
    found = case_metrics({"fine": 0.9 * cube(2, 5), other: 0.2 * cube(2, 5)}, None, cube(2, 5), MILLIMETRE)
    assert (found["fine_dice"], found[f"{column}_dice"], found[f"{mean}_dice"]) == (1, 0, 1)


def test_the_perceived_segmentation_is_reported_as_perceptibility():
    found = case_metrics({"perceived": cube(2, 5)}, None, cube(2, 5), MILLIMETRE)
    assert found["perceptibility_dice"] == 1 and not any(name.startswith("perceived") for name in found)


def test_a_map_that_is_not_finite_or_on_another_grid_is_refused_by_name():
    with pytest.raises(ValueError, match="fine holds NaN"):
        case_metrics({"fine": cube(2, 5) * math.nan}, None, cube(2, 5), MILLIMETRE)
    with pytest.raises(ValueError, match=r"coarse has shape \(4, 4, 4\), expected \(16, 16, 12\)"):
        case_metrics({"coarse": torch.zeros(4, 4, 4)}, None, cube(2, 5), MILLIMETRE)


def test_the_predicted_dice_is_that_of_the_expected_counts():
    """Four voxels of coarse with error 1/4: 3 hits, 1 false alarm. Two outside with error 1/2: 1 missed. 6 / 8."""
    coarse, error = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    coarse[0, 0], error[0, 0], error[1, 1, :2] = 1, 0.25, 0.5
    assert predicted_dice(coarse, error) == pytest.approx(0.75)


def test_a_perfect_error_map_predicts_the_true_dice():
    coarse, label = blob(0), blob(1)
    assert predicted_dice(coarse, (coarse != label).float()) == pytest.approx(dice(coarse, label))
    assert predicted_dice(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)) == 1


def test_calibration_counts_predicted_and_real_mistakes_by_probability():
    """Error 0.25 at four voxels of which one is wrong, 1 at two of which both are, 0 at the other ten."""
    coarse, error, label = torch.zeros(1, 4, 4, 1), torch.zeros(1, 4, 4, 1), torch.zeros(1, 4, 4, 1)
    error[0, 0], label[0, 0, 0] = 0.25, 1
    error[0, 1, :2], coarse[0, 1, :2] = 1, 0.9
    bins = error_calibration(coarse, error, label)
    assert [row["voxels"] for row in bins] == [10, 0, 4, 0, 0, 0, 0, 0, 0, 2]
    assert [row["mistakes"] for row in bins] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert [row["predicted"] for row in bins] == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0, 0, 2])
    assert (bins[2]["error_from"], bins[2]["error_to"]) == (0.2, 0.3)


def test_agreement_is_the_dice_of_fine_and_refined_without_the_label():
    found = case_metrics({"fine": cube(2, 5), "refined": cube(2, 5)}, None, cube(8, 10), MILLIMETRE)
    assert (found["agreement"], found["fine_dice"]) == (1, 0)
