from dataclasses import replace
from math import log

import pytest
import torch
from tissnet_components.losses import (
    Batch,
    DiscriminatorLoss,
    ErrorPredictionConsistencyLoss,
    PerceptibilityLoss,
    TissNetLoss,
    coarse_mistakes,
    dice_loss,
    fool,
    tell_apart,
    tumor_box,
)
from torch import nn

TERMS = tuple(TissNetLoss.NEEDS)
# A patch of 4 x 4 x 2 = 32 voxels, 4 of them tumor (2 x 2 x 1); every map is constant.
SIZE = (4, 4, 2)
GENERATOR, SEGMENTOR = {"encoder", "synthetic", "coarse"}, {"encoder", "fine", "error"}


class SumOfChannels(nn.Module):
    """A discriminator that scores each voxel with source + target; it keeps what it saw."""

    def forward(self, image):
        self.seen = image
        return image.sum(1, keepdim=True)


class HalfBrightness(nn.Module):
    """A perceptor: intensities from -1 to 1 are probabilities from 0 to 1."""

    def forward(self, image):
        return (image + 1) / 2


class Forbidden(nn.Module):
    def forward(self, image):
        pytest.fail("a term of weight zero was computed")


def constant(value, samples=1):
    return torch.full((samples, 1, *SIZE), float(value))


def small_tumor(samples=1):
    label = torch.zeros(samples, 1, *SIZE)
    label[:, :, 1:3, 1:3, 1] = 1
    return label


def toy_maps(samples=1):
    values = {"synthetic": 0.5, "coarse": 0.8, "fine": 0.75, "error": 0.125, "refined": 0.65}
    return {name: constant(value, samples) for name, value in values.items()}


def toy_loss(weights, segmentor_weight=1.0, **settings):
    toys = {"global": SumOfChannels(), "tumor": SumOfChannels()}
    return TissNetLoss(weights, segmentor_weight, HalfBrightness(), nn.ModuleDict(toys), **settings)


def toy_terms(weights, segmentor_weight=1.0, samples=1):
    """Every term for synthetic 0.5, target -0.25, source 1."""
    loss = toy_loss(weights, segmentor_weight)
    values = loss(toy_maps(samples), Batch(constant(1, samples), constant(-0.25, samples), small_tumor(samples)))
    return {name: value.item() for name, value in values.items()}


def dice_of_constant(probability, voxels):
    """Of a constant map, with that many of 32 voxels marked: 1 - mean(foreground, background)."""
    foreground = 2 * voxels * probability / (voxels + 32 * probability)
    background = 2 * (32 - voxels) * (1 - probability) / (32 - voxels + 32 * (1 - probability))
    return 1 - (foreground + background) / 2


BY_HAND = {
    "global_l1": 0.75,  # Eq. 1: |0.5 + 0.25|
    "global_adversarial": 0.25,  # Eq. 2: (1 + 0.5 - 1)^2
    "tumor_l1": 4 * 0.75 / 32,  # Eq. 4: 0.75 in the box, 0 outside, mean over all voxels
    "tumor_adversarial": (4 * 0.25 + 28) / 32,  # Eq. 4: score 1.5 in the box, 0 outside
    "perceptibility": dice_of_constant(0.75, 4),  # Eq. 5: the perceptor makes 0.75 of 0.5
    "coarse": dice_of_constant(0.8, 4),  # L_c
    "fine": dice_of_constant(0.75, 4),  # Eq. 9
    "error": dice_of_constant(0.125, 28),  # Eq. 9: coarse is wrong at the 28 voxels of background
    "consistency": 0.01,  # Eq. 8: (0.75 - 0.65)^2
}
PAPER = {**dict.fromkeys(TERMS, 1), "global_l1": 50, "tumor_l1": 200, "perceptibility": 25}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_the_value_worked_out_by_hand(term):
    values = toy_terms({term: 1})
    assert values == pytest.approx({term: BY_HAND[term], "loss": BY_HAND[term]}, abs=1e-5)


