import gzip
import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from cohort import oblique_affine
from tissnet_components.errors import BadCase
from tissnet_components.results.maps import SaveImageCased
from tissnet_components.scans import nifti
from tissnet_components.scans.cases import check_case, usable_cases
from tissnet_components.scans.datalist import load_datalist
from tissnet_components.scans.dicom import LPS_TO_RAS
from tissnet_components.scans.loading import LoadCased
from tissnet_components.scans.nifti import (
    check_intensities,
    check_label,
    check_readable,
    check_same_grid,
    read_ahead,
    read_volume,
)

SHAPE = (4, 5, 6)


def scan() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def save(file: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), file)
    return file


@pytest.fixture
def case(tmp_path) -> dict:
    image = [str(save(tmp_path / f"p_{modality}.nii.gz", scan())) for modality in ("t1", "t1ce", "t2")]
    target = str(save(tmp_path / "p_flair.nii.gz", scan() + 3))
    label = str(save(tmp_path / "p_seg.nii.gz", (scan() % 5).astype(np.uint8)))
    return {"case": "p", "image": image, "target": target, "label": label}


def write_datalist(folder: Path, **sections) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "test", **sections}))
    return path


def entry(name: str) -> dict:
    return {"case": name, "image": [f"{name}/t1.nii", f"{name}/t2.nii"], "target": f"{name}/flair.nii"}


def test_a_sound_case_passes(case):
    check_case(case)


def test_a_case_without_label_and_target_passes(case):
    check_case({"case": "p", "image": case["image"][0]})


def test_a_qform_that_says_the_same_passes(case):
    with_qform(np.eye(4) + 1e-4)(Path(case["image"][0]))
    check_readable(case["image"][0])


def test_a_byte_that_changed_is_noticed_by_the_checksum(tmp_path):
    volume = nib.Nifti1Image(np.arange(8000, dtype=np.int16).reshape(20, 20, 20), np.eye(4))
    content = bytearray(gzip.compress(volume.to_bytes(), compresslevel=0))
    content[-30] ^= 1  # a voxel: unpacked it is another number, and nothing else tells
    (tmp_path / "t1.nii.gz").write_bytes(content)
    with pytest.raises(BadCase, match=r"t1.nii.gz cannot be read as NIfTI .*CRC"):
        check_readable(tmp_path / "t1.nii.gz")


def test_scans_read_ahead_are_read_once_and_what_is_wrong_is_said_when_they_are_used(tmp_path, case, monkeypatch):
    first, broken, opened = str(case["image"][0]), str(tmp_path / "broken.nii.gz"), []
    Path(broken).write_bytes(b"no NIfTI")
    monkeypatch.setattr(nifti, "check_readable", lambda file: opened.append(file) or check_readable(file))
    read_ahead([first, broken])
    np.testing.assert_array_equal(read_volume(first, check_intensities).dataobj, scan())
    with pytest.raises(BadCase, match=r"broken\.nii\.gz cannot be read as NIfTI"):
        read_volume(broken, check_intensities)
    assert sorted(opened) == sorted([first, broken])


def test_a_readable_file_comes_back_with_its_voxels(case):
    np.testing.assert_array_equal(check_readable(case["image"][0]).dataobj, scan())


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)], ids=["qform alone", "sform alone", "both"])
def test_nibabel_and_itk_see_the_mask_where_the_scan_is(tmp_path, codes):
    image = nib.Nifti1Image(scan(), None)
    image.header.set_zooms((1, 2, 3))
    for place, code in zip((image.set_qform, image.set_sform), codes, strict=True):
        place(oblique_affine((1, 2, 3)) if code else None, code)
    nib.save(image, tmp_path / "p_t1.nii")
    loaded = LoadCased("image")({"case": "p", "image": str(tmp_path / "p_t1.nii")})["image"]
    SaveImageCased("fine", str(tmp_path), "seg")({"fine": loaded})
    files = (tmp_path / "p_t1.nii", tmp_path / "p" / "p_seg.nii.gz")
    for affine in (lambda file: nib.load(file).affine, itk_affine):
        np.testing.assert_allclose(affine(files[0]), oblique_affine((1, 2, 3)), atol=1e-4)
        np.testing.assert_allclose(affine(files[1]), affine(files[0]), atol=1e-4)


