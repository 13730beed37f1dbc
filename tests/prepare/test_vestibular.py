import csv
import json
import os
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from tissnet_components.errors import BadCase
from tissnet_components.prepare.contours import move, read_contours, tumor_mask, volume_mm3
from tissnet_components.prepare.vestibular import (
    TCIA_SPLIT,
    choose_scan,
    into_grid,
    patient_name,
    prepare_vs,
    read_transform,
)
from tissnet_components.scans.cases import usable_cases
from tissnet_components.scans.datalist import load_datalist
from tissnet_components.scans.dicom import LPS_TO_RAS, Series
from vestibular_download import (
    DESCRIPTIONS,
    RADIUS_MM,
    classic,
    descriptive,
    simulate,
    write_bids,
    write_contours,
    write_dicom,
    write_download,
    write_json,
    write_rtstruct,
    write_split,
    write_tfm,
    write_transforms,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "vs_seg_geometry"
SPACING_MM = np.array([0.41, 0.41, 1.5])


@pytest.fixture
def real_geometry() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"no real contours at {REAL}")
    return REAL


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """So that a reason stands in one line of the table."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def one(tmp_path):
    """The download of one patient, converted in this process."""
    (patient,) = write_download(tmp_path / "tcia", [1])
    return tmp_path, patient


def prepare(folder, **options):
    prepare_vs(str(folder / "tcia"), str(folder / "out"), workers=1, **options)


def load(folder, patient, kind):
    return nib.load(folder / "out" / patient.name / f"{patient.name}_{kind}.nii.gz")


def why(folder, capsys, **options) -> str:
    """What is printed about the only patient, who cannot be converted."""
    with pytest.raises(ValueError, match="none of the 1 patients"):
        prepare(folder, **options)
    assert not (folder / "out" / "VS-SEG-001").exists()
    return printed(capsys)


def printed(capsys) -> str:
    return " ".join(word for word in capsys.readouterr().out.split() if word not in "│┃")


def within_half_a_voxel(mask: nib.Nifti1Image, centre_lps: np.ndarray, radius_mm: float) -> bool:
    """Whether the mask differs from a ball only in voxels that the ball's surface passes through."""
    lps = LPS_TO_RAS @ mask.affine
    voxels = np.stack(np.indices(mask.shape), -1)
    corners = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), -1).reshape(-1, 3)
    inside = [
        np.linalg.norm((voxels + corner) @ lps[:3, :3].T + lps[:3, 3] - centre_lps, axis=-1) < radius_mm
        for corner in corners
    ]
    array = np.asarray(mask.dataobj) > 0
    return bool(array.any() and array[np.all(inside, axis=0)].all() and not array[~np.any(inside, axis=0)].any())


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.parametrize("layout", [descriptive, classic])
def test_a_dicom_download_round_trips_whatever_its_folders_are_called(tmp_path, layout):
    patients = write_download(tmp_path / "tcia", layout=layout)
    prepare(tmp_path)
    for patient in patients:
        t2 = load(tmp_path, patient, "t2")
        np.testing.assert_array_equal(t2.dataobj, patient.t2.dataobj)
        np.testing.assert_allclose(t2.affine, patient.t2.affine, atol=1e-4)
        assert within_half_a_voxel(load(tmp_path, patient, "seg"), patient.tumor_in_t2, RADIUS_MM)


def test_t1_shows_the_same_place_as_t2_once_it_is_on_its_grid(one):
    folder, patient = one
    prepare(folder)
    t1ce, t2 = (np.asarray(load(folder, patient, kind).dataobj, dtype=float) for kind in ("t1ce", "t2"))
    middle = (slice(8, -8), slice(8, -8), slice(3, -3))
    np.testing.assert_allclose(t1ce[middle] - 500, 500 - t2[middle], atol=6)  # T2 has T1's contrast inverted
    assert np.abs(np.asarray(patient.t1.dataobj)[middle] - 1000 + t2[middle]).max() > 50


def test_the_datalist_has_tcia_s_split_and_is_what_the_bundle_reads(tmp_path):
    write_download(tmp_path / "tcia", [1, 182, 202])
    prepare(tmp_path)
    datalist = tmp_path / "out" / "datalist.json"
    content = json.loads(datalist.read_text())
    assert (content["sources"], content["target_modality"]) == (["t2"], "t1ce")
    cases = {section: load_datalist(datalist, section, ["t2"]) for section in ("training", "validation", "test")}
    assert {section: [case["case"] for case in found] for section, found in cases.items()} == {
        "training": ["VS-SEG-001"],
        "validation": ["VS-SEG-182"],
        "test": ["VS-SEG-202"],
    }
    good, failed = usable_cases([case for found in cases.values() for case in found])
    assert (len(good), failed) == (3, {})


