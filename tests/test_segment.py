"""The command for people who know no MONAI, run in this process with networks of two channels and random weights."""

import errno
import inspect
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from cohort import oblique_affine, write_case
from dicom_files import save_all, slices_of
from monai.bundle import ConfigParser
from scipy import ndimage
from tissnet_components import __main__ as command_line
from tissnet_components import weights
from tissnet_components.errors import user_error
from tissnet_components.inference import CascadeInferer
from tissnet_components.patients import find_patients
from tissnet_components.raw import prepare_scans as room
from tissnet_components.raw.scans import Prepared, RawScan, write_marked
from tissnet_components.scans.dicom import Series, find_series, read_series
from tissnet_components.segment import segment

BUNDLES = Path(__file__).parents[1] / "bundles"
SOURCES = ("t1", "t1ce", "t2")
FILES = {"seg.nii.gz", "synthetic.nii.gz", "error.nii.gz", "disagreement.nii.gz", "overview.png", "summary.json"}
SPACING_MM = (1.1, 0.9, 4)


def tiny_bundle(name: str, folder: Path) -> Path:
    """The bundle with a tiny network of random weights, made to call a tenth of a scan tumor."""
    torch.manual_seed(0)
    shutil.copytree(BUNDLES / name / "configs", folder / "configs")
    config = json.loads((folder / "configs" / "inference.json").read_text())
    config |= {"widths": [2, 2, 2, 2, 2], "patch_size": [32, 32, 16], "spacing_mm": [1.2, 1.2, 4]}
    config |= {"consensus": False, "components": 0}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    parser = ConfigParser(config)
    network = parser.get_parsed_content("network_def").eval()
    scans = write_scans(folder / "anna")
    image = [scans[modality] for modality in ConfigParser(config).get_parsed_content("source_modalities")]
    with torch.no_grad():
        fine = network(parser.get_parsed_content("preprocessing")({"case": "anna", "image": image})["image"][None])
        network.segmentor.decoders["fine"].head.bias -= torch.logit(fine.as_tensor().quantile(0.9))
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle("tissnet_brats", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def vs_bundle(tmp_path_factory) -> Path:
    return tiny_bundle("tissnet_vs", tmp_path_factory.mktemp("vs_bundle"))


def write_scans(folder: Path, seed: int = 0) -> dict[str, str]:
    case = write_case(folder, seed, shape=(34, 36, 10), affine=oblique_affine(SPACING_MM))
    return dict(zip(SOURCES, case["image"], strict=True))


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, str]:
    return write_scans(tmp_path_factory.mktemp("scans") / "anna")


@pytest.fixture
def cohort(tmp_path) -> Path:
    for seed, name in enumerate(("anna", "bert", "carl")):
        write_scans(tmp_path / "scans" / name, seed)
    return tmp_path / "scans"


@pytest.fixture
def times_loaded(monkeypatch) -> list[str]:
    """The weights that were loaded, in their order."""
    loaded, load = [], weights.load_weights

    def counted(network: torch.nn.Module, path: str, **settings: object) -> torch.nn.Module:
        loaded.append(path)
        return load(network, path, **settings)

    monkeypatch.setattr(weights, "load_weights", counted)
    return loaded


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


@pytest.fixture(scope="module")
def results(bundle, scans, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    segment(str(bundle), **scans, out=str(out), case="anna", device="cpu")
    return out / "anna"


def sentence(action) -> str:
    with pytest.raises(Exception) as caught:
        action()
    return str(user_error(caught.value))


def refused(*arguments: str, **options: object) -> str:
    return sentence(lambda: segment(*map(str, arguments), **options))


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_one_patient_gives_four_maps_a_picture_and_a_summary(results):
    assert files_below(results) == {f"anna_{name}" for name in FILES}


def test_the_summary_can_be_computed_again_from_what_is_saved(results):
    summary = json.loads((results / "anna_summary.json").read_text())
    mask, error, disagreement = (voxels(results / f"anna_{name}.nii.gz") for name in ("seg", "error", "disagreement"))
    assert 0 < mask.sum() < mask.size / 2
    assert summary["volume_ml"] == pytest.approx(mask.sum() * np.prod(SPACING_MM) / 1000, abs=1e-3)
    assert summary["mean_error"] == pytest.approx(error[mask == 1].mean(), abs=1e-4)
    assert summary["mean_disagreement"] == pytest.approx(disagreement[mask == 1].mean(), abs=1e-4)
    assert not summary["empty_mask"]


def test_the_command_finds_what_the_bundles_own_workflow_finds(results, bundle, scans, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    cases = [{"case": "anna", "image": list(scans.values())}]
    parser.update({"bundle_root": str(bundle), "cases": cases, "output_dir": str(tmp_path)})
    parser.get_parsed_content("inferring")
    assert files_below(tmp_path / "anna") == files_below(results)
    for name in ("seg", "synthetic", "error", "disagreement"):
        np.testing.assert_array_equal(
            voxels(tmp_path / "anna" / f"anna_{name}.nii.gz"), voxels(results / f"anna_{name}.nii.gz")
        )
    assert (tmp_path / "anna" / "anna_summary.json").read_text() == (results / "anna_summary.json").read_text()


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [
        ("seg", np.uint8, 0, 1),
        ("synthetic", np.float32, -1, 1),
        ("error", np.float32, 0, 1),
        ("disagreement", np.float32, 0, 1),
    ],
)
def test_every_map_has_the_scans_geometry(results, scans, name, dtype, low, high):
    scan, saved = nib.load(scans["t1"]), nib.load(results / f"anna_{name}.nii.gz")
    assert saved.shape == scan.shape
    np.testing.assert_allclose(saved.affine, scan.affine, atol=1e-4)
    assert saved.get_data_dtype() == dtype
    values = np.asarray(saved.dataobj)
    assert low <= values.min() <= values.max() <= high
    assert np.unique(values).size > 1 or name == "seg"


def test_the_synthetic_image_is_background_outside_the_brains_box(results, scans):
    brain = np.asarray(nib.load(scans["t1"]).dataobj) != 0
    synthetic = np.asarray(nib.load(results / "anna_synthetic.nii.gz").dataobj)
    corners = synthetic[:: brain.shape[0] - 1, :: brain.shape[1] - 1, :: brain.shape[2] - 1]
    assert corners.tolist() == np.full((2, 2, 2), -1.0).tolist()
    assert synthetic[brain].mean() > -0.9


def test_the_patient_is_named_after_the_first_scan_without_its_contrast(bundle, scans, tmp_path, capsys):
    segment(str(bundle), **scans, out=str(tmp_path))
    assert (tmp_path / "anna" / "anna_seg.nii.gz").is_file()
    assert f"results in {tmp_path / 'anna'}" in capsys.readouterr().out


def test_a_patient_may_be_called_by_a_number(bundle, scans, tmp_path, monkeypatch):
    scans = [argument for name, file in scans.items() for argument in (f"--{name}", file)]
    options = ["--bundle", str(bundle), *scans, "--case", "7", "--out", str(tmp_path), "--precision", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["tissnet_components", "segment", *options])
    command_line.main()
    assert (tmp_path / "7" / "7_seg.nii.gz").is_file()


def test_a_folder_that_is_no_bundle_is_named(scans, tmp_path):
    assert f"{tmp_path} is not a bundle" in sentence(lambda: segment(str(tmp_path), **scans))


def test_a_scan_that_the_bundle_needs_is_asked_for(bundle, scans):
    assert "give --t1ce, --t2 as well" in sentence(lambda: segment(str(bundle), t1=scans["t1"]))


def test_a_scan_that_the_bundle_does_not_use_is_refused(bundle, scans):
    assert "does not use flair" in sentence(lambda: segment(str(bundle), **scans, flair=scans["t1"]))


def test_a_scan_that_is_not_there_is_named(bundle, scans, tmp_path):
    missing = scans | {"t2": str(tmp_path / "t2.nii.gz")}
    assert f"{tmp_path / 't2.nii.gz'} does not exist" in sentence(
        lambda: segment(str(bundle), **missing, out=str(tmp_path / "out"))
    )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.complex64, "complex64"), (np.dtype([(c, "u1") for c in "RGB"]), "'R'")],
    ids=["complex", "colour"],
)
def test_voxels_that_are_no_grey_values_are_refused(bundle, scans, tmp_path, dtype, name):
    image = nib.load(scans["t2"])
    odd = nib.Nifti1Image(np.zeros(image.shape, dtype), image.affine, dtype=dtype)
    nib.save(odd, tmp_path / "odd.nii.gz")
    said = refused(bundle, **scans | {"t2": str(tmp_path / "odd.nii.gz")}, out=str(tmp_path / "out"))
    assert said.startswith(f"{tmp_path / 'odd.nii.gz'} holds ")
    assert name in said
    assert "expected real numbers" in said


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float64])
def test_every_real_type_of_voxel_is_read(bundle, scans, tmp_path, dtype):
    image = nib.load(scans["t2"])
    values = np.asarray(image.dataobj).clip(0).astype(dtype)
    nib.save(nib.Nifti1Image(values, image.affine, dtype=dtype), tmp_path / "t2.nii")
    segment(str(bundle), **scans | {"t2": str(tmp_path / "t2.nii")}, out=str(tmp_path), case="a", outputs="seg")
    assert (tmp_path / "a" / "a_seg.nii.gz").is_file()


