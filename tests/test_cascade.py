import copy
import json
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tissnet_components import cascade
from tissnet_components.cascade import Frozen, PerceivedCascade, TissNet, refine_with_error
from tissnet_components.unet25d import UNet25D
from tissnet_components.weights import (
    check_recipe,
    compact,
    keep_recipe,
    load_perceptor,
    load_weights,
    read_recipe,
    read_state,
)
from torch import nn

WIDTHS = [2, 4, 4, 4, 4]


class Recorder(nn.Module):
    """A segmentor that keeps what it was given."""

    def forward(self, image, branches=None):
        self.image, self.branches = image, branches
        return dict.fromkeys(branches or ["fine", "error"], image[:, :1])


class Constants(nn.Module):
    """A generator: synthetic 0.25, coarse 0.75."""

    def forward(self, image):
        return {"synthetic": torch.full_like(image[:, :1], 0.25), "coarse": torch.full_like(image[:, :1], 0.75)}


@pytest.mark.parametrize(
    ("coarse", "error", "refined"),
    [
        pytest.param(0, 0, 0, id="00: rightly background"),
        pytest.param(1, 0, 1, id="10: rightly tumor"),
        pytest.param(0, 1, 1, id="01: missed tumor"),
        pytest.param(1, 1, 0, id="11: false alarm"),
        pytest.param(0.5, 1, 0.5, id="undecided stays undecided"),
        pytest.param(1, 0.5, 0.5, id="a doubted voxel becomes undecided"),
        pytest.param(0.8, 0.25, 0.65, id="0.2 * 0.25 + 0.8 * 0.75"),
    ],
)
def test_a_certain_error_flips_the_coarse_label(coarse, error, refined):
    found = refine_with_error(torch.full((1, 1, 2, 2, 2), float(coarse)), torch.full((1, 1, 2, 2, 2), float(error)))
    assert found.flatten().tolist() == pytest.approx([refined] * 8)


def test_refinement_passes_gradients_to_both():
    coarse, error = torch.tensor(0.8, requires_grad=True), torch.tensor(0.25, requires_grad=True)
    refine_with_error(coarse, error).backward()
    assert coarse.grad == pytest.approx(1 - 2 * 0.25)
    assert error.grad == pytest.approx(1 - 2 * 0.8)


def test_the_segmentor_sees_source_synthetic_and_coarse():
    segmentor = Recorder()
    TissNet(Constants(), segmentor).cascade(torch.full((1, 2, 2, 2, 2), -1.0))
    assert segmentor.image[0, :, 0, 0, 0].tolist() == [-1, -1, 0.25, 0.75]


def test_the_segmentor_may_see_less():
    segmentor = Recorder()
    TissNet(Constants(), segmentor, ["coarse", "synthetic"]).cascade(torch.zeros(1, 2, 2, 2, 2))
    assert segmentor.image[0, :, 0, 0, 0].tolist() == [0.75, 0.25]


@pytest.mark.parametrize("inputs", [["target"], ["source", "fine"], []], ids=str)
def test_unknown_segmentor_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match="choose among"):
        TissNet(Constants(), Recorder(), inputs)


@pytest.mark.parametrize(
    ("training", "share", "seen"), [(True, 1, [-1, 0]), (True, 0, [0.25, 0.75]), (False, 1, [0.25, 0.75])]
)
def test_in_training_the_segmentor_may_have_to_do_without_maps(training, share, seen):
    network = TissNet(Constants(), Recorder(), map_dropout=share).train(training)
    maps = network.cascade(torch.zeros(2, 1, 2, 2, 2))
    assert network.segmentor.image[:, 1:, 0, 0, 0].tolist() == [seen, seen]
    assert maps["coarse"].unique().tolist() == [0.75], "Eq. 7 and the losses keep the map"


def test_maps_are_withheld_from_some_samples_only():
    network = TissNet(Constants(), Recorder(), map_dropout=0.5).train()
    torch.manual_seed(0)
    network.cascade(torch.zeros(64, 1, 1, 1, 1))
    synthetic, coarse = network.segmentor.image[:, 1:, 0, 0, 0].unbind(dim=1)
    assert set(synthetic.tolist()) == {-1, 0.25}
    assert ((synthetic == -1) == (coarse == 0)).all(), "both, or none"


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match="map_dropout is 30"):
        TissNet(Constants(), Recorder(), map_dropout=30)


def test_forward_computes_fine_alone(network, sample):
    network.segmentor.decoders["error"].forward = pytest.fail
    fine = network.eval()(sample.source)
    assert fine.shape == sample.label.shape


