"""The mask as DICOM SEG, so that a PACS files and shows it with the series it was segmented from."""

import io
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tissnet_components.errors import BadCase, PackageMissing, UserError
from tissnet_components.files import write_atomic
from tissnet_components.scans.dicom import LPS_TO_RAS, import_pydicom, quietly

SERIES_NUMBER = 9001  # after any of the scanner's own
FILING = (  # what a PACS files by; all that is read of the patient and the study, and so all that is passed on
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
)
DEIDENTIFICATION = ("PatientIdentityRemoved", "DeidentificationMethod")
REFERENCE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
)
NEEDED = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
SEXES = {"MALE": "M", "FEMALE": "F", "OTHER": "O", "M": "M", "F": "F", "O": "O", "": ""}
STORAGE = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2", "PT": "1.2.840.10008.5.1.4.1.1.128"}


@quietly()
def write_dicom_seg(
    mask: np.ndarray,
    affine: np.ndarray,
    sources: Sequence[str | Path],
    path: str | Path,
    segment: Mapping[str, str],
    algorithm: str,
    version: str,
    regions: Sequence[str] = (),
) -> Path:
    """Write a mask as binary DICOM SEG (PS3.3 A.51) of the patient, study and frame of reference of its source.

    Of the source's patient and study only the attributes of `FILING` are copied, and whether it was de-identified; no
    equipment, institution or physician. What is malformed there is mended or left out, see `check_dicom_seg`.

    Args:
        mask: above 0.5 is the segment; of several regions, their label map, which gives a segment for each value.
        affine: (4, 4), voxel to RAS millimetres.
        sources: the slices of the source series, in any order.
        segment: ``label``, free text; ``type`` and ``region``, SNOMED CT concepts by pydicom's names, such as
            ``Neoplasm`` and ``Brain``. Several regions have the labels of `label_names` and the types of CID 7168.
        algorithm, version: what made the mask.
        regions: that the mask names; one, or none, is a mask of 0 and 1.

    Shapes:
        mask: (X, Y, Z).

    Raises:
        BadCase: the source series lacks an identifier.
        ImportError: highdicom is not installed.
    """
    slices, _ = _references(sources)
    return write_atomic(path, _content(mask, affine, slices, segment, algorithm, version, regions))


@quietly()
def check_dicom_seg(
    sources: Sequence[str | Path], segment: Mapping[str, str], algorithm: str, version: str, regions: Sequence[str] = ()
) -> str:
    """Try a DICOM SEG of an empty mask, and read it as highdicom does, before there is a mask.

    Returns:
        which attributes of the source are malformed, and so mended or left out, without their values; "" where none is.

    Raises:
        BadCase: no DICOM SEG can refer to the source.
        ImportError: highdicom is not installed.
    """
    highdicom = import_highdicom()
    try:
        slices, doubts = _references(sources)
        shape, affine = _grid(slices)
        content = _content(np.zeros(shape), affine, slices, segment, algorithm, version, regions)
        highdicom.seg.segread(io.BytesIO(content)).get_volume(combine_segments=True)
    except BadCase:
        raise
    except Exception as error:  # pydicom and highdicom raise whatever a header leads to, with the patient's name in it
        raise BadCase(
            f"{sources[0]} is of a series whose headers no DICOM SEG can refer to ({type(error).__name__}); export it "
            f"again, or leave out --dicom_seg"
        ) from None
    return doubts


def import_highdicom() -> ModuleType:
    """highdicom, which only those need who write DICOM."""
    try:
        import highdicom
    except ImportError as error:
        raise PackageMissing('DICOM SEG needs highdicom, which is not installed; pip install -e ".[dicom]"') from error
    return highdicom


def _content(
    mask: np.ndarray,
    affine: np.ndarray,
    slices: Sequence,
    segment: Mapping[str, str],
    algorithm: str,
    version: str,
    regions: Sequence[str],
) -> bytes:
    """The file as bytes."""
    highdicom = import_highdicom()
    from pydicom.sr.codedict import codes
    from tissnet_components.regions import label_names  # which imports PyTorch; `segment` imports this module first

    types = {"edema": codes.SCT.Edema, "necrosis": codes.SCT.Necrosis, "enhancing tumor": codes.NCIt.EnhancingLesion}
    names = label_names(regions) if len(regions) > 1 else {segment["label"]: 1}
    masks = np.stack([mask == label if len(names) > 1 else mask > 0.5 for label in names.values()])
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=types.get(name, getattr(codes.SCT, segment["type"])),
            anatomic_regions=[getattr(codes.SCT, segment["region"])],
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=algorithm[:64], family=codes.DCM.ArtificialIntelligence, version=version
            ),
        )
        for number, name in enumerate(names, 1)
    ]
    found = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=_volume(masks, affine, slices[0].FrameOfReferenceUID),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        series_description=f"{segment['label']} (research, not a medical device)"[:64],
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="TISS-Net bundle contributors",
        manufacturer_model_name="tissnet_components",
        software_versions=version,
        device_serial_number="none",
        omit_empty_frames=bool(masks.any()),
        specific_character_set="ISO_IR 192",
    )
    content = io.BytesIO()
    found.save_as(content)
    return content.getvalue()