def test_a_split_file_is_followed_under_any_name_of_the_patients(tmp_path, capsys):
    write_download(tmp_path / "tcia", [1, 2, 3])
    split = write_split(tmp_path / "mine.csv", ("vs_gk_1", "test"), ("sub-002", "training"))
    prepare(tmp_path, split=str(split))
    assert "VS-SEG-003 not named in mine.csv" in printed(capsys)
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert [case["case"] for case in content["test"] + content["training"]] == ["VS-SEG-001", "VS-SEG-002"]


def test_a_split_file_that_names_a_patient_who_is_not_there_is_refused(one):
    folder, _ = one
    split = write_split(folder / "mine.csv", ("vs_gk_1", "test"), ("vs_gk_7", "training"))
    with pytest.raises(ValueError, match=r"mine\.csv names 1 cases that were not found, first VS-SEG-007"):
        prepare(folder, split=str(split))
    assert not list((folder / "out").iterdir())


def test_the_built_in_split_is_that_of_split_tcia_csv(real_geometry):
    with open(real_geometry / "params" / "split_TCIA.csv", newline="") as file:
        rows = [(int(patient_name(name)[-3:]), section) for name, section in csv.reader(file)]
    assert len(rows) == 242
    assert all(number in TCIA_SPLIT[section] for number, section in rows)


def test_the_bids_variant_is_accepted(tmp_path):
    patient = simulate(1)
    write_bids(tmp_path / "tcia", patient)
    prepare(tmp_path)
    np.testing.assert_array_equal(load(tmp_path, patient, "t2").dataobj, patient.t2.dataobj)
    assert within_half_a_voxel(load(tmp_path, patient, "seg"), patient.tumor_in_t2, RADIUS_MM)


@pytest.mark.parametrize("weighting", ["t1", "t2"])
@pytest.mark.parametrize("source", [write_contours, write_rtstruct])
def test_contours_of_either_scan_will_do_and_rtstruct_where_there_are_none(tmp_path, source, weighting):
    patient = simulate(1)
    write_dicom(tmp_path / "tcia", patient)
    write_transforms(tmp_path / "tcia", patient)
    source(
        tmp_path / "tcia",
        patient,
        **{"weightings": [weighting]} if source is write_contours else {"weighting": weighting},
    )
    prepare(tmp_path)
    assert within_half_a_voxel(load(tmp_path, patient, "seg"), patient.tumor_in_t2, RADIUS_MM)


def test_the_transform_from_t2_to_t1_will_do_too(one):
    folder, patient = one
    next((folder / "tcia").rglob("inv_T1*.tfm")).unlink()
    prepare(folder)
    assert within_half_a_voxel(load(folder, patient, "seg"), patient.tumor_in_t2, RADIUS_MM)


def test_64_bit_scans_are_converted(tmp_path):
    patient = simulate(1)
    for weighting in ("t1", "t2"):
        image = getattr(patient, weighting)
        wide = np.asarray(image.dataobj).astype(np.int64)
        setattr(patient, weighting, nib.Nifti1Image(wide, image.affine, dtype=np.int64))
    write_bids(tmp_path / "tcia", patient)
    prepare(tmp_path)
    assert load(tmp_path, patient, "t1ce").get_data_dtype() == np.int64


def test_a_complex_scan_is_named(tmp_path, capsys):
    patient = simulate(1)
    patient.t1 = nib.Nifti1Image(np.asarray(patient.t1.dataobj).astype(np.complex64), patient.t1.affine)
    write_bids(tmp_path / "tcia", patient)
    assert "holds complex64 voxels, expected real numbers" in why(tmp_path, capsys)


