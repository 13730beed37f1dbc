import copy

import pytest
import torch
from tissnet_components.cascade import TissNet
from tissnet_components.comparators.wang2020 import WangLoss, high_level_features, lesion_weighted_l1
from tissnet_components.losses import dice_loss
from tissnet_components.unet25d import DualBranchUNet25D
from torch.nn import functional as F

WIDTHS = [2, 4, 4, 4, 4]


@pytest.fixture
def wang():
    generator = DualBranchUNet25D(3, WIDTHS, {"synthetic": "tanh"})
    return TissNet(generator, DualBranchUNet25D(1, WIDTHS, {"fine": "sigmoid"}), ["synthetic"])


def with_gradients(network):
    return {name for name, part in network.named_children() if any(p.grad is not None for p in part.parameters())}


def test_a_voxel_of_the_lesion_counts_five_times():
    label = torch.zeros(1, 1, 4, 4, 2)
    label[:, :, 1:3, 1:3, 1] = 1  # 4 of 32 voxels
    synthetic = 0.5 + 0.5 * label  # wrong by 1 in the lesion, by 0.5 elsewhere
    value = lesion_weighted_l1(synthetic, torch.zeros_like(label), label, lesion_weight=5)
    assert value == pytest.approx((5 * 4 * 1 + 28 * 0.5) / (5 * 4 + 28))


def test_a_lesion_of_weight_one_counts_like_anything_else(sample):
    synthetic = torch.rand_like(sample.target)
    plain = F.l1_loss(synthetic, sample.target)
    torch.testing.assert_close(lesion_weighted_l1(synthetic, sample.target, sample.label, 1), plain)
    torch.testing.assert_close(lesion_weighted_l1(synthetic, sample.target, 0 * sample.label, 5), plain)


def test_the_synthetic_image_alone_is_segmented(wang, sample):
    seen = []
    wang.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    maps = wang.cascade(sample.source)
    assert list(maps) == ["synthetic", "fine"]
    assert torch.equal(seen[0], maps["synthetic"])


def test_the_real_image_has_its_own_features_exactly(wang, sample):
    wang.train()  # dropout and batch statistics would tell two passes apart
    loss = WangLoss({"features": 1}, wang, 5)
    assert loss.feature_consistency(sample.target, sample.target) == 0
    assert loss.feature_consistency(-sample.target, sample.target) > 0


def test_the_features_compared_are_the_segmentors_deepest(wang, sample):
    wang.eval()
    deepest = [wang.segmentor.encoder(image)[-1] for image in (sample.source[:, :1], sample.target)]
    value = WangLoss({"features": 1}, wang, 5).feature_consistency(sample.source[:, :1], sample.target)
    torch.testing.assert_close(value, F.mse_loss(*deepest))
    assert deepest[0].shape == (2, 4, 2, 2, 2)


def test_feature_consistency_trains_the_generator_and_not_the_features(wang, sample):
    wang.train()
    before = copy.deepcopy(wang.segmentor.state_dict())
    maps = {"synthetic": wang.generator(sample.source)["synthetic"]}
    WangLoss({"features": 1}, wang, 5)(maps, sample)["loss"].backward()
    assert with_gradients(wang) == {"generator"}
    assert wang.segmentor.encoder.training
    assert all(parameter.requires_grad for parameter in wang.parameters())
    torch.testing.assert_close(wang.segmentor.state_dict(), before, rtol=0, atol=0)  # batch statistics included


def test_an_encoder_in_eval_mode_stays_in_it(wang, sample):
    high_level_features(wang.segmentor.encoder.eval(), sample.target)
    assert not wang.segmentor.encoder.training


def test_segmentation_trains_both_networks_end_to_end(wang, sample):
    maps = wang.cascade(sample.source)
    WangLoss({"fine": 1}, wang, 5)(maps, sample)["loss"].backward()
    assert with_gradients(wang) == {"generator", "segmentor"}


def test_the_objective_is_the_weighted_sum(wang, sample):
    maps = wang.cascade(sample.source)
    loss = WangLoss({"lesion_l1": 50, "features": 2, "fine": 25}, wang, 5)
    expected = (
        50 * lesion_weighted_l1(maps["synthetic"], sample.target, sample.label, 5)
        + 2 * loss.feature_consistency(maps["synthetic"], sample.target)
        + 25 * dice_loss(maps["fine"], sample.label)
    )
    torch.testing.assert_close(loss(maps, sample)["loss"], expected)
