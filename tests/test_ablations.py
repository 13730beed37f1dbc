"""Every row of the paper's tables, as docs/reproduce.md lists them, is trained for one epoch and evaluated in both bundles.

In this process, by the workflow that `monai.bundle run` builds; networks of two channels, patients of 32 x 32 x 12 voxels.
"""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from cohort import write_case, write_datalist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

ROOT = Path(__file__).parents[1]
BUNDLES = {"brats": ["t1", "t1ce", "t2"], "vs": ["t2"]}
ROWS = re.findall(r"^row (\w+)(.*)$", (ROOT / "docs" / "reproduce.md").read_text(), re.MULTILINE)
CONFIGS = {name: configs.split() for name, configs in ROWS}
SWEEPS = [name for name in CONFIGS if re.search(r"_\d+$", name)]  # Fig. 6: a weight each, built alone
TINY = {
    "widths": [2, 2, 2, 2, 2],
    "patch_size": [32, 32, 8],
    "spacing_mm": [1.0, 1.0, 1.0],
    "discriminator_channels": 2,
    "box_size": [32, 32, 8],
    "epochs": 1,
    "vgg_weights": "untrained",
}


def config_files(bundle: str, *names: str) -> list[str]:
    return [str(ROOT / "bundles" / f"tissnet_{bundle}" / "configs" / f"{name}.json") for name in names]


def run(bundle: str, entry_point: str, names: list[str], **settings: object) -> None:
    """`python -m monai.bundle run ENTRY_POINT --config_file NAMES ...` in this process."""
    workflow = ConfigWorkflow(
        config_file=config_files(bundle, *names), logging_file=False, run_id=entry_point, **settings
    )
    workflow.initialize()
    workflow.run()


@pytest.fixture(autouse=True)
def untouched_interpreter(monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    yield
    set_determinism(None)


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(bundle, tmp_path_factory) -> dict[str, str]:
    """Where the data are, three patients, and where all rows of a bundle leave their weights."""
    folder = tmp_path_factory.mktemp(bundle)
    cases = [write_case(folder / f"case_{number}", number, (32, 32, 12)) for number in range(3)]
    for case in cases:
        case["image"] = case["image"][-len(BUNDLES[bundle]) :]
    write_datalist(folder, training=cases[:1], validation=cases[1:2], test=cases[2:])
    datalist = json.loads((folder / "datalist.json").read_text()) | {"sources": BUNDLES[bundle]}
    (folder / "datalist.json").write_text(json.dumps(datalist))
    settings = {"dataset_dir": folder, "ckpt_dir": folder / "models", "bundle_root": ROOT / "bundles" / f"tissnet_{bundle}"}
    return {name: str(value) for name, value in settings.items()}


@pytest.fixture(scope="module")
def settings(folders) -> dict[str, object]:
    return {**TINY, **folders}


def measured(name: str) -> tuple[set[str], set[str]]:
    """Columns that a row of the tables needs, and columns of maps that it does not have or does not train."""
    if name.startswith("synthesis"):
        return {"perceptibility_dice", "ssim", "local_psnr"}, {"fine_dice", "refined_dice"}
    if name.endswith("_generator"):
        return {"ssim", "local_psnr", "perceptibility_dice"}, {"fine_dice", "coarse_dice"}
    if name in ("synthetic_coarse_error", "all_error"):
        return {"refined_dice", "refined_assd_mm", "refined_hd95_mm"}, {"fine_dice", "average_dice"}
    if name == "model":
        return {"fine_dice", "refined_dice", "average_dice", "coarse_dice", "perceptibility_dice", "ssim"}, set()
    return {"fine_dice", "fine_ml", "label_ml"}, set()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SWEEPS])
def test_every_row_is_trained_for_an_epoch_and_evaluated(bundle, settings, name, tmp_path):
    settings = {**settings, "model_name": name, "output_dir": str(tmp_path)}
    run(bundle, "training", ["train", *CONFIGS[name]], **settings, **{"validate::handlers": []})
    assert torch.load(Path(settings["ckpt_dir"]) / f"{name}_last.pt", weights_only=True)["epoch"] == 1
    run(bundle, "evaluating", ["train", "evaluate", *CONFIGS[name]], **settings)
    with (tmp_path / "cases.csv").open(newline="") as file:
        (case,) = csv.DictReader(file)
    there, absent = measured(name)
    assert case["case"] == "case_2"
    assert there <= set(case)
    assert not absent & set(case)


INFERRED = {  # a compared method -> the maps that it has
    "pix2pix": {"seg", "synthetic"},
    "pgan": {"seg", "synthetic"},
    "pscgan": {"seg", "synthetic"},
    "wang2020": {"seg", "synthetic"},
    "uagan": {"seg", "synthetic"},
    "direct_image": {"seg"},
    "modality_dropout": {"seg"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INFERRED)
def test_every_compared_method_segments_scans_by_the_command_of_tiss_net(bundle, settings, name, tmp_path):
    """With the weights that the test above left."""
    run(bundle, "inferring", ["inference", *CONFIGS[name]], **settings, output_dir=str(tmp_path))
    found = {file.name.removeprefix("case_2_").removesuffix(".nii.gz") for file in tmp_path.rglob("*.nii.gz")}
    assert found == INFERRED[name]
