import pytest
import torch
from tissnet_components.patchgan import PatchGAN, discriminate


def test_one_score_sees_seventy_by_seventy_by_sixteen_voxels():
    discriminator = PatchGAN(1, channels=1).eval()
    for parameter in discriminator.parameters():  # positive weights: no contribution can cancel another
        parameter.data.abs_().add_(0.01)
    image = torch.rand(1, 1, 128, 128, 32, requires_grad=True)
    scores = discriminator(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2, scores.shape[4] // 2].backward()
    seen = image.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70, 16]
    assert len(seen) == 70 * 70 * 16


@pytest.mark.parametrize(
    ("size", "scores"),
    [
        pytest.param((128, 128, 16), (14, 14, 11), id="the paper's patch"),
        pytest.param((24, 24, 6), (1, 1, 1), id="the smallest"),
    ],
)
def test_scores_form_a_grid_of_patches(size, scores):
    assert PatchGAN(2, channels=1)(torch.zeros(1, 2, *size)).shape == (1, 1, *scores)


@pytest.mark.parametrize("size", [(23, 24, 6), (24, 23, 6), (24, 24, 5)], ids=str)
def test_smaller_patches_do_not_fit(size):
    with pytest.raises(RuntimeError, match="Kernel size"):
        PatchGAN(2, channels=1)(torch.zeros(1, 2, *size))


@pytest.mark.parametrize(("in_channels", "count"), [(2, 11_052_865), (4, 11_061_057)], ids=["11.05 M", "11.06 M"])
def test_parameter_counts(in_channels, count):
    # k=4: 64(64c + 1); 64*64(128 + 2*256 + 4*512)*2 without bias; 64*512 + 1; batch norm 2(128 + 256 + 512)
    worked_out = 64 * (64 * in_channels + 1) + 64 * (64 * 128 + 128 * 256 + 256 * 512) + 64 * 512 + 1 + 2 * 896
    assert worked_out == count
    assert sum(parameter.numel() for parameter in PatchGAN(in_channels).parameters()) == count


def test_scores_have_no_activation():
    discriminator, image = PatchGAN(1, channels=2).eval(), torch.randn(1, 1, 32, 32, 8)
    scores = discriminator(image)
    discriminator[-1].conv.weight.data *= -3
    torch.testing.assert_close(discriminator(image), -3 * scores)


def test_weights_start_small():
    state = PatchGAN(2, channels=16).state_dict()
    weights = torch.cat([value.flatten() for name, value in state.items() if name.endswith("conv.weight")])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert weights.mean().item() == pytest.approx(0, abs=1e-3)


def test_the_discriminator_sees_source_and_target_as_channels():
    source, target = torch.full((1, 2, 2, 2, 2), 3.0), torch.full((1, 1, 2, 2, 2), 7.0)
    seen = []
    discriminate(lambda image: seen.append(image) or image, source, target)
    assert seen[0][0, :, 0, 0, 0].tolist() == [3, 3, 7]


def test_scores_are_float32_under_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert discriminate(PatchGAN(2, 2), torch.zeros(1, 1, 24, 24, 6), torch.zeros(1, 1, 24, 24, 6)).dtype == (
            torch.float32
        )