def test_the_total_is_the_papers_weighted_sum():
    fine = 1 - (6 / 28 + 14 / 36) / 2
    synthesis = 50 * 0.75 + 0.25 + 200 * 3 / 32 + 29 / 32 + 25 * fine  # Eq. 6
    segmentor = fine + (1 - 7 / 32) + 0.01  # Eq. 9
    coarse = 1 - (6.4 / 29.6 + 11.2 / 34.4) / 2
    expected = synthesis + 1 * coarse + 25 * segmentor  # Eq. 10
    values = toy_terms(PAPER, segmentor_weight=25)
    assert values.pop("loss") == pytest.approx(expected, rel=1e-5)
    assert values == pytest.approx(BY_HAND, abs=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_the_segmentors_weight_multiplies_its_three_terms_alone(term):
    factor = 25 if term in ("fine", "error", "consistency") else 1
    assert toy_terms({term: 2}, segmentor_weight=25)["loss"] == pytest.approx(2 * factor * BY_HAND[term], rel=1e-4)


def test_cross_entropy_adds_to_coarse_and_fine_alone():
    loss = toy_loss(PAPER, cross_entropy=2)
    values = loss(toy_maps(), Batch(constant(1), constant(-0.25), small_tumor()))
    fine = BY_HAND["fine"] - 2 * (4 * log(0.75) + 28 * log(0.25)) / 32
    coarse = BY_HAND["coarse"] - 2 * (4 * log(0.8) + 28 * log(0.2)) / 32
    others = {term: pytest.approx(BY_HAND[term], abs=1e-5) for term in set(TERMS) - {"coarse", "fine"}}
    assert {term: values[term] for term in TERMS} == {
        **others,
        "coarse": pytest.approx(coarse, rel=1e-4),
        "fine": pytest.approx(fine, rel=1e-4),
    }


def test_cross_entropy_holds_back_what_is_found_for_certain_where_there_is_no_tumor():
    gradients = []
    for weight in (0, 1):
        logit = constant(9).requires_grad_()
        loss = toy_loss({"fine": 1}, cross_entropy=weight)
        loss({"fine": logit.sigmoid()}, Batch(constant(0), constant(0), constant(0)))["loss"].backward()
        gradients.append(logit.grad.mean() * 32)
    dice_alone, both = gradients
    assert dice_alone < 1e-3 and both == pytest.approx(1, abs=1e-2)  # of cross-entropy: probability less label


def test_norms_are_means_so_that_more_samples_change_nothing():
    assert toy_terms(PAPER, samples=3) == pytest.approx(toy_terms(PAPER, samples=1), rel=1e-5)


def test_a_segmentor_of_weight_zero_is_not_computed():
    assert set(toy_terms(PAPER, segmentor_weight=0)) == set(TERMS) - {"fine", "error", "consistency"} | {"loss"}


def test_terms_of_weight_zero_are_not_computed():
    forbidden = nn.ModuleDict({"global": Forbidden(), "tumor": Forbidden()})
    weights = {**dict.fromkeys(TERMS, 0), "fine": 1}
    loss = TissNetLoss(weights, 1, Forbidden(), forbidden)
    assert set(loss({"fine": constant(0.5)}, Batch(constant(0), constant(0), small_tumor()))) == {"fine", "loss"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: TissNetLoss({"fine": 1, "fin": 1}), r"unknown loss terms \['fin'\]; known", id="unknown"),
        pytest.param(lambda: TissNetLoss({"perceptibility": 1}), "needs a perceptor", id="no perceptor"),
        pytest.param(
            lambda: TissNetLoss({"global_adversarial": 1}), r"needs discriminators\['global'\]", id="no discriminators"
        ),
        pytest.param(
            lambda: TissNetLoss({"tumor_adversarial": 1}, 1, None, nn.ModuleDict({"global": SumOfChannels()})),
            r"needs discriminators\['tumor'\]",
            id="no tumor discriminator",
        ),
        pytest.param(lambda: TissNetLoss({"fine": 1}, 0), "every loss term has weight 0", id="nothing left"),
    ],
)
def test_an_impossible_objective_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_source_synthetic_and_target_are_masked_by_the_tumor_box():
    loss = toy_loss({"tumor_adversarial": 1})
    loss(toy_maps(), Batch(constant(1), constant(-0.5), small_tumor()))
    seen = loss.discriminators["tumor"].seen
    assert torch.equal(seen[:, :1], small_tumor())
    assert torch.equal(seen[:, 1:], 0.5 * small_tumor())