def test_resampling_agrees_with_itk(tmp_path):
    patient = simulate(1)
    file = tmp_path / "inv_T1_LPS_to_T2_LPS.tfm"
    write_tfm(file, np.linalg.inv(patient.t1_to_t2))

    def to_itk(image):
        lps = LPS_TO_RAS @ image.affine
        spacing_mm = np.linalg.norm(lps[:3, :3], axis=0)
        result = itk.image_from_array(np.ascontiguousarray(np.asarray(image.dataobj, np.float32).T))
        result.SetSpacing(spacing_mm.tolist())
        result.SetOrigin(lps[:3, 3].tolist())
        result.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing_mm))
        return result

    expected = itk.resample_image_filter(
        to_itk(patient.t1),
        transform=itk.transformread(str(file))[0],
        use_reference_image=True,
        reference_image=to_itk(patient.t2),
    )
    got = np.asarray(into_grid(patient.t1, patient.t2, read_transform(file)).dataobj)
    inner = (slice(8, -8), slice(8, -8), slice(3, -3))  # at the edge, one extrapolates half a voxel, the other not
    np.testing.assert_allclose(got[inner], itk.array_from_image(expected).T[inner], atol=0.51)


def test_an_interrupted_conversion_goes_on_and_nothing_half_written_counts(tmp_path, monkeypatch):
    write_download(tmp_path / "tcia", [1, 2])
    write, calls = nib.save, []

    def stop_in_the_second_patient(image, file):
        calls.append(file)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(image, file)

    monkeypatch.setattr(nib, "save", stop_in_the_second_patient)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["VS-SEG-001"]
    monkeypatch.setattr(nib, "save", lambda image, file: (calls.append(file), write(image, file)))
    prepare(tmp_path)
    assert [path.name for path in calls[5:]] == [f"VS-SEG-002_{kind}.nii.gz" for kind in ("t2", "t1ce", "seg")]


@pytest.mark.parametrize("left", [0, 2], ids=["no file", "two of three files"])
def test_a_folder_in_which_files_are_missing_is_not_taken_for_converted(one, left):
    folder, patient = one
    prepare(folder)
    for file in sorted((folder / "out" / patient.name).iterdir())[left:]:
        file.unlink()
    prepare(folder)
    assert within_half_a_voxel(load(folder, patient, "seg"), patient.tumor_in_t2, RADIUS_MM)
    assert len(list((folder / "out" / patient.name).iterdir())) == 3


def test_other_processes_convert_too_and_send_their_reasons_back(tmp_path, capsys):
    good, bad = write_download(tmp_path / "tcia", [1, 2])
    shutil.rmtree(next((tmp_path / "tcia").glob(f"*/*/{bad.name}/*/*t1*")))
    with pytest.raises(ValueError, match="1 of 2 cases are not in the datalist"):
        prepare_vs(str(tmp_path / "tcia"), str(tmp_path / "out"), workers=2)
    assert within_half_a_voxel(load(tmp_path, good, "seg"), good.tumor_in_t2, RADIUS_MM)
    assert "VS-SEG-002 no T1 scan" in printed(capsys)


def test_bad_patients_are_named_and_the_rest_goes_on(tmp_path, capsys):
    patients = write_download(tmp_path / "tcia", [1, 2, 3])
    shutil.rmtree(next((tmp_path / "tcia").glob(f"*/*/{patients[0].name}/*/*t1*")))
    write_contours(tmp_path / "tcia", patients[1], name="Men")
    with pytest.raises(ValueError, match="2 of 3 cases are not in the datalist, see the reasons above"):
        prepare(tmp_path)
    text = printed(capsys)
    assert "VS-SEG-001 no T1 scan among the MR images (t2_ci3d_tra_1.5mm_v2_448); download it too" in text
    assert "has 0 structures called like a tumor, among Men, Cochlea, Vol 2y" in text
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["VS-SEG-003", "datalist.json"]
    with pytest.raises(ValueError, match="1 of 3 cases"):
        prepare(tmp_path, structures="VS-SEG-002=Men")
    assert (tmp_path / "out" / "VS-SEG-002").is_dir()


def test_a_patient_id_cannot_lead_out_of_the_results(tmp_path, capsys):
    [patient] = write_download(tmp_path / "tcia", [1])
    for file in (tmp_path / "tcia").rglob("*.dcm"):
        item = pydicom.dcmread(file)
        item.PatientID = "../../x"
        item.save_as(file)
    split = write_split(tmp_path / "split.csv", (patient.name, "training"), ("../../x", "training"))
    with pytest.raises(ValueError, match="none of the 2 patients"):
        prepare(tmp_path, split=str(split))
    assert "a DICOM header names a case '../../x', which cannot be a folder's name" in printed(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"tcia", "split.csv", "out"}
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_slice_among_good_ones_is_named(one, capsys):
    folder, _ = one
    files = sorted(next((folder / "tcia").rglob("*t2_ci3d*")).iterdir())
    files[3].write_bytes(files[3].read_bytes()[:200])
    assert "1-004.dcm cannot be read as DICOM" in why(folder, capsys)


