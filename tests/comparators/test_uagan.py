import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from tissnet_components.comparators.uagan import (
    ContrastCritic,
    ContrastCriticLoss,
    GatedExchange,
    Uagan,
    UaganLoss,
    gradient_penalty,
)
from tissnet_components.losses import Batch
from tissnet_components.training import constant_then_linear
from torch import nn

WIDTHS = [2, 4, 4, 4, 4]
WEIGHTS = {"adversarial": 1, "contrast": 1, "cycle": 10, "fine": 100, "shape": 100}
CLOSED, OPEN = -1e4, 1e4
CONFIGS = Path(__file__).parents[2] / "bundles" / "tissnet_brats" / "configs"


@pytest.fixture
def uagan():
    return Uagan(3, WIDTHS)


class Brightness(nn.Module):
    """A critic that scores a voxel by its intensity and takes the first image for contrast 0, the second for 1..."""

    def forward(self, image):
        return image, 100 * torch.eye(len(image), 4)


class Painter(nn.Module):
    """A network that paints everything in the number of the wanted contrast, and segments what is bright."""

    def translate(self, image, contrast):
        self.image, self.contrast = image, contrast
        synthetic = torch.zeros_like(image[:, :1]) + contrast[:, None, None, None, None]
        return {"synthetic": synthetic, "fine": image[:, :1].clamp(0, 1)}


class Epoch:
    def __init__(self, done):
        self.last_epoch = done


def set_gates(uagan, bias):
    for exchange in uagan.exchanges.modules():
        if isinstance(exchange, GatedExchange):
            nn.init.constant_(exchange.gate.conv.bias, bias)


def constant(value, channels=1, samples=2):
    return torch.full((samples, channels, 4, 4, 2), float(value))


def test_a_closed_gate_lets_nothing_through_and_an_open_one_the_convolved_other():
    exchange, own, other = GatedExchange(4, planar=False).eval(), torch.rand(1, 4, 8, 8, 4), torch.rand(1, 4, 8, 8, 4)
    nn.init.constant_(exchange.gate.conv.bias, CLOSED)
    assert torch.equal(exchange(own, other), own)
    nn.init.constant_(exchange.gate.conv.bias, OPEN)
    torch.testing.assert_close(exchange(own, other), own + exchange.convolve(other))


def test_an_undecided_gate_lets_half_through():
    exchange, own, other = GatedExchange(4, planar=True).eval(), torch.rand(1, 4, 8, 8, 4), torch.rand(1, 4, 8, 8, 4)
    nn.init.zeros_(exchange.gate.conv.weight)
    nn.init.zeros_(exchange.gate.conv.bias)
    torch.testing.assert_close(exchange(own, other), own + exchange.convolve(other) / 2)


def test_a_planar_exchange_does_not_mix_slices():
    exchange, other = GatedExchange(2, planar=True).eval(), torch.rand(1, 2, 8, 8, 4)
    changed = other.clone()
    changed[..., 0] = 0
    difference = (exchange(other, changed) - exchange(other, other)).abs().sum((0, 1, 2, 3))
    assert difference[0] > 0
    assert difference[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("gates", "differs"), [(CLOSED, False), (0.0, True)], ids=["closed", "half open"])
def test_the_segmentation_hears_of_the_translation_through_the_gates_alone(uagan, sample, gates, differs):
    set_gates(uagan, gates)
    uagan.eval()
    maps = [uagan.translate(sample.source, torch.full((2,), contrast)) for contrast in (0, 3)]
    assert torch.equal(maps[0]["fine"], maps[1]["fine"]) is not differs
    assert not torch.equal(maps[0]["synthetic"], maps[1]["synthetic"])


def test_both_streams_share_the_bottleneck_and_nothing_else(uagan):
    own = set(uagan.encoder.levels.modules()) & set(uagan.translation_encoder.levels.modules())
    assert own == set(uagan.encoder.levels[-1].modules())


def test_one_bottleneck_learns_from_both_streams(uagan, sample):
    set_gates(uagan, CLOSED)
    bottleneck = uagan.encoder.levels[-1][0].weight
    for name in ("fine", "synthetic"):
        uagan.zero_grad()
        uagan.cascade(sample.source)[name].mean().backward()
        assert bottleneck.grad.abs().sum() > 0
        first = {"fine": uagan.encoder, "synthetic": uagan.translation_encoder}
        assert {key for key, encoder in first.items() if encoder.levels[0][0].weight.grad is not None} >= {name}


def test_the_cascade_translates_to_the_target(uagan, sample):
    uagan.eval()
    maps = uagan.cascade(sample.source)
    expected = uagan.translate(sample.source, torch.tensor([3, 3]))
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    assert torch.equal(uagan(sample.source), maps["fine"])


def test_each_sample_is_translated_to_its_own_contrast(uagan, sample):
    uagan.eval()
    both = uagan.translate(sample.source, torch.tensor([0, 2]))["synthetic"]
    torch.testing.assert_close(both[1:], uagan.translate(sample.source[1:], torch.tensor([2]))["synthetic"])


@pytest.mark.parametrize("size", [(33, 20, 7), (16, 16, 5)], ids=str)
def test_any_size_comes_back(uagan, size):
    maps = uagan.eval().cascade(torch.randn(1, 3, *size))
    assert {name: tuple(value.shape) for name, value in maps.items()} == dict.fromkeys(maps, (1, 1, *size))


def test_the_critic_names_a_contrast_and_has_no_norm():
    critic = ContrastCritic(contrasts=4, channels=2)
    scores, contrast = critic(torch.randn(3, 1, 32, 32, 8))
    assert scores.shape[:2] == (3, 1)
    assert contrast.shape == (3, 4)
    assert not [module for module in critic.modules() if "Norm" in type(module).__name__]


