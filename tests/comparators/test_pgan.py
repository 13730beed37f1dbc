import pytest
import torch
from tissnet_components.comparators.pgan import PerceptualLoss, PganLoss, as_pictures, load_vgg16_features
from tissnet_components.losses import Batch
from torch import nn
from torch.nn import functional as F

CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}  # of VGG16, as torchvision numbers them


class SumOfChannels(nn.Module):
    def forward(self, image):
        return image.sum(1, keepdim=True)


@pytest.fixture
def vgg16(tmp_path):
    """A file like torchvision's: the first layers and some later ones."""
    state = {f"features.{index}.weight": torch.randn(out, into, 3, 3) for index, (into, out) in CONVOLUTIONS.items()}
    state |= {f"features.{index}.bias": torch.randn(out) for index, (_, out) in CONVOLUTIONS.items()}
    state |= {"features.10.weight": torch.zeros(256, 128, 3, 3), "classifier.0.bias": torch.zeros(4096)}
    torch.save(state, tmp_path / "vgg16.pth")
    return state, str(tmp_path / "vgg16.pth")


@pytest.fixture
def brightness():
    """A perceptual loss whose feature 0 is the first colour's brightness after pooling; all others are 0."""
    loss = PerceptualLoss("untrained")
    for layer in loss.features.network:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1
    return loss


def test_each_slice_becomes_a_picture_of_three_equal_channels():
    image = torch.arange(2 * 4 * 5 * 3.0).reshape(2, 1, 4, 5, 3)
    pictures = as_pictures(image)
    assert pictures.shape == (2 * 3, 3, 4, 5)
    assert torch.equal(pictures[4], image[1, :, :, :, 1].expand(3, -1, -1))


def test_the_perceptual_term_is_the_mean_difference_of_the_features(brightness):
    synthetic, target = torch.full((1, 1, 8, 8, 2), 0.5), torch.full((1, 1, 8, 8, 2), 0.25)
    assert brightness(synthetic, target) == pytest.approx(0.25 / 128)
    assert brightness(target, target) == 0


def test_the_features_lie_before_the_second_pooling(brightness):
    spot = torch.full((1, 1, 8, 8, 1), -1.0)
    spot[0, 0, 2, 2, 0] = 1
    features = brightness.features(as_pictures(spot))
    assert features.shape == (1, 128, 4, 4)
    assert features[0, 0].nonzero().tolist() == [[1, 1]]


def test_the_features_are_those_of_torchvisions_weights(vgg16):
    state, path = vgg16
    image = torch.randn(1, 3, 8, 8)

    def convolve(image, index):
        return F.relu(F.conv2d(image, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))

    expected = convolve(convolve(F.max_pool2d(convolve(convolve(image, 0), 2), 2), 5), 7)
    torch.testing.assert_close(load_vgg16_features(path)(image), expected)


def test_the_gradient_reaches_the_synthetic_image_and_not_the_weights():
    loss, synthetic = PerceptualLoss("untrained"), torch.rand(1, 1, 8, 8, 2, requires_grad=True)
    loss(synthetic, torch.zeros(1, 1, 8, 8, 2)).backward()
    assert synthetic.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_random_weights_are_taken_only_when_asked_for_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no VGG16 weights at .*vgg16.pth: .*--vgg_weights untrained"):
        PerceptualLoss(str(tmp_path / "vgg16.pth"))


def test_weights_of_another_network_are_refused(tmp_path, perceptor):
    torch.save(perceptor.state_dict(), tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"0\.weight is absent in the file"):
        PerceptualLoss(str(tmp_path / "vgg16.pth"))


def test_the_objective_is_the_weighted_sum_of_three_terms(brightness):
    loss = PganLoss(
        {"global_adversarial": 1, "global_l1": 100, "perceptual": 100},
        nn.ModuleDict({"global": SumOfChannels()}),
        brightness,
    )
    synthetic, target = torch.full((1, 1, 8, 8, 2), 0.5), torch.full((1, 1, 8, 8, 2), 0.25)
    values = loss({"synthetic": synthetic}, Batch(torch.ones_like(target), target, torch.zeros_like(target)))
    assert values["global_adversarial"] == pytest.approx((1.5 - 1) ** 2)
    assert values["loss"].item() == pytest.approx(0.25 + 100 * 0.25 + 100 * 0.25 / 128)