def test_a_missing_slice_is_named(one, capsys):
    folder, _ = one
    sorted(next((folder / "tcia").rglob("*t2_ci3d*")).iterdir())[3].unlink()
    assert "are 3.00 mm apart but other slices 1.50 mm" in why(folder, capsys)


def test_of_two_candidates_the_contoured_one_is_taken_and_without_contours_neither(one, capsys):
    folder, patient = one
    other = simulate(1)
    write_dicom(folder / "tcia" / "again", other, classic, ["t2"])
    prepare(folder)
    np.testing.assert_array_equal(load(folder, patient, "t2").dataobj, patient.t2.dataobj)
    shutil.rmtree(folder / "out")
    for file in (folder / "tcia").rglob("contours.json"):
        file.unlink()
    assert f"{DESCRIPTIONS['t2']} of VS-SEG-001" in (text := why(folder, capsys))
    assert "are both T2" in text
    write_rtstruct(folder / "tcia", patient, "t2")
    prepare(folder)
    np.testing.assert_array_equal(load(folder, patient, "t2").dataobj, patient.t2.dataobj)
    shutil.rmtree(folder / "out")
    write_rtstruct(folder / "tcia", other, "t2")
    assert "are both T2" in why(folder, capsys)


def test_a_series_that_the_contours_name_is_not_replaced_by_another(one, capsys):
    folder, patient = one
    shutil.rmtree(descriptive(next((folder / "tcia").glob("*/Vestib*")), patient, "t2"))
    write_dicom(folder / "tcia" / "follow-up", simulate(1), classic, ["t2"])
    series = ", ".join(DESCRIPTIONS.values())
    text = why(folder, capsys)
    assert f"no T2 scan among the MR images ({series}); download it too" in text
    assert f"(series {patient.uids['t2']}, which the contours name)" in text


def test_another_patient_s_contours_are_refused(one, capsys):
    folder, patient = one
    patient.number = 2
    file = next((folder / "tcia").rglob("vs_gk_1_t2/contours.json"))
    write_json(file, patient, "t2")
    assert "contours.json is of patient VS-SEG-002; fetch this patient's own" in why(folder, capsys)


def test_flair_is_not_taken_for_t2():
    flair = Series("1", "MR", "AX T2 FLAIR", "VS-SEG-001", (Path("a"),))
    with pytest.raises(BadCase, match=r"no T2 scan among the MR images \(AX T2 FLAIR\)"):
        choose_scan({"MR": [flair]}, "t2")


@pytest.mark.parametrize("description", ["t1c_tra", "t1_tfe_km", "BRAVO +C"])
def test_enhanced_t1_is_known_by_the_names_that_segment_knows(description):
    plain = Series("1", "MR", "t1_tfe", "VS-SEG-001", (Path("a"),))
    enhanced = Series("2", "MR", description, "VS-SEG-001", (Path("b"),))
    assert choose_scan({"MR": [plain, enhanced]}, "t1") is enhanced


def test_of_two_t1_series_the_enhanced_one_is_taken():
    plain = Series("1", "MR", "t1_fl3d_tra", "VS-SEG-001", (Path("a"),))
    by_header = Series("2", "MR", "t1_fl3d_tra", "VS-SEG-001", (Path("b"),), ({"ContrastBolusAgent": "Gadovist"},))
    by_name = Series("3", "MR", "t1_fl3d_tra_gad", "VS-SEG-001", (Path("c"),))
    assert choose_scan({"MR": [plain, by_header]}, "t1") is by_header
    assert choose_scan({"MR": [plain, by_name]}, "t1") is by_name
    with pytest.raises(BadCase, match="are both T1"):
        choose_scan({"MR": [by_header, by_name]}, "t1")


def test_an_inverted_transform_is_noticed(one, capsys):
    folder, patient = one
    write_tfm(next((folder / "tcia").rglob("inv_T1*.tfm")), patient.t1_to_t2)
    text = why(folder, capsys)
    assert "inv_T1_LPS_to_T2_LPS.tfm leaves T1's and T2's contours" in text
    assert "mm apart: it is inverted" in text