def test_the_cascade_gives_every_map_in_its_range(network, sample):
    maps = network.eval().cascade(sample.source)
    assert list(maps) == ["synthetic", "coarse", "fine", "error", "refined"]
    assert all(value.shape == sample.label.shape and value.dtype == torch.float32 for value in maps.values())
    assert torch.equal(maps["fine"], network(sample.source))
    assert torch.equal(maps["refined"], refine_with_error(maps["coarse"], maps["error"]))
    assert all(maps[name].min() >= 0 and maps[name].max() <= 1 for name in ("coarse", "fine", "error", "refined"))
    assert maps["synthetic"].abs().max() <= 1


def test_without_a_segmentor_there_is_what_the_generator_gives(network, sample):
    alone = TissNet(network.generator, None).eval()
    assert list(alone.cascade(sample.source)) == ["synthetic", "coarse"]


def test_the_segmentor_may_have_one_branch(network, sample):
    del network.segmentor.decoders["fine"]
    maps = network.eval().cascade(sample.source)
    assert list(maps) == ["synthetic", "coarse", "error", "refined"]
    assert torch.equal(maps["refined"], refine_with_error(maps["coarse"], maps["error"]))


@pytest.mark.parametrize("detach_coarse", [False, True])
def test_the_generator_may_give_the_synthetic_image_alone(sample, detach_coarse):
    generator = UNet25D(3, WIDTHS)
    generator.forward = lambda image: {"synthetic": image[:, :1]}
    segmentor = Recorder()
    TissNet(generator, segmentor, ["source", "synthetic"], detach_coarse).segment(
        sample.source, generator(sample.source)
    )
    assert torch.equal(segmentor.image, torch.cat([sample.source, sample.source[:, :1]], 1))


def test_a_frozen_network_stays_in_eval_mode_without_gradients(perceptor, sample):
    frozen = Frozen(perceptor).train()
    assert not perceptor.training
    image = sample.target.requires_grad_(True)
    frozen(image).mean().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in perceptor.parameters())


@pytest.mark.parametrize("size", [(16, 16, 155), (1, 1, 1), (33, 47, 9)], ids=str)
def test_any_size_comes_back(network, size):
    maps = network.eval().cascade(torch.randn(1, 3, *size))
    assert {tuple(value.shape) for value in maps.values()} == {(1, 1, *size)}


def test_torchscript_equals_eager(network):
    image = torch.randn(1, 3, 33, 20, 7)
    torch.testing.assert_close(torch.jit.script(network.eval())(image), network(image))


def test_half_precision_and_channels_last_give_about_the_same_maps(network, sample):
    expected = network.eval().cascade(sample.source)
    network.to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.cascade(sample.source.to(memory_format=torch.channels_last_3d))
    assert all(value.dtype == torch.float32 for value in found.values())
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_the_perceptor_sees_the_synthetic_image(network, perceptor, sample):
    evaluated = PerceivedCascade(network, perceptor).eval()
    maps = evaluated.cascade(sample.source)
    assert torch.equal(maps["perceived"], perceptor(maps["synthetic"]))
    assert torch.equal(evaluated(sample.source), maps["fine"])


def test_the_consensus_answers_with_the_mean_of_both_segmentations(network, perceptor, sample):
    alone = PerceivedCascade(network, perceptor).eval().cascade(sample.source)
    consensus = PerceivedCascade(network, perceptor, consensus=True).eval()
    for answer in (consensus(sample.source), consensus.cascade(sample.source)["fine"]):
        torch.testing.assert_close(answer, (alone["fine"] + alone["perceived"]) / 2)


def test_without_a_perceptor_nothing_is_perceived(network, sample):
    assert "perceived" not in PerceivedCascade(network).eval().cascade(sample.source)


@pytest.fixture
def weights(tmp_path, perceptor):
    torch.save(perceptor.state_dict(), tmp_path / "perceptor.pt")
    return tmp_path / "perceptor.pt"


def test_weights_come_back(weights, perceptor):
    loaded = load_weights(UNet25D(1, WIDTHS), str(weights))
    torch.testing.assert_close(loaded.state_dict(), perceptor.state_dict(), rtol=0, atol=0)


def test_weights_stored_in_half_precision_come_back_in_single(tmp_path, perceptor):
    torch.save(perceptor.half().state_dict(), tmp_path / "half.pt")
    loaded = load_weights(UNet25D(1, WIDTHS), str(tmp_path / "half.pt"))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded.decoders["fine"].head.weight, perceptor.decoders["fine"].head.weight.float())


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent.pt: train the network first"):
        load_weights(UNet25D(1, WIDTHS), str(tmp_path / "absent.pt"))