@pytest.mark.parametrize("name", ["loop.nii", "x" * 300 + ".nii"], ids=["a link to itself", "too long a name"])
def test_a_path_that_leads_nowhere_is_named(bundle, scans, tmp_path, name):
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    said = refused(bundle, **scans | {"t2": str(tmp_path / name)}, out=str(tmp_path / "out"), case="anna")
    assert said.startswith(f"{tmp_path / name} does not exist")
    assert "cannot write to" in refused(bundle, **scans, out=str(tmp_path / name), case="anna")


def test_weights_that_are_not_there_are_named(bundle, scans, tmp_path):
    options = {"out": str(tmp_path), "weights": str(tmp_path / "model.pt")}
    assert f"no weights at {tmp_path / 'model.pt'}" in sentence(lambda: segment(str(bundle), **scans, **options))


def test_the_consensus_asks_the_perceptor_beside_the_weights(bundle, scans, results, tmp_path):
    def segmented(bias: float) -> int:
        """How many voxels are tumor, with a perceptor that says the same of every voxel."""
        parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
        perceptor = parser.get_parsed_content("perceptor_def")
        torch.nn.init.zeros_(perceptor.decoders["fine"].head.weight)
        torch.nn.init.constant_(perceptor.decoders["fine"].head.bias, bias)
        torch.save(perceptor.state_dict(), tmp_path / "perceptor.pt")
        segment(str(bundle), **scans, out=str(tmp_path), case="anna", weights=weights, consensus=True, overwrite=True)
        return int((voxels(tmp_path / "anna" / "anna_seg.nii.gz") > 0).sum())

    weights = str(shutil.copy(bundle / "models" / "model.pt", tmp_path))
    assert f"no weights at {tmp_path / 'perceptor.pt'}" in refused(
        bundle, **scans, out=str(tmp_path), weights=weights, consensus=True
    )
    alone = int((voxels(results / "anna_seg.nii.gz") > 0).sum())
    assert segmented(bias=-50) < alone < segmented(bias=50)


def test_the_mask_holds_as_many_parts_as_are_asked_for(bundle, scans, results, tmp_path, capsys):
    segment(str(bundle), **scans, out=str(tmp_path), case="anna", components=2, outputs="seg")
    whole, part = (voxels(folder / "anna_seg.nii.gz") > 0 for folder in (results, tmp_path / "anna"))
    assert ndimage.label(whole)[1] > 1
    assert 0 < part.sum() < whole.sum() and not (part & ~whole).any()
    summary, before = (json.loads((f / "anna_summary.json").read_text()) for f in (tmp_path / "anna", results))
    assert summary["volume_ml"] < before["volume_ml"]
    assert summary["left_out_ml"] > 0 and "left_out_ml" not in before
    assert f"({summary['left_out_ml']:.2f} ml apart from it left out)" in "".join(capsys.readouterr())


def test_weights_of_other_widths_are_refused(bundle, scans, tmp_path):
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save(
        {name: value.repeat_interleave(2, 0) if value.ndim else value for name, value in state.items()},
        tmp_path / "w.pt",
    )
    reason = sentence(lambda: segment(str(bundle), **scans, out=str(tmp_path), weights=str(tmp_path / "w.pt")))
    assert f"{tmp_path / 'w.pt'} does not fit the configured network" in reason
    assert "widths" in reason