def test_the_tumors_margin_widens_the_mask():
    loss = toy_loss({"tumor_l1": 1}, tumor_margin=1)
    values = loss(toy_maps(), Batch(constant(1), constant(-0.5), small_tumor()))
    assert values["tumor_l1"] == 1  # 2 x 2 x 1 and one voxel around: the whole patch


@pytest.mark.parametrize("term", ["tumor_l1", "tumor_adversarial"])
def test_a_sample_without_tumor_is_left_out_of_the_tumor_terms(sample, discriminators, term):
    loss = TissNetLoss({term: 1}, discriminators=discriminators)
    synthetic = torch.rand_like(sample.target)
    one_healthy = sample.label.clone()
    one_healthy[0] = 0
    second = Batch(sample.source[1:], sample.target[1:], sample.label[1:])
    both = loss({"synthetic": synthetic}, Batch(sample.source, sample.target, one_healthy))
    alone = loss({"synthetic": synthetic[1:]}, second)
    torch.testing.assert_close(both[term], alone[term])
    discriminator_loss = DiscriminatorLoss(discriminators, {"tumor_adversarial": 1})
    both = discriminator_loss({"synthetic": synthetic}, Batch(sample.source, sample.target, one_healthy))
    alone = discriminator_loss({"synthetic": synthetic[1:]}, second)
    torch.testing.assert_close(both["tumor_discriminator"], alone["tumor_discriminator"])


def test_without_any_tumor_there_are_no_tumor_terms():
    toys = nn.ModuleDict({"global": SumOfChannels(), "tumor": Forbidden()})
    loss = TissNetLoss(dict.fromkeys(TERMS, 1), 1, HalfBrightness(), toys)
    values = loss(toy_maps(), Batch(constant(1), constant(-0.5), constant(0)))
    assert set(values) == set(TERMS) - {"tumor_l1", "tumor_adversarial"} | {"loss"}
    values = DiscriminatorLoss(toys, PAPER)(
        {"synthetic": constant(0.5)}, Batch(constant(1), constant(-0.5), constant(0))
    )
    assert set(values) == {"global_discriminator"}


def test_tumor_terms_alone_give_a_loss_of_zero_without_tumor():
    loss = toy_loss({"tumor_l1": 1})(toy_maps(), Batch(constant(1), constant(-0.5), constant(0)))["loss"]
    loss.backward()
    assert loss == 0


def test_discriminators_score_real_as_one_and_synthetic_as_zero():
    toys = nn.ModuleDict({"global": SumOfChannels(), "tumor": SumOfChannels()})
    values = DiscriminatorLoss(toys, PAPER)(
        {"synthetic": constant(0.5)}, Batch(constant(1), constant(-0.5), small_tumor())
    )
    assert values["global_discriminator"] == pytest.approx(1.5**2 + (0.5 - 1) ** 2)  # Eq. 3
    in_box, outside = 1.5**2 + (0.5 - 1) ** 2, 0 + (0 - 1) ** 2
    assert values["tumor_discriminator"] == pytest.approx((4 * in_box + 28 * outside) / 32)


def test_a_perfect_discriminator_has_no_loss_and_is_not_fooled():
    assert tell_apart(torch.ones(3), torch.zeros(3)) == 0
    assert tell_apart(torch.zeros(3), torch.ones(3)) == 2
    assert fool(torch.zeros(3)) == 1
    assert fool(torch.tensor([1.0, 3.0])) == 2


