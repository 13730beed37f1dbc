"""Every row of the paper's tables, as studies/ lists them: built, trained for one epoch, evaluated.

In this process, by the workflow that `monai.bundle run` builds; networks of two channels, patients of 32 x 32 x 12.
"""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort import TINY, write_case, write_datalist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism
from test_bundle_configs import references, unknown_ids
from tissnet_components.report.tables import run_of

ROOT = Path(__file__).parents[2]
SOURCES = {"brats": ["t1", "t1ce", "t2"], "vs": ["t2"]}
STUDIES = {
    bundle: json.loads((ROOT / "studies" / f"{name}.json").read_text())
    for bundle, name in (("brats", "glioma"), ("vs", "schwannoma"))
}


def trained(bundle: str) -> dict[str, list[str]]:
    """The configs of each training of a study, by the name of its weights."""
    rows = [row for row in STUDIES[bundle]["rows"] if row.get("train", True)]
    return {row.get("options", {}).get("model_name", row["name"]): row.get("configs", []) for row in rows}


CONFIGS = trained("brats")
OVERLAYS = sorted(
    f"{file.parent.name}/{file.stem}"
    for folder in ("ablations", "comparators")
    for file in (ROOT / "bundles/tissnet_brats/configs" / folder).glob("*.json")
)
SETTINGS = TINY | {"epochs": 1, "vgg_weights": "untrained"}
SYNTHESIS = {"global_l1", "global_adversarial"}
TUMOR = {"tumor_l1", "tumor_adversarial"}
GENERATOR = {*SYNTHESIS, *TUMOR, "perceptibility", "coarse"}
SYMBOLS = {  # the heads of Tables 1, 2, 5 and 6
    "L_syn-g": SYNTHESIS,
    "L_syn-t": TUMOR,
    "L_p": {"perceptibility"},
    "L_c": {"coarse"},
    "L_fine": {"fine"},
    "L_err": {"error"},
    "L_con": {"consistency"},
}


def ticks(bundle: str) -> dict[str, set[str]]:
    """The losses of each row of Tables 1 and 2 (or 5 and 6); whatever has a generator in Table 2 trains it in full."""
    found = {}
    for table in STUDIES[bundle]["report"]["tables"][:2]:
        for row, (inputs, *cells) in table["rows"].items():
            losses = [SYMBOLS[head] for head, cell in zip(table["head"][1:], cells, strict=True) if cell == "✓"]
            generator = GENERATOR if "x_t'" in inputs else set()
            found[run_of(row)] = generator.union(*losses)
    return found


TICKS = ticks("brats")
SWEEPS = [(curve["x"], *row) for curve in STUDIES["brats"]["report"]["curves"] for row in curve["rows"].items()]
WEIGHTS = {"λ_p": "loss_weights::perceptibility", "λ_c": "loss_weights::coarse", "λ_s": "segmentor_weight"}
MAPS = {  # a compared method -> the files that inference writes
    "Pix2Pix": {"seg", "synthetic"},
    "PGAN": {"seg", "synthetic"},
    "PSCGAN-style": {"seg", "synthetic"},
    "Wang et al.": {"seg", "synthetic"},
    "UAGAN": {"seg", "synthetic"},
    "without FLAIR": {"seg"},
    "modality dropout": {"seg"},
    "TISS-Net": {"seg", "synthetic", "error", "disagreement"},
}


RUN = [("brats", name) for name in CONFIGS if not name.startswith(tuple(WEIGHTS))]
RUN += [("vs", name) for name in MAPS]  # the overlays are the same, see test_twins.py; here with one source contrast


def config_files(bundle: str, *names: str) -> list[str]:
    return [str(ROOT / "bundles" / f"tissnet_{bundle}" / "configs" / f"{name}.json") for name in names]


def parse(bundle: str, *names: str, **settings: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, *names))
    parser.update(settings)
    return parser


def run(bundle: str, entry_point: str, names: list[str], **settings: object) -> None:
    """`python -m monai.bundle run ENTRY_POINT --config_file NAMES ...` in this process."""
    files = config_files(bundle, *names)
    workflow = ConfigWorkflow(config_file=files, logging_file=False, run_id=entry_point, **settings)
    workflow.initialize()
    workflow.run()


def train(bundle: str, name: str, settings: dict[str, object]) -> None:
    """Train a row, after the rows whose weights it needs."""
    generators = [f"{config.removeprefix('comparators/')}_generator" for config in CONFIGS[name]]
    for needed in ("perceptor", *generators):
        if needed in CONFIGS and needed != name and not (Path(settings["ckpt_dir"]) / f"{needed}.pt").is_file():
            train(bundle, needed, settings)
    run(bundle, "training", ["train", *CONFIGS[name]], **settings, model_name=name, **{"validate::handlers": []})