def test_an_output_folder_that_cannot_be_written_is_named(bundle, scans, tmp_path):
    (tmp_path / "file").touch()
    reason = sentence(lambda: segment(str(bundle), **scans, out=str(tmp_path / "file" / "out")))
    assert reason.startswith(f"cannot write to {tmp_path / 'file' / 'out'}")


def test_the_command_ends_in_one_sentence(monkeypatch, bundle):
    monkeypatch.setattr(sys, "argv", ["tissnet_components", "segment", "--bundle", str(bundle)])
    with pytest.raises(SystemExit, match=r"^error: .* needs the modalities t1, t1ce, t2; give --t1, --t1ce, --t2"):
        command_line.main()


def test_help_shows_what_goes_in_what_comes_out_and_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tissnet", "segment", "--help"])
    monkeypatch.setenv("PAGER", "cat")
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 0
    shown = "".join(capsys.readouterr())
    assert "tissnet segment --bundle bundles/tissnet_brats --t1 A.nii.gz" in shown
    assert "not a medical device" in shown
    documented = segment.__doc__.split("Args:")[1]
    for option in inspect.signature(segment).parameters:
        assert f"        {option}: " in documented
        assert option == "bundle" or f"--{option}=" in shown


@pytest.mark.parametrize("outputs", ["seg", ("seg", "error")], ids=["one", "two"])
def test_only_the_chosen_maps_are_written(bundle, scans, tmp_path, outputs):
    segment(str(bundle), **scans, out=str(tmp_path), case="anna", outputs=outputs)
    chosen = [outputs] if isinstance(outputs, str) else outputs
    assert files_below(tmp_path / "anna") == {"anna_summary.json", *(f"anna_{name}.nii.gz" for name in chosen)}


@pytest.mark.parametrize("outputs", ["sge", (), ("seg", "mask"), 5], ids=["mistyped", "none", "one of two", "a number"])
def test_unknown_maps_are_refused(bundle, scans, outputs):
    assert "--outputs knows seg, synthetic, error, disagreement, overview" in refused(bundle, **scans, outputs=outputs)


def test_flips_that_are_no_axes_are_refused(bundle, scans, tmp_path):
    said = refused(bundle, **scans, out=str(tmp_path), flips=[0])
    assert "flips is [0], expected lists of axes, 0, 1 or 2, such as [[0]], or [] for none" in said


def test_a_full_disk_is_what_the_message_is_about(bundle, scans, tmp_path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nib, "save", full_disk)
    reason = refused(bundle, **scans, out=str(tmp_path), case="anna", outputs="seg")
    assert reason == (
        f"{tmp_path / 'anna' / 'anna_seg.nii.gz'} cannot be written (No space left on device); make room or choose "
        f"another folder, and start again"
    )


@pytest.mark.parametrize("device", ["cuda:99", "gpu", 0])
def test_a_device_that_is_not_there_is_refused(bundle, scans, tmp_path, device):
    assert f"--device {device} cannot be used here" in refused(bundle, **scans, out=str(tmp_path), device=device)


@pytest.mark.parametrize("case", ["../anna", "a/b", "..", "a\nb", "\udcfc", "x" * 201])
def test_a_case_cannot_be_filed_outside_the_results(bundle, scans, tmp_path, case):
    assert "cannot be a folder's name" in refused(bundle, **scans, out=str(tmp_path / "out"), case=case)


def test_results_are_kept_from_the_scans(bundle, scans):
    folder = Path(scans["t1"]).parent
    assert f"results would go to {folder}, among the scans" in refused(
        bundle, **scans, out=str(folder.parent), case="anna", overwrite=True
    )
    assert not (folder / "anna_error.nii.gz").exists()


def test_results_are_kept_from_dicom_scans_too(vs_bundle, tmp_path):
    (tmp_path / "anna").mkdir()
    assert f"results would go to {tmp_path / 'anna'}, among the scans" in refused(
        vs_bundle, cases=str(tmp_path), out=str(tmp_path)
    )


def test_a_folder_of_cases_is_segmented_by_one_network(bundle, cohort, tmp_path, times_loaded, capsys):
    segment(str(bundle), cases=str(cohort), out=str(tmp_path / "out"), outputs="seg")
    assert files_below(tmp_path / "out") == {
        f"{name}/{name}_{file}" for name in ("anna", "bert", "carl") for file in ("seg.nii.gz", "summary.json")
    }
    assert len(times_loaded) == 1
    shown = capsys.readouterr()
    volume = json.loads((tmp_path / "out" / "bert" / "bert_summary.json").read_text())["volume_ml"]
    assert f"bert: {volume:.2f} ml" in shown.out
    assert "3/3" in shown.err


def test_jobs_of_all_parts_do_every_case_once_as_one_job_does(bundle, cohort, tmp_path, capsys):
    segment(str(bundle), cases=str(cohort), out=str(tmp_path / "one"), outputs=["seg", "error"])
    capsys.readouterr()
    for part in range(1, 5):  # one more than there are patients
        segment(str(bundle), cases=str(cohort), out=str(tmp_path / "all"), outputs=["seg", "error"], shard=f"{part}/4")
    shown = capsys.readouterr().out
    assert [shown.count(f"{name}: ") for name in ("anna", "bert", "carl")] == [1, 1, 1]
    for file in files_below(tmp_path / "one"):
        assert (tmp_path / "all" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_a_part_of_one_patient_is_refused(bundle, scans):
    assert refused(bundle, shard="1/2", **scans).startswith("--shard 1/2 is a part of many patients; give them with")


def test_a_table_of_cases_names_its_scans_from_its_own_folder(bundle, cohort, tmp_path):
    table = cohort / "cases.csv"
    rows = [f"{name},{','.join(f'{name}/{name}_{scan}.nii.gz' for scan in SOURCES)}" for name in ("carl", "anna")]
    table.write_text("\n".join(["case,t1,t1ce,t2", *rows]))
    segment(str(bundle), cases=str(table), out=str(tmp_path / "out"), outputs="seg")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"anna", "carl"}


ODD_NAMES = ["P1.1", "P1.2", "1.2.840.113619", "a.nii", "b.nii.gz", "c$d", "50%", "@image", "$(ls)", "%x", " e", "é"]