@pytest.mark.parametrize("name", ["global", "tumor"])
def test_a_discriminator_of_weight_zero_is_not_trained(name):
    toys = nn.ModuleDict({"global": SumOfChannels(), "tumor": SumOfChannels()})
    toys[name] = Forbidden()
    weights = {"global_adversarial": 1, "tumor_adversarial": 1, f"{name}_adversarial": 0}
    values = DiscriminatorLoss(toys, weights)(
        {"synthetic": constant(0.5)}, Batch(constant(1), constant(-0.5), small_tumor())
    )
    assert set(values) == {"global_discriminator", "tumor_discriminator"} - {f"{name}_discriminator"}


def test_the_generator_meets_the_discriminator_that_was_trained(sample, discriminators):
    """Synthetic images get the same scores in both steps, whatever real images pass in the first."""
    scores = []
    discriminators["global"].register_forward_hook(lambda module, inputs, output: scores.append(output.detach()))
    synthetic = torch.rand_like(sample.target)
    weights = {"global_adversarial": 1}
    DiscriminatorLoss(discriminators, weights)(
        {"synthetic": synthetic}, Batch(sample.source, sample.target - 0.5, sample.label)
    )
    TissNetLoss(weights, discriminators=discriminators)({"synthetic": synthetic}, sample)
    assert torch.equal(scores[-1], scores[-2])


def box_of(*voxels, margin=0, size=(6, 6, 6)):
    """Corners of the box around some voxels, and how many voxels it holds."""
    label = torch.zeros(1, 1, *size)
    for voxel in voxels:
        label[(0, 0, *voxel)] = 1
    box = tumor_box(label, margin)
    assert set(box.unique().tolist()) <= {0, 1}
    found = box[0, 0].nonzero()
    return tuple(found.amin(0).tolist()), tuple(found.amax(0).tolist()), len(found)


def test_the_box_touches_the_tumor_on_every_side():
    assert box_of((1, 2, 3), (2, 4, 3)) == ((1, 2, 3), (2, 4, 3), 2 * 3 * 1)


def test_one_box_holds_every_component():
    assert box_of((0, 1, 1), (1, 1, 1), (4, 2, 3)) == ((0, 1, 1), (4, 2, 3), 5 * 2 * 3)


def test_the_margin_widens_the_box_on_every_side():
    assert box_of((2, 2, 2), margin=1) == ((1, 1, 1), (3, 3, 3), 27)


def test_the_box_ends_at_the_edges():
    assert box_of((0, 0, 0), margin=2) == ((0, 0, 0), (2, 2, 2), 27)
    assert box_of((5, 5, 5), margin=2) == ((3, 3, 3), (5, 5, 5), 27)


def test_each_sample_has_its_own_box_and_none_without_tumor():
    label = torch.zeros(3, 1, *SIZE)
    label[0, 0, 0, 0, 0] = 1
    label[2, 0, 2:, 3, 1] = 1
    assert torch.equal(tumor_box(label), label)
    assert tumor_box(torch.zeros(1, 1, *SIZE), margin=1).sum() == 0


def test_mistakes_are_where_the_thresholded_coarse_differs():
    coarse = torch.tensor([0.2, 0.8, 0.5, 0.51], requires_grad=True).reshape(1, 1, 4, 1, 1)
    label = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1, 1)
    mistakes = coarse_mistakes(coarse, label)
    assert mistakes.flatten().tolist() == [0, 1, 1, 0]
    assert not mistakes.requires_grad


def test_dice_is_the_mean_of_foreground_and_background_over_the_whole_batch():
    label = small_tumor(samples=2)  # 8 of 64 voxels
    one_missed = torch.cat([small_tumor(), constant(0)])
    foreground, background = 2 * 4 / (4 + 8), 2 * 56 / (60 + 56)
    assert dice_loss(one_missed, label) == pytest.approx(1 - (foreground + background) / 2, abs=1e-6)