def test_weights_below_a_folder_that_is_not_there_tell_where_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no weights at models/model.pt: .*start in the bundle's folder, or giv"
    ):
        load_weights(UNet25D(1, [2, 4, 4, 4, 4]), "models/model.pt")


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.99])
def test_truncated_weights_are_refused(weights, fraction):
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(ValueError, match=r"perceptor.pt is not a file of PyTorch weights .*copy it again"):
        load_weights(UNet25D(1, WIDTHS), str(weights))


@pytest.mark.parametrize("content", [b"hello\n", b"<html>", b"(", b"\x80\x02.", b"\x1f\x8b\x08", b"\xe9"], ids=str)
def test_files_of_another_kind_are_refused(weights, content):
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of PyTorch weights"):
        load_weights(UNet25D(1, WIDTHS), str(weights))


def test_weights_that_would_run_code_are_refused(weights, perceptor):
    torch.save(perceptor, weights)
    with pytest.raises(ValueError, match="is not a file of PyTorch weights"):
        load_weights(UNet25D(1, WIDTHS), str(weights))


def test_a_tensor_is_no_state_dict(weights):
    torch.save(torch.zeros(3), weights)
    with pytest.raises(ValueError, match=r"perceptor.pt holds a Tensor, not a state dict"):
        load_weights(UNet25D(1, WIDTHS), str(weights))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        pytest.param(UNet25D(1, [4, 4, 4, 4, 4]), r"encoder.levels.0.0.weight is \(2, 1, .* and \(4, 1", id="widths"),
        pytest.param(UNet25D(3, WIDTHS), r"is \(2, 1, 3, 3, 1\) in the file and \(2, 3, 3, 3, 1\)", id="channels"),
        pytest.param(
            UNet25D(1, [2, 4, 4], [0, 0, 0]), r"is \(4, 8, 3, 3, 3\) in the file and \(4, 8, 3, 3, 1\)", id="levels"
        ),
        pytest.param(
            UNet25D(1, WIDTHS, upsampling="transposed"), "is absent in the file and", id="another kind of upsampling"
        ),
    ],
)
def test_weights_of_another_network_are_refused(weights, network, message):
    with pytest.raises(ValueError, match=message):
        load_weights(network, str(weights))


def test_a_norm_with_arguments_is_part_of_the_recipe(tmp_path):
    group = ["group", {"num_groups": 8}]
    keep_recipe(tmp_path / "model.pt", {"norm": tuple(group)})
    assert read_recipe(tmp_path / "model.pt", {"norm": "batch"}) == {"norm": group}
    check_recipe(tmp_path / "model.pt", {"norm": tuple(group)})
    with pytest.raises(ValueError, match=r"trained with norm .* this run uses batch; give --norm"):
        check_recipe(tmp_path / "model.pt", {"norm": "batch"})


def test_regions_that_do_not_fit_the_weights_are_refused(weights):
    keep_recipe(weights, {"regions": ["whole tumor"]})
    wanted = {"regions": ["whole tumor", "tumor core"]}
    for load in (load_weights, load_perceptor):
        with pytest.raises(ValueError, match=r"with regions \['whole tumor'\] .* give --regions '\[\"whole tumor\"\]'"):
            load(UNet25D(1, WIDTHS), str(weights), wanted)
    with pytest.raises(ValueError, match=r"is \(1, .* in the file and \(2, .*`regions`"):
        load_weights(UNet25D(1, WIDTHS, regions=2), str(weights))


def test_weights_trained_otherwise_are_refused(weights):
    keep_recipe(weights, {"spacing_mm": [1.5, 1.5, 1.5], "percentiles": [1, 99], "norm": "batch"})
    with pytest.raises(ValueError, match=r"spacing_mm \[1.5, 1.5, 1.5\] .* this run uses \[1, 1, 1\]; give --spac"):
        load_weights(UNet25D(1, WIDTHS), str(weights), {"spacing_mm": [1, 1, 1]})
    for load in (load_weights, load_perceptor):
        with pytest.raises(ValueError, match=r"norm batch .* this run uses instance; give --norm 'batch'"):
            load(UNet25D(1, WIDTHS), str(weights), {"norm": "instance"})
        load(UNet25D(1, WIDTHS), str(weights), {"spacing_mm": (1.5, 1.5, 1.5), "percentiles": [1.0, 99.0]})


