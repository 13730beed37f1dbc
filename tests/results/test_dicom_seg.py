"""The DICOM SEG lies where the mask lies, says what it is, and tells no more about the patient than filing needs."""

import sys
from collections.abc import Sequence
from pathlib import Path

import highdicom
import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from cohort import oblique_affine
from dicom_files import save_all, slices_of
from tissnet_components.regions import LABELS_OF_REGIONS, WHOLE
from tissnet_components.results.dicom_seg import FILING, check_dicom_seg, write_dicom_seg
from tissnet_components.scans.dicom import find_series, read_series

AFFINES = {
    "axial": np.diag([-0.41, -0.5, 1.5, 1]),
    "oblique": oblique_affine((0.41, 0.5, 1.5)),
    "sagittal": np.array([[0, 0, 1.5, -20], [-0.41, 0, 0, 30], [0, -0.5, 0, 10], [0, 0, 0, 1]]),
}
SEGMENT = {"label": "vestibular schwannoma", "type": "Neoplasm", "region": "VestibulocochlearNerve"}
SECRETS = {  # in the headers of many a scanner
    "ReferringPhysicianName": "Physician^Secret",
    "OtherPatientIDs": "SECRET-1",
    "PatientAddress": "1 Secret Street",
    "PatientComments": "secret",
    "InstitutionName": "Secret Hospital",
    "StationName": "SECRET",
    "OperatorsName": "Operator^Secret",
    "DeviceSerialNumber": "SECRET-2",
    "StudyDescription": "secret study",
}


@pytest.fixture
def mask() -> np.ndarray:
    """Of no symmetry, with an empty slice between two others."""
    mask = np.zeros((10, 12, 6))
    mask[2:5, 3:9, 1:3] = 1
    mask[7, 1, 4] = 1
    return mask


def series(folder: Path, affine: np.ndarray = AFFINES["oblique"], **header: str) -> list[Path]:
    """A series of ten columns, twelve rows and six slices; returns its files."""
    voxels = np.random.default_rng(0).integers(0, 1000, (10, 12, 6)).astype(np.int16)
    items = slices_of(nib.Nifti1Image(voxels, affine))
    for item in items:
        for tag, value in header.items():
            delattr(item, tag) if value is None else setattr(item, tag, value)
    save_all(items, folder)
    return list(find_series(folder)[0].files)


def write(mask: np.ndarray, sources: list[Path], tmp_path: Path, regions: Sequence[str] = (WHOLE,)) -> pydicom.Dataset:
    affine = read_series(find_series(sources[0].parent)[0]).affine
    path = write_dicom_seg(mask, affine, sources, tmp_path / "out" / "seg.dcm", SEGMENT, "TISS-Net", "0.1.0", regions)
    assert [file.name for file in path.parent.iterdir()] == ["seg.dcm"]
    return pydicom.dcmread(path)


def points(indices: np.ndarray, affine: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(np.round(affine @ [*index, 1], 3)[:3] + 0.0) for index in indices}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=list(AFFINES))
def test_highdicom_reads_the_same_voxels_at_the_same_places(mask, tmp_path, affine):
    files = series(tmp_path / "series", affine)
    assert check_dicom_seg(files, SEGMENT, "TISS-Net", "0.1.0") == ""
    written = write(mask, files, tmp_path)
    read = highdicom.seg.Segmentation.from_dataset(written).get_volume(combine_segments=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    assert points(np.argwhere(read.array), read.affine) == points(np.argwhere(mask), lps)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=list(AFFINES))