@pytest.mark.parametrize(("slope", "penalty"), [(1, 0), (3, 4), (0, 1)])
def test_a_critics_slope_should_be_one(slope, penalty):
    image = constant(0)  # 32 voxels: the gradient of the sum of slope / sqrt(32) * voxels has the norm `slope`
    value = gradient_penalty(lambda between: (slope / math.sqrt(32) * between, None), image + 1, image)
    assert value == pytest.approx(penalty, abs=1e-5)


def test_the_penalty_is_taken_between_real_and_fake_and_trains_the_critic():
    seen, critic = [], nn.Conv3d(1, 1, 1)

    def watched(image):
        seen.append(image)
        return critic(image), None

    gradient_penalty(watched, constant(1), constant(-1)).backward()
    assert -1 < seen[0].min() < seen[0].max() < 1
    assert [len(sample.unique()) for sample in seen[0]] == [1, 1]
    assert critic.weight.grad.abs() > 0


def test_the_critic_tells_the_real_target_from_the_synthetic_and_names_every_real_contrast(monkeypatch):
    monkeypatch.setattr("tissnet_components.comparators.uagan.gradient_penalty", lambda *_: torch.tensor(0.5))
    loss = ContrastCriticLoss(Brightness(), {"wasserstein": 1, "gradient_penalty": 10, "real_contrast": 1})
    source, target, synthetic = constant(7, 2, samples=1), constant(0.75, samples=1), constant(0.5, samples=1)
    values = loss({"synthetic": synthetic}, Batch(source, target, torch.zeros_like(target)))
    assert values["wasserstein"].item() == pytest.approx(0.5 - 0.75)
    assert values["gradient_penalty"] == pytest.approx(5)
    assert values["real_contrast"].item() == pytest.approx(0, abs=1e-5)  # Brightness names them in their order


def test_the_translated_image_is_translated_back_and_segmented():
    painter, source = Painter(), torch.cat([constant(5), constant(3)], 1)
    loss = UaganLoss(WEIGHTS, painter, Brightness(), Epoch(59), 60)
    maps = {"synthetic": constant(0.5), "fine": constant(1)}
    values = loss(maps, Batch(source, constant(0), constant(1)))
    assert torch.equal(painter.image, constant(0.5, 2))  # in place of both source contrasts
    assert set(painter.contrast.tolist()) <= {0, 1}
    back = torch.tensor([5.0, 3.0])[painter.contrast] - painter.contrast
    assert values["cycle"].item() == pytest.approx(back.mean().item())
    assert values["adversarial"] == pytest.approx(-0.5)
    assert values["fine"] == pytest.approx(0.5 - 0.5, abs=1e-3)
    assert values["shape"] == pytest.approx(1 - (2 * 0.5 / 1.5) / 2 - 0.5 * 0, abs=1e-3)


def test_as_configured_it_is_tested_as_it_was_trained(sample):
    """Translated images pass through the norms of the way back; running statistics would keep them for the test."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "comparators" / "uagan.json")])
    parser.update({"widths": WIDTHS, "dropout": [0.0] * 5, "device": "$torch.device('cpu')"})
    network = parser.get_parsed_content("network").train()
    UaganLoss(WEIGHTS, network, ContrastCritic(4, 2), Epoch(0))(network.cascade(sample.source), sample)
    trained = network(sample.source)
    torch.testing.assert_close(network.eval()(sample.source), trained)


@pytest.mark.parametrize(("named", "loss"), [(2, 0), (0, 100)], ids=["the target", "a source"])
def test_the_critic_should_take_the_translation_for_the_target(named, loss):
    """Two sources, so the target is contrast 2; a wrong name of 100 to 0 costs 100."""

    def critic(image):
        return image, 100 * torch.eye(3)[[named] * len(image)]

    batch = Batch(torch.cat([constant(5), constant(3)], 1), constant(0), constant(1))
    maps = {"synthetic": constant(0.5), "fine": constant(1)}
    terms = UaganLoss(WEIGHTS, Painter(), critic, Epoch(0)).terms(maps, batch)
    assert terms["contrast"]().item() == pytest.approx(loss)


@pytest.mark.parametrize(("epochs_done", "share"), [(0, 1 / 60), (29, 0.5), (59, 1), (200, 1)])
def test_the_shape_loss_grows_over_sixty_epochs(epochs_done, share):
    maps = {"synthetic": constant(0.5), "fine": constant(1)}
    batch = Batch(constant(5, 2), constant(0), constant(1))
    value, full = (
        UaganLoss(WEIGHTS, Painter(), Brightness(), Epoch(done), 60)(maps, batch)["shape"]
        for done in (epochs_done, 999)
    )
    assert value == pytest.approx(share * full.item())


def test_the_schedule_counts_the_epochs():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    schedule = constant_then_linear(optimizer, 250, 100)
    loss = UaganLoss(WEIGHTS, Painter(), Brightness(), schedule, 60)
    assert loss.shape_ramp == 1 / 60
    optimizer.step()
    schedule.step()
    assert loss.shape_ramp == 2 / 60


def test_every_term_trains_the_network(uagan, sample):
    critic = ContrastCritic(4, 2)
    for term in WEIGHTS:
        uagan.zero_grad()
        UaganLoss({term: 1}, uagan, critic, Epoch(0))(uagan.cascade(sample.source), sample)["loss"].backward()
        assert uagan.translation_encoder.levels[0][0].weight.grad.abs().sum() > 0