def test_a_perceptor_of_another_voxel_size_sees_the_image_at_its_own(weights, caplog):
    keep_recipe(weights, {"spacing_mm": [2, 2, 4], "source_modalities": ["t2"]})
    image = torch.rand(1, 1, 16, 16, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    perceptor = load_perceptor(UNet25D(1, WIDTHS), str(weights), {"spacing_mm": [1, 1, 4], "source_modalities": ["t1"]})
    assert f"{weights} was trained at [2, 2, 4] mm and this run is at [1, 1, 4] mm" in caplog.text
    plain = load_perceptor(UNet25D(1, WIDTHS), str(weights)).eval()
    perceptor.eval()
    expected = F.interpolate(plain(image[:, :, ::2, ::2]), (32, 32, 8), mode="trilinear")
    torch.testing.assert_close(perceptor(image), expected)
    image.requires_grad_(True)
    perceptor(image).sum().backward()
    assert image.grad.abs().sum() > 0


def test_weights_that_tell_nothing_of_their_images_are_taken(weights):
    load_weights(UNet25D(1, WIDTHS), str(weights), {"spacing_mm": [1, 1, 1]})


@pytest.mark.parametrize("told", ["{", "[]", "5", '{"spacing_mm": 2}', '{"percentiles": ["a", "b"]}'])
def test_a_damaged_file_beside_the_weights_is_named(weights, told):
    weights.with_suffix(".json").write_text(told)
    with pytest.raises(ValueError, match=r"perceptor.json does not tell how .* was trained: .*remove it"):
        load_weights(UNet25D(1, WIDTHS), str(weights))


def test_what_resumes_a_training_is_not_compacted(tmp_path):
    torch.save({"network": {}, "epoch": 3}, tmp_path / "model_last.pt")
    with pytest.raises(ValueError, match=r"model_last.pt holds 'network', which is no tensor; give the weights"):
        compact(str(tmp_path / "model_last.pt"), str(tmp_path / "out.pt"))


def test_the_perceptor_stays_frozen_when_its_cascade_trains(network, perceptor):
    """As in `synthesis_only`, where MONAI brings the validated network back to training mode."""
    PerceivedCascade(network, perceptor).train()
    assert not any(module.training for module in perceptor.modules())
    assert not any(parameter.requires_grad for parameter in perceptor.parameters())


def test_a_missing_perceptor_prints_the_command_that_trains_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"monai.bundle run training .*direct_segmentation.json"):
        load_perceptor(UNet25D(1, WIDTHS), str(tmp_path / "perceptor.pt"))


def test_compact_weights_load_strictly_and_are_deflated_halves(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    keep_recipe(tmp_path / "model.pt", {"spacing_mm": [1, 1, 3]})
    compact(str(tmp_path / "model.pt"), str(tmp_path / "small" / "model.pt"))
    loaded = load_weights(copy.deepcopy(network), str(tmp_path / "small" / "model.pt"))
    for name, value in loaded.state_dict().items():
        assert value.dtype == network.state_dict()[name].dtype
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1.5e-3, atol=1e-6)
    stored = {name: value.dtype for name, value in read_state(tmp_path / "small" / "model.pt").items()}
    assert set(stored.values()) == {torch.float16, torch.int64}
    entries = zipfile.ZipFile(tmp_path / "small" / "model.pt").infolist()
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_DEFLATED}
    assert json.loads((tmp_path / "small" / "model.json").read_text()) == {"spacing_mm": [1, 1, 3]}


def test_compact_weights_have_ten_significant_bits_the_nearest_ones(tmp_path):
    fractions = torch.arange(8) / 1024  # the last bit of a half in [1, 2) is 1 / 1024
    torch.save({"weight": torch.cat([1 + fractions, -1 - fractions, torch.zeros(1)])}, tmp_path / "model.pt")
    compact(str(tmp_path / "model.pt"), str(tmp_path / "small.pt"))
    nearest = torch.tensor([0, 0, 2, 4, 4, 4, 6, 8]) / 1024  # ties to even: 1 to 0, 3 to 4, 5 to 4, 7 to 8
    expected = torch.cat([1 + nearest, -1 - nearest, torch.zeros(1)])
    torch.testing.assert_close(read_state(tmp_path / "small.pt")["weight"].float(), expected, rtol=0, atol=0)


def test_weights_too_large_for_half_precision_are_not_compacted(tmp_path):
    torch.save({"scale": torch.tensor(1e6)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"scale of .* does not fit half precision"):
        compact(str(tmp_path / "model.pt"), str(tmp_path / "small.pt"))
    assert not (tmp_path / "small.pt").exists()


def test_nothing_here_is_unpickled_otherwise():
    package = Path(cascade.__file__).parent
    for file in (*package.rglob("*.py"), *package.with_name("bundles").rglob("*.json")):
        text = file.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True)"), file
        assert "pickle" not in text.replace("unpickler", ""), file