def test_every_frame_lies_where_itk_places_the_slice(mask, tmp_path, affine):
    files = series(tmp_path / "series", affine)
    written = write(mask, files, tmp_path)
    image = itk.imread([str(file) for file in files], itk.F, imageio=itk.GDCMImageIO.New())
    frames = written.pixel_array.reshape(-1, written.Rows, written.Columns)
    found = set()
    for pixels, groups in zip(frames, written.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        column, row, slice_index = np.round(image.TransformPhysicalPointToContinuousIndex(list(place)), 2)
        assert (column, row) == (0, 0)
        found |= {(x, y, slice_index) for y, x in np.argwhere(pixels)}
    assert found == {tuple(index) for index in np.argwhere(mask)}
    direction = itk.array_from_matrix(image.GetDirection())
    orientation = written.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(np.array(orientation, float), direction[:, :2].T.ravel(), atol=1e-6)


def test_a_frame_refers_to_the_slice_at_its_place(mask, tmp_path):
    files = series(tmp_path / "series")
    positions = {item.SOPInstanceUID: item.ImagePositionPatient for item in map(pydicom.dcmread, files)}
    written = write(mask, files, tmp_path)
    for groups in written.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(groups.PlanePositionSequence[0].ImagePositionPatient, positions[source], atol=1e-4)


def test_it_is_filed_with_the_patient_and_the_study_it_comes_from(mask, tmp_path):
    files = series(tmp_path / "series", PatientName="Muster^Eva", PatientSex="F", AccessionNumber="A1")
    source, written = pydicom.dcmread(files[0]), write(mask, files, tmp_path)
    for tag in (*FILING, "StudyInstanceUID", "FrameOfReferenceUID"):
        assert written[tag].value == source[tag].value
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_it_says_what_was_segmented_and_by_what(mask, tmp_path):
    written = write(mask, series(tmp_path / "series"), tmp_path)
    [segment] = written.SegmentSequence
    codes = [
        segment.SegmentedPropertyCategoryCodeSequence,
        segment.SegmentedPropertyTypeCodeSequence,
        segment.AnatomicRegionSequence,
    ]
    assert [(code[0].CodingSchemeDesignator, code[0].CodeValue) for code in codes] == [
        ("SCT", "49755003"),  # morphologically abnormal structure
        ("SCT", "108369006"),  # neoplasm
        ("SCT", "8598002"),  # vestibulocochlear nerve
    ]
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("vestibular schwannoma", "AUTOMATIC")
    [algorithm] = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("TISS-Net", "0.1.0")
    assert "not a medical device" in written.SeriesDescription


def test_each_part_of_a_tumor_is_a_segment_of_its_own_code(mask, tmp_path):
    mask *= 2
    mask[3:5, 4:6, 1] = 1
    mask[7, 1, 4] = 4
    written = write(mask, series(tmp_path / "series"), tmp_path, list(LABELS_OF_REGIONS))
    told = [(one.SegmentLabel, one.SegmentedPropertyTypeCodeSequence[0]) for one in written.SegmentSequence]
    assert [(label, code.CodingSchemeDesignator, code.CodeValue) for label, code in told] == [
        ("edema", "SCT", "79654002"),
        ("necrosis", "SCT", "6574001"),
        ("enhancing tumor", "NCIt", "C113842"),
    ]
    read = highdicom.seg.Segmentation.from_dataset(written).get_volume(combine_segments=True)  # none overlap
    lps = np.diag([-1, -1, 1, 1]) @ AFFINES["oblique"]
    for number, label in enumerate((2, 1, 4), 1):
        assert points(np.argwhere(read.array == number), read.affine) == points(np.argwhere(mask == label), lps)


def test_nothing_else_about_the_patient_is_passed_on(mask, tmp_path):
    written = write(mask, series(tmp_path / "series", **SECRETS), tmp_path)
    assert "secret" not in str(written).lower()


def test_a_series_that_was_de_identified_stays_marked_so(mask, tmp_path):
    files = series(tmp_path / "series", PatientIdentityRemoved="YES", DeidentificationMethod="Per DICOM PS 3.15 AnnexE")
    assert write(mask, files, tmp_path).PatientIdentityRemoved == "YES"


def test_attributes_that_a_sparse_header_lacks_are_left_empty(mask, tmp_path):
    files = series(tmp_path / "series")
    for file in files:
        item = pydicom.dcmread(file)
        for tag in ("PatientName", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
            delattr(item, tag)
        item.save_as(file)
    assert not write(mask, files, tmp_path).PatientName


def test_a_series_without_frame_of_reference_is_refused(mask, tmp_path):
    files = series(tmp_path / "series")
    for file in files:
        item = pydicom.dcmread(file)
        del item.FrameOfReferenceUID
        item.save_as(file)
    with pytest.raises(ValueError, match=r"1-00\d.dcm has no FrameOfReferenceUID"):
        check_dicom_seg(files, SEGMENT, "TISS-Net", "0.1.0")


ODD = {  # what a scanner or an archive writes, and what the SEG says then
    "Japanese": ({"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"}, None, None),
    "Greek": ({"SpecificCharacterSet": "ISO_IR 126", "PatientName": "Διονυσιος"}, None, None),
    "an unknown character set": ({"SpecificCharacterSet": "FOO", "PatientName": "Doe"}, None, None),
    "a German woman": ({"PatientSex": "W"}, "leaves out", ""),
    "a man in full": ({"PatientSex": "male"}, "mends", "M"),
    "no day or month of birth": ({"PatientBirthDate": "19700000"}, "leaves out", ""),
    "a year of birth": ({"PatientBirthDate": "1970"}, "leaves out", ""),
    "a date with dots": ({"PatientBirthDate": "1970.01.31"}, "mends", "19700131"),
    "a date that is none": ({"StudyDate": "20201345"}, "leaves out", ""),
    "a time with colons": ({"StudyTime": "10:10:10"}, "mends", "101010"),
    "a time that is none": ({"StudyTime": "256199"}, "leaves out", ""),
    "two names": ({"PatientName": "Doe^Jane\\Roe^Rita"}, "mends", "Doe^Jane"),
    "a name in two lines": ({"PatientName": "Doe\nJane"}, "leaves out", ""),
    "a long name": ({"PatientName": "N" * 65}, "leaves out", ""),
    "two patients": ({"PatientID": "A\\B"}, "leaves out", ""),
    "a long number": ({"AccessionNumber": "1" * 17}, "leaves out", ""),
    "no thickness": ({"SliceThickness": None}, "mends", None),
    "an empty thickness": ({"SliceThickness": ""}, "mends", None),
    "no thickness at all": ({"SliceThickness": "0"}, "mends", None),
    "no patient": ({"PatientID": None, "PatientName": None}, None, None),
    "no class": ({"SOPClassUID": None}, None, None),
    "another UID": ({"StudyInstanceUID": "1.02.3"}, None, None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("header", "done", "kept"), ODD.values(), ids=list(ODD))
def test_an_odd_header_is_mended_or_left_out_and_said_before_there_is_a_mask(
    mask, tmp_path, header, done, kept, caplog
):
    files = series(tmp_path / "series", **header)
    (tag, value), *_ = reversed(header.items())
    caplog.clear()
    said = f"{files[0]} has a malformed header; the DICOM SEG {done} {tag}" if done else ""
    assert check_dicom_seg(files, SEGMENT, "TISS-Net", "0.1.0") == said
    written = write(mask, files, tmp_path)
    assert not caplog.records
    expected = value if not done and value else kept
    assert expected is None or str(written[tag].value or "") == expected
    read = highdicom.seg.Segmentation.from_dataset(written).get_volume(combine_segments=True)
    assert read.array.sum() == mask.sum()
    np.testing.assert_allclose(read.spacing[0], 1.5, atol=1e-4)


def test_slices_of_one_instance_uid_cannot_be_told_apart_in_a_seg(tmp_path):
    files = series(tmp_path / "series", SOPInstanceUID="1.2.3")
    with pytest.raises(ValueError, match="has the SOPInstanceUID of another slice, which a DICOM SEG must tell apart"):
        check_dicom_seg(files, SEGMENT, "TISS-Net", "0.1.0")


def test_what_no_seg_can_refer_to_is_refused_before_there_is_a_mask_without_naming_the_patient(tmp_path):
    files = series(tmp_path / "series", PatientName="Muster^Eva")
    item = pydicom.dcmread(files[2])
    item.StudyInstanceUID = "1.2.3"
    item.save_as(files[2])
    with pytest.raises(ValueError, match=r"whose headers no DICOM SEG can refer to \(ValueError\)") as caught:
        check_dicom_seg(files, SEGMENT, "TISS-Net", "0.1.0")
    assert "Muster" not in str(caught.value) and caught.value.__cause__ is None


def test_an_empty_mask_is_a_seg_without_a_marked_pixel(mask, tmp_path, caplog):
    written = write(mask * 0, series(tmp_path / "series"), tmp_path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert written.NumberOfFrames == 6
    assert not written.pixel_array.any()


def test_the_patients_name_is_not_shown(mask, tmp_path, recwarn, caplog, capsys):
    write(mask, series(tmp_path / "series", PatientName="Muster"), tmp_path)
    assert not [warning for warning in recwarn if "Muster" in str(warning.message)]
    assert "Muster" not in caplog.text + "".join(capsys.readouterr())


def test_without_highdicom_the_cure_is_named(mask, tmp_path, monkeypatch):
    files = series(tmp_path / "series")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r"DICOM SEG needs highdicom, .* pip install -e \"\.\[dicom\]\""):
        write(mask, files, tmp_path)