def test_cases_of_any_name_keep_their_results_apart_and_are_seen_as_finished(vs_bundle, scans, tmp_path, capsys):
    files = [tmp_path / f"{number}.nii" for number in range(len(ODD_NAMES))]
    for file in files:
        nib.save(nib.load(scans["t2"]), file)
    table = tmp_path / "cases.csv"
    table.write_text("case,t2\n" + "".join(f"{name},{file}\n" for name, file in zip(ODD_NAMES, files, strict=True)))
    options = {"cases": str(table), "out": str(tmp_path / "out"), "outputs": "seg"}
    segment(str(vs_bundle), **options)
    names = [name.strip() for name in ODD_NAMES]
    assert files_below(tmp_path / "out") == {
        f"{name}/{name}_{file}" for name in names for file in ("seg.nii.gz", "summary.json")
    }
    capsys.readouterr()
    segment(str(vs_bundle), **options, resume=True)
    assert " ml" not in capsys.readouterr().out
    assert "(12 of 12 cases" in refused(vs_bundle, **options)


@pytest.mark.parametrize("name", ["anna.t2.hdr", "anna.t2.NII.GZ", "anna.t2.img"])
def test_a_patient_is_named_by_all_but_the_ending_of_the_scan(vs_bundle, scans, tmp_path, name):
    image = nib.load(scans["t2"])
    kind = nib.Nifti1Pair if name.endswith(("hdr", "img")) else nib.Nifti1Image
    nib.save(kind(np.asarray(image.dataobj), image.affine), tmp_path / name)
    segment(str(vs_bundle), t2=str(tmp_path / name), out=str(tmp_path / "out"), outputs="seg")
    assert files_below(tmp_path / "out") == {f"anna.t2/anna.t2_{file}" for file in ("seg.nii.gz", "summary.json")}


def test_what_is_found_and_what_is_passed_over_is_told(vs_bundle, scans, tmp_path, capsys):
    (tmp_path / "scans" / "notes").mkdir(parents=True)
    write_dicom(scans["t2"], tmp_path / "scans" / "bert")
    shutil.copy(scans["t2"], tmp_path / "scans" / "anna_t2.nii.gz")
    shutil.copy(scans["t2"], tmp_path / "scans" / "brain.nii.gz")
    options = {"cases": str(tmp_path / "scans"), "out": str(tmp_path / "scans" / "out"), "outputs": ("seg", "error")}
    with pytest.raises(SystemExit) as ended:
        segment(str(vs_bundle), **options)
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert f"{tmp_path / 'scans'}: 2 cases, 1 of them in DICOM folders; 1 files passed over" in shown.out
    assert "1 not run:\n  brain.nii.gz: its name tells no contrast; name it CASE_t2.nii.gz" in shown.err
    assert {file.name for file in (tmp_path / "scans" / "out").iterdir()} == {"anna", "bert"}
    segment(str(vs_bundle), **options, skip_unmatched=True, resume=True)
    assert "brain.nii.gz: its name tells no contrast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has the columns none, expected case,t1,t1ce,t2"),
        ("case,t1,t2\na,b,c\n", "has the columns case,t1,t2, expected case,t1,t1ce,t2"),
        ("case,t1,t1ce,t2\na,b,c,d\nb,e,,f\n", "line 3: no t1ce"),
        ("case,t1,t1ce,t2\na,b,c\n", "line 2: no t2"),
        ("case,t1,t1ce,t2\na,b,c,d\na,e,f,g\n", "names the case a more than once"),
        ("case,t1,t1ce,t2\n../a,b,c,d\n", "names a case '../a'"),
        (None, "cannot be read"),
    ],
    ids=["empty", "a column missing", "a cell missing", "a short row", "doubled", "outside", "no file"],
)
def test_a_bad_table_is_named(bundle, tmp_path, text, reason):
    table = tmp_path / "cases.csv"
    if text is not None:
        table.write_text(text)
    said = refused(bundle, cases=str(table), out=str(tmp_path / "out"))
    assert str(table) in said
    assert reason in said


def test_one_file_for_two_cases_is_noticed_however_it_is_spelled(vs_bundle, scans, tmp_path):
    (tmp_path / "link.nii").symlink_to(scans["t2"])
    (tmp_path / "cases.csv").write_text(f"case;t2\na;{scans['t2']}\nb;./link.nii\n")
    said = refused(vs_bundle, cases=str(tmp_path / "cases.csv"), out=str(tmp_path / "out"))
    assert f"a and b both use {os.path.realpath(scans['t2'])}" in said


def test_a_folder_without_scans_is_named(bundle, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert f"{tmp_path} holds no scans named like CASE_t1.nii.gz" in refused(bundle, cases=str(tmp_path))


def test_many_cases_and_one_scan_are_not_given_together(bundle, scans, cohort):
    assert "leave out --t2" in refused(bundle, cases=str(cohort), t2=scans["t2"])
    assert "leave out --case" in refused(bundle, cases=str(cohort), case="anna")


def test_a_bad_case_is_listed_and_the_others_are_segmented(bundle, cohort, tmp_path, capsys):
    (cohort / "anna" / "anna_t1ce.nii.gz").unlink()
    (cohort / "bert" / "bert_t2.nii.gz").write_bytes(b"no image")
    shutil.copytree(cohort / "carl", cohort / "dora")
    for file in list((cohort / "dora").iterdir()):
        file.rename(file.with_name(file.name.replace("carl", "dora")))
    shutil.copy(cohort / "dora" / "dora_t1.nii.gz", cohort / "dora" / "dora_t1.nii")
    with pytest.raises(SystemExit) as ended:
        segment(str(bundle), cases=str(cohort), out=str(tmp_path / "out"), outputs="seg")
    assert ended.value.code == 1
    [title, anna, bert, dora] = capsys.readouterr().err.splitlines()[-4:]
    assert title == "3 not run:"
    doubled = " and ".join(str(cohort / "dora" / f"dora_t1.{ending}") for ending in ("nii", "nii.gz"))
    assert dora == f"  dora: both {doubled} are t1 of dora; keep one of them"
    assert anna.startswith(f"  anna: {cohort / 'anna' / 'anna_t1ce.nii.gz'} does not exist")
    assert bert.startswith(f"  bert: {cohort / 'bert' / 'bert_t2.nii.gz'} cannot be read as NIfTI")
    assert files_below(tmp_path / "out") == {"carl/carl_seg.nii.gz", "carl/carl_summary.json"}


def test_an_unforeseen_error_is_shown_in_full_and_the_others_go_on(bundle, cohort, tmp_path, monkeypatch, capsys):
    times, infer = [], CascadeInferer.__call__

    def run_out_of_memory(*arguments):
        times.append(1)
        return 1 / 0 if len(times) == 1 else infer(*arguments)

    monkeypatch.setattr(CascadeInferer, "__call__", run_out_of_memory)
    with pytest.raises(SystemExit):
        segment(str(bundle), cases=str(cohort), out=str(tmp_path / "out"), outputs="seg")
    shown = capsys.readouterr()
    assert "  anna: ZeroDivisionError: division by zero" in shown.err
    assert "Traceback" in shown.out + shown.err
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"bert", "carl"}


