"""The two bundles are twins: they differ in their task's own settings alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from cohort import write_case
from monai.bundle import ConfigParser

BRATS, VS = (Path(__file__).parents[1] / "bundles" / name for name in ("tissnet_brats", "tissnet_vs"))
OWN_SETTINGS = {
    "source_modalities",
    "spacing_mm",
    "percentiles",
    "box_size",
    "preprocessing",
    "training_box",
    "dicom_segment",
}
OWN_RECIPE = OWN_SETTINGS | {"epochs", "patch_size", "window_size"}  # of the weights that each ships
OWN_FILES = {f"configs/{name}.json" for name in ("metadata", "tumor_crop", "train", "inference", "weights")}


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
    [("train", OWN_SETTINGS), ("inference", OWN_RECIPE), ("weights", OWN_RECIPE)],
    ids=["train", "inference", "weights"],
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


def test_schwannoma_training_sees_a_box_centred_on_the_tumor_and_inference_the_whole_field_of_view(tmp_path):
    case = write_case(tmp_path / "anna", shape=(60, 50, 24), affine=np.diag([0.41, 0.41, 1.5, 1]))
    case["image"] = case["image"][2:]
    train, infer = ConfigParser(), ConfigParser()
    train.read_config(str(VS / "configs" / "train.json"))
    infer.read_config(str(VS / "configs" / "inference.json"))
    train["box_size"], infer["spacing_mm"] = [32, 32, 12], [0.41, 0.41, 1.5]
    boxed = train.get_parsed_content("validate::preprocessing")(case)
    assert boxed["image"].shape == boxed["target"].shape == boxed["label"].shape == (1, 32, 32, 12)
    assert not (boxed["image"] == 0).any()  # beyond the edge of the scan, its edge (-1) is repeated
    centre = boxed["label"][0].nonzero().float().mean(0)
    np.testing.assert_allclose(centre.numpy(), [15.5, 15.5, 5.5], atol=1)
    assert infer.get_parsed_content("preprocessing")({"case": "anna", "image": case["image"]})["image"].shape[1:] == (
        60,
        50,
        24,
    )