def test_transforms_that_do_not_undo_each_other_are_refused_though_contours_are_of_one_scan(one, capsys):
    folder, patient = one
    next((folder / "tcia").rglob("vs_gk_1_t1/contours.json")).unlink()
    write_tfm(next((folder / "tcia").rglob("inv_T1*.tfm")), patient.t1_to_t2)
    assert "inv_T1_LPS_to_T2_LPS.tfm and inv_T2_LPS_to_T1_LPS.tfm do not undo each other" in why(folder, capsys)


def test_a_transform_that_nothing_confirms_is_said_to_be_unchecked(one, capsys):
    folder, _ = one
    next((folder / "tcia").rglob("vs_gk_1_t1/contours.json")).unlink()
    next((folder / "tcia").rglob("inv_T2*.tfm")).unlink()
    prepare(folder)
    text = printed(capsys)
    assert text.startswith("VS-SEG-001: nothing tells whether ")
    assert "inv_T1_LPS_to_T2_LPS.tfm is inverted, for its counterpart is missing" in text


def test_another_patient_s_transform_is_noticed(one, capsys):
    folder, _ = one
    moved = np.eye(4)
    moved[0, 3] = 9
    write_tfm(next((folder / "tcia").rglob("inv_T1*.tfm")), moved)
    assert "it belongs to other scans" in why(folder, capsys)


def test_what_is_no_affine_transform_is_refused(tmp_path):
    file = tmp_path / "x.tfm"
    write_tfm(file, np.diag([1, 1, -1, 1]))
    with pytest.raises(BadCase, match=r"x\.tfm changes volumes by the factor -1"):
        read_transform(file)
    for factor in (0.4, 2.5):
        write_tfm(file, np.diag([1, 1, factor, 1]))
        with pytest.raises(BadCase, match=rf"x\.tfm changes volumes by the factor {factor}, expected 1"):
            read_transform(file)
    file.write_text("nothing")
    with pytest.raises(BadCase, match=r"x\.tfm cannot be read"):
        read_transform(file)
    field = itk.BSplineTransform[itk.D, 3, 3].New()
    itk.transformwrite([field], str(file))
    with pytest.raises(BadCase, match="holds BSplineTransform, expected one affine transform"):
        read_transform(file)


def test_what_is_there_twice_is_not_guessed(one, capsys):
    folder, patient = one
    write_contours(folder / "tcia" / "again", patient)
    assert "are the patient's t1 contours; keep one of them" in why(folder, capsys)
    for file in (folder / "tcia").rglob("contours.json"):
        file.unlink()
    write_rtstruct(folder / "tcia", patient, "t2")
    write_rtstruct(folder / "tcia", patient, "t2")
    assert "are the patient's RTSTRUCT; keep one of them" in why(folder, capsys)


def test_contours_outside_the_image_are_named(tmp_path, capsys):
    patient = simulate(1)
    patient.contours = {key: [loop + np.array([60, 0, 0]) for loop in loops] for key, loops in patient.contours.items()}
    write_dicom(tmp_path / "tcia", patient)
    write_contours(tmp_path / "tcia", patient, weightings=["t2"])
    write_transforms(tmp_path / "tcia", patient)
    assert "voxels outside the image" in why(tmp_path, capsys)


@pytest.mark.parametrize(
    "pattern, sentence", [("*.tfm", "registration matrices"), ("contours.json", "download TCIA's contours")]
)
def test_what_was_not_downloaded_is_named(one, capsys, pattern, sentence):
    folder, _ = one
    for file in (folder / "tcia").rglob(pattern):
        file.unlink()
    assert sentence in why(folder, capsys)