def test_a_perfect_segmentation_costs_nothing_with_and_without_tumor():
    assert dice_loss(small_tumor(), small_tumor()) == pytest.approx(0, abs=1e-6)
    assert dice_loss(constant(0), constant(0)) == pytest.approx(0, abs=1e-6)


def test_false_alarms_on_a_patch_without_tumor_are_held_back():
    probability = constant(0.5).requires_grad_()
    loss = dice_loss(probability, constant(0))
    loss.backward()
    assert loss.item() == pytest.approx(1 - (0 + 2 * 16 / (16 + 32)) / 2, abs=1e-5)
    assert probability.grad.min() > 1e-3


def test_consistency_is_a_mean_square():
    fine, refined = torch.tensor([0.8, 0.5, 0.0, 1.0]), torch.tensor([0.5, 0.5, 1.0, 0.9])
    assert ErrorPredictionConsistencyLoss()(fine, refined) == pytest.approx((0.09 + 0 + 1 + 0.01) / 4)


def test_the_perceptor_stays_frozen_while_gradients_pass_through_it(perceptor, sample):
    loss = TissNetLoss({"perceptibility": 1}, perceptor=perceptor.train())
    before = {name: value.clone() for name, value in perceptor.state_dict().items()}
    synthetic = torch.zeros_like(sample.target, requires_grad=True)
    loss.train()
    loss({"synthetic": synthetic}, sample)["loss"].backward()
    assert not any(module.training for module in perceptor.modules())
    assert all(parameter.grad is None for parameter in perceptor.parameters())
    assert synthetic.grad.abs().max() > 0
    torch.testing.assert_close(perceptor.state_dict(), before, rtol=0, atol=0)


def test_what_the_perceptor_recognises_costs_nothing():
    assert PerceptibilityLoss(HalfBrightness())(2 * small_tumor() - 1, small_tumor()) == pytest.approx(0, abs=1e-5)
    assert PerceptibilityLoss(HalfBrightness())(1 - 2 * small_tumor(), small_tumor()) == pytest.approx(1, abs=1e-5)


def branches_with_gradients(network):
    parts = {"encoder": network.encoder, **network.decoders}
    return {
        name
        for name, part in parts.items()
        if any(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())
    }


@pytest.mark.parametrize(
    ("term", "generator", "segmentor"),
    [
        pytest.param("global_l1", {"encoder", "synthetic"}, set(), id="global_l1"),
        pytest.param("global_adversarial", {"encoder", "synthetic"}, set(), id="global_adversarial"),
        pytest.param("tumor_l1", {"encoder", "synthetic"}, set(), id="tumor_l1"),
        pytest.param("tumor_adversarial", {"encoder", "synthetic"}, set(), id="tumor_adversarial"),
        pytest.param("perceptibility", {"encoder", "synthetic"}, set(), id="perceptibility"),
        pytest.param("coarse", {"encoder", "coarse"}, set(), id="coarse"),
        pytest.param("fine", GENERATOR, SEGMENTOR - {"error"}, id="fine"),
        pytest.param("error", GENERATOR, SEGMENTOR - {"fine"}, id="error"),
        pytest.param("consistency", GENERATOR, SEGMENTOR, id="consistency"),
    ],
)
def test_each_term_reaches_only_its_own_branches(
    network, perceptor, discriminators, sample, term, generator, segmentor
):
    loss = TissNetLoss({term: 1}, perceptor=perceptor, discriminators=discriminators)
    loss(network.cascade(sample.source), sample)["loss"].backward()
    assert branches_with_gradients(network.generator) == generator
    assert branches_with_gradients(network.segmentor) == segmentor
    assert all(parameter.grad is None for parameter in perceptor.parameters())


