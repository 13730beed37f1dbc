"""The bundle's files agree with the paper, with each other and with what MONAI expects; nothing is trained here."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from cohort import oblique_affine, write_case, write_cohort
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.data import MetaTensor
from monai.transforms import Compose, RandCropByPosNegLabeld
from tissnet_components.inversion import InvertTogetherd
from tissnet_components.largest_component import LargestComponentsd
from tissnet_components.losses import Batch
from tissnet_components.metrics import box_around, dice
from tissnet_components.results.maps import SaveImageOverviewd
from tissnet_components.results.summary import SaveImageSummaryd
from tissnet_components.scans.loading import LoadCased
from tissnet_components.transforms import NormalizeBrain
from tissnet_components.weights import keep_recipe, started_from
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.optim.lr_scheduler import LambdaLR

BUNDLE = Path(__file__).parents[2] / "bundles" / "tissnet_brats"
SCHEMA = Path(__file__).parents[3] / "shared" / "meta_schema_20240725.json"
OVERLAYS = {  # overlay -> what it lies on
    "direct_segmentation": ["train"],
    "any_missing": ["train", "evaluate"],
    "wide": ["train"],
    "strong_augmentation": ["train"],
    "recipe": ["train"],
    "evaluate": ["train"],
    "tumor_crop": ["train", "evaluate"],
    "multi_gpu_train": ["train"],
    "multi_gpu_evaluate": ["train", "evaluate"],
    "inference_trt": ["inference"],
    "inference_any_missing": ["inference"],
    "deploy": ["inference"],
}
TINY = {"widths": [2, 2, 2, 2, 2], "patch_size": [32, 32, 16], "discriminator_channels": 2}
INPUTS = {"perceptor": ["target"], "direct_image": ["image"], "direct_image_target": ["image", "target"]}


def read(name: str) -> dict:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def parse(*names: str, **settings) -> ConfigParser:
    """Configs merged as `monai.bundle run` merges them, then settings as its command line gives them."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
    parser.update(settings)
    return parser


def references(config: object) -> set[str]:
    """Every id that a config refers to by @ or %."""
    if isinstance(config, dict | list):
        values = config.values() if isinstance(config, dict) else config
        return {name for value in values for name in references(value)}
    if not isinstance(config, str) or config[:1] not in ("$", "@", "%"):
        return set()
    return {name.replace("#", "::") for name in re.findall(r"[@%]([A-Za-z_]\w*(?:(?:::|#)\w+)*)", config)}


