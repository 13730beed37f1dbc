"""Training from patients of whom nobody has everything."""

from pathlib import Path

import pytest
import torch
from cohort import TINY, write_case, write_datalist
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).parents[2] / "bundles"
LACKING = {"anna": "target", "bert": "label", "carl": "image"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three training patients, each of whom lacks something else; one to validate has everything, one does not."""
    folder = tmp_path_factory.mktemp("data")
    names = (*LACKING, "dora", "emil")
    cases = {name: write_case(folder / name, seed, (32, 32, 12)) for seed, name in enumerate(names)}
    for name, key in {**LACKING, "emil": "label"}.items():
        del cases[name][key]
    write_datalist(folder, training=[cases[name] for name in LACKING], validation=[cases["dora"], cases["emil"]])
    return folder


@pytest.mark.parametrize("bundle", ["tissnet_brats", "tissnet_vs"])
@pytest.mark.parametrize(
    ("configs", "left_out", "seen"),
    [
        (["train", "direct_segmentation"], "2 of 3 cases lack one of target, label: anna, bert", {"fine": 1}),
        (
            ["train"],
            "1 of 3 cases lack one of image: carl",
            {"global_l1": 1, "global_adversarial": 2, "fine": 1, "consistency": 2, "global_discriminator": 1},
        ),
    ],
    ids=["perceptor", "TISS-Net"],
)
def test_a_cohort_where_nobody_has_everything_trains(data, tmp_path, caplog, bundle, configs, left_out, seen):
    caplog.set_level("INFO")
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / bundle / "configs" / f"{name}.json") for name in configs])
    folders = {"dataset_dir": str(data), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    parser.update({**TINY, **folders, "device": torch.device("cpu"), "epochs": 1, "tumor_paste": 0})
    perceptor = parser.get_parsed_content("perceptor_def")
    torch.save(perceptor.state_dict(), tmp_path / "given.pt")
    parser["perceptor_path"] = str(tmp_path / "given.pt")
    trainer = parser.get_parsed_content("train::trainer")
    trainer.run()
    assert f"section 'training' of {data / 'datalist.json'}: {left_out}" in caplog.text
    assert "1 of 2 cases lack one of image, target, label: emil" in caplog.text
    counts = {term: count for term, count in trainer.state.samples.items() if term in seen}
    assert counts == seen
    assert [record.message for record in caplog.records if "each loss term saw" in record.message]
    assert (tmp_path / f"{parser.get_parsed_content('model_name')}.pt").is_file()
