"""Every row of the paper's tables, as docs/reference/reproduce.md lists them: built, trained for one epoch, evaluated.

In this process, by the workflow that `monai.bundle run` builds; networks of two channels, patients of 32 x 32 x 12.
"""

import csv
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort import TINY, write_case, write_datalist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism
from test_bundle_configs import references, unknown_ids

from tissnet_components.report.tables import run_of

ROOT = Path(__file__).parents[1]
REPRODUCE = ROOT / "docs/reference/reproduce.md"
SOURCES = {"brats": ["t1", "t1ce", "t2"], "vs": ["t2"]}
TABLES = dict(re.findall(r"^### (.*?):.*?\n(.*?)(?=^##|\Z)", REPRODUCE.read_text(), re.M | re.S))
ROWS = {table: dict(re.findall(r"^row (\w+)(.*)$", text, re.M)) for table, text in TABLES.items()}
CONFIGS = {"perceptor": ["direct_segmentation", "comparators/real_target"]}
CONFIGS |= {name: configs.split() for rows in ROWS.values() for name, configs in rows.items()}
OVERLAYS = sorted(
    f"{file.parent.name}/{file.stem}"
    for folder in ("ablations", "comparators")
    for file in (ROOT / "bundles/tissnet_brats/configs" / folder).glob("*.json")
)
SETTINGS = TINY | {"epochs": 1, "vgg_weights": "untrained"}
SYNTHESIS = {"global_l1", "global_adversarial"}
TUMOR = {"tumor_l1", "tumor_adversarial"}
GENERATOR = {*SYNTHESIS, *TUMOR, "perceptibility", "coarse"}
TICKS = {  # the ticks of Tables 1 and 5, then 2 and 6: the losses of each row
    "synthesis_global": SYNTHESIS,
    "synthesis_global_tumor": SYNTHESIS | TUMOR,
    "synthesis_global_perceptibility": SYNTHESIS | {"perceptibility"},
    "synthesis_no_coarse": SYNTHESIS | TUMOR | {"perceptibility"},
    "synthesis": GENERATOR,
    "synthesis_t2": GENERATOR,
    "direct_image": {"fine"},
    "synthetic_fine": GENERATOR | {"fine"},
    "synthetic_coarse_fine": GENERATOR | {"fine"},
    "synthetic_coarse_error": GENERATOR | {"error"},
    "synthetic_coarse_fine_error": GENERATOR | {"fine", "error"},
    "synthetic_coarse": GENERATOR | {"fine", "error", "consistency"},
    "all_fine": GENERATOR | {"fine"},
    "all_error": GENERATOR | {"error"},
    "all_fine_error": GENERATOR | {"fine", "error"},
    "model": GENERATOR | {"fine", "error", "consistency"},
}
SYMBOLS = {  # the heads of those tables
    "L_syn-g": SYNTHESIS,
    "L_syn-t": TUMOR,
    "L_p": {"perceptibility"},
    "L_c": {"coarse"},
    "L_fine": {"fine"},
    "L_err": {"error"},
    "L_con": {"consistency"},
}
STUDIES = {
    bundle: json.loads((ROOT / "studies" / f"{name}.json").read_text())
    for bundle, name in (("brats", "glioma"), ("vs", "schwannoma"))
}
MAPS = {  # a compared method -> the files that inference writes
    "pix2pix": {"seg", "synthetic"},
    "pgan": {"seg", "synthetic"},
    "pscgan": {"seg", "synthetic"},
    "wang2020": {"seg", "synthetic"},
    "uagan": {"seg", "synthetic"},
    "direct_image": {"seg"},
    "modality_dropout": {"seg"},
    "model": {"seg", "synthetic", "error", "disagreement"},
}


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
    for needed in ("perceptor", f"{name}_generator"):
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


def test_every_table_is_there_and_every_overlay_has_a_row():
    assert list(ROWS) == ["Tables 1 and 5", "Tables 2 and 6", "Table 3", "Tables 4 and 7", "Fig. 6"]
    assert [len(rows) for rows in ROWS.values()] == [6, 10, 1, 12, 9]
    assert sorted({config for configs in CONFIGS.values() for config in configs} - {"direct_segmentation"}) == OVERLAYS


