"""The numbers that say at which results to look first, worked out by hand."""

import json

import numpy as np
import pytest
import torch
from cohort import oblique_affine
from monai.data import MetaTensor
from tissnet_components.regions import LABELS_OF_REGIONS
from tissnet_components.results.summary import SaveImageSummaryd, measure_quality, quality_flags, touches_edge

SHAPE = (8, 8, 6)
AFFINE = oblique_affine((0.5, 2, 5))  # voxels of 5 cubic millimetres
THRESHOLDS = {"agreement": 0.7, "predicted_dice": 0.1, "mean_error": 0.5, "mean_disagreement": 0.25, "edge_voxels": 1}


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(SHAPE)
    mask[2:4, 2:5, 1:5] = 1
    return mask


def measure(mask: np.ndarray, error: float = 0, disagreement: float = 0) -> dict:
    return measure_quality(mask, mask, np.full(SHAPE, error), np.full(SHAPE, disagreement), mask, AFFINE)


def test_twenty_four_voxels_of_five_cubic_millimetres_are_a_hundred_and_twenty_microlitres(mask):
    assert measure(mask)["volume_ml"] == 0.12


def test_means_are_taken_inside_the_mask_alone(mask):
    error = np.where(mask > 0, 0.2, 0.9)
    error[2, 2:5, 1:5] = 0.6  # half of the mask
    disagreement = np.where(mask > 0, 0.1, 1)
    measured = measure_quality(mask, mask, error, disagreement, mask, AFFINE)
    assert (measured["mean_error"], measured["mean_disagreement"]) == (0.4, 0.1)


def test_agreement_is_the_dice_of_the_networks_two_answers(mask):
    refined = mask.copy()
    refined[2] = 0  # half of the mask
    refined[5, 2:5, 1:5] = 0.75  # as much elsewhere
    measured = measure_quality(mask, refined, None, None, None, AFFINE)
    assert measured["agreement"] == 0.5
    assert quality_flags(measured, THRESHOLDS) == ["agreement"]
    assert quality_flags(measured, THRESHOLDS | {"agreement": 0.5}) == []


def test_predicted_dice_is_what_is_left_of_coarse_after_its_expected_mistakes(mask):
    error = np.where(mask > 0, 0.75, 0)
    error[5, 2:5, 1:5] = 0.5  # six voxels of tumor missed, six of twenty-four right
    measured = measure_quality(mask, mask, error, None, mask, AFFINE)
    assert measured["predicted_dice"] == pytest.approx(2 * 6 / (24 + 12), abs=1e-4)
    assert quality_flags(measured, THRESHOLDS | {"predicted_dice": 0.34, "mean_error": 1}) == ["predicted_dice"]
    assert quality_flags(measured, THRESHOLDS | {"predicted_dice": 0.33, "mean_error": 1}) == []


def test_a_network_without_an_error_branch_has_no_second_answer_and_no_means(mask):
    measured = measure_quality(mask, None, None, None, None, AFFINE)
    unknown = dict.fromkeys(("agreement", "predicted_dice", "mean_error", "mean_disagreement"))
    assert measured == measure(mask) | unknown
    assert quality_flags(measured, THRESHOLDS) == []


def test_an_empty_mask_has_no_means_and_is_flagged():
    measured = measure(np.zeros(SHAPE), error=1, disagreement=1)
    assert measured == {
        "volume_ml": 0,
        "agreement": 1,
        "predicted_dice": 0,
        "mean_error": None,
        "mean_disagreement": None,
        "touches_edge": False,
        "empty_mask": True,
    }
    assert quality_flags(measured, THRESHOLDS) == ["empty_mask", "predicted_dice"]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_one_voxel_in_an_outermost_slice_touches_the_edge(axis, end):
    tumor = np.zeros(SHAPE, bool)
    tumor[tuple(end if index == axis else 3 for index in range(3))] = True
    assert touches_edge(tumor)


def test_the_edge_is_as_thick_as_asked(mask):
    assert [touches_edge(mask > 0, voxels) for voxels in (0, 1, 2)] == [False, False, True]


