"""What MONAI's model zoo asks of a bundle, and every orientation that a scan may have."""

import configparser
import itertools
import json
import logging.config
import re
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle_copies import BUNDLES, NAMES, read_config, tiny_bundle
from cohort import save
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.scripts import _add_model_card_metadata
from monai.transforms import SaveImaged

ROOT = BUNDLES.parent
SCHEMA = ROOT.parent / "shared" / "meta_schema_20240725.json"
SECTIONS = """
    Description, Model overview, Data, Training configuration, Input, Output, Performance, Per case,
    Time and memory on a CPU, Commands, Export, Limitations and intended use, References, License
"""
DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ORIENTATIONS = [
    "".join(axes[index][flip] for index, flip in zip(order, flips, strict=True))
    for axes in [("LR", "PA", "IS")]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((0, 1), repeat=3)
]


@pytest.fixture(params=NAMES)
def bundle(request) -> Path:
    return BUNDLES / request.param


@pytest.fixture(scope="module", params=NAMES)
def tiny(request, tmp_path_factory) -> Path:
    return tiny_bundle(request.param, tmp_path_factory.mktemp("zoo"))


def metadata(bundle: Path) -> dict:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def test_every_file_of_a_zoo_bundle_is_there(bundle):
    names = ["LICENSE", "docs/README.md", "docs/data_license.txt"]
    names += [f"configs/{name}" for name in ("metadata.json", "inference.json", "train.json", "logging.conf")]
    assert [name for name in names if not (bundle / name).is_file()] == []


def test_a_file_over_25_mb_is_listed_for_download(bundle):
    listed = set()
    if (bundle / "large_files.yml").is_file():
        entries = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
        assert all(set(entry) == {"path", "url", "hash_val", "hash_type"} for entry in entries)
        listed = {entry["path"] for entry in entries}
    shipped = [bundle / "models" / "model.pt", bundle / "models" / "perceptor.pt", *bundle.glob("docs/*")]
    large = [file for file in shipped if file.is_file() and file.stat().st_size > 25e6]
    assert {str(file.relative_to(bundle)) for file in large} <= listed


def test_the_metadata_follows_the_zoos_schema(bundle):
    pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip(f"no schema at {SCHEMA}")
    monai.bundle.verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(SCHEMA))


def test_the_metadata_has_what_the_schema_requires_and_a_line_about_its_version(bundle):
    content = metadata(bundle)
    required = ["schema", "version", "changelog", "name", "monai_version", "pytorch_version", "numpy_version"]
    required += ["required_packages_version", "task", "description", "authors", "copyright", "network_data_format"]
    assert [name for name in required if not content.get(name)] == []
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg")
    assert content["version"] == max(content["changelog"]) == package["metadata"]["version"]
    # MONAI compares versions as strings: 0.10.0 would come before 0.9.0
    assert all(re.fullmatch(r"\d\.\d\.\d", version) for version in content["changelog"])


def test_every_required_package_has_one_exact_version_that_the_tests_run_with(bundle):
    content = metadata(bundle)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line.split(";")[0])
    own = {"monai": content["monai_version"], "torch": content["pytorch_version"], "numpy": content["numpy_version"]}
    required = {**own, **content["required_packages_version"], **content["optional_packages_version"]}
    assert {name: pinned.get(name) for name in required} == required


def test_a_zips_readme_names_the_packages_that_onnx_needs(bundle):
    optional = metadata(bundle)["optional_packages_version"]
    install = " ".join(f"{name}=={version}" for name, version in optional.items())
    assert f"`pip install {install}`" in (bundle / "docs" / "README.md").read_text()


@pytest.mark.parametrize(("n", "p"), [(1, 1), (2, 2), (3, 1)])
def test_the_network_takes_and_gives_what_the_metadata_says(bundle, n, p):
    configs = bundle / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    monai.bundle.verify_net_in_out("network_def", **files, device="cpu", n=n, p=p)


@pytest.mark.parametrize(("config", "properties"), [("train", TrainProperties), ("inference", InferProperties)])
def test_every_property_of_a_workflow_has_its_place(bundle, config, properties):
    parser = read_config(bundle, config)
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    ids = {name: entry["id"] for name, entry in properties.items() if entry["required"]}
    assert {name: place for name, place in ids.items() if place not in parser} == {}


def test_the_documentation_has_the_zoos_sections_and_what_they_lack(bundle):
    headings = re.findall(r"^#+ (.+)$", (bundle / "docs" / "README.md").read_text(), re.MULTILINE)
    assert [name for name in re.split(r"\s*,\s*", SECTIONS.strip()) if name not in headings] == []


def test_no_file_names_a_persons_folder(bundle):
    kinds = (".json", ".md", ".txt", ".conf", ".yml", ".csv")
    files = [file for file in bundle.rglob("*") if file.suffix in kinds]
    assert not [file for file in files if re.search(r"/(home|Users|root|tmp|work)/", file.read_text())]


def test_the_logging_configuration_loads(bundle):
    logging.config.fileConfig(bundle / "configs" / "logging.conf", disable_existing_loggers=False)


def test_a_model_card_for_a_hub_gets_its_licence(bundle, tmp_path):
    card = shutil.copytree(bundle, tmp_path / "bundle") / "README.md"
    shutil.copy(bundle / "docs" / "README.md", card)
    _add_model_card_metadata(card)
    assert "license: apache-2.0" in card.read_text().split("---")[1]


def test_monai_loads_the_network_with_its_weights(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    network = monai.bundle.load(tiny.name, bundle_dir=str(tiny.parent), workflow_type="inference", device="cpu")
    weights = torch.load(tiny / "models" / "model.pt", weights_only=True)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, weights[name].to(value.dtype), rtol=0, atol=0)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


def test_a_mask_lies_where_the_tumor_is_in_every_orientation(bundle, tmp_path):
    parser = read_config(bundle)
    parser.update({"spacing_mm": [1.0, 1.0, 1.0], "output_dir": str(tmp_path)})
    before = parser.get_parsed_content("preprocessing")
    after = [
        step for step in parser.get_parsed_content("postprocessing").transforms if not isinstance(step, SaveImaged)
    ]
    voxels = np.full((7, 8, 9), 100, dtype=np.int16)
    voxels[0] = voxels[:, :, 0] = 0
    voxels[2:4, 5:7, 5:8] = 200
    for axes in ORIENTATIONS:
        affine = nib.affines.from_matvec(np.column_stack([DIRECTIONS[letter] for letter in axes]), [3, -5, 11])
        file = save(tmp_path / f"{axes}.nii.gz", voxels, affine)
        assert "".join(nib.aff2axcodes(nib.load(file).affine)) == axes
        data = before({"case": axes, "image": [file] * len(parser.get_parsed_content("source_modalities"))})
        bright = (data["image"][:1] > 0.9).float()
        data["pred"] = dict.fromkeys(("synthetic", "coarse", "fine", "error", "refined"), bright)
        for step in after:
            data = step(data)
        np.testing.assert_array_equal(data["pred"][0].numpy(), voxels == 200, err_msg=axes)
        np.testing.assert_allclose(data["pred"].affine, affine, err_msg=axes)
