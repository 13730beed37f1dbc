import pytest
import torch
from tissnet_components.unet25d import Decoder25D, DualBranchUNet25D, Encoder25D, PReLU, UNet25D, UpBlock
from torch.nn import functional as F

WIDTHS = [2, 4, 4, 4, 4]
PAPER, WIDE = [16, 32, 64, 128, 256], [32, 64, 128, 256, 512]
BRANCHES = {"synthetic": "tanh", "coarse": "sigmoid"}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def slices_that_change(network, size, voxel):
    """Indices along z of the output that depend on one input voxel."""
    image = torch.randn(1, 1, *size)
    changed = image.clone()
    changed[(0, 0, *voxel)] += 5
    with torch.no_grad():
        difference = (network(changed) - network(image)).abs().amax((0, 1, 2, 3))
    return difference.nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("widths", "upsampling", "single", "dual"),
    [
        pytest.param(PAPER, "transposed", 5_535_971, 7_569_036, id="16-256-transposed: 5.54 and 7.57 M"),
        pytest.param(WIDE, "transposed", 22_134_195, 30_263_036, id="32-512-transposed: 22.13 and 30.26 M"),
        pytest.param(PAPER, "interpolation", 5_241_571, 6_980_236, id="16-256-interpolation"),
        pytest.param(WIDE, "interpolation", 20_956_595, 27_907_836, id="32-512-interpolation"),
    ],
)
def test_parameter_counts_are_those_of_the_known_relatives(widths, upsampling, single, dual):
    assert parameters(UNet25D(1, widths, upsampling=upsampling)) == single
    assert parameters(DualBranchUNet25D(1, widths, BRANCHES, upsampling=upsampling)) == dual


def test_one_more_input_channel_costs_one_planar_kernel_per_filter():
    assert parameters(UNet25D(4, PAPER)) - parameters(UNet25D(3, PAPER)) == 9 * 16


def test_features_halve_in_plane_four_times_and_across_slices_twice():
    features = Encoder25D(1, WIDTHS)(torch.zeros(1, 1, 32, 48, 8))
    assert [tuple(level.shape[1:]) for level in features] == [
        (2, 32, 48, 8),
        (4, 16, 24, 8),
        (4, 8, 12, 8),
        (4, 4, 6, 4),
        (4, 2, 3, 2),
    ]


@pytest.mark.parametrize("upsampling", ["interpolation", "transposed"])
def test_the_two_finest_levels_do_not_mix_slices(upsampling):
    planar = UNet25D(1, [2, 4], dropout=[0, 0], upsampling=upsampling).eval()
    assert slices_that_change(planar, (16, 16, 8), (7, 7, 3)) == [3]


def test_the_planar_levels_of_a_deep_network_do_not_mix_slices():
    encoder = Encoder25D(1, WIDTHS).eval()
    image = torch.randn(1, 1, 16, 16, 8)
    changed = image.clone()
    changed[..., 3] += 5
    differences = [(a - b).abs().amax((0, 1, 2, 3)) for a, b in zip(encoder(changed), encoder(image), strict=True)]
    assert [level.nonzero().flatten().tolist() for level in differences[:3]] == [[3], [3], [1, 2, 3, 4, 5]]


def test_the_finest_planar_levels_of_the_decoder_do_not_mix_slices():
    decoder = Decoder25D(1, WIDTHS, "sigmoid").eval()
    features = Encoder25D(1, WIDTHS).eval()(torch.randn(1, 1, 16, 16, 8))
    changed = [*(level.clone() for level in features[:2]), *features[2:]]
    changed[0][..., 2] += 5
    changed[1][..., 2] += 5
    difference = (decoder(changed) - decoder(features)).abs().amax((0, 1, 2, 3))
    assert difference.nonzero().flatten().tolist() == [2]


def test_the_third_level_mixes_slices():
    assert len(slices_that_change(UNet25D(1, [2, 4, 4], [0, 0, 0]).eval(), (16, 16, 8), (7, 7, 3))) > 1


