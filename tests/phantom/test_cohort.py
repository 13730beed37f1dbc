import gzip
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nilearn", reason="the atlas is inside nilearn, in the extra [demo]")

from tissnet_components.phantom import cohort as module
from tissnet_components.phantom.atlas import load_atlas
from tissnet_components.phantom.cohort import phantom
from tissnet_components.scans.cases import usable_cases
from tissnet_components.scans.datalist import SECTIONS, load_datalist

SPACING = 6.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return phantom("brats", tmp_path_factory.mktemp("cohort"), cases=3, seed=1, spacing=SPACING, workers=1).parent


@pytest.fixture
def quick(monkeypatch):
    """Patients without anatomy, whose voxels are drawn from the case's generator."""

    def patient(rng, spacing):
        return {kind: rng.integers(0, 99, (3, 3, 3), dtype=np.int16) for kind in ("t1", "t1ce", "t2", "flair", "seg")}

    monkeypatch.setitem(module.TASKS, "brats", replace(module.TASKS["brats"], patient=patient))


@pytest.fixture
def quick_vs(monkeypatch):
    """Patients of task vs without anatomy, drawn from the case's generator; yields the contours that each one got."""
    given = []

    def patient(rng, contours, grid=None, varied=False):
        given.append(contours)
        return {kind: rng.integers(0, 99, (3, 3, 3), dtype=np.int16) for kind in ("t2", "t1ce", "seg")}

    monkeypatch.setitem(module.TASKS, "vs", replace(module.TASKS["vs"], patient=patient))
    return given


@pytest.fixture
def contours(tmp_path) -> Path:
    """The folder of a download with the tumors of three patients, triangles of different height."""
    for number in (1, 2, 3):
        loops = [[[15, -4, z], [15, 4, z], [25, number, z]] for z in (0.0, 1.5)]
        file = tmp_path / "download" / f"sub-00{number}_contours_space-individual_T2w.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps([{"structure_name": "TV", "LPS_contour_points": loops}]))
    return tmp_path / "download"


def volumes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("Phantom_*/*.nii.gz"))}


def test_a_cohort_has_the_layout_of_brats(cohort):
    files = {str(file.relative_to(cohort)) for file in cohort.rglob("*") if file.is_file()}
    kinds = ("t1", "t1ce", "t2", "flair", "seg")
    cases = {f"Phantom_000{i}/Phantom_000{i}_{kind}.nii.gz" for i in (1, 2, 3) for kind in kinds}
    assert files == cases | {"datalist.json", "dataset_description.json"}


def test_every_case_passes_the_checks_that_real_data_must_pass(cohort):
    sections = (load_datalist(cohort / "datalist.json", section) for section in SECTIONS)
    good, failed = usable_cases([case for section in sections for case in section])
    assert len(good) == 3 and not failed


def test_the_datalist_is_relative_so_that_the_folder_can_move(cohort):
    content = json.loads((cohort / "datalist.json").read_text())
    assert content["sources"] == ["t1", "t1ce", "t2"] and content["target_modality"] == "flair"
    for case in content["training"] + content["validation"] + content["test"]:
        name = case["case"]
        assert case["image"] == [f"{name}/{name}_{source}.nii.gz" for source in ("t1", "t1ce", "t2")]
        assert (case["target"], case["label"]) == (f"{name}/{name}_flair.nii.gz", f"{name}/{name}_seg.nii.gz")


def test_the_folder_says_that_it_is_simulated_and_with_which_seed(cohort):
    description = json.loads((cohort / "dataset_description.json").read_text())
    assert description["simulated"] is True
    assert (description["seed"], description["spacing_mm"]) == (1, SPACING)
    assert "simulated" in json.loads((cohort / "datalist.json").read_text())["name"].lower()


