from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from monai.data import MetaTensor
from tissnet_components.losses import Batch, DiscriminatorLoss, TissNetLoss, l1
from tissnet_components.patchgan import PatchGAN
from tissnet_components.subsets import (
    ABSENT,
    AnySubsetTissNet,
    KeepSynthesisedd,
    PlaceContrastsd,
    SubsetView,
    is_present,
    random_subsets,
)
from tissnet_components.training import AdversarialUpdate
from tissnet_components.unet25d import DualBranchUNet25D, UNet25D
from torch import nn

CONTRASTS = ["t1", "t1ce", "t2", "flair"]
SUBSETS = [kept for kept in product([True, False], repeat=4) if any(kept)]
WIDTHS = [2, 4, 4, 4, 4]
CPU = torch.device("cpu")


@pytest.fixture
def network() -> AnySubsetTissNet:
    generator = DualBranchUNet25D(4, WIDTHS, {"synthetic": "tanh", "coarse": "sigmoid"}, regions=3, contrasts=4)
    segmentor = DualBranchUNet25D(7, WIDTHS, {"fine": "sigmoid", "error": "sigmoid"}, regions=3)
    return AnySubsetTissNet(generator, segmentor, CONTRASTS)


@pytest.fixture
def full(sample) -> Batch:
    """All four contrasts of two patients, and the masks of three regions."""
    image = torch.cat([sample.source, sample.target], 1)
    inner = torch.zeros_like(sample.label)
    inner[:, :, 8:12, 10:16, 3:5] = 1
    return Batch(image, image.clone(), torch.cat([sample.label, inner, inner], 1))


def hiding(image, kept):
    return torch.where(torch.tensor(kept)[:, None, None, None], image, ABSENT)


def test_at_one_half_every_subset_but_the_empty_one_is_equally_likely():
    subsets = Counter(map(tuple, random_subsets(15000, 4, CPU).tolist()))
    assert set(subsets) == set(SUBSETS)
    assert all(850 < count < 1150 for count in subsets.values())  # 1000 expected, SD 31


def test_each_contrast_has_its_own_probability():
    subsets = random_subsets(4000, 4, CPU, [0.0, 0.5, 0.25, 1.0]).float().mean(0).tolist()
    assert subsets == pytest.approx([1, 0.5, 0.75, 0], abs=0.04)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"absence": 1.0}, "absence is 1.0; give a probability below 1", id="nothing left"),
        pytest.param({"absence": [0.5, 0.5]}, "one for each of", id="too few"),
        pytest.param({"present": []}, "name at least one of", id="no contrast"),
        pytest.param({"present": ["pd"]}, "present is .*pd.*; name at least one of", id="unknown"),
    ],
)
def test_a_view_of_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SubsetView(CONTRASTS, **settings)


def test_what_a_patient_lacks_is_never_shown_and_something_always_is():
    image = hiding(torch.rand(64, 4, 2, 2, 2), (True, False, False, True))
    seen = is_present(SubsetView(CONTRASTS).train()(image))[..., 0, 0, 0]
    assert not seen[:, 1:3].any()
    assert {tuple(row) for row in seen[:, [0, 3]].tolist()} == {(True, True), (True, False), (False, True)}


def test_outside_training_the_contrasts_named_are_shown():
    image = torch.rand(1, 4, 2, 2, 2)
    assert torch.equal(SubsetView(CONTRASTS).eval()(image), image)
    shown = SubsetView(CONTRASTS, present=["flair", "t1"]).eval()(image)
    assert torch.equal(shown, hiding(image, (True, False, False, True)))


@pytest.mark.parametrize("kept", SUBSETS, ids=str)
def test_present_contrasts_pass_through_and_the_others_are_synthesised(network, full, kept):
    image = hiding(full.source, kept)
    maps = network.eval().cascade(image)
    generated = network.generator(image)["synthetic"]
    for channel, real in enumerate(kept):
        assert torch.equal(maps["synthetic"][:, channel], (image if real else generated)[:, channel])
    assert list(maps) == ["synthetic", "coarse", "fine", "error", "refined"]
    assert all(maps[name].shape[1] == 3 for name in ("coarse", "fine", "error", "refined"))
    assert torch.equal(network(image), maps["fine"])