def test_results_that_are_there_are_replaced_only_when_asked(bundle, scans, tmp_path):
    options = scans | {"out": str(tmp_path), "case": "anna"}
    segment(str(bundle), **options)
    (tmp_path / "anna" / "notes.txt").touch()
    assert f"{tmp_path / 'anna'} holds results already (1 of 1 cases" in refused(bundle, **options)
    segment(str(bundle), **options, overwrite=True, outputs="seg")  # and none of the former run is left
    assert files_below(tmp_path / "anna") == {"anna_seg.nii.gz", "anna_summary.json", "notes.txt"}


def test_resuming_does_what_is_not_finished(bundle, cohort, tmp_path, times_loaded):
    options = {"cases": str(cohort), "out": str(tmp_path / "out"), "outputs": "seg"}
    segment(str(bundle), **options)
    (tmp_path / "out" / "bert" / "bert_summary.json").unlink()  # what is written last
    shutil.rmtree(tmp_path / "out" / "carl")
    kept = tmp_path / "out" / "anna" / "anna_seg.nii.gz"
    before = kept.stat().st_mtime_ns
    segment(str(bundle), **options, resume=True)
    assert len(files_below(tmp_path / "out")) == 6
    assert kept.stat().st_mtime_ns == before
    assert len(times_loaded) == 2
    segment(str(bundle), **options, resume=True)  # nothing is left to do
    assert len(times_loaded) == 2


def test_resuming_with_further_maps_adds_them(bundle, scans, tmp_path):
    for outputs in ("seg", "error"):
        segment(str(bundle), **scans, out=str(tmp_path), case="anna", outputs=outputs, resume=True)
    assert files_below(tmp_path / "anna") == {"anna_seg.nii.gz", "anna_error.nii.gz", "anna_summary.json"}


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_an_experts_label_that_has_the_masks_name_is_never_replaced(bundle, scans, tmp_path, how):
    label = tmp_path / "anna" / "anna_seg.nii.gz"
    label.parent.mkdir()
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 2, np.uint8), np.eye(4)), label)
    before = label.read_bytes()
    said = refused(bundle, **scans, case="anna", out=str(tmp_path), **{how: True})
    assert said == f"{label} is there and is no result of TISS-Net; give another folder for the results"
    assert label.read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_configuration_is_named(scans, tmp_path, content):
    config = tmp_path / "configs" / "inference.json"
    config.parent.mkdir()
    config.write_text(content)
    assert f"{config} is not a bundle's configuration (" in refused(tmp_path, **scans)


def test_overwriting_and_resuming_exclude_each_other(bundle, scans):
    assert "give one of them" in refused(bundle, **scans, overwrite=True, resume=True)


def test_ctrl_c_says_how_to_go_on(bundle, cohort, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(CascadeInferer, "__call__", stop)
    with pytest.raises(SystemExit, match="stopped; the same command with --resume does the remaining cases"):
        segment(str(bundle), cases=str(cohort), out=str(tmp_path / "out"))
    assert not files_below(tmp_path / "out")


ORIENTATIONS = ("RAS", "LSA", "ARI", "PIL", "SLP", "IPR")  # every order of the axes; test_zoo.py goes through all 48


def test_every_order_of_a_scans_axes_gives_the_same_mask_in_space(bundle, scans, tmp_path):
    table = ["case,t1,t1ce,t2"]
    for code in ORIENTATIONS:
        files = []
        for name, file in scans.items():
            image = nib.load(file)
            target = nib.orientations.axcodes2ornt(code)
            turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), target)
            files.append(tmp_path / "scans" / f"{code}_{name}.nii")
            files[-1].parent.mkdir(exist_ok=True)
            nib.save(image.as_reoriented(turn), files[-1])
        table.append(",".join(map(str, [code, *files])))
    (tmp_path / "cases.csv").write_text("\n".join(table))
    segment(str(bundle), cases=str(tmp_path / "cases.csv"), out=str(tmp_path / "out"), outputs=("seg", "error"))
    expected: dict[str, nib.Nifti1Image] = {}
    for code in ORIENTATIONS:
        for name in ("seg", "error"):
            saved = nib.load(tmp_path / "out" / code / f"{code}_{name}.nii.gz")
            assert "".join(nib.aff2axcodes(saved.affine)) == code
            upright = nib.as_closest_canonical(saved)
            first = expected.setdefault(name, upright)
            np.testing.assert_allclose(upright.affine, first.affine, atol=1e-4)
            np.testing.assert_allclose(upright.get_fdata(), first.get_fdata(), atol=1e-3)
    assert 0 < expected["seg"].get_fdata().mean() < 0.5


def stack(files: Iterable[str], file: Path) -> str:
    """One 4-D file of several scans."""
    images = [nib.load(scan) for scan in files]
    nib.save(nib.concat_images(images), file)
    return str(file)


def test_one_4d_file_gives_what_the_files_of_its_scans_give(bundle, scans, results, tmp_path):
    image = stack(scans.values(), tmp_path / "anna.nii.gz")
    segment(str(bundle), image=image, out=str(tmp_path / "out"), outputs="error")
    found, expected = (
        nib.load(file) for file in (tmp_path / "out" / "anna" / "anna_error.nii.gz", results / "anna_error.nii.gz")
    )
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(found.get_fdata(), expected.get_fdata(), atol=5e-3)  # bfloat16 has eight bits