def itk_affine(file: Path) -> np.ndarray:
    """Voxel to RAS mm, as ITK reads it."""
    image, affine = itk.imread(str(file)), np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def remove(file: Path):
    file.unlink()


def cut_in_half(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_unpacked_volume(file: Path):
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-10]))


def write_text(file: Path):
    file.write_text("<html>404 not found</html>")


def empty_the_file(file: Path):
    file.write_bytes(b"")


def make_it_flat(file: Path):
    volume = bytearray(nib.Nifti1Image(scan(), np.eye(4)).to_bytes())
    volume[312:328] = bytes(16)  # the header's srow_z: every slice at the same height
    file.write_bytes(gzip.compress(volume))


def with_header(**fields):
    def write(file: Path):
        volume = gzip.decompress(file.read_bytes())
        header = np.frombuffer(volume[:348], nib.nifti1.header_dtype).copy()
        for name, value in fields.items():
            header[name] = value
        file.write_bytes(gzip.compress(header.tobytes() + volume[348:]))

    return write


def with_value(value: float):
    def write(file: Path):
        array = scan().astype(np.float32)
        array[1, 2, 3] = value
        save(file, array)

    return write


def with_array(array: np.ndarray, affine: np.ndarray | None = None):
    return lambda file: save(file, array, affine)


def with_qform(affine: np.ndarray):
    def write(file: Path):
        image = nib.Nifti1Image(scan(), np.eye(4))
        image.set_qform(affine, 1)
        nib.save(image, file)

    return write


FLIPPED = np.diag([-1.0, 1, 1, 1])
SHIFTED = np.eye(4) + np.array([[0, 0, 0, 5.0], *[[0] * 4] * 3])


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        pytest.param(remove, "does not exist", id="missing"),
        pytest.param(cut_in_half, "cannot be read as NIfTI", id="truncated gzip"),
        pytest.param(cut_unpacked_volume, "cannot be read as NIfTI", id="truncated volume"),
        pytest.param(write_text, "cannot be read as NIfTI", id="text called nii.gz"),
        pytest.param(empty_the_file, "cannot be read as NIfTI", id="empty file"),
        pytest.param(
            with_header(dim=[3, 9000, 9000, 9000, 1, 1, 1, 1]), r"\(9000, 9000, 9000\), 1.36e\+03 GiB", id="huge"
        ),
        pytest.param(
            with_header(dim=[3, 900, 900, 900, 1, 1, 1, 1]), "claims the shape .* in [0-9]+ bytes", id="large"
        ),
        pytest.param(make_it_flat, "which cannot be inverted", id="singular affine"),
        pytest.param(with_array(scan(), np.eye(4) / 500), "extends over 0.008 x .*in millimetres?", id="metres"),
        pytest.param(with_array(scan(), np.eye(4) * 1000), r"extends over 4e\+03 x ", id="micrometres"),
        pytest.param(with_header(sform_code=0, qform_code=0), "does not say where it lies", id="no place"),
        pytest.param(with_qform(FLIPPED), "by its sform and by its qform 8 mm apart", id="two places"),
        pytest.param(with_value(np.nan), "1 voxels that are NaN or infinite", id="NaN"),
        pytest.param(with_value(np.inf), "1 voxels that are NaN or infinite", id="infinity"),
        pytest.param(
            with_array(np.array(scan(), float) * 1e300), "119 voxels that are NaN or infinite", id="too large"
        ),
        pytest.param(with_array(np.array(scan(), float) * 1e-300), "only the value 0", id="too small"),
        pytest.param(with_array((scan() > 9) * np.int16(7)), "holds 0 and 7 almost everywhere", id="two values"),
        pytest.param(
            with_array(scan()[:, :, :1]), r"shape \(4, 5, 1\), expected three axes of several", id="one slice"
        ),
        pytest.param(with_array(np.zeros(SHAPE, np.int16)), "only the value 0", id="all zero"),
        pytest.param(with_array(np.full(SHAPE, 7, np.int16)), "only the value 7", id="constant"),
        pytest.param(with_array(scan().astype(np.complex64)), "complex64 voxels", id="complex"),
        pytest.param(with_array(scan()[..., None].repeat(2, -1)), r"shape \(4, 5, 6, 2\), expected three", id="4-D"),
        pytest.param(with_array(scan()[:3]), r"has shape \(3, 5, 6\) but .* has \(4, 5, 6\)", id="other shape"),
        pytest.param(with_array(scan(), SHIFTED), r"has affine .*5\.0.* but ", id="other affine"),
    ],
)
@pytest.mark.parametrize("position", [0, 2], ids=["first", "last"])
def test_a_bad_image_is_named_with_what_is_wrong(case, spoil, sentence, position):
    file = Path(case["image"][position])
    spoil(file)
    with pytest.raises(BadCase, match=sentence) as caught:
        check_case(case)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value, shown", [(5, "5"), (-1, "-1"), (0.5, "0.5"), (np.nan, "nan")])