@pytest.mark.parametrize("size", [(16, 16, 155), (1, 1, 1), (33, 47, 9), (32, 16, 4)], ids=str)
def test_any_size_comes_back(size):
    maps = DualBranchUNet25D(2, WIDTHS, BRANCHES).eval()(torch.randn(1, 2, *size))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "synthetic": (1, 1, *size),
        "coarse": (1, 1, *size),
    }


def test_a_size_that_fits_is_not_padded():
    network = UNet25D(1, WIDTHS).eval()
    image = torch.randn(1, 1, 32, 16, 8)
    assert torch.equal(network(image), network.decoders["fine"](network.encoder(image)))


def test_other_sizes_are_padded_with_their_edge_at_the_far_ends():
    network = UNet25D(1, WIDTHS).eval()
    image = torch.randn(1, 1, 31, 17, 6)
    padded = F.pad(image, (0, 2, 0, 15, 0, 1), mode="replicate")
    assert torch.equal(network(image), network(padded)[..., :31, :17, :6])


def test_images_lie_in_minus_one_to_one_and_segmentations_in_zero_to_one():
    maps = DualBranchUNet25D(1, WIDTHS, BRANCHES)(20 * torch.randn(2, 1, 16, 16, 8))
    assert -1 <= maps["synthetic"].min() < 0 < maps["synthetic"].max() <= 1
    assert 0 <= maps["coarse"].min() < maps["coarse"].max() <= 1


def test_half_precision_stays_inside_the_network():
    network = DualBranchUNet25D(1, WIDTHS, BRANCHES).eval()
    image = torch.randn(1, 1, 32, 32, 8)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(image)
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, exact[name])
        torch.testing.assert_close(value, exact[name], atol=0.05, rtol=0)


def test_half_precision_holds_where_a_decoder_joins_its_skip():
    block, joined = UpBlock(4, 2, True, "interpolation"), []
    block.convolve.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(1, 4, 4, 4, 4), torch.randn(1, 2, 8, 8, 4).bfloat16())
    assert joined == [torch.bfloat16]


def test_channels_last_gives_the_same_maps():
    network = DualBranchUNet25D(2, WIDTHS, BRANCHES).eval()
    image = torch.randn(1, 2, 33, 32, 8)
    expected = network(image)
    found = network.to(memory_format=torch.channels_last_3d)(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(found, expected)


def test_branches_that_nobody_asks_for_are_not_computed():
    network = DualBranchUNet25D(1, WIDTHS, BRANCHES).eval()
    network.decoders["synthetic"].forward = pytest.fail
    assert list(network(torch.zeros(1, 1, 16, 16, 4), ["coarse"])) == ["coarse"]


def test_dropout_acts_in_training_alone():
    network, image = UNet25D(1, WIDTHS), torch.randn(1, 1, 32, 32, 8)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_the_cascade_of_a_plain_unet_is_fine_alone():
    network, image = UNet25D(1, WIDTHS).eval(), torch.randn(1, 1, 16, 16, 4)
    maps = network.cascade(image)
    assert list(maps) == ["fine"]
    assert torch.equal(maps["fine"], network(image))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: UNet25D(1, WIDTHS, upsampling="nearest"), "unknown upsampling 'nearest'", id="upsampling"),
        pytest.param(lambda: UNet25D(1, WIDTHS, dropout=[0.5]), "1 values for 5 widths", id="dropout"),
        pytest.param(lambda: DualBranchUNet25D(1, WIDTHS, {"a": "relu"}), "unknown activation 'relu'", id="activation"),
    ],
)
def test_an_impossible_network_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_segmentation_without_evidence_starts_at_the_foreground_prior():
    decoder = Decoder25D(1, [2, 4, 4, 4, 4], "sigmoid")
    assert torch.allclose(decoder.activation(decoder.head(torch.zeros(1, 2, 1, 1, 1))), torch.tensor(0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fast_prelu_has_the_values_and_gradients_of_pytorchs(dtype):
    image, upstream = torch.randn(2, 3, 4, 5, 6).to(dtype), torch.randn(2, 3, 4, 5, 6).to(dtype)
    results = []
    for module in (PReLU(), torch.nn.PReLU()):
        leaf = image.clone().requires_grad_()
        output = module.to(dtype)(leaf)
        output.backward(upstream)
        results.append((output, leaf.grad, module.weight.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