def test_a_4d_file_with_other_channels_is_refused_with_what_is_expected(bundle, scans, tmp_path):
    image = stack([*scans.values(), scans["t1"]], tmp_path / "anna.nii.gz")
    said = refused(bundle, image=image, out=str(tmp_path / "out"))
    assert said.startswith(f"{image} has 4 channels, expected 3 along its fourth axis: t1, t1ce, t2, in this order")
    assert not files_below(tmp_path / "out")


def test_one_scan_given_twice_is_refused(bundle, scans):
    assert f"anna uses {scans['t1']} for more than one scan" in refused(
        bundle, **scans | {"t2": scans["t1"]}, case="anna"
    )


def write_dicom(
    file: str, folder: Path, name: str = "1-{:03d}.dcm", description: str = "research", agent: str = ""
) -> str:
    """A scan as a DICOM series; returns the folder."""
    image = nib.load(file)
    upright = nib.Nifti1Image(np.asarray(image.dataobj).clip(0), image.affine)
    items = slices_of(upright, description=description)
    for item in items:
        item.ContrastBolusAgent = agent
    save_all(items, folder, name)
    return str(folder)


def test_a_dicom_folder_gives_what_the_nifti_file_gives_and_a_dicom_seg(vs_bundle, scans, tmp_path):
    folder = write_dicom(scans["t2"], tmp_path / "dicom")
    segment(str(vs_bundle), t2=folder, out=str(tmp_path / "out"), case="dicom", dicom_seg=True)
    nib.save(nib.Nifti1Image(voxels(scans["t2"]).clip(0), nib.load(scans["t2"]).affine), tmp_path / "nifti.nii.gz")
    segment(str(vs_bundle), t2=str(tmp_path / "nifti.nii.gz"), out=str(tmp_path / "out"))
    saved = nib.load(tmp_path / "out" / "dicom" / "dicom_seg.nii.gz")
    np.testing.assert_allclose(saved.affine, nib.load(scans["t2"]).affine, atol=1e-3)
    assert (voxels(tmp_path / "out" / "nifti" / "nifti_seg.nii.gz") != np.asarray(saved.dataobj)).mean() < 0.01
    seg = highdicom.seg.segread(tmp_path / "out" / "dicom" / "dicom_seg.dcm")
    assert seg.SegmentSequence[0].SegmentLabel == "vestibular schwannoma"
    volume = seg.get_volume(combine_segments=True)
    assert volume.array.sum() == np.asarray(saved.dataobj).sum() > 0
    spot = np.diag([-1, -1, 1, 1]) @ volume.affine @ [*np.argwhere(volume.array).mean(0), 1]
    np.testing.assert_allclose(spot, saved.affine @ [*np.argwhere(np.asarray(saved.dataobj)).mean(0), 1], atol=1e-2)


def test_a_glioma_case_is_a_dicom_folder_per_scan(bundle, scans, tmp_path):
    for name, file in scans.items():
        write_dicom(file, tmp_path / "scans" / "anna" / name)
    segment(str(bundle), cases=str(tmp_path / "scans"), out=str(tmp_path / "out"), outputs="seg", dicom_seg=True)
    assert files_below(tmp_path / "out" / "anna") == {"anna_seg.nii.gz", "anna_seg.dcm", "anna_summary.json"}
    algorithm = pydicom.dcmread(tmp_path / "out" / "anna" / "anna_seg.dcm").SegmentSequence[0].SegmentAlgorithmName
    assert algorithm == json.loads((bundle / "configs" / "metadata.json").read_text())["name"]


def test_the_series_of_a_case_may_lie_in_one_folder(bundle, scans, tmp_path):
    for name, file in scans.items():
        write_dicom(file, tmp_path / "scans" / "anna", name + "-{:03d}.dcm", description=name)
        write_dicom(file, tmp_path / "apart" / "anna" / name)
    for cases in ("scans", "apart"):
        segment(str(bundle), cases=str(tmp_path / cases), out=str(tmp_path / f"{cases}_out"), outputs="error")
    found, expected = (voxels(tmp_path / f"{cases}_out/anna/anna_error.nii.gz") for cases in ("scans", "apart"))
    np.testing.assert_array_equal(found, expected)


def test_two_series_of_one_name_in_one_folder_are_told_apart_by_their_contrast_agent(bundle, scans, tmp_path):
    for name, file in scans.items():
        description, agent = ("t2_tse", "") if name == "t2" else ("t1_mpr", "Gadovist" if name == "t1ce" else "")
        write_dicom(file, tmp_path / "scans" / "anna", name + "-{:03d}.dcm", description, agent)
        write_dicom(file, tmp_path / "apart" / "anna" / name)
    for cases in ("scans", "apart"):
        segment(str(bundle), cases=str(tmp_path / cases), out=str(tmp_path / f"{cases}_out"), outputs="error")
    found, expected = (voxels(tmp_path / f"{cases}_out/anna/anna_error.nii.gz") for cases in ("scans", "apart"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("description", "reason"),
    [("t1_mpr", "(UID {uid}) would be more than one of t1, t1ce, t2"), ("t2_tse", "looks like t1: 't2_tse'")],
    ids=["in place of two", "of another modality"],
)
def test_a_series_does_not_stand_in_for_another(bundle, scans, tmp_path, description, reason):
    folder = write_dicom(scans["t1"], tmp_path / "t1", description=description)
    given = {"t1": folder, "t1ce": folder, "t2": scans["t2"]}
    (series,) = find_series(folder)
    assert reason.format(uid=series.uid) in refused(bundle, **given, out=str(tmp_path / "out"))


def test_the_series_that_was_taken_is_shown_and_kept_in_the_summary(vs_bundle, scans, tmp_path, capsys):
    for name in ("t2_tse_tra", "t2_fl2d_tra_hemo"):
        write_dicom(scans["t2"], tmp_path / "anna", name + "-{:03d}.dcm", description=name)
    told = {}
    for case, wanted in (("own", None), ("user", "t2_fl2d_tra_hemo")):
        options = {"out": str(tmp_path / "out"), "case": case, "outputs": "seg", "t2_series": wanted}
        segment(str(vs_bundle), t2=str(tmp_path / "anna"), **options)
        (told[case],) = json.loads((tmp_path / "out" / case / f"{case}_summary.json").read_text())["series"]
        assert f"{case}: t2 is the MR series {told[case]['description']} of P1" in capsys.readouterr().out
    assert (told["own"]["description"], told["own"]["reason"]) == ("t2_tse_tra", "t2 by its name")
    assert told["user"]["reason"] == "--t2-series names it, though it is T2* by its name"
    assert told["user"]["uid"] in {series.uid for series in find_series(tmp_path / "anna")}


def test_what_a_dicom_seg_leaves_out_is_said_and_what_it_needs_is_missed_before_inference(
    vs_bundle, scans, tmp_path, capsys
):
    options = {"t2": write_dicom(scans["t2"], tmp_path / "anna"), "dicom_seg": True, "outputs": "seg"}
    for file in (tmp_path / "anna").iterdir():
        item = pydicom.dcmread(file)
        item.PatientSex = "W"
        item.save_as(file)
    segment(str(vs_bundle), **options, out=str(tmp_path / "out"))
    assert "anna: " in (said := capsys.readouterr().out) and "the DICOM SEG leaves out PatientSex" in said
    assert not pydicom.dcmread(tmp_path / "out" / "anna" / "anna_seg.dcm").PatientSex
    del item.FrameOfReferenceUID
    item.save_as(file)
    assert "has no FrameOfReferenceUID, which a DICOM SEG refers to" in refused(
        vs_bundle, **options, out=str(tmp_path / "none")
    )
    assert not [file for file in (tmp_path / "none").rglob("*") if file.is_file()]


def test_a_folder_of_dicom_folders_is_a_cohort_and_results_in_it_are_not(vs_bundle, scans, tmp_path, capsys):
    write_dicom(scans["t2"], tmp_path / "anna")
    write_dicom(scans["t2"], tmp_path / "bert" / "t2")
    (tmp_path / "carl").mkdir()
    options = {"cases": str(tmp_path), "out": str(tmp_path / "out"), "outputs": "seg"}
    for resume in (False, True):
        with pytest.raises(SystemExit):
            segment(str(vs_bundle), **options, resume=resume)
        said = capsys.readouterr().err
        assert "1 not run:" in said
        assert f"carl: {tmp_path / 'carl'} holds no DICOM images" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"anna", "bert"}


