"""Any DICOM folder gives the volume that its headers describe and a DICOM SEG, or a sentence with file, cause, cure."""

import contextlib
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from cohort import oblique_affine
from dicom_files import RAS_TO_LPS, save_all, slices_of
from hypothesis import strategies as st
from odd_input import inputs, refusal, tried
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from tissnet_components.results.dicom_seg import check_dicom_seg
from tissnet_components.scans.contrast import contrast_of
from tissnet_components.scans.dicom import IMAGE_MODALITIES, Series, find_series, read_series

SHAPE = (6, 5, 4)
WORDS = (
    *("", "abc", "1\\2", "../../x", "/etc/x", "a\nb", "^^", "患者", "x" * 64, "nan", "0", "1e99", "-1"),
    *("W", "1970", "10:10:10"),
)
NUMBERS = ((), (0,), (0, 0), (0.5, 0.5), (-1, 1), (1e-9, 1e-9), (1e9, 1e9), (0, 0, 1), (1, 1, 1), (1, 2, 3, 4), (7,))
AXES = ((0,) * 6, (1, 0, 0, 1, 0, 0), (1, 0, 0, 0, 1, 0), (2, 0, 0, 0, 2, 0), (1, 0, 0, 0.5, 0.5, 0))
PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
TEXTS = (
    *("PatientName", "PatientID", "SeriesInstanceUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesDescription"),
    *("Modality", "InstanceNumber", "ContrastBolusAgent", "NumberOfFrames", "SpecificCharacterSet"),
    *("PatientSex", "PatientBirthDate", "StudyTime", "SliceThickness", "SOPClassUID", "FrameOfReferenceUID"),
)
SYNTAXES = (
    "1.2.840.10008.1.2",  # implicit, as the files are not
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.2",  # big-endian
    "1.2.840.10008.1.2.4.50",  # JPEG
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # run lengths
    "1.2.3",
    "",
)
VALUES = {
    **dict.fromkeys(PLACES, st.sampled_from((*NUMBERS, *AXES, *WORDS))),
    **dict.fromkeys(TEXTS, st.sampled_from(WORDS)),
    **dict.fromkeys(("Rows", "Columns"), st.sampled_from((0, 1, 4, 5, 6, 7, 300, 65535))),
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), st.sampled_from(("0", "0.5", "-2", "1e9", "nan", "abc", ""))),
    **dict.fromkeys(("BitsAllocated", "BitsStored", "SamplesPerPixel"), st.sampled_from((0, 1, 3, 8, 12, 16, 32))),
    "PixelData": st.sampled_from((b"", b"\0\0", bytes(58), bytes(60), bytes(62), bytes(6000))),
    "TransferSyntaxUID": st.sampled_from(SYNTAXES),
}
HARM = st.one_of(
    st.sampled_from(sorted(VALUES)).flatmap(lambda tag: st.tuples(st.just(tag), VALUES[tag])),
    st.tuples(st.sampled_from(sorted(VALUES)), st.none()),  # the tag is gone
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("byte"), st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))),
)


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def volume() -> nib.Nifti1Image:
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return nib.Nifti1Image(array, oblique_affine((0.41, 0.5, 1.5)))


def harm(file: Path, kind: str, how) -> None:
    """Spoil a DICOM file in some way, or leave it as good as it was."""
    content = file.read_bytes()
    if kind == "cut":
        file.write_bytes(content[: int(how * len(content))])
    elif kind == "byte":
        place = int(how[0] * len(content))
        file.write_bytes(content[:place] + bytes([how[1]]) + content[place + 1 :])
    elif kind == "TransferSyntaxUID":
        file.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", (how or "").encode().ljust(20, b"\0")[:20], 1))
    elif pydicom.misc.is_dicom(file):
        item = pydicom.dcmread(file)
        if kind in item:
            del item[kind]
        if how is not None:
            item.add(element(kind, how))
        with contextlib.suppress(ValueError, TypeError, NotImplementedError):  # what pydicom cannot write stays cut
            item.save_as(file)


def element(tag: str, value) -> DataElement:
    """Of the tag's own kind where that can hold the value, else of text, as careless software writes."""
    number = tag_for_keyword(tag)
    ignore = pydicom.config.IGNORE
    if isinstance(value, bytes):
        return DataElement(number, "OW", value)
    if isinstance(value, tuple):
        return DataElement(number, "DS", [str(each) for each in value], validation_mode=ignore)
    try:
        return DataElement(number, pydicom.datadict.dictionary_VR(tag), value, validation_mode=ignore)
    except (ValueError, TypeError, OverflowError):
        return DataElement(number, "LT", value, validation_mode=ignore)


def check_volume(series: Series, exactly: bool) -> None:
    contrast_of(series)
    image = read_series(series)
    assert image.shape[2] == len(series.files) and np.isfinite(image.affine).all()
    if exactly:
        check_described(image, series.files)
    check_dicom_seg(series.files, {"label": "tumor", "type": "Neoplasm", "region": "Brain"}, "TISS-Net", "0.1.0")


def check_described(image: nib.Nifti1Image, files: tuple[Path, ...]) -> None:
    """Each slice of a volume has the pixels of one file, as pydicom reads them, at its place."""
    lps = RAS_TO_LPS @ image.affine
    for item in map(pydicom.dcmread, files):
        across, down = np.reshape([float(x) for x in item.ImageOrientationPatient], (2, 3))
        row_mm, column_mm = (float(x) for x in item.PixelSpacing)
        place = np.array([float(x) for x in item.ImagePositionPatient])
        index = np.linalg.solve(lps[:3, :3], place - lps[:3, 3])
        assert np.allclose(index[:2], 0, atol=0.3) and np.allclose(index[2], np.rint(index[2]), atol=0.1)
        assert np.allclose(lps[:3, 0], across * column_mm, atol=1e-2)
        assert np.allclose(lps[:3, 1], down * row_mm, atol=1e-2)
        try:
            pixels = item.pixel_array
        except (AttributeError, ValueError):  # pydicom needs a tag that ITK does without
            continue
        pixels = pixels * float(item.get("RescaleSlope") or 1) + float(item.get("RescaleIntercept") or 0)
        assert np.allclose(np.asarray(image.dataobj)[..., round(index[2])].T, pixels, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@tried(40, 1500)
def test_any_series_gives_the_volume_that_its_headers_describe_or_a_sentence(amount, tmp_path):
    save_all(slices_of(volume()), tmp_path / "good")

    @inputs(amount, st.lists(HARM, min_size=1, max_size=2), st.sampled_from((0, 1, 3, None)))
    def ends(harms, which):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            files = sorted(shutil.copytree(tmp_path / "good", Path(folder) / "series").iterdir())
            for kind, how in harms:
                for file in files if which is None else [files[which]]:
                    harm(file, kind, how)
            for series in find_series(folder):
                said = refusal(partial(check_volume, series, exactly=all(kind != "byte" for kind, _ in harms)), folder)
                assert said or series.modality in IMAGE_MODALITIES
