import pytest
import torch
from monai.data import MetaTensor
from tissnet_components.losses import coarse_mistakes, dice_loss, tumor_box
from tissnet_components.regions import (
    LABELS_OF_REGIONS,
    RegionsOfLabeld,
    TumorToIndicesd,
    checked_regions,
    label_names,
    nested,
    region_label,
    region_masks,
)

ALL = list(LABELS_OF_REGIONS)


def line(*values):
    """A label map or a probability of these voxels, one row along X."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]


@pytest.mark.parametrize("enhancing", [4, 3])
def test_each_region_holds_its_labels(enhancing):
    masks = region_masks(line(0, 1, 2, enhancing), ALL)
    assert masks[..., 0, 0].tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


def test_the_whole_tumor_alone_is_every_label_as_before():
    assert region_masks(line(0, 1, 2, 3, 4), ALL[:1]).flatten().tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("regions", "names"),
    [
        (ALL, {"edema": 2, "necrosis": 1, "enhancing tumor": 4}),
        (ALL[:2], {"edema": 2, "tumor core": 1}),
        (ALL[::2], {"whole tumor": 2, "enhancing tumor": 4}),
        (ALL[:1], {"whole tumor": 1}),
    ],
    ids=["all", "no enhancing", "no core", "whole"],
)
def test_each_label_is_called_what_it_shows(regions, names):
    assert label_names(regions) == names


def test_regions_and_labels_lead_into_each_other():
    label = line(0, 1, 2, 4)
    assert torch.equal(region_label(region_masks(label, ALL), ALL), label)
    assert region_label(line(0.2, 0.5), ALL[:1]).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("regions", [[], ["edema"], ALL[::-1], [ALL[0], ALL[0]]], ids=str)
def test_unknown_or_misordered_regions_are_refused(regions):
    with pytest.raises(ValueError, match="in this order"):
        checked_regions(regions)


def test_a_label_without_parts_is_refused_where_parts_are_wanted():
    label = MetaTensor(line(0, 1, 1), meta={"filename_or_obj": "anna_seg.nii.gz"})
    with pytest.raises(ValueError, match="holds only 0 and 1, expected BraTS"):
        RegionsOfLabeld("label", ALL)({"label": label})


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        ("anna_seg.nii.gz", (0, 2, 3, 4), "holds 3 and 4, enhancing tumor and resection cavity in BraTS 2024"),
        ("Task01_BrainTumour/labelsTr/BRATS_001.nii.gz", (0, 1, 2, 3), "has the Decathlon's labels, where 1 is edema"),
    ],
    ids=["cavity", "Decathlon"],
)
def test_a_label_whose_values_mean_something_else_is_refused_where_parts_are_wanted(file, values, sentence):
    label = MetaTensor(line(*values), meta={"filename_or_obj": file})
    with pytest.raises(ValueError, match=f"{file} {sentence}.*give one region"):
        RegionsOfLabeld("label", ALL)({"label": label})
    assert RegionsOfLabeld("label", ALL[:1])({"label": label})["label"].sum() == 3


def test_without_label_3_or_4_nothing_enhances():
    assert region_masks(line(0, 1, 2), ALL).flatten(1).tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]


def test_a_likely_part_raises_the_whole():
    found = nested(torch.cat([line(0.2, 0.9), line(0.7, 0.1), line(0.4, 0.8)]))
    assert found[..., 0, 0].T.tolist() == pytest.approx(torch.tensor([[0.7, 0.7, 0.4], [0.9, 0.8, 0.8]]))


def test_the_tumor_box_is_the_whole_tumors():
    label = torch.zeros(1, 3, 4, 4, 2)
    label[:, 0, 1:3, 1:3, 0] = 1
    label[:, 1:, 1, 1, 0] = 1
    assert torch.equal(tumor_box(label), label[:, :1])


def test_dice_of_several_regions_is_their_mean():
    probability, label = torch.rand(2, 3, 4, 4, 2), (torch.rand(2, 3, 4, 4, 2) > 0.5).float()
    alone = [dice_loss(probability[:, [region]], label[:, [region]]) for region in range(3)]
    assert dice_loss(probability, label) == pytest.approx(torch.stack(alone).mean().item(), rel=1e-6)
    assert coarse_mistakes(probability, label).shape == label.shape


def test_patches_are_centred_on_any_part_of_the_tumor():
    label = torch.cat([line(0, 1, 1, 0), line(0, 0, 1, 0), line(0, 0, 0, 0)])
    found = TumorToIndicesd("label")({"label": label})
    assert found["label_fg_indices"].tolist() == [1, 2]
    assert torch.equal(found["label"], label)