def test_wrong_arguments_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        prepare_vs(str(tmp_path / "absent"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="holds no scan of Vestibular-Schwannoma-SEG"):
        prepare_vs(str(tmp_path), str(tmp_path / "out"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/datalist\.json cannot be written .*; choose another"):
        prepare_vs(str(tmp_path), str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"workers is 'two', expected an integer of at least 1"):
        prepare_vs(str(tmp_path), str(tmp_path / "out"), workers="two")
    with pytest.raises(ValueError, match=r"--structures has 'Men', expected PATIENT=NAME"):
        prepare_vs(str(tmp_path), str(tmp_path / "out"), structures="Men")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(one):
    folder, _ = one
    (folder / "out").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"datalist\.json cannot be written .Permission denied"):
        prepare(folder)


@pytest.mark.parametrize("number", [1, 8, 18, 55, 102])
def test_real_contours_keep_their_volume_on_any_grid(real_geometry, number):
    for weighting, offset in (("T1w", 0), ("T2w", 0.6)):
        contours = real_contours(real_geometry, number, weighting)
        mask = real_mask(contours, offset)
        volume = np.count_nonzero(mask.dataobj) * SPACING_MM.prod()
        assert volume == pytest.approx(polygon_volume(real_contours(real_geometry, number, "T1w")), rel=0.03)


def test_real_transforms_carry_contours_from_t2_to_t1_and_not_the_other_way(real_geometry):
    for number in (1, 8, 55, 102, 150):
        t1, t2 = (np.concatenate(real_contours(real_geometry, number, weighting)) for weighting in ("T1w", "T2w"))
        file = f"sub-{number:03d}/anat/sub-{number:03d}_inv_T1_LPS_to_T2_LPS.tfm"
        t2_to_t1 = read_transform(real_geometry / "sourcedata" / "registration_matrices" / file)
        assert np.abs(move([t2], t2_to_t1)[0] - t1).max() < 0.1
        assert np.abs(move([t2], np.linalg.inv(t2_to_t1))[0] - t1).max() > 0.1


def test_real_transforms_carry_contours_from_t1_to_t2(real_geometry):
    overlaps = []
    for number in (1, 8, 55, 102, 150):
        t1, t2 = (real_mask(real_contours(real_geometry, number, weighting)) for weighting in ("T1w", "T2w"))
        file = f"sub-{number:03d}/anat/sub-{number:03d}_inv_T1_LPS_to_T2_LPS.tfm"
        carried = into_grid(t1, t2, read_transform(real_geometry / "sourcedata" / "registration_matrices" / file))
        overlaps.append(dice(np.asarray(carried.dataobj) > 0.5, np.asarray(t2.dataobj) > 0.5))
    assert np.median(overlaps) > 0.9


def test_the_mask_is_the_collection_s_own_where_contours_lie_in_the_slices(real_geometry):
    file = real_geometry.parent / "vs_real_crops" / "vs_gk_99_t1_seg.nii.gz"
    if not file.is_file():
        pytest.skip(f"no real crop at {file}")
    crop = nib.load(file)
    affine = crop.affine.copy()
    affine[:3, 3] += crop.affine[:3, :3] @ [120, 190, 18]  # the first voxel of the crop, which its header lost
    mask = tumor_mask(real_contours(real_geometry, 99, "T1w"), crop.shape, affine) > 0
    assert dice(mask, np.asarray(crop.dataobj) > 0) > 0.999


@pytest.mark.parametrize("number", [63, 73])
def test_the_two_real_patients_without_a_tumor_s_name_are_not_guessed(real_geometry, number):
    with pytest.raises(BadCase, match=r"has 0 structures called like a tumor, among Men, cochlea"):
        real_contours(real_geometry, number, "T2w")


def real_contours(root: Path, number: int, weighting: str) -> list[np.ndarray]:
    name = f"sub-{number:03d}"
    return read_contours(root / f"sourcedata/contours/{name}/anat/{name}_contours_space-individual_{weighting}.json")


def real_mask(contours, offset: float = 0) -> nib.Nifti1Image:
    """On a grid at the collection's spacing around the contours, its slices ``offset`` of a slice off their planes."""
    points = np.concatenate(contours)
    lps = np.diag([*SPACING_MM, 1])
    lps[:3, 3] = points.min(0) - [8, 8, (6 + offset) * SPACING_MM[2]]
    shape = np.ceil((points.max(0) - lps[:3, 3] + np.array([8, 8, 9])) / SPACING_MM).astype(int)
    affine = LPS_TO_RAS @ lps
    return nib.Nifti1Image(tumor_mask(contours, shape, affine).astype(np.float32), affine)


def polygon_volume(contours) -> float:
    """By the shoelace formula, of contours whose planes are T1's slices."""
    areas = [abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 for x, y, _ in (loop.T for loop in contours)]
    heights = np.unique(np.round([loop[:, 2].mean() for loop in contours], 1))
    assert volume_mm3(contours) == pytest.approx(sum(areas) * np.median(np.diff(heights)), rel=0.02)
    return sum(areas) * float(np.median(np.diff(heights)))