def test_voxels_are_placed_as_in_brats(cohort):
    image = nib.load(cohort / "Phantom_0001" / "Phantom_0001_t1.nii.gz")
    np.testing.assert_array_equal(image.affine, [[-6, 0, 0, 0], [0, -6, 0, 239], [0, 0, 6, 0], [0, 0, 0, 1]])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == (6, 6, 6) and image.header.get_xyzt_units()[0] == "mm"


def test_compressed_files_carry_no_time_and_no_name(cohort):
    header = (cohort / "Phantom_0001" / "Phantom_0001_t1.nii.gz").read_bytes()[:10]
    assert header[:2] == b"\x1f\x8b" and header[3] == 0 and header[4:8] == bytes(4)  # RFC 1952: flags, mtime


def test_more_cases_and_more_workers_change_no_byte_of_a_case(cohort, tmp_path):
    parallel = phantom("brats", tmp_path, cases=4, seed=1, spacing=SPACING, workers=2).parent
    assert volumes(cohort).items() < volumes(parallel).items()


def test_another_seed_gives_other_patients(quick, tmp_path):
    first, second = (phantom("brats", tmp_path / str(seed), 3, seed, workers=1).parent for seed in (0, 1))
    assert all(volumes(first)[name] != data for name, data in volumes(second).items())


def test_no_two_cases_are_alike(quick, tmp_path):
    folder = phantom("brats", tmp_path, 5, workers=1).parent
    assert len({gzip.decompress(data) for data in volumes(folder).values()}) == 5 * 5


def test_a_cohort_of_schwannomas_has_t2_as_source_and_contrast_enhanced_t1_as_target(quick_vs, tmp_path):
    folder = phantom("vs", tmp_path, 3, workers=1).parent
    content = json.loads((folder / "datalist.json").read_text())
    assert content["simulated"] is True and content["labels"] == {"0": "background", "1": "vestibular schwannoma"}
    assert (content["sources"], content["target_modality"]) == (["t2"], "t1ce")
    for case in content["training"] + content["validation"] + content["test"]:
        name = case["case"]
        assert case["image"] == [f"{name}/{name}_t2.nii.gz"]
        assert (case["target"], case["label"]) == (f"{name}/{name}_t1ce.nii.gz", f"{name}/{name}_seg.nii.gz")
    image = nib.load(folder / "Phantom_0001" / "Phantom_0001_t2.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(image.header.get_zooms(), (0.41, 0.41, 1.5), rtol=1e-6)


def test_without_contours_tumors_are_drawn_and_with_them_each_is_used_once_before_any_again(
    quick_vs, tmp_path, contours
):
    phantom("vs", tmp_path / "drawn", 3, workers=1)
    assert quick_vs == [None] * 3
    quick_vs.clear()
    phantom("vs", tmp_path / "shaped", 6, workers=1, contours=contours)
    heights = [tumor[0][2, 1] for tumor in quick_vs]
    assert sorted(heights[:3]) == [1, 2, 3] and heights[3:] == heights[:3]


def test_other_contours_make_another_cohort(quick_vs, tmp_path, contours):
    phantom("vs", tmp_path / "out", 3, workers=1, contours=contours)
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert "3 tumors of Vestibular-Schwannoma-SEG, CC BY 4.0, Shapey et al. 2021" in description["contours"]
    with pytest.raises(ValueError, match="differs in task, seed, spacing, contours, variety or version"):
        phantom("vs", tmp_path / "out", 3, workers=1)


def test_varied_patients_have_their_own_voxels_and_come_in_the_share_asked_for(quick_vs, tmp_path):
    folder = phantom("vs", tmp_path, 12, workers=1, variety=0.5).parent
    widths = [nib.load(file).header.get_zooms()[0] for file in sorted(folder.glob("*/*_t2.nii.gz"))]
    assert 3 <= sum(np.isclose(widths, 0.41)) <= 9 and len(set(widths)) == 13 - sum(np.isclose(widths, 0.41))
    assert json.loads((folder / "dataset_description.json").read_text())["variety"] == 0.5


@pytest.mark.parametrize(("cases", "expected"), [(3, (1, 1, 1)), (24, (18, 2, 4)), (369, (258, 37, 74))])
def test_the_split_has_the_proportions_of_the_paper(cases, expected):
    content = module.datalist("brats", cases, seed=0)
    assert tuple(len(content[section]) for section in SECTIONS) == expected


def test_an_interrupted_cohort_continues_where_it_stopped(quick, tmp_path, monkeypatch):
    patient, calls = module.TASKS["brats"].patient, []

    def power_cut(rng, spacing):
        calls.append(rng)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return patient(rng, spacing)

    monkeypatch.setitem(module.TASKS, "brats", replace(module.TASKS["brats"], patient=power_cut))
    with pytest.raises(KeyboardInterrupt):
        phantom("brats", tmp_path / "cut", 4, workers=1)
    assert not (tmp_path / "cut" / "Phantom_0003").exists() and not (tmp_path / "cut" / "datalist.json").exists()
    phantom("brats", tmp_path / "cut", 4, workers=1)
    assert len(calls) == 3 + 2
    whole = phantom("brats", tmp_path / "whole", 4, workers=1).parent
    assert volumes(tmp_path / "cut") == volumes(whole)
    assert not list((tmp_path / "cut").glob(".*"))


def test_a_process_that_dies_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="a process died, perhaps for lack of memory; run again with --workers 1"):
        module.write_all(os._exit, [1, 2], workers=2)


