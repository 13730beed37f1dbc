"""The two bundles are twins: they differ in their task's own settings alone."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort import oblique_affine, save, write_case
from monai.bundle import ConfigParser

BRATS, VS = (Path(__file__).parents[2] / "bundles" / name for name in ("tissnet_brats", "tissnet_vs"))
OWN_SETTINGS = {
    "source_modalities",
    "target_modality",
    "spacing_mm",
    "percentiles",
    "box_size",
    "preprocessing",
    "training_box",
    "dicom_segment",
}
OWN_RECIPE = OWN_SETTINGS | {  # of the weights that each ships
    "epochs",
    "norm",
    "patch_size",
    "window_size",
    "recipe",
    "narrow_view",
    "contrast_curve",
    "consensus",
    "components",
}
OWN_TRAINING = OWN_RECIPE | {"background_patches", "batch_size", "cross_entropy", "tumor_paste"}
OWN_FILES = {f"configs/{name}.json" for name in ("metadata", "tumor_crop", "train", "inference", "recipe")}


def read(bundle: Path, *names: str) -> ConfigParser:
    config = ConfigParser()
    config.read_config([str(bundle / "configs" / f"{name}.json") for name in names])
    return config


def files(bundle: Path) -> set[str]:
    return {str(file.relative_to(bundle)) for file in bundle.rglob("*.*") if file.parts[-2] not in ("models", "eval")}


def shared_configs() -> list[str]:
    return sorted(name for name in files(BRATS) if name.startswith("configs/") and name not in OWN_FILES)


def test_both_bundles_have_the_same_configs():
    assert {name for name in files(BRATS) ^ files(VS) if name.startswith("configs/")} == set()


@pytest.mark.parametrize("name", [*shared_configs(), "LICENSE"])
def test_every_other_file_is_the_same_text(name):
    assert (BRATS / name).read_text() == (VS / name).read_text()


@pytest.mark.parametrize(
    ("name", "own"),
    [("train", OWN_SETTINGS), ("inference", OWN_RECIPE | {"force", "preparation"}), ("recipe", OWN_TRAINING)],
    ids=["train", "inference", "recipe"],
)
def test_the_main_configs_differ_in_the_tasks_settings_alone(name, own):
    brats, vs = (json.loads((bundle / "configs" / f"{name}.json").read_text()) for bundle in (BRATS, VS))
    differing = {key for key in brats.keys() | vs.keys() if brats.get(key) != vs.get(key)}
    assert differing <= own
    common = [[key for key in config if key not in own] for config in (brats, vs)]
    assert common[0] == common[1]  # the same order, to read side by side


def test_the_metadata_has_the_same_entries():
    brats, vs = (json.loads((bundle / "configs" / "metadata.json").read_text()) for bundle in (BRATS, VS))
    assert list(brats) == list(vs)
    same = {key for key in brats if brats[key] == vs[key]}
    assert {"monai_version", "pytorch_version", "numpy_version", "required_packages_version", "authors"} <= same


@pytest.mark.parametrize("bundle", [BRATS, VS], ids=["brats", "vs"])
def test_inference_prepares_images_exactly_as_the_training_of_the_shipped_weights(bundle, tmp_path):
    config, shape = read(bundle, "inference"), (30, 32, 10)
    noise = np.random.default_rng(0).uniform(1, 100, (len(config.get_parsed_content("source_modalities")), *shape))
    affine = oblique_affine((1.2, 0.9, 4))
    case = write_case(tmp_path / "anna", shape=shape, affine=affine)
    case["image"] = [save(tmp_path / f"{number}.nii.gz", image, affine) for number, image in enumerate(noise)]
    configs = (read(bundle, "train", "recipe"), config)
    trained, run = (config.get_parsed_content("preprocessing")(case)["image"] for config in configs)
    torch.testing.assert_close(trained.as_tensor(), run.as_tensor(), rtol=0, atol=0)
    np.testing.assert_array_equal(trained.affine, run.affine)


@pytest.mark.parametrize("bundle", [BRATS, VS], ids=["brats", "vs"])
@pytest.mark.parametrize("weights", ["model", "perceptor"])
def test_the_shipped_weights_tell_how_they_were_trained(bundle, weights):
    told = json.loads((bundle / "models" / f"{weights}.json").read_text())
    before_files_told = read(bundle, "inference").get_parsed_content("recipe::default")
    assert told | {"norm": "batch"} == before_files_told
    assert told == read(bundle, "train", "recipe").get_parsed_content("recipe")


def test_the_shipped_weights_for_any_subset_fit_their_network_and_name_three_regions():
    parser = read(BRATS, "inference", "inference_any_missing")
    parser["bundle_root"] = str(BRATS)
    network = parser.get_parsed_content("network")  # loaded strictly
    perceptor = parser.get_parsed_content("perceptor").eval()
    assert parser.get_parsed_content("source_modalities") == ["t1", "t1ce", "t2", "flair"]
    assert parser.get_parsed_content("regions") == ["whole tumor", "tumor core", "enhancing tumor"]
    lacking_flair = torch.rand(1, 4, 16, 16, 8)
    lacking_flair[:, 3] = -1
    with torch.no_grad():
        maps = network.eval().cascade(lacking_flair)
    assert maps["fine"].shape == (1, 3, 16, 16, 8)
    assert torch.equal(maps["synthetic"][:, :3], lacking_flair[:, :3])
    with torch.no_grad():
        assert perceptor(maps["synthetic"]).shape == maps["fine"].shape
    assert (maps["synthetic"][:, 3] != -1).any()


@pytest.mark.parametrize("bundle", [BRATS, VS], ids=["brats", "vs"])
def test_inference_slides_the_window_of_validation(bundle):
    trained, run = read(bundle, "train", "recipe"), read(bundle, "inference")
    inferer = copy.deepcopy(run["inferer"])
    assert inferer["inferer"].pop("progress") and inferer.pop("perceptor")
    assert trained["validate::inferer"] == inferer
    assert trained.get_parsed_content("window_size") == run.get_parsed_content("window_size")


def test_schwannoma_training_sees_a_box_centred_on_the_tumor_and_inference_the_whole_field_of_view(tmp_path):
    case = write_case(tmp_path / "anna", shape=(60, 50, 24), affine=np.diag([0.41, 0.41, 1.5, 1]))
    case["image"] = case["image"][2:]
    train, infer = read(VS, "train"), read(VS, "inference")
    train["box_size"], infer["spacing_mm"] = [32, 32, 40], [0.41, 0.41, 1.5]
    boxed = train.get_parsed_content("validate::preprocessing")(case)
    assert boxed["image"].shape == boxed["target"].shape == boxed["label"].shape == (1, 32, 32, 40)
    centre = boxed["label"][0].nonzero().float().mean(0)
    np.testing.assert_allclose(centre.numpy(), [15.5, 15.5, 19.5], atol=1)
    assert (boxed["image"][..., 0] == -1).all()  # 24 slices in a box of 40: beyond the scan, its edge is repeated
    assert infer.get_parsed_content("preprocessing")({"case": "anna", "image": case["image"]})["image"].shape[1:] == (
        60,
        50,
        24,
    )