def test_a_label_outside_the_known_values_is_named(value, shown):
    label = np.array([[0, 1, 2], [3, 4, value]])
    with pytest.raises(BadCase, match=rf"^p_seg.nii holds 1 voxels of value {shown};"):
        check_label(label, "p_seg.nii")


@pytest.mark.parametrize(
    "label", [np.zeros(3, complex), np.zeros(3, [("R", "u1"), ("G", "u1")])], ids=["complex", "RGB"]
)
def test_a_label_of_no_numbers_is_named(label):
    with pytest.raises(BadCase, match=r"^p_seg.nii holds .* voxels, expected real numbers"):
        check_label(label, "p_seg.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_whole_numbers_are_a_label_in_any_type(dtype):
    check_label(np.arange(5, dtype=dtype), "p_seg.nii")


def test_a_label_without_tumor_is_allowed():
    check_label(np.zeros(SHAPE), "p_seg.nii")


def test_single_outlier_voxels_are_allowed():
    check_intensities(np.array([0, 12, 32767], np.int16), "p_t1.nii")


def test_the_odd_one_out_is_named_whatever_its_place():
    for odd in "abc":
        grids = {file: ((4, 4, 2 if file == odd else 3), np.eye(4)) for file in "abc"}
        with pytest.raises(BadCase, match=rf"^{odd} has shape \(4, 4, 2\)"):
            check_same_grid(grids)


@pytest.mark.parametrize("shift_mm, differs", [(0.0009, False), (0.0011, True)])
def test_affines_may_differ_by_a_thousandth_of_a_millimetre(shift_mm, differs):
    moved = np.eye(4)
    moved[0, 3] = shift_mm
    grids = {"a": (SHAPE, np.eye(4)), "b": (SHAPE, moved)}
    if not differs:
        check_same_grid(grids)
        return
    with pytest.raises(BadCase, match="affine"):
        check_same_grid(grids)


def test_bad_cases_are_set_apart_and_the_others_keep_their_order(tmp_path, case):
    gone = {"case": "gone", "image": [str(tmp_path / "gone.nii")]}
    cases = [{**case, "case": "z"}, gone, {**case, "case": "a"}]
    good, failed = usable_cases(cases, workers=2)
    assert [each["case"] for each in good] == ["z", "a"]
    assert list(failed) == ["gone"]
    assert "gone.nii does not exist" in failed["gone"]


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_one_volume_in_a_file_of_more_axes_is_that_volume(tmp_path, more):
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels.reshape(3, 4, 5, *more), np.diag([1, 2, 3, 1])), tmp_path / "a.nii.gz")
    read = check_readable(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read.dataobj, voxels)
    assert read.shape == read.header.get_data_shape() == (3, 4, 5)
    np.testing.assert_array_equal(read.affine, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize("count, shown", [(3, False), (8, True)])
def test_progress_is_shown_for_more_than_a_few_cases(case, capsys, count, shown):
    usable_cases([case] * count)
    assert ("checking cases" in capsys.readouterr().err) == shown


def test_relative_paths_start_at_the_datalist(tmp_path, monkeypatch):
    outside = str(tmp_path.parent / "flair.nii")
    path = write_datalist(tmp_path / "", training=[{"case": "p", "image": "sub/t1.nii", "target": outside}])
    monkeypatch.chdir(tmp_path)
    for given in (path, "datalist.json"):
        assert load_datalist(given, "training") == [
            {"case": "p", "image": [str(tmp_path / "sub" / "t1.nii")], "target": outside}
        ]


@pytest.mark.parametrize(
    "sections, sentence",
    [
        pytest.param({"test": [entry("p")]}, "no section 'training'; it has {'test': 1}", id="section missing"),
        pytest.param({"training": []}, "an empty section 'training'", id="section empty"),
        pytest.param({"training": {"case": "p"}}, "is no list of cases", id="section not a list"),
        pytest.param({"training": [{"case": "p"}]}, "expected at least 'case', and 'image' or", id="no image"),
        pytest.param({"training": [{"case": "p", "label": "p.nii"}]}, "'image' or 'target'", id="label alone"),
        pytest.param({"training": [entry("../p")]}, "names a case '../p', which cannot be a folder", id="outside"),
        pytest.param({"training": [entry("a\nb")]}, r"names a case 'a\\nb'", id="two lines"),
        pytest.param({"training": [entry("p" * 201)]}, "names a case 'ppp", id="too long a name"),
        pytest.param({"training": [entry(7)]}, "names a case '7'", id="a number for a name"),
        pytest.param({"training": [entry("p") | {"target": 5}]}, "expected names of files", id="a number for a file"),
        pytest.param({"training": [entry("p")], "sources": [{}]}, "expected a list of names", id="sources no names"),
        pytest.param({"training": ["p.nii"]}, "expected at least 'case', and 'image' or", id="entry not a case"),
        pytest.param({"training": [entry("p"), entry("p")]}, "the case p more than once", id="case twice"),
        pytest.param(
            {"training": [entry("p")], "test": [entry("p")]},
            "the case p more than once",
            id="case in training and test",
        ),
        pytest.param(
            {"training": [entry("p"), {**entry("q"), "target": "p/t1.nii"}]},
            "the file .*p/t1.nii more",
            id="file twice",
        ),
    ],
)
def test_an_unusable_datalist_is_refused(tmp_path, sections, sentence):
    path = write_datalist(tmp_path, **sections)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_datalist(path, "training")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "not valid JSON"),
        ("[" * 9999, "not valid JSON"),
        ("[1]", "holds a list"),
        (None, "does not exist; .* prepare_vs"),
    ],
)
def test_a_file_that_is_no_datalist_is_refused(tmp_path, text, sentence):
    path = tmp_path / "datalist.json"
    if text:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_datalist(path, "training")


