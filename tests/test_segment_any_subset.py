"""`segment` with weights that take any subset of the contrasts."""

import json
import re
import shutil
import zipfile
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import any_subset_weights
from cohort import write_case
from dicom_files import save_all, slices_of
from monai.bundle import ConfigParser
from tissnet_components.errors import user_error
from tissnet_components.package import package_bundle
from tissnet_components.patients import find_patients
from tissnet_components.regions import LABELS_OF_REGIONS
from tissnet_components.scans.cases import find_scans
from tissnet_components.segment import segment

BUNDLE = Path(__file__).parents[1] / "bundles" / "tissnet_brats"
CONTRASTS = ["t1", "t1ce", "t2", "flair"]
SUBSETS = {"_".join(some): list(some) for size in range(1, 5) for some in combinations(CONTRASTS, size)}
RECIPE = {
    "regions": list(LABELS_OF_REGIONS),
    "widths": [2, 2, 2, 2, 2],
    "window_size": [32, 32, 16],
    "norm": ["group", {"num_groups": 2}],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The glioma bundle with random weights for any subset and three regions."""
    folder = tmp_path_factory.mktemp("bundle") / "tissnet_brats"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("eval"))
    any_subset_weights(folder, **RECIPE)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, str]:
    case = write_case(tmp_path_factory.mktemp("scans") / "anna")
    return dict(zip(CONTRASTS, [*case["image"], case["target"]], strict=True))


def summary_of(out: Path, case: str) -> dict:
    return json.loads((out / case / f"{case}_summary.json").read_text())


@pytest.mark.parametrize("given", [["flair"], ["flair", "t1ce"], ["t1", "t2", "flair"], CONTRASTS], ids="+".join)
def test_any_subset_is_segmented_and_the_others_are_synthesised(bundle, scans, given, tmp_path):
    segment(bundle, **{name: scans[name] for name in given}, out=tmp_path, case="anna", force=True)
    summary = summary_of(tmp_path, "anna")
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


def test_every_subset_runs_through_segment_and_the_same_through_the_packaged_bundles_inferring(bundle, scans, tmp_path):
    cases = write_patients(tmp_path, scans, {f"of_{name}": some for name, some in SUBSETS.items()})
    weights = bundle / "models" / "any_missing.pt"
    segment(bundle, cases=cases, weights=weights, out=tmp_path / "segment", outputs="seg", force=True)
    with zipfile.ZipFile(package_bundle(bundle, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "colleague")
    packaged = tmp_path / "colleague" / "tissnet_brats"
    parser = ConfigParser()
    parser.read_config([str(packaged / "configs" / f"{name}.json") for name in ("inference", "inference_any_missing")])
    folders = {"bundle_root": str(packaged), "dataset_dir": str(cases), "output_dir": str(tmp_path / "inferring")}
    parser.update(folders | {"outputs": ["seg", "summary"], "force": True, "device": torch.device("cpu")})
    for entry in ("initialize", "inferring"):
        parser.get_parsed_content(entry)
    for name, some in SUBSETS.items():
        for out in ("segment", "inferring"):
            assert summary_of(tmp_path / out, f"of_{name}")["real"] == some
        mask, same = (tmp_path / out / f"of_{name}" / f"of_{name}_seg.nii.gz" for out in ("segment", "inferring"))
        np.testing.assert_array_equal(nib.load(mask).dataobj, nib.load(same).dataobj)
        assert np.any(nib.load(mask).dataobj)


def test_the_answer_is_the_mean_with_the_perceptors_where_that_lies_beside_the_weights(bundle, scans, tmp_path):
    alone = shutil.copytree(bundle, tmp_path / "alone")
    (alone / "models" / "any_missing_perceptor.pt").unlink()
    files = {}
    for name, folder, options in (
        ("mean", bundle, {}),
        ("cascade", bundle, {"consensus": False}),
        ("alone", alone, {}),
    ):
        segment(folder, flair=scans["flair"], out=tmp_path / name, case="anna", force=True, **options)
        files[name] = (tmp_path / name / "anna" / "anna_seg.nii.gz").read_bytes()
    assert files["alone"] == files["cascade"]
    assert files["mean"] != files["cascade"]
    with pytest.raises(RuntimeError) as error:
        segment(alone, flair=scans["flair"], out=tmp_path / "none", case="anna", force=True, consensus=True)
    assert re.match(r"no weights at .*any_missing_perceptor\.pt", str(user_error(error.value)))


def test_the_agreement_is_the_masks_with_what_the_perceptor_sees(bundle, scans, tmp_path):
    sure = shutil.copytree(bundle, tmp_path / "sure")
    file = sure / "models" / "any_missing_perceptor.pt"
    perceptor = torch.load(file, weights_only=True)
    next(value for name, value in perceptor.items() if name.endswith("head.bias")).fill_(1000)  # tumor everywhere
    torch.save(perceptor, file)
    agreements = {}
    for name, options in (("mean", {}), ("cascade", {"consensus": False})):
        segment(sure, flair=scans["flair"], out=tmp_path / name, case="anna", force=True, outputs="seg", **options)
        summary = summary_of(tmp_path / name, "anna")
        agreements[name] = {summary["agreement"], *(part["agreement"] for part in summary["parts"].values())}
    assert agreements["mean"] == {1}
    assert agreements["cascade"] != {1} and None not in agreements["cascade"]


def test_the_papers_subset_is_segmented_by_the_bundles_own_weights(bundle, scans, tmp_path):
    segment(bundle, **{name: scans[name] for name in CONTRASTS[:3]}, out=tmp_path, case="anna", force=True)
    assert "real" not in summary_of(tmp_path, "anna")


def test_the_norm_of_the_recipe_is_that_of_the_network(bundle):
    weights = torch.load(bundle / "models" / "any_missing.pt", weights_only=True)
    assert not [name for name in weights if "running_mean" in name]  # no batch norm


def test_weights_for_any_subset_take_the_papers_when_they_are_asked_for(bundle, scans, tmp_path):
    weights = bundle / "models" / "any_missing.pt"
    given = {name: scans[name] for name in CONTRASTS[:3]}
    segment(bundle, **given, weights=weights, out=tmp_path, case="anna", force=True, outputs="seg")
    assert summary_of(tmp_path, "anna")["synthetic"] == ["flair"]


def test_each_patient_of_many_is_segmented_by_the_weights_that_take_its_contrasts(bundle, scans, tmp_path, capsys):
    patients = {"anna": CONTRASTS[:3], "ben": ["flair"], "carl": CONTRASTS}
    cases = write_patients(tmp_path, scans, patients)
    segment(bundle, cases=cases, out=tmp_path / "out", outputs="seg", force=True)
    assert "3 cases, 0 of them in DICOM folders, 2 by the weights for any subset" in capsys.readouterr().out
    real = {name: summary_of(tmp_path / "out", name).get("real") for name in patients}
    assert real == patients | {"anna": None}


def test_a_table_has_empty_cells_for_what_a_patient_lacks(scans, tmp_path):
    cases = write_patients(tmp_path, scans, {"anna": CONTRASTS[:3], "ben": ["flair"], "carl": CONTRASTS})
    of_table, of_folder = (
        find_patients(given, CONTRASTS[:3], tmp_path / "out", CONTRASTS)[0] for given in (cases / "cases.csv", cases)
    )
    assert of_table == of_folder
    assert [len(patient["image"]) - patient["image"].count(None) for patient in of_table] == [3, 1, 4]
    assert [patient["any_subset"] for patient in of_table] == [False, True, True]


def write_patients(folder: Path, scans: dict[str, str], patients: dict[str, list[str]]) -> Path:
    """A folder of patients with some of the scans, and a table of them."""
    rows = []
    for case, contrasts in patients.items():
        files = {name: f"{case}_{name}.nii.gz" for name in contrasts}
        (folder / "scans").mkdir(exist_ok=True)
        for name, file in files.items():
            shutil.copy(scans[name], folder / "scans" / file)
        rows.append(",".join([case, *(files.get(name, "") for name in CONTRASTS)]))
    (folder / "scans" / "cases.csv").write_text("\n".join([",".join(["case", *CONTRASTS]), *rows]))
    return folder / "scans"


def test_all_weights_of_many_patients_are_those_that_are_asked_for(bundle, scans, tmp_path):
    cases = write_patients(tmp_path, scans, {"anna": CONTRASTS[:3], "ben": ["t1ce", "t2"]})
    weights = bundle / "models" / "any_missing.pt"
    segment(bundle, cases=cases, weights=weights, out=tmp_path / "out", outputs="seg", force=True)
    assert [summary_of(tmp_path / "out", name)["synthetic"] for name in ("anna", "ben")] == [["flair"], ["t1", "flair"]]


def test_one_scan_stands_for_those_beside_it_and_a_4d_file_for_all(bundle, scans, tmp_path):
    write_patients(tmp_path, scans, {"anna": ["t2", "flair"]})
    whole = nib.concat_images([scans[name] for name in CONTRASTS])
    nib.save(whole, tmp_path / "whole.nii.gz")
    weights = {"weights": bundle / "models" / "any_missing.pt", "out": tmp_path / "out", "force": True}
    segment(bundle, image=tmp_path / "scans" / "anna_flair.nii.gz", case="anna", outputs="seg", **weights)
    segment(bundle, image=tmp_path / "whole.nii.gz", case="whole", outputs="synthetic", **weights)
    assert summary_of(tmp_path / "out", "anna")["real"] == ["t2", "flair"]
    assert summary_of(tmp_path / "out", "whole")["real"] == CONTRASTS
    assert not (tmp_path / "out" / "whole" / "whole_synthetic.nii.gz").exists()


def test_a_patient_with_every_contrast_is_finished_without_a_synthetic_one(bundle, scans, tmp_path):
    options = scans | {"out": tmp_path, "case": "anna", "force": True, "outputs": ["seg", "synthetic"]}
    segment(bundle, **options)
    summary = tmp_path / "anna" / "anna_summary.json"
    before = summary.stat().st_mtime_ns
    segment(bundle, **options, resume=True)
    assert summary.stat().st_mtime_ns == before
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"synthetic": ["flair"]}))
    segment(bundle, **options, resume=True)
    assert json.loads(summary.read_text())["synthetic"] == []


def test_the_contrasts_of_a_dicom_study_are_found_by_their_headers(bundle, scans, tmp_path):
    for name, description in {"t1ce": "t1 mprage post gd", "flair": "t2 flair ax"}.items():
        save_all(slices_of(nib.load(scans[name]), description=description), tmp_path / "scans" / "anna" / name[:3])
    (tmp_path / "scans" / "ben").mkdir()
    (tmp_path / "scans" / "anna" / "fla").rename(tmp_path / "scans" / "ben" / "flair")
    anna, ben = find_patients(tmp_path / "scans", CONTRASTS[:3], tmp_path / "out", CONTRASTS)[0]
    assert anna["image"] == [None, str(tmp_path / "scans" / "anna"), None, None]
    assert ben["image"] == [None, None, None, str(tmp_path / "scans" / "ben" / "flair")]


@pytest.mark.parametrize(
    ("shipped", "options", "sentence"),
    [
        (False, {"t1ce": "a.nii"}, "needs the modalities t1, t1ce, t2; give --t1, --t2 as well (any subset of the con"),
        (False, {"flair": "a.nii"}, "give --t1, --t1ce, --t2 as well (any subset of the contrasts needs"),
        (True, {}, "give at least one of --t1, --t1ce, --t2, --flair"),
        (True, {"t1": "a.nii", "image": "b.nii"}, "does not use image; it takes any of t1, t1ce, t2, flair"),
    ],
)
def test_scans_that_no_weights_take_are_refused_in_one_sentence(bundle, shipped, options, sentence, tmp_path):
    if not shipped:
        (bundle := tmp_path / "bundle").mkdir()
        shutil.copytree(BUNDLE / "configs", bundle / "configs")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        segment(bundle, **options, out=tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,flair\nanna,\n", "line 2: no t1, t1ce, t2 or flair; fill it in or leave the case out"),
        ("case,adc\nanna,a.nii\n", "line 2: no t1, t1ce, t2 or flair"),
        ("case,t1\n", "names no case"),
    ],
)
def test_a_patient_of_a_table_without_any_contrast_is_named(bundle, tmp_path, text, reason):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)):
        segment(bundle, cases=tmp_path / "cases.csv", out=tmp_path / "out")


def test_two_files_of_one_contrast_are_named(bundle, scans, tmp_path, capsys):
    write_patients(tmp_path, scans, {"anna": ["t2"]})
    shutil.copy(scans["t2"], tmp_path / "scans" / "anna_t2w.nii.gz")
    with pytest.raises(SystemExit):
        segment(bundle, cases=tmp_path / "scans", out=tmp_path / "out")
    assert "are t2 of anna; keep one of them" in "".join(capsys.readouterr())


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
