import copy
import math

import pytest
import torch
from tissnet_components.cascade import TissNet
from tissnet_components.comparators.pix2pix import (
    Pix2PixDiscriminatorLoss,
    Pix2PixLoss,
    fool,
    load_generator,
    tell_apart,
)
from tissnet_components.losses import Batch
from tissnet_components.unet25d import DualBranchUNet25D
from tissnet_components.weights import keep_recipe
from torch import nn

WIDTHS = [2, 4, 4, 4, 4]


class SumOfChannels(nn.Module):
    def forward(self, image):
        return image.sum(1, keepdim=True)


def generator():
    return DualBranchUNet25D(3, WIDTHS, {"synthetic": "tanh"})


@pytest.fixture
def first_stage(tmp_path):
    """A generator and the file its training left."""
    network = TissNet(generator(), None)
    torch.save(network.state_dict(), tmp_path / "pix2pix_generator.pt")
    return network.generator, str(tmp_path / "pix2pix_generator.pt")


@pytest.fixture
def second_stage(first_stage):
    segmentor = DualBranchUNet25D(4, WIDTHS, {"fine": "sigmoid"})
    return TissNet(load_generator(generator(), first_stage[1]), segmentor, ["source", "synthetic"])


def test_an_undecided_discriminator_costs_both_players_log_two():
    assert fool(torch.zeros(3)) == pytest.approx(math.log(2))
    assert tell_apart(torch.zeros(3), torch.zeros(3)) == pytest.approx(math.log(2))


def test_the_discriminators_two_cross_entropies_are_halved():
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert tell_apart(real, fake) == pytest.approx(expected)


def test_the_generator_gains_by_the_log_of_the_discriminators_belief():
    assert fool(torch.tensor([2.0])) == pytest.approx(-math.log(1 / (1 + math.exp(-2))))


def test_the_objective_is_a_hundred_times_l1_and_the_adversarial_term(sample):
    discriminators = nn.ModuleDict({"global": SumOfChannels()})
    loss = Pix2PixLoss({"global_adversarial": 1, "global_l1": 100}, discriminators)
    source, maps = torch.ones(1, 1, 4, 4, 2), {"synthetic": torch.full((1, 1, 4, 4, 2), 0.5)}
    values = loss(maps, Batch(source, torch.full((1, 1, 4, 4, 2), -0.25), torch.zeros(1, 1, 4, 4, 2)))
    belief = 1 / (1 + math.exp(-1.5))
    assert values["global_l1"] == pytest.approx(0.75)
    assert values["global_adversarial"] == pytest.approx(-math.log(belief))
    assert values["loss"].item() == pytest.approx(75 - math.log(belief))


def test_the_discriminator_is_conditioned_on_the_source():
    discriminators = nn.ModuleDict({"global": SumOfChannels()})
    loss = Pix2PixDiscriminatorLoss(discriminators, {"global_adversarial": 1})
    real, fake = torch.full((1, 1, 4, 4, 2), 1.0), torch.full((1, 1, 4, 4, 2), -2.0)
    values = loss({"synthetic": fake}, Batch(torch.ones(1, 1, 4, 4, 2), real, torch.zeros(1, 1, 4, 4, 2)))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2  # scores 1 + 1 and 1 - 2
    assert values == {"global_discriminator": pytest.approx(expected)}


def test_the_second_stage_sees_the_source_and_what_the_first_one_synthesised(first_stage, second_stage, sample):
    seen = []
    second_stage.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    synthetic = second_stage.cascade(sample.source)["synthetic"]
    torch.testing.assert_close(synthetic, first_stage[0].eval()(sample.source)["synthetic"])
    assert torch.equal(seen[0], torch.cat([sample.source, synthetic], 1))


def test_training_the_second_stage_leaves_the_generator_as_it_is(second_stage, sample):
    second_stage.train()
    before = copy.deepcopy(second_stage.state_dict())
    optimizer = torch.optim.Adam(second_stage.parameters(), 0.1)
    second_stage.cascade(sample.source)["fine"].mean().backward()
    optimizer.step()
    moved = {
        name.split(".")[0] for name, value in second_stage.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"segmentor"}


def test_a_generator_of_other_images_is_refused(first_stage):
    keep_recipe(first_stage[1], {"spacing_mm": [1, 1, 1]})
    load_generator(generator(), first_stage[1], {"spacing_mm": [1, 1, 1]})
    with pytest.raises(ValueError, match="spacing_mm"):
        load_generator(generator(), first_stage[1], {"spacing_mm": [2, 2, 2]})


def test_a_missing_generator_prints_the_command_that_trains_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.json','configs/comparators/pix2pix_generator\.json'"):
        load_generator(generator(), str(tmp_path / "pix2pix_generator.pt"))