def test_a_case_that_has_lost_a_file_is_simulated_again(quick, tmp_path):
    folder = phantom("brats", tmp_path, 3, workers=1).parent
    before = volumes(folder)
    (folder / "Phantom_0002" / "Phantom_0002_seg.nii.gz").unlink()
    for file in (folder / "Phantom_0003").iterdir():
        file.unlink()
    phantom("brats", tmp_path, 3, workers=1)
    assert volumes(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "liver"}, "unknown task 'liver'; known: ['brats', 'vs']"),
        ({"task": {}}, "unknown task {}; known: ['brats', 'vs']"),
        ({"cases": 2}, "cases is 2, expected an integer of at least 3"),
        ({"cases": "many"}, "cases is 'many', expected an integer of at least 3"),
        ({"seed": -1}, "seed is -1, expected an integer of at least 0"),
        ({"workers": 0}, "workers is 0, expected an integer of at least 1"),
        ({"spacing": 0}, "spacing is 0, expected a voxel size between 0.5 and 6 mm"),
        ({"task": "vs", "spacing": 1}, "task vs always has voxels of 0.41 x 0.41 x 1.5 mm; leave out --spacing"),
        ({"task": "vs", "variety": 2}, "variety is 2, expected the share of varied patients, 0 to 1"),
        ({"variety": 0.5}, "variety is of task vs, not of brats; leave out --variety"),
        ({"contours": "."}, "contours shape the tumors of task vs, not those of brats; leave out --contours"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_named_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError) as error:
        phantom(**{"out": tmp_path / "new", **arguments})
    assert str(error.value) == message
    assert not (tmp_path / "new").exists()


def test_a_folder_with_another_cohort_is_refused(quick, tmp_path):
    phantom("brats", tmp_path, 3, seed=0, workers=1)
    before = volumes(tmp_path)
    with pytest.raises(ValueError, match="contours, variety or version; choose another --out"):
        phantom("brats", tmp_path, 3, seed=1, workers=1)
    assert volumes(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(quick, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"taken cannot be written .*; choose another --out"):
        phantom("brats", tmp_path / "taken", 3, workers=1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_error(quick, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"cannot be written \(Permission denied\)"):
        phantom("brats", tmp_path / "new", 3, workers=1)


def test_a_missing_nilearn_says_what_to_install(monkeypatch, tmp_path):
    load_atlas.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r"pip install tissnet-components\[demo\]"):
        phantom("brats", tmp_path / "new")
    assert not (tmp_path / "new").exists()