def test_dicom_series_on_other_grids_are_refused_by_name(bundle, scans, tmp_path):
    moved = nib.load(scans["t2"])
    moved.affine[0, 3] += 3
    nib.save(nib.Nifti1Image(voxels(scans["t2"]), moved.affine), tmp_path / "moved.nii.gz")
    folders = {name: write_dicom(file, tmp_path / name) for name, file in scans.items()}
    folders["t2"] = write_dicom(tmp_path / "moved.nii.gz", tmp_path / "moved")
    said = refused(bundle, **folders, out=str(tmp_path / "out"))
    (moved,) = find_series(folders["t2"])
    assert said.startswith(f"MR series research of P1 in {tmp_path / 'moved'} (UID {moved.uid}) has affine")
    assert "resample one to the other's grid" in said


def test_without_pydicom_a_dicom_folder_names_the_cure(vs_bundle, tmp_path, monkeypatch):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").touch()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert 'pip install -e ".[dicom]"' in refused(vs_bundle, t2=str(tmp_path / "dicom"), out=str(tmp_path / "out"))


@pytest.mark.parametrize("site", ["", "site/"])
def test_dicom_patients_beside_a_nifti_patient_are_found_at_any_depth(scans, tmp_path, site):
    image = nib.load(scans["t2"])
    (tmp_path / f"{site}p3").mkdir(parents=True)
    nib.save(image, tmp_path / f"{site}p3" / "p3_t2.nii.gz")
    save_all(slices_of(image), tmp_path / f"{site}p1" / "study")
    save_all(slices_of(image), tmp_path / f"{site}p3" / "source")  # of the NIfTI file's own patient
    patients, passed_over = find_patients(tmp_path, ["t2"], tmp_path / "out")
    assert {patient["case"]: patient["image"] for patient in patients} == {
        "p3": [str(tmp_path / f"{site}p3" / "p3_t2.nii.gz")],
        "p1": [str(tmp_path / f"{site}p1")],
    }
    assert passed_over == {}


def test_a_dicom_seg_of_nifti_files_is_refused_at_once(bundle, scans, cohort, times_loaded):
    assert "--dicom_seg needs a DICOM series to refer to" in refused(bundle, **scans, dicom_seg=True)
    assert "--dicom_seg needs a DICOM series to refer to" in refused(bundle, cases=str(cohort), dicom_seg=True)
    assert not times_loaded


def test_a_cohort_gets_a_page_for_each_case_and_one_that_lists_them(bundle, cohort, tmp_path, times_loaded):
    options = {"cases": str(cohort), "out": str(tmp_path / "out"), "outputs": "seg"}
    segment(str(bundle), **options)
    segment(str(bundle), **options, html=True, resume=True)
    assert len(times_loaded) == 1, "a page alone needs no network"
    pages = {f"{case}/{case}_view.html" for case in ("anna", "bert", "carl")}
    assert {*pages, "index.html"} <= files_below(tmp_path / "out")
    text = (tmp_path / "out" / "anna" / "anna_view.html").read_text()
    assert all(f'"title": "{title}"' in text for title in ("T1", "T1 + contrast agent", "T2", "mask"))
    assert all(f'href="{page}"' in (tmp_path / "out" / "index.html").read_text() for page in pages)


@pytest.fixture
def shifted(monkeypatch) -> np.ndarray:
    """Nothing to do for `--raw`: all scans are registered but for this shift, and stripped."""
    shift = np.eye(4)
    shift[:3, 3] = 3, -2, 5

    def prepare_scans(case, given, folder, tell):
        folder.mkdir(parents=True)
        files = {name: folder / f"{case}_{name}.nii.gz" for name in given}
        found = []
        for name, scan in given.items():
            volume = read_series(scan) if isinstance(scan, Series) else nib.load(scan)
            pose = np.eye(4) if isinstance(scan, Series) else shift
            write_marked(np.asarray(volume.dataobj), volume.affine, files[name])
            grid, slices = (volume.shape, pose @ volume.affine), getattr(scan, "files", ())
            found.append(RawScan(name, grid, str(scan), "given", pose, {"covered": 1.0}, slices))
        return Prepared(files, tuple(found), "t1ce", {"brain_ml": 1400.0})

    monkeypatch.setattr(room, "prepare_scans", prepare_scans)
    return shift


