"""`segment` with weights that take any subset of the contrasts."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import write_case
from monai.bundle import ConfigParser
from tissnet_components.regions import LABELS_OF_REGIONS
from tissnet_components.scans.cases import find_scans
from tissnet_components.segment import segment
from tissnet_components.weights import keep_recipe

BUNDLE = Path(__file__).parents[1] / "bundles" / "tissnet_brats"
CONTRASTS = ["t1", "t1ce", "t2", "flair"]
RECIPE = {"regions": list(LABELS_OF_REGIONS), "widths": [2, 2, 2, 2, 2], "window_size": [32, 32, 16]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The glioma bundle with random weights for any subset and three regions."""
    folder = tmp_path_factory.mktemp("bundle") / "tissnet_brats"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("eval"))
    keep_recipe(folder / "models" / "any_missing.pt", RECIPE | {"source_modalities": CONTRASTS})
    parser = ConfigParser()
    parser.read_config([str(folder / "configs" / f"{name}.json") for name in ("inference", "inference_any_missing")])
    parser["bundle_root"] = str(folder)
    torch.manual_seed(0)
    state = parser.get_parsed_content("network_def").state_dict()
    for name in ("coarse", "fine"):  # so that something is found
        state[f"{'generator' if name == 'coarse' else 'segmentor'}.decoders.{name}.head.bias"] += 4
    torch.save(state, folder / "models" / "any_missing.pt")
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, str]:
    case = write_case(tmp_path_factory.mktemp("scans") / "anna")
    return dict(zip(CONTRASTS, [*case["image"], case["target"]], strict=True))


@pytest.mark.parametrize("given", [["flair"], ["flair", "t1ce"], ["t1", "t2", "flair"], CONTRASTS], ids="+".join)
def test_any_subset_is_segmented_and_the_others_are_synthesised(bundle, scans, given, tmp_path):
    segment(bundle, **{name: scans[name] for name in given}, out=tmp_path, case="anna", force=True)
    summary = json.loads((tmp_path / "anna" / "anna_summary.json").read_text())
    assert summary["real"] == [name for name in CONTRASTS if name in given]
    assert summary["synthetic"] == [name for name in CONTRASTS if name not in given]
    assert list(summary["regions_ml"]) == list(LABELS_OF_REGIONS)
    assert summary["regions_ml"]["whole tumor"] == summary["volume_ml"] > 0
    label = np.asanyarray(nib.load(tmp_path / "anna" / "anna_seg.nii.gz").dataobj)
    assert label.shape == (40, 36, 20)
    assert set(np.unique(label)) <= {0, 1, 2, 4}
    synthetic = tmp_path / "anna" / "anna_synthetic.nii.gz"
    assert synthetic.is_file() == (given != CONTRASTS)
    if len(summary["synthetic"]) > 1:
        assert nib.load(synthetic).shape[3] == len(summary["synthetic"])


def test_the_papers_subset_is_segmented_by_the_bundles_own_weights(bundle, scans, tmp_path):
    segment(bundle, **{name: scans[name] for name in CONTRASTS[:3]}, out=tmp_path, case="anna", force=True)
    assert "real" not in json.loads((tmp_path / "anna" / "anna_summary.json").read_text())


def test_without_such_weights_a_subset_is_refused_in_one_sentence(scans, tmp_path):
    with pytest.raises(ValueError, match="needs the modalities t1, t1ce, t2; give --t1, --t2 as well"):
        segment(BUNDLE, t1ce=scans["t1ce"], out=tmp_path)


def test_inferring_takes_what_each_case_of_a_folder_has(tmp_path):
    for name, contrasts in {"anna": ["flair"], "ben": CONTRASTS}.items():
        for contrast in contrasts:
            (tmp_path / f"{name}_{contrast}.nii.gz").touch()
    anna, ben = find_scans(str(tmp_path), CONTRASTS, str(tmp_path / "datalist.json"), "test", any_subset=True)
    assert anna["image"] == [None, None, None, str(tmp_path / "anna_flair.nii.gz")]
    assert None not in ben["image"]


def test_inferring_a_datalist_leaves_to_synthesis_what_no_image_is(tmp_path):
    case = {"case": "anna", "image": ["b.nii.gz", "a.nii.gz"]}
    content = {"sources": ["t2", "t1"], "test": [case]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    (found,) = find_scans(str(tmp_path), CONTRASTS, str(tmp_path / "datalist.json"), "test", any_subset=True)
    assert found["image"] == [str(tmp_path / "a.nii.gz"), None, str(tmp_path / "b.nii.gz"), None]