def test_the_network_sees_nothing_of_what_is_hidden(network, full):
    network.view = SubsetView(CONTRASTS, present=["t1ce"])
    other = full.source.clone()
    other[:, [0, 2, 3]] = torch.rand_like(other[:, [0, 2, 3]])
    first, second = (network.eval().cascade(image) for image in (full.source, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_with_flair_missing_each_term_is_the_papers(network, full):
    network.view = SubsetView(CONTRASTS, absence=[0.0, 0.0, 0.0, 1.0])
    maps = network.train().cascade(full.source)
    batch = full.of_subset(maps)
    flair = maps["synthetic"][:, 3:], full.target[:, 3:]
    assert torch.equal(batch.source, hiding(full.source, (True, True, True, False)))
    assert torch.equal(batch.target, full.target)
    assert l1(maps["synthetic"], batch.target, batch.absent).item() == pytest.approx(l1(*flair).item(), rel=1e-6)
    loss = TissNetLoss({"global_l1": 50, "tumor_l1": 200})
    papers = loss({"synthetic": flair[0]}, Batch(full.source[:, :3], flair[1], full.label))
    assert {name: value.item() for name, value in loss(maps, batch).items()} == pytest.approx(
        {name: value.item() for name, value in papers.items()}, rel=1e-6
    )


def test_a_sample_of_which_nothing_is_absent_dilutes_no_term():
    """The first lacks nothing, the second one contrast, the third two; a score is the sum of what is seen."""
    size = (2, 2, 1)
    kept = torch.tensor([[True, True], [True, False], [False, False]])[..., None, None, None]
    real, made = torch.full((3, 2, *size), 0.25), torch.tensor([0.5, 0.75])[:, None, None, None]
    maps = {"source": torch.where(kept, real, ABSENT), "synthetic": torch.where(kept, real, made)}
    batch = Batch(real, real, torch.ones(3, 1, *size)).of_subset(maps)
    rivals = nn.ModuleDict({name: SumOfChannels() for name in ("global", "tumor")})
    values = TissNetLoss(dict.fromkeys(BY_HAND, 1.0), discriminators=rivals)(maps, batch)
    assert {name: values[name].item() for name in BY_HAND} == pytest.approx(BY_HAND)
    assert TissNetLoss({"global_adversarial": 1}, discriminators=rivals).counts(batch) == {"global_adversarial": 2}


class SumOfChannels(nn.Module):
    """A discriminator that scores each voxel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.sum(1, keepdim=True)


BY_HAND = {  # the second sample's source is (0.25, -1), its set (0.25, 0.75); the third's (-1, -1) and (0.5, 0.75)
    **dict.fromkeys(("global_l1", "tumor_l1"), (0.5 + (0.25 + 0.5) / 2) / 2),
    **dict.fromkeys(("global_adversarial", "tumor_adversarial"), ((0.25 - 1) ** 2 + (-0.75 - 1) ** 2) / 2),
}


def test_terms_are_on_what_was_absent_alone(full):
    kept = torch.tensor([[True, True, False, True], [False, True, False, True]])[..., None, None, None]
    maps = {"source": torch.where(kept, full.source, ABSENT), "synthetic": torch.where(kept, full.source, 0.5)}
    batch = full.of_subset(maps)
    first, second, third = ((0.5 - full.target[s, c]).abs().mean().item() for s, c in ((0, 2), (1, 0), (1, 2)))
    expected = (first + (second + third) / 2) / 2
    assert l1(maps["synthetic"], batch.target, batch.absent).item() == pytest.approx(expected)


def test_a_sample_without_absent_contrasts_teaches_no_synthesis(full):
    batch = full.of_subset({"source": full.source, "synthetic": full.source})
    assert not batch.absent.any()
    assert batch.samples.tolist() == [[False, True, True, False]] * 2


def test_a_contrast_that_the_patient_lacks_is_held_against_nothing(full):
    target = hiding(full.target, (True, True, False, True))
    seen = hiding(full.source, (True, True, False, False))
    synthetic = torch.where(is_present(seen), seen, torch.full_like(seen, 0.5))
    batch = replace(full, target=target).of_subset({"source": seen, "synthetic": synthetic})
    assert batch.absent.tolist() == [[False, False, False, True]] * 2
    assert torch.equal(batch.target[:, 2], synthetic[:, 2])


def test_one_iteration_trains_generator_segmentor_and_discriminators(network, full):
    rivals = nn.ModuleDict({name: PatchGAN(8, channels=2) for name in ("global", "tumor")})
    weights = dict.fromkeys(TissNetLoss.NEEDS, 1.0)
    loss = TissNetLoss(weights, 25.0, UNet25D(4, WIDTHS, regions=3), rivals)
    network.view = SubsetView(CONTRASTS, absence=[0.0, 0.5, 0.5, 1.0])
    maps = network.train().cascade(full.source)
    batch = full.of_subset(maps)
    against = DiscriminatorLoss(rivals, weights)({name: value.detach() for name, value in maps.items()}, batch)
    values = loss(maps, batch)
    assert set(values) == {*weights, "loss"}
    assert set(against) == {"global_discriminator", "tumor_discriminator"}
    values["loss"].backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_update_hands_the_losses_what_the_network_saw(network, full):
    seen = {}

    class Loss(nn.Module):
        def forward(self, maps, batch):
            seen.update(maps=maps, batch=batch)
            return {"loss": maps["fine"].mean()}

        def counts(self, batch):
            return {}

    from monai.engines import Trainer
    from monai.inferers import SimpleInferer
    from tissnet_components.inference import CascadeInferer
    from tissnet_components.training import Player

    player = Player(network, Loss(), torch.optim.Adam(network.parameters()))
    update = AdversarialUpdate(player, CascadeInferer(SimpleInferer()))
    data = {"image": full.source, "target": full.target, "label": full.label}
    loader = [{name: value.as_subclass(torch.Tensor) for name, value in data.items()}]
    update.prepare = lambda engine, batchdata: Batch(*batchdata.values())
    Trainer(CPU, 1, loader, iteration_update=update).run()
    assert torch.equal(seen["batch"].source, seen["maps"]["source"])
    assert seen["batch"].absent is not None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_withheld_maps_leave_the_real_contrasts(network, full, share):
    network.map_dropout = share
    network.train()
    maps = network.generate(full.source)
    seen = network.withhold(maps)
    assert torch.equal(seen["synthetic"], maps["source"] if share else maps["synthetic"])
    assert torch.equal(seen["coarse"], torch.zeros_like(maps["coarse"]) if share else maps["coarse"])


def test_torchscript_runs_the_whole_cascade(network, full):
    image = hiding(full.source, (False, True, False, False))
    scripted = torch.jit.script(network.eval())
    assert torch.equal(scripted(image), network(image))
    torch.testing.assert_close(scripted.cascade(image), network.cascade(image))


def test_resampling_does_not_make_an_absent_contrast_present():
    assert not is_present(torch.full((1, 1, 2, 2, 2), -0.9999999)).any()


def test_loaded_contrasts_go_to_their_channels_and_only_synthesised_ones_are_kept():
    image = MetaTensor(torch.zeros(2, 2, 2, 2), meta={"contrasts": ["t1ce", "flair"]})
    placed = PlaceContrastsd("image", CONTRASTS)({"image": image})["image"]
    assert placed[:, 0, 0, 0].tolist() == [-1, 0, -1, 0]
    kept = KeepSynthesisedd("synthetic", CONTRASTS)({"image": placed, "synthetic": torch.arange(4.0)})
    assert kept["synthetic"].tolist() == [0, 2]


def test_of_a_patient_with_every_contrast_nothing_is_synthetic():
    placed = PlaceContrastsd("image", CONTRASTS)({"image": MetaTensor(torch.zeros(4, 2, 2, 2))})["image"]
    assert "synthetic" not in KeepSynthesisedd("synthetic", CONTRASTS)({"image": placed, "synthetic": torch.arange(4)})