def test_the_documented_shell_function_trains_and_evaluates_a_row():
    [function] = re.findall(r"^```bash\n(DATA=.*?)^```", REPRODUCE.read_text(), re.M | re.S)
    script = f'python() {{ echo "$@"; }}\n{function}\nrow model\nrow all_fine ablations/fine_only ablations/t2_only'
    printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    start, end = "-m monai.bundle run", "--dataset_dir ../../data --model_name"
    fine = "'configs/ablations/fine_only.json','configs/ablations/t2_only.json'"
    assert printed == [
        f"{start} training --config_file ['configs/train.json'] {end} model",
        f"{start} evaluating --config_file ['configs/train.json','configs/evaluate.json'] {end} model",
        f"{start} training --config_file ['configs/train.json',{fine}] {end} all_fine",
        f"{start} evaluating --config_file ['configs/train.json','configs/evaluate.json',{fine}] {end} all_fine",
    ]


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
        ("synthetic_fine", ["synthetic"], 1),
        ("synthetic_coarse_error", ["synthetic", "coarse"], 2),
        ("all_error", ["source", "synthetic", "coarse"], 5),
    ],
)
def test_the_segmentor_sees_what_its_table_says(name, inputs, channels):
    network = parse("brats", "train", *CONFIGS[name], **SETTINGS).get_parsed_content("network_def")
    assert network.segmentor_inputs == inputs
    assert network.segmentor.encoder.levels[0][0].in_channels == channels


@pytest.mark.parametrize("name", [name for name in ROWS["Fig. 6"] if name != "model"])
def test_a_sweep_sets_one_weight_to_what_it_is_named_after(bundle, name):
    term, value = re.fullmatch(r"(.*?)_([\d_]+)", name).groups()
    key = "segmentor_weight" if term == "segmentor_weight" else f"loss_weights::{term}"
    swept, chosen = parse(bundle, "train", *CONFIGS[name]), parse(bundle, "train")
    assert swept[key] == float(value.replace("_", ".")) != chosen[key]
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
        pytest.param("wang2020", {"lesion_weight": 5}, id="Wang"),
        pytest.param(
            "uagan",
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


@pytest.mark.parametrize("name", ["pix2pix", "pgan"])
def test_a_generator_is_loaded_for_the_images_of_this_run(bundle, name):
    parser = parse(bundle, "train", *CONFIGS[name], spacing_mm=[2, 2, 2])
    loaded = parser.get_parsed_content("network_def::generator", instantiate=False).get_config()
    assert loaded["image_settings"]["spacing_mm"] == [2, 2, 2]


def test_a_study_has_the_rows_of_every_table(bundle):
    rows = [row.get("configs", []) for row in STUDIES[bundle]["rows"] if row.get("train", True)]
    assert sorted(rows) == sorted(
        configs for configs in CONFIGS.values() if bundle == "brats" or "ablations/t2_only" not in configs
    )


def test_the_tables_of_a_study_tick_the_losses_that_its_rows_have(bundle):
    study, losses = STUDIES[bundle], {tuple(CONFIGS[name]): ticks for name, ticks in TICKS.items()}
    configs = {row["name"]: tuple(row.get("configs", [])) for row in study["rows"]}
    for table in study["report"]["tables"][:2]:
        known = set().union(*(SYMBOLS.get(head, set()) for head in table["head"]))
        for row, cells in table["rows"].items():
            ticked = [SYMBOLS[head] for head, cell in zip(table["head"], cells, strict=True) if cell == "✓"]
            assert set().union(*ticked) == losses[configs[run_of(row)]] & known, row


def test_the_curves_of_a_study_stand_at_the_weights_of_their_rows(bundle):
    weights = {"λ_p": "loss_weights::perceptibility", "λ_c": "loss_weights::coarse", "λ_s": "segmentor_weight"}
    configs = {row["name"]: row.get("configs", []) for row in STUDIES[bundle]["rows"]}
    curves = STUDIES[bundle]["report"]["curves"]
    assert {curve["x"] for curve in curves} == set(weights)
    for curve in curves:
        for row, value in curve["rows"].items():
            assert parse(bundle, "train", *configs[row])[weights[curve["x"]]] == value, row


def measured(name: str) -> tuple[set[str], set[str]]:
    """Columns that a row of the tables needs, and columns of maps that it does not have or does not train."""
    if name.startswith("synthesis") or name.endswith("_generator"):
        without = {"coarse_dice"} if "coarse" not in TICKS.get(name, ()) else set()
        return {"perceptibility_dice", "ssim", "local_psnr"}, {"fine_dice", "refined_dice"} | without
    if name in ("synthetic_coarse_error", "all_error"):
        return {"refined_dice", "refined_assd_mm", "refined_hd95_mm"}, {"fine_dice", "average_dice"}
    if name == "model":
        return {"fine_dice", "refined_dice", "average_dice", "coarse_dice", "perceptibility_dice", "ssim"}, set()
    images = {"ssim", "psnr"} if "synthetic" in MAPS.get(name, ()) else set()
    without = {"refined_dice", "average_dice"} if "error" not in TICKS.get(name, ()) else set()
    return {"fine_dice", "fine_assd_mm", "fine_hd95_mm"} | images, without


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ROWS["Fig. 6"]])
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
        (
            ["t1", "t1ce", "t2", "flair"],
            ["direct_segmentation", "comparators/without_target"],
            "direct_image_target",
        ),
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