def _volume(masks: np.ndarray, affine: np.ndarray, frame_of_reference: str):
    """The masks as highdicom arranges them: (slices, rows, columns, segments), voxel to LPS millimetres."""
    return import_highdicom().Volume(
        masks.transpose(3, 2, 1, 0).astype(np.uint8),
        (LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame_of_reference,
        channels={"SegmentNumber": list(range(1, len(masks) + 1))},
    )


def _grid(slices: Sequence) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine, voxel to RAS millimetres, of the volume that slices make."""
    first = slices[0]
    across, down = np.reshape([float(x) for x in first.ImageOrientationPatient], (2, 3))
    row_mm, column_mm = (float(x) for x in first.PixelSpacing)
    places = np.array([[float(x) for x in item.ImagePositionPatient] for item in slices])
    places = places[np.argsort(places @ np.cross(across, down))]
    lps = np.eye(4)
    lps[:3] = np.column_stack(
        [across * column_mm, down * row_mm, (places[-1] - places[0]) / max(len(places) - 1, 1), places[0]]
    )
    return (int(first.Columns), int(first.Rows), len(slices)), LPS_TO_RAS @ lps


def _references(files: Sequence[str | Path]) -> tuple[list, str]:
    """The slices with nothing but what the SEG refers to and is filed by, well-formed, and what was malformed."""
    slices = [_reference(file) for file in files]
    if len({item.SOPInstanceUID for item in slices}) < len(slices):
        raise BadCase(
            f"{files[0]} has the SOPInstanceUID of another slice, which a DICOM SEG must tell apart; leave out "
            f"--dicom_seg"
        )
    mended: set[str] = set()
    left_out: set[str] = set()
    for item in slices:
        for tag in FILING:
            _mend(item, tag, mended, left_out)
    if not all(_has_thickness(item) for item in slices):
        mended.add("SliceThickness")
        thickness_mm = float(np.linalg.norm(_grid(slices)[1][:3, 2]))
        for item in slices:
            item.SliceThickness = thickness_mm
    done = [f"{how} {', '.join(sorted(tags))}" for how, tags in (("mends", mended), ("leaves out", left_out)) if tags]
    return slices, f"{files[0]} has a malformed header; the DICOM SEG {' and '.join(done)}" if done else ""


def _reference(file: str | Path):
    """A slice with nothing but what the SEG refers to and is filed by, its identifiers complete."""
    pydicom = import_pydicom()
    tags = (*FILING, *DEIDENTIFICATION, *REFERENCE)
    item = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
    meta = getattr(item, "file_meta", {})
    item.SOPInstanceUID = item.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID")
    item.Modality = item.get("Modality") or "MR"
    item.SOPClassUID = item.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or STORAGE.get(item.Modality)
    missing = [tag for tag in NEEDED if not item.get(tag)]
    if missing:
        raise BadCase(f"{file} has no {missing[0]}, which a DICOM SEG refers to; leave out --dicom_seg")
    return item


def _has_thickness(item) -> bool:
    try:
        return 0 < float(item.SliceThickness) < np.inf
    except (AttributeError, TypeError, ValueError):
        return False


def _mend(item, tag: str, mended: set[str], left_out: set[str]) -> None:
    """Bring an attribute of the patient or study into the form that DICOM wants, or leave it empty."""
    text = None
    try:
        given = item.get(tag)
        if given not in (None, ""):
            text = _well_formed(tag, given)
            mended |= {tag} if text != str(given) else set()
    except Exception:  # pydicom reads an attribute only now, and raises whatever its bytes lead to
        left_out.add(tag)
    setattr(item, tag, text)


def _well_formed(tag: str, given: Any) -> str:
    """The value as DICOM wants it.

    Raises:
        ValueError: it cannot be told.
    """
    from pydicom import config
    from pydicom.datadict import dictionary_VR
    from pydicom.multival import MultiValue
    from pydicom.valuerep import TM, validate_value

    kind = dictionary_VR(tag)
    if isinstance(given, MultiValue) and tag == "PatientName":
        given = given[0]  # of several names
    text = str(given)
    if kind == "DA":  # ACR-NEMA, before DICOM, had dots
        text = datetime.strptime(re.sub(r"[-./ ]", "", text), "%Y%m%d").strftime("%Y%m%d")
    if kind == "TM":  # and colons
        text = re.sub("[: ]", "", text)
        TM(text)
    if tag == "PatientSex":
        text = SEXES[text.strip().upper()]
    if isinstance(given, MultiValue) or not text.isprintable() or "\ufffd" in text:
        raise UserError(f"{tag} is more than one value, or of an unknown character set")
    validate_value(kind, text, config.RAISE)
    if kind == "PN":
        import_highdicom().valuerep.check_person_name(text)
    return text
