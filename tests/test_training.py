import copy
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Trainer
from monai.inferers import SimpleInferer, SlidingWindowInferer
from tissnet_components.comparators.uagan import Uagan
from tissnet_components.handlers import losses_of
from tissnet_components.inference import CascadeInferer, FittedWindowInferer, best_precision
from tissnet_components.losses import DiscriminatorLoss, TissNetLoss
from tissnet_components.training import (
    AdversarialUpdate,
    Player,
    averaged,
    checkpoint_levels,
    constant_then_linear,
    step,
)
from tissnet_components.unet25d import UNet25D
from torch import nn

WIDTHS = [2, 4, 4, 4, 4]
TERMS = tuple(TissNetLoss.NEEDS)
WEIGHTS = {**dict.fromkeys(TERMS, 1), "global_l1": 50, "tumor_l1": 200, "perceptibility": 25}


def adversarial_update(network, perceptor, discriminators, weights=WEIGHTS, precision="float32"):
    adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
    loss = TissNetLoss(weights, 25.0, perceptor, discriminators)
    return AdversarialUpdate(
        Player(network, loss, adam(network.parameters(), 1e-2)),
        CascadeInferer(SimpleInferer(), precision),
        Player(discriminators, DiscriminatorLoss(discriminators, weights), adam(discriminators.parameters(), 1e-3)),
    )


def direct_update(network):
    player = Player(network, TissNetLoss({"fine": 1}, 1.0), torch.optim.Adam(network.parameters(), 1e-2))
    return AdversarialUpdate(player, CascadeInferer(SimpleInferer()))


@pytest.fixture
def update(network, perceptor, discriminators):
    return adversarial_update(network, perceptor, discriminators)


@pytest.fixture
def batch(sample):
    return {"image": MetaTensor(sample.source), "target": MetaTensor(sample.target), "label": MetaTensor(sample.label)}


def train(update, batch, iterations=1):
    """The (decollated) output of every iteration, by MONAI's own trainer."""
    outputs = []
    trainer = Trainer(torch.device("cpu"), iterations, [batch], iteration_update=update)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    return outputs


def snapshot(module):
    return copy.deepcopy(list(module.parameters()))