def unknown_ids(overlay: dict, base: ConfigParser) -> set[str]:
    """Ids that an overlay sets but nothing reads: MONAI adds them silently."""
    entry_points = {"evaluating", "finalize"}
    known = references(overlay) | entry_points
    return {name for name in overlay if name.removeprefix("+") not in base and name not in known}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    """Settings for a tiny run; ``ckpt_dir`` holds networks of random weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "models").mkdir()
    for name, definition in {"perceptor": "perceptor_def", "model": "network_def"}.items():
        network = parse("train", **TINY).get_parsed_content(definition)
        torch.save(network.state_dict(), folder / "models" / f"{name}.pt")
    folders = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}
    return {**TINY, **folders, "dataset_dir": str(write_cohort(folder / "data")), "bundle_root": str(BUNDLE)}


@pytest.fixture(autouse=True)
def untouched_interpreter(monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: None)


@pytest.mark.parametrize("file", sorted((BUNDLE / "configs").glob("*.json")), ids=lambda file: file.name)
def test_every_config_is_json_without_doubled_keys(file):
    def once(pairs):
        assert len(pairs) == len(dict(pairs)), f"a key stands twice among {[key for key, _ in pairs]}"
        return dict(pairs)

    assert json.loads(file.read_text(), object_pairs_hook=once)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_id_of_an_overlay_exists_in_what_it_lies_on(overlay):
    assert not unknown_ids(read(overlay), parse(*OVERLAYS[overlay]))


@pytest.mark.parametrize("typo", ["widhts", "loss_weights::consitency", "validate::handler"])
def test_a_typo_in_an_id_is_noticed(typo):
    assert unknown_ids({typo: 0}, parse("train")) == {typo}


@pytest.mark.parametrize("name", ["train", "inference", *OVERLAYS])
def test_every_reference_leads_somewhere(name):
    parser = parse(*OVERLAYS.get(name, []), name)
    assert {reference for reference in references(parser.get()) if reference not in parser} == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_overlay_addresses_a_list_by_position(overlay):
    assert not [name for name in read(overlay) if re.search(r"(::|#)\d+(::|#|$)", name)]


def test_the_overlay_of_wide_widths_fits_inference_too():
    assert not unknown_ids(read("wide"), parse("inference"))


@pytest.mark.parametrize(
    ("names", "entry_point"),
    [(["train"], "training"), (["train", "evaluate"], "evaluating"), (["inference"], "inferring")],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_each_entry_point_has_run_as_its_alias(names, entry_point):
    parser = parse(*names)
    assert parser["run"] == f"%{entry_point}"
    assert isinstance(parser[entry_point], list)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", [128, 128, 16]),
        ("batch_size", 2),
        ("learning_rate", 1e-4),
        ("epochs", 250),
        ("constant_epochs", 100),
        ("background_patches", 1),
        ("segmentor_weight", 25),
        ("cross_entropy", 0),
        ("loss_weights::global_l1", 50),
        ("loss_weights::tumor_l1", 200),
        ("loss_weights::global_adversarial", 1),
        ("loss_weights::tumor_adversarial", 1),
        ("loss_weights::perceptibility", 25),
        ("loss_weights::coarse", 1),
        ("loss_weights::fine", 1),
        ("loss_weights::error", 1),
        ("loss_weights::consistency", 1),
        ("tumor_margin", 0),
        ("percentiles", [0.5, 99.5]),
    ],
)
def test_training_has_the_papers_setting(name, value):
    assert parse("train").get_parsed_content(name) == value


@pytest.mark.parametrize("player", ["network_player", "discriminator_player"])
def test_both_players_step_by_adam_at_a_rate_constant_for_100_epochs_then_linear_to_zero_over_150(player):
    settings = TINY | {"loss_weights::perceptibility": 0}
    built = parse("train", **settings).get_parsed_content(player)
    optimizer, scheduler = built.optimizer, built.scheduler
    assert isinstance(optimizer, torch.optim.Adam)
    assert tuple(optimizer.defaults["betas"]) == (0.5, 0.999)
    assert isinstance(scheduler, LambdaLR)
    rates = [1e-4 * scheduler.lr_lambdas[0](epoch) for epoch in (0, 99, 100, 175, 250)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4, 0.5e-4, 0])


@pytest.mark.parametrize(("overlays", "millions"), [([], 13.96), (["wide"], 55.82)], ids=["default", "wide"])
def test_the_network_has_the_documented_size(overlays, millions):
    with torch.device("meta"):
        network = parse("train", *overlays).get_parsed_content("network_def")
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("overlays", [[], ["wide"]], ids=["default", "wide"])
def test_inference_runs_the_network_that_was_trained(overlays):
    with torch.device("meta"):
        trained, run = (parse(name, *overlays).get_parsed_content("network_def") for name in ("train", "inference"))
    assert str(trained) == str(run)
    assert parse("train")["network_def"] == parse("inference")["network_def"]


def test_inference_shares_its_settings_with_the_training_of_the_shipped_weights():
    train, inference = read("train") | read("recipe"), read("inference")
    told = inference["recipe"]["default"]
    own = {
        "imports",
        "network",
        "perceptor",
        "perceptor_def",
        "perceptor_path",
        "precision",
        "preprocessing",
        "initialize",
        "run",
        "recipe",
        *told,
    }
    shared = (train.keys() & inference.keys()) - own
    assert {"source_channels", "dropout", "network_def"} <= shared
    assert {name: train[name] for name in shared} == {name: inference[name] for name in shared}
    assert told == {name: train[name] for name in train["recipe"]} | {"norm": "batch"}  # as weights without a file


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_perceptor_has_the_norm_that_its_own_file_tells(name, tmp_path):
    keep_recipe(tmp_path / "perceptor.pt", {"norm": ["group", {"num_groups": 8}]})
    config = parse(name)
    config.update({"perceptor_path": str(tmp_path / "perceptor.pt"), "consensus": True})
    kinds = {type(part) for part in config.get_parsed_content("perceptor_def").modules()}
    assert torch.nn.GroupNorm in kinds
    assert torch.nn.BatchNorm3d not in kinds


def test_inference_follows_the_file_beside_the_weights(tmp_path):
    told = {"spacing_mm": [2, 2, 4], "source_modalities": ["t2"], "widths": [2, 2, 2, 2, 2], "upsampling": "transposed"}
    keep_recipe(tmp_path / "model.pt", told | {"window_size": [32, 32, 16]})
    parser = parse("inference", ckpt_dir=str(tmp_path))
    assert {name: parser.get_parsed_content(name) for name in told} == told
    assert parser.get_parsed_content("window_size") == [32, 32, 16]
    trained = parse("train", **told).get_parsed_content("network_def")
    assert str(parser.get_parsed_content("network_def")) == str(trained)


def test_inference_takes_what_an_older_file_does_not_tell_from_the_bundle(tmp_path):
    keep_recipe(tmp_path / "model.pt", {"spacing_mm": [2, 2, 4]})
    parser = parse("inference", ckpt_dir=str(tmp_path))
    assert parser.get_parsed_content("spacing_mm") == [2, 2, 4]
    assert parser.get_parsed_content("percentiles") == [0.5, 99.5]
    assert parser.get_parsed_content("source_modalities") == ["t1", "t1ce", "t2"]


def test_the_perceptor_is_what_direct_segmentation_of_the_target_trains():
    with torch.device("meta"):
        perceptor = parse("train").get_parsed_content("perceptor_def")
        trained = parse("train", "direct_segmentation").get_parsed_content("network_def")
    assert str(perceptor) == str(trained)
    assert parse("train", "direct_segmentation").get_parsed_content("model_name") == "perceptor"
    assert parse("train")["perceptor_path"] == "$str(@ckpt_dir) + '/perceptor.pt'"


@pytest.mark.parametrize(("model_name", "input_keys"), INPUTS.items(), ids=list(INPUTS))
def test_direct_segmentation_takes_any_input(model_name, input_keys):
    parser = parse("train", "direct_segmentation", **TINY, input_keys=input_keys)
    channels = {"image": 3, "target": 1}
    network = parser.get_parsed_content("network").eval()
    assert parser.get_parsed_content("model_name") == model_name
    assert network(torch.zeros(1, sum(channels[key] for key in input_keys), 16, 16, 4)).shape == (1, 1, 16, 16, 4)


def test_a_training_may_begin_with_the_weights_of_a_coarser_one(tmp_path):
    torch.manual_seed(0)
    coarse = parse("train", **TINY, spacing_mm=[2.0, 2.0, 2.0]).get_parsed_content("network").state_dict()
    torch.save(coarse, tmp_path / "model.pt")
    keep_recipe(tmp_path / "model.pt", {"spacing_mm": [2.0, 2.0, 2.0]})
    by_chance = parse("train", **TINY).get_parsed_content("network").state_dict()
    begun = parse("train", **TINY, start_from=str(tmp_path / "model.pt")).get_parsed_content("network").state_dict()
    assert all(torch.equal(begun[name], value) for name, value in coarse.items())
    assert not all(torch.equal(by_chance[name], value) for name, value in coarse.items())


@pytest.fixture
def direct(tmp_path):
    settings = {**TINY, "input_keys": ["image"]}
    unet = parse("train", "direct_segmentation", **settings).get_parsed_content("network").eval()
    torch.save(unet.state_dict(), tmp_path / "direct_image.pt")
    return unet, str(tmp_path / "direct_image.pt")


def test_a_cascade_that_begins_with_direct_segmentations_weights_begins_with_its_answer(direct):
    unet, path = direct
    parser = parse("train", **TINY, start_from={"generator": path, "segmentor": path})
    network, image = parser.get_parsed_content("network").eval(), torch.rand(1, 3, 16, 16, 8) * 2 - 1
    with torch.no_grad():
        maps, answer = network.cascade(image), unet(image)
    torch.testing.assert_close(maps["coarse"], answer)
    torch.testing.assert_close(maps["fine"], answer)
    assert not torch.allclose(maps["error"], answer)


def test_a_cascade_does_not_begin_with_a_file_that_is_not_there_or_not_whole(direct, tmp_path):
    network = parse("train", **TINY).get_parsed_content("network_def")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pt: give --start_from another file"):
        started_from(network, {"segmentor": str(tmp_path / "none.pt")})
    state = direct[0].state_dict()
    del state["encoder.levels.4.0.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"encoder\.levels\.4\.0\.weight is absent in the file"):
        started_from(network, {"segmentor": str(tmp_path / "part.pt")})


@pytest.mark.parametrize(
    ("part", "options", "finding"),
    [
        ("head", {}, "the parts of this network are generator and segmentor"),
        ("segmentor", {"regions": ["whole tumor", "tumor core"]}, "does not fit the configured network: decoders.fine"),
        ("generator", {"source_modalities": ["t1", "t2"]}, "does not fit the configured network: encoder"),
    ],
)
def test_a_cascade_does_not_begin_with_weights_that_do_not_fit(direct, part, options, finding):
    network = parse("train", **{**TINY, **options}).get_parsed_content("network_def")
    with pytest.raises(ValueError, match=finding):
        started_from(network, {part: direct[1]})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_every_level_of_the_network_and_the_perceptor(settings, checkpointing):
    parser = parse("train", **settings, checkpointing=checkpointing)
    update = parser.get_parsed_content("train::update")
    player = update.network
    networks = (player.module.generator, player.module.segmentor, player.loss.perceptibility.perceptor.network)
    parts = [part for network in networks for part in (network.encoder, *network.decoders.values())]
    levels = [level for part in parts for level in part.levels]
    assert len(levels) == 2 * (5 + 2 * 4) + 5 + 4
    assert all(isinstance(level, CheckpointWrapper) == checkpointing for level in levels)


def train_one_patch(parser: ConfigParser) -> dict[str, torch.Tensor]:
    """The losses of one patch with a tumor; every part of the training is built."""
    inferer, loss_function = (parser.get_parsed_content(name) for name in ("train::inferer", "loss_function"))
    network = parser.get_parsed_content("network")
    for name in ("network_player", "discriminator_player"):
        parser.get_parsed_content(name)
    label = torch.zeros(2, 1, 32, 32, 8)
    label[..., 8:20, 8:20, 2:6] = 1
    source, target = torch.rand(2, 3, 32, 32, 8), torch.rand(2, 1, 32, 32, 8)
    images = {"image": source, "target": target}
    inputs = torch.cat([images[key] for key in parser.get_parsed_content("input_keys")], 1)
    return loss_function(inferer(inputs, network), Batch(source, target, label))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_builds_with_every_term(settings, precision):
    losses = train_one_patch(parse("train", **settings, precision=precision))
    assert set(losses) == {*read("train")["loss_weights"], "loss"}
    assert all(loss.isfinite() for loss in losses.values())


def test_wide_training_builds(settings):
    parser = parse("train", "wide", **settings, perceptor_disabled=True)
    parser.update({"loss_weights::perceptibility": 0, "widths": [2, 2, 4, 4, 4]})
    assert "perceptibility" not in train_one_patch(parser)


@pytest.mark.parametrize("input_keys", INPUTS.values(), ids=list(INPUTS))
def test_direct_segmentation_trains_on_the_fine_term_alone(settings, input_keys):
    losses = train_one_patch(parse("train", "direct_segmentation", **settings, input_keys=input_keys))
    assert losses["loss"] == losses["fine"]


def test_training_without_a_perceptor_stops_with_the_command_that_trains_one(settings, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        parse("train", **settings | {"ckpt_dir": str(tmp_path)}).get_parsed_content("loss_function")
    assert "direct_segmentation.json" in str(caught.value.__cause__)


def test_a_training_without_the_perceptibility_term_needs_no_perceptor(settings, tmp_path):
    parser = parse("train", **settings | {"ckpt_dir": str(tmp_path), "loss_weights::perceptibility": 0})
    assert not hasattr(parser.get_parsed_content("loss_function"), "perceptibility")


def test_the_cache_holds_prepared_volumes_and_each_epoch_draws_new_patches(settings):
    parser = parse("train", **settings)
    dataset = parser.get_parsed_content("train::dataset")
    cached = dataset._cache[0]["image"]
    assert isinstance(cached, MetaTensor)
    assert (cached.min(), cached.max()) == (-1, 1)
    assert all(size >= patch for size, patch in zip(cached.shape[1:], settings["patch_size"], strict=True))
    draws = [dataset[0][0] for _ in range(8)]
    assert {tuple(draw[key].shape[1:]) for draw in draws for key in ("image", "target", "label")} == {(32, 32, 16)}
    assert len({float(draw["image"].sum()) for draw in draws}) > 1


def contents(item: dict) -> dict:
    """A copy of what a cached case holds: voxels, and what is known of them."""
    tensors = {key: value for key, value in item.items() if isinstance(value, torch.Tensor)}
    meta = {key: (str(value.meta), str(value.applied_operations)) for key, value in tensors.items()}
    return {"values": {key: value.as_tensor().clone() for key, value in tensors.items()}, "meta": meta}


def test_the_cache_is_compact_and_no_draw_changes_it(settings):
    dataset = parse("train", "strong_augmentation", **settings).get_parsed_content("train::dataset")
    item = dataset._cache[0]
    kept = sum(value.nbytes for value in item.values() if isinstance(value, torch.Tensor))
    assert kept <= 0.7 * 4 * sum(item[key].numel() for key in ("image", "target", "label"))
    before = contents(item)
    for _ in range(10):
        dataset[0]
    after = contents(item)
    assert after["meta"] == before["meta"]
    torch.testing.assert_close(after["values"], before["values"], rtol=0, atol=0)


def test_patches_are_those_of_the_whole_volumes_up_to_half_precision(settings):
    """The centres drawn, as MONAI draws them where nothing is computed beforehand."""
    parser = parse("train", **settings)
    plain = parse("train", **settings)
    steps = plain["augmentation"]["transforms"]
    crop = next(step for step in steps if step["_target_"] == "RandCropByPosNegLabeld")
    del crop["fg_indices_key"], crop["bg_indices_key"]
    crop |= {"image_key": "image", "image_threshold": -1}
    steps[:] = [step for step in steps if step["_target_"] not in ("FgBgToIndicesd", "CastToTyped")]
    case = parser.get_parsed_content("train::data")[0]
    ours, theirs = (each.get_parsed_content("train::preprocessing").set_random_state(7) for each in (parser, plain))
    for _ in range(4):
        (patch,), (expected,) = ours(case), theirs(case)
        assert patch["label"].dtype == torch.float32
        for key in ("image", "target", "label"):
            torch.testing.assert_close(patch[key], expected[key], rtol=0, atol=2**-12)


def test_patches_stay_aligned_and_half_of_them_hold_tumor(settings):
    dataset = parse("train", **settings | {"patch_size": [16, 16, 4]}).get_parsed_content("train::dataset")
    draws = [dataset[index % 3][0] for index in range(60)]
    tumors = [draw["label"].bool() for draw in draws]
    assert sum(bool(tumor[:, 7:9, 7:9, 1:3].any()) for tumor in tumors) >= 20
    bright = torch.cat([draw["target"][tumor] for draw, tumor in zip(draws, tumors, strict=True)])
    dark = torch.cat([draw["target"][~tumor] for draw, tumor in zip(draws, tumors, strict=True)])
    assert bright.min() > dark.quantile(0.99)


def test_pasted_tumors_come_on_top_of_what_a_patch_holds(settings):
    labels = []
    for chance in (0, 1):
        dataset = parse("train", **settings, tumor_paste=chance).get_parsed_content("train::dataset")
        dataset.transform.set_random_state(7)
        labels.append(torch.stack([dataset[index % 3][0]["label"].as_tensor() for index in range(9)]))
    plain, pasted = labels
    assert (pasted >= plain).all()
    assert ((pasted > plain).flatten(1).sum(1) > 0).sum() >= 6


def test_options_say_how_many_patches_lie_off_the_tumor_and_what_cross_entropy_weighs(settings):
    parser = parse("train", **settings, background_patches=3, cross_entropy=0.5)
    crop = next(
        t for t in parser.get_parsed_content("augmentation").transforms if isinstance(t, RandCropByPosNegLabeld)
    )
    assert crop.cropper.pos_ratio == 1 / 4
    assert parser.get_parsed_content("loss_function").cross_entropy == 0.5


def test_patches_without_tumor_are_taken_from_the_brain(settings):
    parser = parse("train", **settings | {"patch_size": [4, 4, 2]})
    crop = next(t for t in parser["augmentation"]["transforms"] if t["_target_"] == "RandCropByPosNegLabeld")
    crop |= {"pos": 0, "num_samples": 20}
    brain = torch.full((1, 20, 20, 8), -1.0)
    brain[:, 8:12, 8:12, 3:5] = 0
    zeros = torch.zeros_like(brain)
    patches = parser.get_parsed_content("augmentation")({"image": brain, "target": brain, "label": zeros})
    assert all(bool((patch["image"] > -1).any()) for patch in patches)


def test_strong_augmentation_changes_the_source_and_keeps_the_targets_intensities(settings):
    parser = parse("train", "strong_augmentation", **settings)
    plain = parse("train", **settings).get_parsed_content("train::preprocessing")
    transforms = parser.get_parsed_content("train::preprocessing").transforms
    added = transforms[len(plain.transforms) :]
    assert added
    for transform in added[1:]:  # the first moves all three alike
        assert transform.keys == ("image",)
    item = {key: torch.rand(channels, 16, 16, 4) * 2 - 1 for key, channels in {"image": 3, "target": 1}.items()}
    item["label"] = (item["target"] > 0).float()
    changed = Compose(added)(item)
    assert not torch.equal(changed["image"], item["image"])


@pytest.mark.parametrize("overlays", [[], ["tumor_crop"]], ids=["whole volume", "crop around the tumor"])
def test_evaluation_measures_a_perfect_network_as_perfect_in_the_labels_own_space(settings, tmp_path, overlays):
    case = write_case(tmp_path / "anna", shape=(30, 32, 14), affine=oblique_affine((1.1, 0.9, 2.0)))
    parser = parse("train", "evaluate", *overlays, **settings | {"output_dir": str(tmp_path)})
    prepared = parser.get_parsed_content("validate::preprocessing")(case)
    perfect = {"synthetic": prepared["target"], **dict.fromkeys(("coarse", "fine", "refined"), prepared["label"])}
    measured = parser.get_parsed_content("validate::postprocessing")({**prepared, "pred": perfect})
    label = LoadCased("label")(case)["label"]
    assert measured["original_label"].shape == measured["fine"].shape == label.shape
    torch.testing.assert_close(measured["original_label"].as_tensor(), (label > 0).float().as_tensor())
    assert dice(measured["fine"][0], label[0]) > 0.9
    box = box_around(label[0] > 0)
    torch.testing.assert_close(measured["synthetic"][0][box], measured["target"][0][box])
    original = NormalizeBrain()(LoadCased("target")(case)["target"])
    assert torch.stack([measured["target"][0][box].flatten(), original[0][box].flatten()]).corrcoef()[0, 1] > 0.9
    assert measured["target"][0, 0, 0, 0] == -1


def test_the_summary_holds_the_dice_of_fine_and_refined_on_the_scans_grid(tmp_path):
    case = write_case(tmp_path / "anna", shape=(32, 32, 8), affine=oblique_affine((1, 1, 3)))
    parser = parse("inference", outputs=["summary", "disagreement"], output_dir=str(tmp_path))
    prepared = parser.get_parsed_content("preprocessing")({"case": "anna", "image": case["image"]})
    fine, refined = torch.zeros_like(prepared["image"][:1]), torch.zeros_like(prepared["image"][:1])
    side = fine.shape[1] // 2
    fine[:, :side], refined[:, side // 2 : side] = 1, 1  # some half of fine
    pred = {"fine": fine, "refined": refined, "error": torch.zeros_like(fine), "synthetic": torch.zeros_like(fine)}
    done = parser.get_parsed_content("postprocessing")({**prepared, "pred": pred})
    assert done["disagreement"].shape == (1, 32, 32, 8)
    assert done["summary"]["agreement"] == pytest.approx(dice(fine, refined), abs=0.05)


@pytest.mark.parametrize(("perceptor", "answer"), [(True, "perceived"), (False, "refined")])
def test_for_any_subset_the_agreement_is_with_the_perceptor_where_there_is_one(tmp_path, perceptor, answer):
    if perceptor:
        (tmp_path / "weights_perceptor.pt").touch()
    parser = parse("inference", "inference_any_missing", ckpt_path=str(tmp_path / "weights.pt"))
    steps = parser.get_parsed_content("postprocessing").transforms
    answers = [step.keys[:2] for step in steps if isinstance(step, SaveImageSummaryd | LargestComponentsd)]
    assert answers == [("fine", answer)] * 2
    (inverted,) = [step.keys for step in steps if isinstance(step, InvertTogetherd)]
    assert answer in inverted


@pytest.mark.parametrize(("consensus", "answer"), [(False, "fine"), (True, "consensus")])
def test_the_picture_of_a_case_says_which_answer_it_shows(consensus, answer):
    drawn = parse("inference", consensus=consensus).get_parsed_content("postprocessing").transforms
    assert [step.answer for step in drawn if isinstance(step, SaveImageOverviewd)] == [answer]


@pytest.mark.parametrize(
    ("names", "place", "components"),
    [
        (["inference"], "postprocessing", 1),
        (["train", "evaluate"], "validate::postprocessing", 0),  # as the paper
        (["train", "evaluate", "recipe"], "validate::postprocessing", 1),
    ],
)
def test_false_alarms_apart_are_left_out_of_the_mask_its_picture_and_its_measures(names, place, components, settings):
    transforms = parse(*names, **settings).get_parsed_content(place).transforms
    (step,) = [step for step in transforms if isinstance(step, LargestComponentsd)]
    (drawn,) = [step for step in transforms if isinstance(step, SaveImageOverviewd)]
    assert step.components == components and transforms.index(step) < transforms.index(drawn)
    assert set(step.keys) >= {"fine", "refined"}
    direct = {"fine": torch.eye(3)[None, ..., None], "image": MetaTensor(torch.zeros(1, 3, 3, 1))}
    assert step(direct)["fine"].sum() == (components or 3)


def test_a_short_training_still_validates(settings):
    parser = parse("train", **settings, epochs=2)
    interval = next(h["interval"] for h in parser["train"]["handlers"] if h["_target_"] == "ValidationHandler")
    parser["interval"] = interval
    assert parser.get_parsed_content("interval") == 2


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train"], "train"),
        (["train", "direct_segmentation"], "train"),
        (["train", "evaluate"], "train"),
        (["inference"], "infer"),
    ],
    ids=["training", "direct segmentation", "evaluation", "inference"],
)
def test_monai_finds_every_property_of_the_workflow(names, kind, settings):
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in names],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **settings,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("names", [["train"], ["train", "evaluate"]], ids=["training", "evaluation"])
def test_tracking_reaches_the_engines(names):
    parser = parse(*names)
    ConfigWorkflow.patch_bundle_tracking(parser, copy.deepcopy(DEFAULT_MLFLOW_SETTINGS) | {"configs": TRACKERS})
    assert parser["train"]["handlers"][-1] == TRACKERS["trainer"]
    assert parser["validate::handlers"][-1] == TRACKERS["validator"]
    assert parser["train"]["trainer"]["train_handlers"] == "@train::handlers"
    assert parser["validate::evaluator::val_handlers"] == "@validate::handlers"


def test_tracking_reaches_inference():
    parser = parse("inference")
    ConfigWorkflow.patch_bundle_tracking(parser, copy.deepcopy(DEFAULT_MLFLOW_SETTINGS) | {"configs": TRACKERS})
    assert parser["handlers"][-1] == TRACKERS["evaluator"]
    assert parser["evaluator::val_handlers"] == "@handlers"


TRACKERS = {
    "save_execute_config": False,
    **{name: {"_target_": "MLFlowHandler", "run_name": name} for name in ("trainer", "validator", "evaluator")},
}


def test_the_metadata_follows_the_schema():
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip(f"no schema at {SCHEMA}")
    jsonschema.validate(read("metadata"), json.loads(SCHEMA.read_text()))


def test_the_metadata_tells_the_version_and_describes_the_network():
    metadata = read("metadata")
    assert metadata["version"] in metadata["changelog"]
    described = metadata["network_data_format"]
    assert described["inputs"]["image"]["num_channels"] == len(read("train")["source_modalities"])
    assert described["outputs"]["pred"]["num_channels"] == 1


def test_no_file_names_a_persons_folder():
    files = [file for file in BUNDLE.rglob("*") if file.suffix in (".json", ".md", ".txt", ".conf", ".yml")]
    assert not [file for file in files if re.search(r"/(home|Users|root|tmp|work)/", file.read_text())]