PARTIAL = [
    entry("a") | {"label": "a/seg.nii"},
    entry("b"),
    {"case": "c", "image": ["c/t1.nii", "c/t2.nii"], "label": "c/seg.nii"},
    {"case": "d", "target": "d/flair.nii", "label": "d/seg.nii"},
]


@pytest.mark.parametrize(
    ("needs", "kept", "said"),
    [
        ([], "abcd", ""),
        (["image"], "abc", "1 of 4 cases lack one of image: d"),
        (["target", "label"], "ad", "2 of 4 cases lack one of target, label: b, c"),
        (["image", "target", "label"], "a", "3 of 4 cases lack one of image, target, label: b, c, d"),
    ],
    ids=str,
)
def test_patients_who_lack_what_is_needed_are_left_out_and_named(tmp_path, caplog, needs, kept, said):
    caplog.set_level("INFO")
    path = write_datalist(tmp_path, training=PARTIAL, sources=["t1", "t2"])
    cases = load_datalist(path, "training", ["t2"], needs)
    assert "".join(case["case"] for case in cases) == kept
    assert [case["image"] for case in cases if "image" in case] == [
        [str(tmp_path / name / "t2.nii")] for name in kept if name != "d"
    ]
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_a_section_where_nobody_has_what_is_needed_is_refused(tmp_path):
    path = write_datalist(tmp_path, validation=PARTIAL[1:])
    with pytest.raises(ValueError, match=r"no case in section 'validation' of .* has all of image, target, label; add"):
        load_datalist(path, "validation", needs=["image", "target", "label"])


def test_a_real_patient_with_outlier_voxels_passes(real_gliomas):
    name = "Brats18_TCIA10_637_1"
    image, target, label = ([str(real_gliomas / name / f"{name}_{kind}.nii.gz")] for kind in ("t2", "flair", "seg"))
    check_case({"case": name, "image": image, "target": target[0], "label": label[0]})