def unchanged(module, before):
    return all(torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


def without_gradients(module):
    return all(parameter.grad is None for parameter in module.parameters())


def test_one_iteration_gives_every_map_and_every_term(update, batch):
    (output,) = train(update, batch)
    maps = dict.fromkeys(["synthetic", "coarse", "fine", "error", "refined"], (1, 32, 32, 8))
    scalars = {*TERMS, "loss", "global_discriminator", "tumor_discriminator"}
    assert len(output) == 2
    assert set(output[0]) == {"image", "target", "label", "pred"} | scalars
    assert {name: tuple(value.shape) for name, value in output[0]["pred"].items()} == maps
    assert set(losses_of(output)) == scalars
    total = sum(
        output[0][term] * weight * (25 if term in ("fine", "error", "consistency") else 1)
        for term, weight in WEIGHTS.items()
    )
    assert output[0]["loss"] == pytest.approx(total, rel=1e-5)


def test_both_players_move_and_the_perceptor_does_not(update, batch, perceptor):
    network, rivals = update.network.module, update.discriminators.module
    players = [network.generator, network.segmentor, *rivals.values()]
    before, perceptor_before = [snapshot(player) for player in players], snapshot(perceptor)
    train(update, batch)
    assert not any(unchanged(player, then) for player, then in zip(players, before, strict=True))
    assert unchanged(perceptor, perceptor_before)


def test_one_iteration_runs_one_cascade(update, batch):
    runs = []
    update.network.module.generator.register_forward_hook(lambda *_: runs.append("generator"))
    update.network.module.segmentor.register_forward_hook(lambda *_: runs.append("segmentor"))
    train(update, batch)
    assert runs == ["generator", "segmentor"]


def test_the_discriminators_step_first(update, batch):
    steps = []
    update.network.optimizer.register_step_post_hook(lambda *_: steps.append("network"))
    update.discriminators.optimizer.register_step_post_hook(lambda *_: steps.append("discriminators"))
    train(update, batch, iterations=2)
    assert steps == ["discriminators", "network", "discriminators", "network"]


def test_the_discriminators_may_step_in_every_second_iteration_alone(update, batch):
    steps = []
    update.discriminator_interval = 2
    update.network.optimizer.register_step_post_hook(lambda *_: steps.append("network"))
    update.discriminators.optimizer.register_step_post_hook(lambda *_: steps.append("discriminators"))
    outputs = train(update, batch, iterations=3)
    assert steps == ["discriminators", "network", "network", "discriminators", "network"]
    told = [{"global_discriminator", "tumor_discriminator"} & set(losses_of(output)) for output in outputs]
    assert list(map(len, told)) == [2, 0, 2]
    assert all({*TERMS, "loss"} <= set(losses_of(output)) for output in outputs)


def test_an_interval_below_one_is_refused(network):
    with pytest.raises(ValueError, match="discriminator_interval is 0; give a number of iterations from 1"):
        AdversarialUpdate(Player(network, None, None), None, discriminator_interval=0)


def test_the_discriminators_see_detached_maps(update, batch):
    seen = []
    update.discriminators.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    update.update_network = lambda *_: {"loss": torch.tensor(0.0)}
    train(update, batch)
    assert set(seen[0]) == {"synthetic", "coarse", "fine", "error", "refined"}
    assert not any(value.requires_grad for value in seen[0].values())
    assert without_gradients(update.network.module)
    assert not without_gradients(update.discriminators.module)


def test_the_discriminators_rest_in_the_networks_step(update, sample):
    before = snapshot(update.discriminators.module)
    update.update_network(update.inferer(sample.source, update.network.module), sample)
    assert without_gradients(update.discriminators.module)
    assert unchanged(update.discriminators.module, before)
    assert not without_gradients(update.network.module)
    assert all(parameter.requires_grad for parameter in update.discriminators.module.parameters())


def test_a_failed_step_leaves_the_discriminators_trainable(update, sample):
    maps = {"synthetic": torch.full_like(sample.target, float("nan"))}
    update.network.loss = TissNetLoss({"global_l1": 1})
    with pytest.raises(FloatingPointError):
        update.update_network(maps, sample)
    assert all(parameter.requires_grad for parameter in update.discriminators.module.parameters())


@pytest.mark.parametrize("name", ["global", "tumor"])
def test_a_discriminator_of_weight_zero_is_not_trained(network, perceptor, discriminators, batch, name):
    update = adversarial_update(network, perceptor, discriminators, WEIGHTS | {f"{name}_adversarial": 0})
    before = {key: snapshot(value) for key, value in discriminators.items()}
    (output,) = train(update, batch)
    assert {key for key, value in discriminators.items() if unchanged(value, before[key])} == {name}
    assert f"{name}_discriminator" not in output[0]


def test_an_iteration_tells_how_many_samples_each_term_saw(update, batch):
    counts = {}
    trainer = Trainer(
        torch.device("cpu"), 1, [batch | {"has_target": torch.tensor([True, False])}], iteration_update=update
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: counts.update(engine.state.samples))
    trainer.run()
    needs_target = {"global_l1", "tumor_l1", "global_discriminator", "tumor_discriminator"}
    assert counts == {term: 1 if term in needs_target else 2 for term in {*TERMS, *needs_target}}


def test_patches_without_tumor_rest_the_tumor_discriminator(update, batch):
    before = snapshot(update.discriminators.module["tumor"])
    (output,) = train(update, batch | {"label": torch.zeros_like(batch["label"])})
    assert unchanged(update.discriminators.module["tumor"], before)
    assert not {"tumor_l1", "tumor_adversarial", "tumor_discriminator"} & set(output[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_loss_that_is_not_finite_stops_before_stepping(update, batch, value):
    before, discriminators_before = snapshot(update.network.module), snapshot(update.discriminators.module)
    with pytest.raises(FloatingPointError, match="the loss became"):
        train(update, batch | {"target": torch.full_like(batch["target"], value)})
    assert unchanged(update.network.module, before)
    assert unchanged(update.discriminators.module, discriminators_before)


def without_target(batch):
    return batch | {"target": torch.full_like(batch["target"], float("nan")), "case": ["anna", "bert"]}


def test_the_cases_of_a_batch_that_gives_no_finite_loss_are_named(update, batch):
    with pytest.raises(FloatingPointError, match="the loss became nan on anna, bert; look at these, then resume with"):
        train(update, without_target(batch))


def test_a_gradient_that_is_not_finite_stops_before_stepping(update, batch):
    before = snapshot(update.network.module)
    next(update.network.module.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"the gradient became (inf|nan) on anna, bert"):
        train(update, batch | {"case": ["anna", "bert"]})
    assert unchanged(update.network.module, before)


def train_each(update, batches):
    """The output of an iteration on each batch; chance begins anew in each."""
    outputs = []
    trainer = Trainer(torch.device("cpu"), 1, batches, iteration_update=update)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: torch.manual_seed(0))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    return outputs


def test_a_skipped_batch_leaves_no_trace(update, batch, caplog):
    other = copy.deepcopy(update)
    update.on_non_finite = "skip"
    skipped, trained = train_each(update, [without_target(batch), batch])
    (expected,) = train_each(other, [batch])
    assert "the loss became nan on anna, bert: skipped" in caplog.text
    assert losses_of(skipped) == {}
    assert losses_of(trained) == losses_of(expected)
    torch.testing.assert_close(states(update), states(other), rtol=0, atol=0)


def test_ten_batches_in_a_row_are_not_skipped(batch):
    update = direct_update(UNet25D(3, WIDTHS))
    update.on_non_finite = "skip"
    good = {key: value[:1] for key, value in batch.items()}
    bad = good | {"image": torch.full_like(good["image"], float("inf")), "case": ["anna"]}
    train_each(update, [bad] * 9 + [good, bad])
    with pytest.raises(FloatingPointError, match="the loss became nan on anna, as in 10 batches in a row"):
        train_each(update, [bad] * 9)


def test_an_unknown_choice_for_what_is_not_finite_is_refused(network):
    with pytest.raises(ValueError, match="on_non_finite is 'ignore'; choose one of stop, skip"):
        AdversarialUpdate(Player(network, None, None), None, on_non_finite="ignore")


def test_a_gradient_that_overflows_float16_is_left_to_its_scaler():
    weight = nn.Parameter(torch.tensor(1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for scale in (2.0**126, 2.0**125):
        step(4 * weight, torch.optim.SGD([weight], 0.1), scaler)
        assert (weight.item(), scaler.get_scale()) == (1.0, scale)


def test_old_gradients_are_dropped_before_a_step():
    weight = nn.Parameter(torch.tensor(1.0))
    weight.grad = torch.tensor(100.0)
    step(3 * weight, torch.optim.SGD([weight], 0.1), torch.amp.GradScaler("cpu", enabled=False))
    assert weight.item() == pytest.approx(1 - 0.1 * 3)


def test_the_network_is_trained_in_training_mode_even_after_a_validation(update, batch):
    update.network.module.eval()
    update.discriminators.module.eval()
    train(update, batch)
    assert update.network.module.training
    assert update.discriminators.module.training


def test_tiss_net_learns_two_patches_by_heart(update, batch):
    outputs = train(update, batch, iterations=30)
    first, last = outputs[0][0], outputs[-1][0]
    assert last["loss"] < 0.6 * first["loss"]
    assert last["global_l1"] < 0.5 * first["global_l1"]
    assert last["coarse"] < first["coarse"]
    assert last["fine"] < first["fine"] - 0.1


def test_bfloat16_learns_too(network, perceptor, discriminators, batch):
    # On patches below 48 x 48, PyTorch 2.13's weight gradients of bfloat16 convolutions that are wider than their input
    # (4 x 4 over 3 x 3, 3 x 3 over 2 x 2) hold garbage on CPUs with AVX512-BF16.
    larger = {key: value.repeat(1, 1, 2, 2, 1) for key, value in batch.items()}
    outputs = train(adversarial_update(network, perceptor, discriminators, precision="bfloat16"), larger, iterations=8)
    assert outputs[-1][0]["loss"] < 0.9 * outputs[0][0]["loss"]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def states(update):
    return [part.state_dict() for player in update.players for part in (player.module, player.optimizer)]


def test_checkpointing_changes_no_loss_no_weight_and_no_running_statistic(update, batch):
    other = copy.deepcopy(update)
    checkpoint_levels(other.network.module, other.network.loss)
    plain, checkpointed = (train_each(each, [batch] * 3) for each in (update, other))
    assert [losses_of(output) for output in checkpointed] == [losses_of(output) for output in plain]
    torch.testing.assert_close(states(other), states(update), rtol=0, atol=0)
    assert other.network.module.generator.encoder.levels[0][1].num_batches_tracked == 3


def kept_for_the_gradient(update, sample):
    """Bytes of what the cascade and its loss keep, and whether that needs gradients."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = update.inferer(sample.source, update.network.module)
        update.network.loss(maps, sample)["loss"].backward()
    return sum(kept.values())


def test_checkpointing_keeps_less(update, sample):
    plain = kept_for_the_gradient(update, sample)
    checkpoint_levels(update.network.module, update.network.loss)
    assert kept_for_the_gradient(update, sample) < 0.5 * plain


def test_a_level_in_eval_mode_is_so_again_when_it_is_computed_anew(sample):
    gradients = []
    for prepare in (lambda _: None, checkpoint_levels):
        torch.manual_seed(0)
        network, image = UNet25D(3, WIDTHS), sample.source.clone().requires_grad_()
        prepare(network)
        maps = network.eval()(image)
        network.train()
        maps.sum().backward()
        assert network.encoder.levels[0].training
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_level_that_two_encoders_share_is_computed_anew_once_for_each(sample):
    uagan, runs = Uagan(3, WIDTHS), []
    checkpoint_levels(uagan)
    uagan.encoder.levels[-1][0].register_forward_hook(lambda *_: runs.append("shared"))
    sum(value.sum() for value in uagan.cascade(sample.source).values()).backward()
    assert len(runs) == 2 + 2


def test_without_gradients_a_level_keeps_its_maps_and_is_computed_once(network, sample):
    expected, runs = network.eval().cascade(sample.source), []
    checkpoint_levels(network)
    network.generator.encoder.levels[0][0].register_forward_hook(lambda *_: runs.append("first"))
    with torch.no_grad():
        torch.testing.assert_close(network.cascade(sample.source), expected, rtol=0, atol=0)
    assert runs == ["first"]


def test_the_output_keeps_nothing_of_the_graph(update, batch):
    outputs = []
    trainer = Trainer(torch.device("cpu"), 1, [batch], iteration_update=update, decollate=False)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    pred = outputs[0].pop("pred")
    assert not any(value.requires_grad for value in (*pred.values(), *outputs[0].values()))


def test_the_last_iterations_gradients_are_gone_before_the_cascade(update, batch):
    seen = []
    update.network.module.generator.register_forward_pre_hook(
        lambda *_: seen.append(
            without_gradients(update.network.module) and without_gradients(update.discriminators.module)
        )
    )
    train(update, batch, iterations=2)
    assert seen == [True, True]


def test_direct_segmentation_needs_no_discriminators(batch):
    outputs = train(direct_update(UNet25D(3, WIDTHS)), batch, iterations=40)
    assert set(outputs[0][0]) == {"image", "target", "label", "pred", "fine", "loss"}
    assert outputs[-1][0]["fine"] < outputs[0][0]["fine"] - 0.2


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1.0), (99, 1.0), (100, 1.0), (175, 0.5), (249, 1 / 150), (250, 0.0), (260, 0.0)]
)
def test_the_learning_rate_is_constant_for_100_epochs_and_reaches_zero_at_250(epoch, rate):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = constant_then_linear(optimizer, epochs=250, constant_epochs=100)
    optimizer.step()
    for _ in range(epoch):
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * rate)


@pytest.mark.parametrize(("epochs", "constant", "last"), [(4, 4, 1.0), (2, 0, 0.5)], ids=["all constant", "all linear"])
def test_a_schedule_may_be_all_constant_or_all_linear(epochs, constant, last):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = constant_then_linear(optimizer, epochs, constant)
    optimizer.step()
    for _ in range(epochs - 1):
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == last


@pytest.mark.parametrize("constant", [251, -1])
def test_an_impossible_schedule_is_refused(constant):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=f"constant_epochs is {constant}; give a number from 0 to epochs, 250"):
        constant_then_linear(optimizer, 250, constant)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, (1 + 2 + 3 + 4) / 4), (0.5, (8 / 3 + 4) / 2), (0.25, 4.0)],
    ids=["all steps", "the latter half", "the last alone"],
)
def test_the_average_spans_the_last_share_of_the_steps_so_far(share, expected):
    """Of one half, the averages are 1, 2, 2 + (3 - 2) / 1.5 = 8 / 3, and then half of that and half of 4."""
    network = nn.Linear(1, 1)
    average = averaged(network, share)
    for value in (1.0, 2.0, 3.0, 4.0):
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(expected)


def test_running_statistics_are_averaged_like_the_weights():
    network = nn.BatchNorm3d(1)
    average = averaged(network, share=1)
    for value in (1.0, 3.0):
        network.running_mean.fill_(value)
        average.update_parameters(network)
    assert average.module.running_mean.item() == 2


def test_without_a_share_there_is_no_average_and_an_impossible_one_is_refused():
    assert averaged(nn.Linear(1, 1), 0) is None
    with pytest.raises(ValueError, match=r"averaging is 1.5; give a share of the steps from 0, none, to 1"):
        averaged(nn.Linear(1, 1), 1.5)


class Probe(nn.Module):
    """A cascade of two voxelwise maps that notes the precision of its convolution."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(1, 1, 1)
        self.precisions = set()

    def cascade(self, image):
        self.precisions.add(self.convolution(image).dtype)
        return {"double": 2 * image, "inverse": -image}


@pytest.mark.parametrize(
    "inferer",
    [
        pytest.param(SimpleInferer(), id="simple"),
        pytest.param(SlidingWindowInferer((8, 8, 4), 2, overlap=0.25, mode="gaussian"), id="sliding window"),
    ],
)
def test_every_map_of_the_cascade_comes_back_whole(inferer):
    image = torch.randn(1, 1, 19, 8, 7)
    maps = CascadeInferer(inferer)(image, Probe())
    torch.testing.assert_close(maps, {"double": 2 * image, "inverse": -image})


class Ramp(nn.Module):
    """Not symmetric: adds to every voxel its place along X."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"placed": image + torch.arange(image.shape[2]).view(-1, 1, 1)}


def test_flips_average_the_maps_of_the_mirrored_scan():
    image = torch.randn(1, 1, 4, 3, 2)
    placed = CascadeInferer(SimpleInferer(), flips=[[0]])(image, Ramp())["placed"]
    torch.testing.assert_close(placed, image + 1.5)  # 0 to 3, and 3 to 0
    placed = CascadeInferer(SimpleInferer(), flips=[[1], [1, 2]])(image, Ramp())["placed"]
    torch.testing.assert_close(placed, image + torch.arange(4.0).view(-1, 1, 1))
    placed = CascadeInferer(SimpleInferer(), flips=[[0], [1]])(image, Ramp())["placed"]
    torch.testing.assert_close(placed[0, 0, :, 0, 0] - image[0, 0, :, 0, 0], torch.tensor([1.0, 4 / 3, 5 / 3, 2.0]))


@pytest.mark.parametrize(("flips", "calls"), [([], 2), ([[0]], 4)], ids=["none", "one"])
def test_every_window_is_seen_once_and_once_more_for_each_flip(flips, calls):
    network = Ramp()
    CascadeInferer(SlidingWindowInferer((4, 4, 4), 1, overlap=0), flips=flips)(torch.zeros(1, 1, 8, 4, 4), network)
    assert network.calls == calls


@pytest.mark.parametrize("flips", [0, [0], "x", [[3]], [[0, 0]], [[]], [[0.5]]], ids=str)
def test_flips_of_anything_but_axes_are_refused(flips):
    with pytest.raises(ValueError, match="expected lists of axes, 0, 1 or 2, such as"):
        CascadeInferer(SimpleInferer(), flips=flips)


def test_sliding_windows_of_a_real_cascade_cover_a_volume(network):
    inferer = CascadeInferer(SlidingWindowInferer((32, 32, 8), 1, overlap=0.25, mode="gaussian"))
    maps = inferer(torch.randn(1, 3, 40, 33, 11), network.eval())
    assert {name: tuple(value.shape) for name, value in maps.items()} == dict.fromkeys(
        ["synthetic", "coarse", "fine", "error", "refined"], (1, 1, 40, 33, 11)
    )


@pytest.mark.parametrize(
    ("shape", "smallest", "windows"),
    [
        pytest.param((19, 8, 7), (0, 0, 0), {(32, 16, 8)}, id="a small volume is one window, padded to the stride"),
        pytest.param((48, 70, 12), (0, 0, 0), {(48, 48, 12)}, id="a long one is several of the largest"),
        pytest.param((19, 40, 7), (32, 32, 12), {(32, 48, 12)}, id="one smaller than the training's patches is padded"),
    ],
)
def test_a_window_is_no_larger_than_the_volume_needs_and_no_smaller_than_a_patch(shape, smallest, windows):
    image, seen = torch.randn(1, 1, *shape), set()

    def double(patch):
        seen.add(tuple(patch.shape[2:]))
        return 2 * patch

    doubled = FittedWindowInferer((48, 48, 12), 1, overlap=0.25, mode="gaussian", cval=-1, smallest=smallest)(
        image, double
    )
    assert seen == windows
    torch.testing.assert_close(doubled, 2 * image)


def test_one_fitted_window_gives_the_maps_of_the_whole_volume(network):
    image = torch.randn(1, 3, 32, 48, 8)
    fitted = CascadeInferer(FittedWindowInferer((96, 96, 48), 1, overlap=0.25, mode="gaussian"))(image, network.eval())
    torch.testing.assert_close(fitted, CascadeInferer(SimpleInferer())(image, network), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("able", "best"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_the_processor_has_it(monkeypatch, able, best):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able, raising=False)
    probe = Probe()
    CascadeInferer(SimpleInferer(), "auto")(torch.zeros(1, 1, 2, 2, 2), probe)
    assert probe.precisions == {best}


@pytest.mark.parametrize(("gpu", "best"), [("cuda:0", "float32"), ("cuda:1", "bfloat16")])
def test_of_two_gpus_each_works_in_its_own_best_precision(monkeypatch, gpu, best):
    capabilities = {torch.device("cuda:0"): (7, 5), torch.device("cuda:1"): (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.get)
    assert best_precision(torch.device(gpu)) == best


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_precision_holds_inside_the_inferer(precision):
    probe = Probe()
    maps = CascadeInferer(SimpleInferer(), precision)(torch.zeros(1, 1, 2, 2, 2), probe)
    assert probe.precisions == {getattr(torch, precision)}
    assert maps["double"].dtype == torch.float32


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown precision 'bf16'; known: "):
        CascadeInferer(SimpleInferer(), "bf16")
