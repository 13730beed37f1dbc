import pytest
import torch
from tissnet_components.cascade import TissNet
from tissnet_components.comparators.pscgan import PriorThenSynthesis, PscganDiscriminatorLoss, PscganLoss
from tissnet_components.losses import Batch
from tissnet_components.unet25d import DualBranchUNet25D
from torch import nn

WIDTHS = [2, 4, 4, 4, 4]
STAGES = ("coarse", "synthetic", "fine")
WEIGHTS = {f"{stage}_adversarial": 1 for stage in STAGES} | {"coarse": 1, "synthetic_l1": 50, "fine": 25}


class Recorder(nn.Module):
    """A discriminator that scores everything 0.5 and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(image[0, :, 0, 0, 0].tolist())
        return torch.full_like(image[:, :1], 0.5)


@pytest.fixture
def pscgan():
    prior = DualBranchUNet25D(3, WIDTHS, {"coarse": "sigmoid"})
    synthesis = DualBranchUNet25D(4, WIDTHS, {"synthetic": "tanh"})
    return TissNet(
        PriorThenSynthesis(prior, synthesis), DualBranchUNet25D(1, WIDTHS, {"fine": "sigmoid"}), ["synthetic"]
    )


def constant(value, channels=1):
    return torch.full((1, channels, 4, 4, 2), float(value))


def batch():
    """Maps and a batch, each tensor known by its value."""
    return (
        {"coarse": constant(0.25), "synthetic": constant(-0.5), "fine": constant(0.75)},
        Batch(constant(3, 2), constant(4), constant(1)),
    )


def test_the_mask_guides_the_synthesis_and_the_synthesis_is_segmented(pscgan, sample):
    seen = {}
    stages = {"prior": pscgan.generator.prior, "synthesis": pscgan.generator.synthesis, "segmentor": pscgan.segmentor}
    for name, stage in stages.items():
        stage.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    maps = pscgan.eval().cascade(sample.source)
    assert list(maps) == list(STAGES)
    assert torch.equal(seen["prior"], sample.source)
    assert torch.equal(seen["synthesis"], torch.cat([sample.source, maps["coarse"]], 1))
    assert torch.equal(seen["segmentor"], maps["synthetic"])
    assert torch.equal(pscgan(sample.source), maps["fine"])


def test_the_last_stage_trains_all_of_them(pscgan, sample):
    pscgan.cascade(sample.source)["fine"].mean().backward()
    assert all(parameter.grad is not None for parameter in pscgan.parameters())


def test_each_stage_has_its_own_discriminator_of_what_it_was_given_and_made():
    discriminators = nn.ModuleDict({stage: Recorder() for stage in STAGES})
    values = PscganDiscriminatorLoss(discriminators, WEIGHTS)(*batch())
    assert discriminators["coarse"].seen == [[3, 3, 1], [3, 3, 0.25]]  # source with label, then with the prior mask
    assert discriminators["synthetic"].seen == [[3, 3, 0.25, 4], [3, 3, 0.25, -0.5]]
    assert discriminators["fine"].seen == [[-0.5, 1], [-0.5, 0.75]]
    assert values == {f"{stage}_discriminator": pytest.approx(0.5) for stage in STAGES}  # 0.5^2 + (0.5 - 1)^2


def test_each_stage_has_to_fool_its_own_discriminator():
    discriminators = nn.ModuleDict({stage: Recorder() for stage in STAGES})
    values = PscganLoss(WEIGHTS, discriminators)(*batch())
    assert [discriminators[stage].seen for stage in STAGES] == [[[3, 3, 0.25]], [[3, 3, 0.25, -0.5]], [[-0.5, 0.75]]]
    assert all(values[f"{stage}_adversarial"] == pytest.approx(0.25) for stage in STAGES)
    assert values["synthetic_l1"] == pytest.approx(4.5)
    dice = {"coarse": 1 - (2 * 0.25 / 1.25) / 2, "fine": 1 - (2 * 0.75 / 1.75) / 2}  # everything is tumor
    assert values["coarse"] == pytest.approx(dice["coarse"], abs=1e-4)
    assert values["loss"].item() == pytest.approx(0.75 + dice["coarse"] + 50 * 4.5 + 25 * dice["fine"], abs=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_adversarial_weight_has_no_discriminator_at_work(stage):
    discriminators = nn.ModuleDict({name: Recorder() for name in STAGES})
    weights = WEIGHTS | {f"{stage}_adversarial": 0}
    PscganDiscriminatorLoss(discriminators, weights)(*batch())
    PscganLoss(weights, discriminators)(*batch())
    assert [name for name in STAGES if not discriminators[name].seen] == [stage]
