"""Any scan ends in a right answer or in one sentence that names the file, the cause and the cure."""

import csv
import gzip
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import strategies as st
from odd_input import EXTREMES, REAL_TYPES, inputs, names, odd_headers, refusal, tried, with_header, write
from test_segment import ORIENTATIONS, tiny_bundle, write_scans
from tissnet_components.segment import segment


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle("tissnet_vs", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> nib.Nifti1Image:
    """Voxels that even eight bits hold; around the head is 0. Its qform and its sform agree."""
    image = nib.load(write_scans(tmp_path_factory.mktemp("scan") / "anna")["t2"])
    image = nib.Nifti1Image(np.asarray(image.dataobj).clip(0) // 2, image.affine)
    image.set_qform(image.affine, 1)
    return image


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def mask_of(bundle: Path, file: Path, out: Path) -> nib.Nifti1Image:
    segment(str(bundle), t2=str(file), out=str(out), case="odd", outputs=("seg", "error"), overwrite=True)
    return nib.load(out / "odd" / "odd_seg.nii.gz")


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)


def lies_on(found: nib.Nifti1Image, file: Path) -> bool:
    """Whether a mask has the scan's grid, and holds nothing but 0 and 1."""
    scan = nib.load(file)
    same_place = found.shape == scan.shape and np.allclose(found.affine, scan.affine, atol=1e-3)
    return same_place and set(np.unique(voxels(found))) <= {0, 1}


@tried(6, 150)
def test_the_same_scan_in_another_form_gives_the_same_mask(amount, bundle, scan, tmp_path):
    scans = {"oblique": scan, "straight": straight(scan)}
    plain = {kind: write(tmp_path / f"{kind}.nii", image.to_bytes()) for kind, image in scans.items()}
    expected = {kind: voxels(nib.as_closest_canonical(mask_of(bundle, file, tmp_path))) for kind, file in plain.items()}
    assert all(0 < mask.mean() < 0.5 for mask in expected.values())
    slopes = st.sampled_from((0, 1, 0.5, 3e-5, 7e7, np.nan))

    codes, types = st.sampled_from(ORIENTATIONS), st.sampled_from(REAL_TYPES)

    @inputs(amount, st.sampled_from(sorted(scans)), codes, types, st.booleans(), slopes)
    def same(kind, code, dtype, big_endian, slope):
        content = with_header(reoriented(scans[kind], code, dtype), {"scl_slope": slope, "scl_inter": 0}, big_endian)
        file = write(tmp_path / "odd.nii.gz", content)
        found = mask_of(bundle, file, tmp_path)
        assert lies_on(found, file)
        np.testing.assert_array_equal(voxels(nib.as_closest_canonical(found)), expected[kind])


def straight(scan: nib.Nifti1Image) -> nib.Nifti1Image:
    """The scan with its axes exactly along the patient's."""
    nearest = nib.as_closest_canonical(scan)
    spacing_mm = nib.affines.voxel_sizes(nearest.affine)
    return nib.Nifti1Image(voxels(nearest), np.diag([*spacing_mm, 1]))


def reoriented(scan: nib.Nifti1Image, code: str, dtype: str) -> bytes:
    """The scan with its axes in another order, in another type of number."""
    target = nib.orientations.axcodes2ornt(code)
    turned = scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(scan.affine), target))
    return nib.Nifti1Image(voxels(turned).astype(dtype), turned.affine, dtype=dtype).to_bytes()


@tried(24, 600)
def test_any_header_gives_a_mask_on_its_scan_or_a_sentence(amount, bundle, scan, tmp_path):
    plain = scan.to_bytes()

    @inputs(amount, odd_headers(), st.booleans(), st.sampled_from(("odd.nii", "odd.nii.gz")))
    def ends(changes, big_endian, name):
        file, found = write(tmp_path / name, with_header(plain, changes, big_endian)), []
        said = refusal(lambda: found.append(mask_of(bundle, file, tmp_path)), file)
        assert said or lies_on(*found, file)


@tried(10, 200)
def test_a_file_cut_or_changed_anywhere_gives_the_same_mask_or_a_sentence(amount, bundle, scan, tmp_path):
    whole = gzip.compress(scan.to_bytes())
    expected = voxels(mask_of(bundle, write(tmp_path / "s.nii", scan.to_bytes()), tmp_path))

    @inputs(amount, st.integers(0, len(whole) - 1), st.one_of(st.none(), st.integers(0, 255)))
    def ends(place, value):
        file, found = tmp_path / "odd.nii.gz", []
        file.write_bytes(whole[:place] + (b"" if value is None else bytes([value]) + whole[place + 1 :]))
        if not refusal(lambda: found.append(mask_of(bundle, file, tmp_path)), file):
            np.testing.assert_array_equal(voxels(*found), expected)


@tried(10, 200)
def test_any_voxels_give_a_mask_or_a_sentence(amount, bundle, tmp_path):
    shapes = st.tuples(*[st.sampled_from((1, 1, 2, 3, 17, 40))] * 3)
    values, types = st.lists(EXTREMES, min_size=1, max_size=4), st.sampled_from(("f4", "f8", "c8", "i2"))

    @inputs(amount, shapes, values, types, st.integers(0, 9))
    def ends(shape, some, dtype, seed):
        with np.errstate(all="ignore"):
            array = np.random.default_rng(seed).choice(some, shape).astype(dtype)
        file, found = write(tmp_path / "odd.nii.gz", nib.Nifti1Image(array, np.eye(4)).to_bytes()), []
        if not refusal(lambda: found.append(mask_of(bundle, file, tmp_path)), file):
            assert lies_on(*found, file)
            assert np.isfinite(array).all()
            assert np.isfinite(voxels(nib.load(tmp_path / "odd" / "odd_error.nii.gz"))).all()


@tried(6, 150)
def test_a_patient_of_any_name_is_segmented_inside_the_results_or_refused(amount, bundle, scan, tmp_path):
    plain = write(tmp_path / "scan.nii", scan.to_bytes())

    @inputs(amount, names(), st.sampled_from(("case", "file", "table", "out")))
    def ends(name, way):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            try:
                options = {"out": f"{folder}/out"} | named(name, way, Path(folder), plain)
                out = Path(os.path.realpath(options["out"]))
            except (OSError, ValueError):
                return  # the file system holds no such name
            if not out.is_relative_to(os.path.realpath(folder)):
                return  # a folder for results that the user wants elsewhere
            before = files_below(tmp_path)
            said = refusal(lambda: segment(str(bundle), **options, outputs=("seg", "overview")), folder, "--case")
            new = files_below(tmp_path) - before
            assert all(file.is_relative_to(out) for file in new), new
            assert bool(new) != bool(said)


def named(name: str, way: str, folder: Path, scan: Path) -> dict[str, str]:
    """Options of `segment`, with a name for the case, the scan, a line of a table, or the folder of results."""
    if way == "file":
        return {"t2": shutil.copy(scan, folder / f"{name}.nii")}
    if way == "table":
        with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["case", "t2"], [name, str(scan)]])
        return {"cases": str(folder / "cases.csv")}
    return {"t2": str(scan), way: name if way == "case" else str(folder / name)}


def files_below(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}