LEARNT_WITHOUT = {  # what a patient lacks -> the terms that learn from that patient all the same
    "target": set(TERMS) - {"global_l1", "tumor_l1"},
    "label": {"global_l1", "global_adversarial", "consistency"},
}


@pytest.mark.parametrize("lacks", LEARNT_WITHOUT)
@pytest.mark.parametrize("term", TERMS)
def test_each_term_learns_from_the_patients_who_have_what_it_needs(sample, perceptor, discriminators, lacks, term):
    """The first patient has everything; what the second lacks is NaN, so that nobody can use it unnoticed."""
    filler = getattr(sample, lacks).clone()
    filler[1] = float("nan")
    batch = replace(sample, **{lacks: filler, f"has_{lacks}": torch.tensor([True, False])})
    maps = {name: torch.rand_like(sample.label).requires_grad_() for name in toy_maps()}
    loss = TissNetLoss({term: 1}, perceptor=perceptor, discriminators=discriminators)
    loss(maps, batch)["loss"].backward()
    gradients = [value.grad for value in maps.values() if value.grad is not None]
    reached = [any(gradient[patient].any() for gradient in gradients) for patient in (0, 1)]
    assert reached == [True, term in LEARNT_WITHOUT[lacks]]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert loss.counts(batch) == {term: sum(reached)}


@pytest.mark.parametrize(("lacks", "learn"), [("target", set()), ("label", {"global"})])
def test_each_discriminator_learns_from_the_patients_who_have_what_it_needs(sample, discriminators, lacks, learn):
    batch = replace(sample, **{f"has_{lacks}": torch.tensor([False, False])})
    loss = DiscriminatorLoss(discriminators, {"global_adversarial": 1, "tumor_adversarial": 1})
    assert set(loss(toy_maps_of(sample), batch)) == {f"{name}_discriminator" for name in learn}
    assert loss.counts(batch) == {f"{name}_discriminator": 2 * (name in learn) for name in discriminators}


def toy_maps_of(sample):
    return {"synthetic": torch.zeros_like(sample.target)}


@pytest.mark.parametrize("term", ["fine", "error", "consistency"])
@pytest.mark.parametrize("seen", ["synthetic", "coarse"])
def test_segmentor_terms_reach_the_generator_through_either_map(network, sample, term, seen):
    """Through the segmentor's input; consistency also through ``refined``, whose share is cut off here."""
    network.segmentor_inputs = ["source", seen]
    network.segmentor.encoder.levels[0][0] = nn.Conv3d(4, 2, (3, 3, 1), padding=(1, 1, 0))
    maps = network.generator(sample.source)
    maps.update(network.segment(sample.source, maps))
    maps["refined"] = (1 - maps["coarse"].detach()) * maps["error"] + maps["coarse"].detach() * (1 - maps["error"])
    TissNetLoss({term: 1})(maps, sample)["loss"].backward()
    assert branches_with_gradients(network.generator) == {"encoder", seen}


@pytest.mark.parametrize("term", ["fine", "error", "consistency"])
@pytest.mark.parametrize(
    ("detach_coarse", "reached"), [(True, {"encoder", "synthetic"}), (False, {"encoder", "synthetic", "coarse"})]
)
def test_detach_coarse_keeps_the_segmentors_losses_from_coarse(network, sample, term, detach_coarse, reached):
    network.detach_coarse = detach_coarse
    TissNetLoss({term: 1})(network.cascade(sample.source), sample)["loss"].backward()
    assert branches_with_gradients(network.generator) == reached


def test_refined_takes_the_consistency_to_the_soft_coarse_segmentation(network, sample):
    network.segmentor_inputs = ["source"]  # so that no other way leads there
    network.segmentor.encoder.levels[0][0] = nn.Conv3d(3, 2, (3, 3, 1), padding=(1, 1, 0))
    TissNetLoss({"consistency": 1})(network.cascade(sample.source), sample)["loss"].backward()
    assert branches_with_gradients(network.generator) == {"encoder", "coarse"}
