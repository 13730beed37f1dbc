import pytest
import torch
from tissnet_components.comparators.modality_dropout import ModalityDropoutUNet25D

WIDTHS = [2, 4, 4, 4, 4]


@pytest.fixture
def unet():
    return ModalityDropoutUNet25D(["t1", "t2", "flair"], WIDTHS, present=["t1", "t2"])


@pytest.fixture
def image():
    """Two source contrasts and the target, each known by its value."""
    return torch.tensor([0.1, 0.2, 0.3])[None, :, None, None, None].expand(1, 3, 16, 16, 4).clone()


def seen_by(unet, image):
    """What reaches the U-Net, per channel."""
    seen = []
    hook = unet.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unet.cascade(image)
    hook.remove()
    assert all(len(channel.unique()) == 1 for channel in seen[0].flatten(0, 1))
    return [tuple(round(float(channel[0, 0, 0]), 3) for channel in sample) for sample in seen[0]]


def test_training_sees_random_subsets_the_others_filled_with_the_background(unet, image):
    unet.train()
    subsets = {sample for _ in range(12) for sample in seen_by(unet, image.repeat(4, 1, 1, 1, 1))}
    values = [{sample[channel] for sample in subsets} for channel in range(3)]
    assert values == [{0.1, -1}, {0.2, -1}, {0.3, -1}]
    assert (-1, -1, -1) not in subsets
    assert len(subsets) == 7


def test_each_sample_of_a_batch_has_its_own_subset(unet, image):
    unet.train()
    assert len(set(seen_by(unet, image.repeat(16, 1, 1, 1, 1)))) > 1


def test_otherwise_it_sees_the_source_whether_the_target_is_given_or_not(unet, image):
    unet.eval()
    assert seen_by(unet, image) == seen_by(unet, image[:, :2]) == [(0.1, 0.2, -1)]
    assert torch.equal(unet(image), unet(image[:, :2]))
    assert unet(image[:, :2]).shape == (1, 1, 16, 16, 4)


def test_the_image_is_not_changed(unet, image):
    before = image.clone()
    unet.train().cascade(image.repeat(2, 1, 1, 1, 1))
    unet.eval().cascade(image)
    assert torch.equal(image, before)