def test_a_volume_thinner_than_its_edges_is_edge_alone():
    assert touches_edge(np.ones((1, 8, 8), bool))


def test_a_mean_above_its_threshold_is_flagged_and_one_at_it_is_not(mask):
    assert quality_flags(measure(mask, error=0.5, disagreement=0.25), THRESHOLDS) == []
    assert quality_flags(measure(mask, error=0.51, disagreement=0.26), THRESHOLDS) == [
        "mean_error",
        "mean_disagreement",
    ]


def test_the_summary_is_written_beside_the_maps_with_the_thresholds_that_it_was_judged_by(mask, tmp_path):
    mask[0, 3, 3] = 1

    def image(values: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(AFFINE), meta={"case": "anna"})

    keys = ["fine", "refined", "error", "disagreement", "coarse"]
    data = dict(zip(keys, (image(mask * factor) for factor in (1, 1, 0.75, 0.125, 1)), strict=True))
    returned = SaveImageSummaryd(keys, str(tmp_path), THRESHOLDS)(data)
    summary = json.loads((tmp_path / "anna" / "anna_summary.json").read_text())
    assert summary.pop("thresholds") == THRESHOLDS
    assert summary == returned["summary"]
    assert summary == {
        "case": "anna",
        "volume_ml": 0.125,
        "agreement": 1,
        "predicted_dice": 0.4,
        "mean_error": 0.75,
        "mean_disagreement": 0.125,
        "touches_edge": True,
        "empty_mask": False,
        "flags": ["touches_edge", "mean_error"],
        "reasons": {},
    }


def test_each_region_has_its_volume_and_its_parts_their_own_numbers(mask, tmp_path):
    label = 2 * mask  # 24 voxels
    label[2, 2:5, 1:5] = 1  # half is core, of which no voxel enhances
    refined = np.stack([mask, np.zeros(SHAPE), np.zeros(SHAPE)])  # the second answer finds no core
    error = np.stack([np.full(SHAPE, value) for value in (0.1, 0.6, 0.9)])
    maps = {"fine": label[None], "refined": refined, "error": error, "disagreement": np.zeros((3, *SHAPE))}
    maps = {name: torch.from_numpy(value) for name, value in maps.items()}
    maps["fine"] = MetaTensor(maps["fine"], affine=torch.from_numpy(AFFINE), meta={"case": "anna"})
    keys = [*maps, "coarse"]
    summary = SaveImageSummaryd(keys, str(tmp_path), THRESHOLDS, list(LABELS_OF_REGIONS))(maps)["summary"]
    assert summary["regions_ml"] == {"whole tumor": 0.12, "tumor core": 0.06, "enhancing tumor": 0.0}
    assert summary["agreement"] == 1
    assert {name: part["mean_error"] for name, part in summary["parts"].items()} == {
        "tumor core": 0.6,
        "enhancing tumor": None,
    }
    assert summary["flags"] == ["tumor core: agreement"], "and nothing by its error, though that is above the threshold"


def test_doubts_about_the_scan_and_too_much_tumor_are_flagged_with_their_reasons(tmp_path):
    meta = {"case": "anna", "brain_ml": 0.2, "doubts": {"skull": "there is scalp"}}
    mask = MetaTensor(torch.ones(1, 5, 5, 5), affine=torch.from_numpy(AFFINE), meta=meta)
    keys = ["fine", "refined", "error", "disagreement", "coarse"]
    save = SaveImageSummaryd(keys, str(tmp_path), {**THRESHOLDS, "tumor_share": 0.3})
    summary = save({"fine": mask})["summary"]
    assert summary["tumor_share"] == pytest.approx(summary["volume_ml"] / 0.2, abs=1e-4)
    assert summary["reasons"].keys() == {"tumor_share", "skull"} <= set(summary["flags"])


@pytest.mark.parametrize("thresholds", [{}, THRESHOLDS | {"mean_eror": 1}], ids=["none", "a mistyped one"])
def test_other_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="quality needs the thresholds"):
        SaveImageSummaryd(["fine", "refined", "error", "disagreement", "coarse"], ".", thresholds)