def test_a_raw_patient_gets_a_mask_on_the_grid_of_every_scan(bundle, scans, tmp_path, shifted):
    segment(str(bundle), **scans, out=tmp_path, case="anna", outputs=["seg"], device="cpu", raw=True, bids=True)
    common = nib.load(tmp_path / "anna/anna_seg.nii.gz")
    summary = json.loads((tmp_path / "anna/anna_summary.json").read_text())
    for name in SOURCES:
        native = nib.load(tmp_path / f"anna/anna_seg_{name}.nii.gz")
        np.testing.assert_allclose(native.affine, shifted @ common.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(native.dataobj), np.asarray(common.dataobj))
        assert summary["raw"]["scans"][name]["volume_ml"] == pytest.approx(summary["volume_ml"], rel=1e-4)
    spaces = ("T1w", "T1wGd", "T2w", "common")
    filed = {f"sub-anna_space-{space}_dseg.{end}" for space in spaces for end in ("nii.gz", "json")}
    assert files_below(tmp_path / "derivatives/tissnet/sub-anna/anat") == filed


def test_a_raw_scan_from_a_dicom_folder_gets_its_mask_as_dicom_seg_too(bundle, scans, tmp_path, shifted, times_loaded):
    folder = write_dicom(scans["t2"], tmp_path / "t2")
    options = {**scans, "t2": folder, "out": tmp_path / "out", "case": "anna", "outputs": "seg", "device": "cpu"}
    segment(str(bundle), **options, raw=True, dicom_seg=True)
    assert {file for file in files_below(tmp_path / "out/anna") if file.endswith(".dcm")} == {"anna_seg_t2.dcm"}
    seg = highdicom.seg.segread(tmp_path / "out/anna/anna_seg_t2.dcm")
    assert seg.FrameOfReferenceUID == pydicom.dcmread(next(Path(folder).iterdir())).FrameOfReferenceUID
    mask = nib.load(tmp_path / "out/anna/anna_seg_t2.nii.gz")
    volume = seg.get_volume(combine_segments=True)
    assert volume.array.sum() == np.asarray(mask.dataobj).sum() > 0
    spot = np.diag([-1, -1, 1, 1]) @ volume.affine @ [*np.argwhere(volume.array).mean(0), 1]
    np.testing.assert_allclose(spot, mask.affine @ [*np.argwhere(np.asarray(mask.dataobj)).mean(0), 1], atol=1e-2)
    (tmp_path / "out/anna/anna_seg_t2.dcm").unlink()
    segment(str(bundle), **options, raw=True, dicom_seg=True, resume=True)
    assert len(times_loaded) == 2 and (tmp_path / "out/anna/anna_seg_t2.dcm").is_file()


def test_what_raw_left_is_resumed_shown_and_goes_when_the_mask_is_replaced(
    bundle, scans, tmp_path, shifted, times_loaded
):
    options = {**scans, "out": tmp_path, "case": "anna", "outputs": "seg", "device": "cpu"}
    segment(str(bundle), **options, raw=True)
    segment(str(bundle), **options, raw=True, resume=True, html=True)
    assert len(times_loaded) == 1
    page = (tmp_path / "anna/anna_view.html").read_text()
    assert all(f'"title": "{title}"' in page for title in ("T1", "T1 + contrast agent", "T2", "mask"))
    (tmp_path / "anna/anna_seg_t2.nii.gz").unlink()
    segment(str(bundle), **options, raw=True, resume=True)
    assert len(times_loaded) == 2
    assert (tmp_path / "anna/anna_seg_t2.nii.gz").is_file()
    segment(str(bundle), **options, overwrite=True)
    assert files_below(tmp_path) == {"anna/anna_seg.nii.gz", "anna/anna_summary.json"}


def test_a_small_schwannoma_scan_is_found_in_raw_as_it_is_without(vs_bundle, scans, tmp_path):
    for raw in (True, False):
        segment(str(vs_bundle), t2=scans["t2"], out=tmp_path, case=f"raw{raw}", outputs="seg", device="cpu", raw=raw)
    masks = [nib.load(tmp_path / name) for name in ("rawFalse/rawFalse_seg.nii.gz", "rawTrue/rawTrue_seg_t2.nii.gz")]
    for other in (masks[1], nib.load(tmp_path / "rawTrue/rawTrue_seg.nii.gz")):
        np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(masks[0].dataobj))
        np.testing.assert_allclose(other.affine, masks[0].affine, atol=1e-4)


def test_inferring_takes_raw_scans_too_and_a_bad_one_ends_no_other(vs_bundle, tmp_path):
    for case in ("anna", "bert"):
        write_scans(tmp_path / "scans" / case)
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9)), np.eye(4)), tmp_path / "scans/bert/bert_t2.nii.gz")
    parser = ConfigParser()
    parser.read_config(str(vs_bundle / "configs/inference.json"))
    parser.update({"bundle_root": str(vs_bundle), "dataset_dir": str(tmp_path / "scans"), "raw": True})
    parser.update({"output_dir": str(tmp_path / "out"), "device": "cpu"})
    parser.get_parsed_content("initialize")
    with pytest.raises(SystemExit):
        parser.get_parsed_content("inferring")
    told = json.loads((tmp_path / "out/anna/anna_summary.json").read_text())["raw"]
    assert told["scans"]["t2"]["file"] == str(tmp_path / "scans/anna/anna_t2.nii.gz")
    assert (tmp_path / "out/anna/anna_seg_t2.nii.gz").is_file()
    assert not (tmp_path / "out/bert").exists()


def test_raw_is_refused_where_it_means_nothing(bundle, scans, tmp_path):
    old = Path(shutil.copytree(bundle, tmp_path / "old"))
    config = json.loads((old / "configs/inference.json").read_text())
    del config["preparation"]
    (old / "configs/inference.json").write_text(json.dumps(config))
    assert "does not know --raw; fetch the bundle again" in refused(old, **scans, out=tmp_path, raw=True)
    options = {"out": tmp_path, "raw": True, "dicom_seg": True}
    assert "no folder; leave it out" in refused(bundle, **scans, **options)
    assert "add seg to --outputs" in refused(bundle, **{**scans, "t2": tmp_path}, **options, outputs="error")