@pytest.fixture(autouse=True)
def untouched_interpreter(monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    yield
    set_determinism(None)


@pytest.fixture(scope="module", params=SOURCES)
def bundle(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def settings(bundle, tmp_path_factory) -> dict[str, object]:
    """A tiny network, three patients, and a folder where all rows of a bundle leave their weights."""
    folder = tmp_path_factory.mktemp(bundle)
    cases = [write_case(folder / f"case_{number}", number, (32, 32, 12)) for number in range(3)]
    for case in cases:
        case["image"] = case["image"][-len(SOURCES[bundle]) :]
    write_datalist(folder, training=cases[:1], validation=cases[1:2], test=cases[2:])
    datalist = json.loads((folder / "datalist.json").read_text()) | {"sources": SOURCES[bundle]}
    (folder / "datalist.json").write_text(json.dumps(datalist))
    folders = {"dataset_dir": folder, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    return {**SETTINGS, **{name: str(path) for name, path in folders.items()}}


def test_every_overlay_has_a_row():
    assert sorted({config for configs in CONFIGS.values() for config in configs} - {"direct_segmentation"}) == OVERLAYS


def test_every_table_of_the_paper_has_a_study():
    titles = [table["title"] for study in STUDIES.values() for table in study["report"]["tables"]]
    assert [re.match(r"Table (\d)", title)[1] for title in titles] == list("1234567")
    assert {curve["x"] for study in STUDIES.values() for curve in study["report"]["curves"]} == set(WEIGHTS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_id_of_an_overlay_exists_or_is_read(overlay):
    names = next(configs for configs in CONFIGS.values() if overlay in configs)
    alone = json.loads(Path(*config_files("brats", overlay)).read_text())
    assert not unknown_ids(alone, parse("brats", "train", *names[: names.index(overlay)]))
    merged = parse("brats", "train", *names)
    assert {name for name in references(merged.get()) if name not in merged} == set()


@pytest.mark.parametrize("name", TICKS)
def test_a_row_has_the_losses_that_its_table_ticks(bundle, name):
    parser = parse(bundle, "train", *CONFIGS[name])
    lambda_s = parser.get_parsed_content("segmentor_weight")
    scale = dict.fromkeys(("fine", "error", "consistency"), lambda_s)
    weights = parser.get_parsed_content("loss_weights")
    assert {term for term, weight in weights.items() if weight * scale.get(term, 1)} == TICKS[name]


@pytest.mark.parametrize(
    ("name", "inputs", "channels"),
    [
        ("synthetic (fine)", ["synthetic"], 1),
        ("synthetic+coarse (error)", ["synthetic", "coarse"], 2),
        ("full input (error)", ["source", "synthetic", "coarse"], 5),
    ],
)
def test_the_segmentor_sees_what_its_table_says(name, inputs, channels):
    network = parse("brats", "train", *CONFIGS[name], **SETTINGS).get_parsed_content("network_def")
    assert network.segmentor_inputs == inputs
    assert network.segmentor.encoder.levels[0][0].in_channels == channels


@pytest.mark.parametrize(("parameter", "row", "value"), SWEEPS)
def test_a_sweep_sets_one_weight_and_nothing_else(bundle, parameter, row, value):
    key, row = WEIGHTS[parameter], row.removesuffix(" on validation")
    swept, chosen = parse(bundle, "train", *CONFIGS[row]), parse(bundle, "train")
    assert swept[key] == value
    assert (value == chosen[key]) == (row == "TISS-Net")
    swept[key] = chosen[key]
    assert swept.get() == chosen.get()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param("pix2pix_generator", {"loss_weights": {"global_adversarial": 1, "global_l1": 100}}, id="Pix2Pix"),
        pytest.param(
            "pgan_generator",
            {
                "loss_weights": {"global_adversarial": 1, "global_l1": 100, "perceptual": 100},
                "learning_rate": 0.0002,
                "constant_epochs": 125,
            },
            id="PGAN",
        ),
        pytest.param("Wang et al.", {"lesion_weight": 5}, id="Wang"),
        pytest.param(
            "UAGAN",
            {
                "loss_weights": {"adversarial": 1, "contrast": 1, "cycle": 10, "fine": 100, "shape": 100},
                "critic_weights": {"wasserstein": 1, "gradient_penalty": 10, "real_contrast": 1},
                "shape_epochs": 60,
            },
            id="UAGAN",
        ),
    ],
)
def test_a_compared_method_has_the_weights_that_the_docs_give_it(bundle, name, values):
    parser = parse(bundle, "train", *CONFIGS[name], epochs=250)
    assert {key: parser.get_parsed_content(key) for key in values} == values


@pytest.mark.parametrize("name", ["Pix2Pix", "PGAN"])
def test_a_generator_is_loaded_for_the_images_of_this_run(bundle, name):
    parser = parse(bundle, "train", *CONFIGS[name], spacing_mm=[2, 2, 2])
    loaded = parser.get_parsed_content("network_def::generator", instantiate=False).get_config()
    assert loaded["recipe"]["spacing_mm"] == [2, 2, 2]


def test_the_studies_are_twins_but_for_the_contrasts():
    glioma, schwannoma = (list(trained(bundle).values()) for bundle in STUDIES)
    assert schwannoma == [configs for configs in glioma if "ablations/t2_only" not in configs]
    ticked = [losses for name, losses in TICKS.items() if name != "synthesis from T2 alone"]
    assert list(ticks("vs").values()) == ticked
    assert STUDIES["vs"]["report"]["curves"] == STUDIES["brats"]["report"]["curves"]


def measured(name: str) -> tuple[set[str], set[str]]:
    """Columns that a row of the tables needs, and columns of maps that it does not have or does not train."""
    if name.startswith("synthesis") or name.endswith("_generator"):
        without = {"coarse_dice"} if "coarse" not in TICKS.get(name, ()) else set()
        return {"perceptibility_dice", "ssim", "local_psnr"}, {"fine_dice", "refined_dice"} | without
    if name.endswith("(error)"):
        return {"refined_dice", "refined_assd_mm", "refined_hd95_mm"}, {"fine_dice", "average_dice"}
    if name == "TISS-Net":
        return {"fine_dice", "refined_dice", "average_dice", "coarse_dice", "perceptibility_dice", "ssim"}, set()
    images = {"ssim", "psnr"} if "synthetic" in MAPS.get(name, ()) else set()
    without = {"refined_dice", "average_dice"} if "error" not in TICKS.get(name, ()) else set()
    return {"fine_dice", "fine_assd_mm", "fine_hd95_mm"} | images, without


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "name"), RUN, ids=map("-".join, RUN), indirect=["bundle"])
def test_every_row_is_trained_evaluated_and_run_by_the_commands_of_tiss_net(bundle, settings, name, tmp_path):
    train(bundle, name, settings)
    assert torch.load(Path(settings["ckpt_dir"]) / f"{name}_last.pt", weights_only=True)["epoch"] == 1
    here = {**settings, "model_name": name, "output_dir": str(tmp_path)}
    run(bundle, "evaluating", ["train", "evaluate", *CONFIGS[name]], **here)
    with (tmp_path / "cases.csv").open(newline="") as file:
        (case,) = csv.DictReader(file)
    there, absent = measured(name)
    assert case["case"] == "case_2"
    assert there <= set(case)
    assert not absent & set(case)
    if "error" in TICKS.get(name, ()):
        assert "refined" in np.load(tmp_path / "case_2" / "case_2_slice.npz")
    if name in MAPS:
        run(bundle, "inferring", ["inference", *CONFIGS[name]], **here)
        found = {file.name.removeprefix("case_2_").removesuffix(".nii.gz") for file in tmp_path.rglob("*.nii.gz")}
        assert found == MAPS[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "names", "model_name"),
    [
        (["flair"], ["direct_segmentation"], "perceptor"),
        (["t1", "t1ce", "t2", "flair"], ["direct_segmentation", "comparators/without_target"], "upper bound"),
    ],
    ids=["real target", "upper bound"],
)
def test_rows_that_need_the_target_segment_a_folder_that_has_it(bundle, settings, sources, names, model_name, tmp_path):
    if bundle == "vs":
        sources = sources[-1:] if len(sources) == 1 else ["t2", "flair"]
    if not (Path(settings["ckpt_dir"]) / f"{model_name}.pt").is_file():
        train(bundle, model_name, settings)
    write_case(tmp_path / "scans" / "anna", 0, (32, 32, 12))
    folders = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out")}
    here = {**settings, **folders, "source_modalities": sources, "model_name": model_name}
    run(bundle, "inferring", ["inference", *names], **here)
    assert [file.name for file in tmp_path.glob("out/*/*.nii.gz")] == ["anna_seg.nii.gz"]
