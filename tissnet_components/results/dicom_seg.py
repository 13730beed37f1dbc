"""The mask as DICOM SEG, so that a PACS files and shows it with the series it was segmented from."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from tissnet_components.errors import BadCase
from tissnet_components.files import write_whole
from tissnet_components.scans.dicom import LPS_TO_RAS, import_pydicom

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


def write_dicom_seg(
    mask: np.ndarray,
    affine: np.ndarray,
    sources: Sequence[str | Path],
    path: str | Path,
    segment: Mapping[str, str],
    algorithm: str,
    version: str,
) -> Path:
    """Write a binary mask as DICOM SEG (PS3.3 A.51) of the patient, study and frame of reference of its source.

    Of the source's patient and study only the attributes of `FILING` are copied, and whether it was de-identified; no
    equipment, institution or physician.

    Args:
        mask: above 0.5 is the segment.
        affine: (4, 4), voxel to RAS millimetres.
        sources: the slices of the source series, in any order.
        segment: ``label``, free text; ``type`` and ``region``, SNOMED CT concepts by pydicom's names, such as
            ``Neoplasm`` and ``Brain``.
        algorithm, version: what made the mask.

    Shapes:
        mask: (X, Y, Z).

    Raises:
        BadCase: the source series lacks an identifier.
        ImportError: highdicom is not installed.
    """
    highdicom = import_highdicom()
    from pydicom.sr.codedict import codes

    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=segment["label"],
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=getattr(codes.SCT, segment["type"]),
        anatomic_regions=[getattr(codes.SCT, segment["region"])],
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm[:64], family=codes.DCM.ArtificialIntelligence, version=version
        ),
    )
    slices = [_reference(file) for file in sources]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's and highdicom's show the patient's name
        found = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=_volume(mask, affine, slices[0].FrameOfReferenceUID),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[described],
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            series_description=f"{segment['label']} (research, not a medical device)"[:64],
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="TISS-Net bundle contributors",
            manufacturer_model_name="tissnet_components",
            software_versions=version,
            device_serial_number="none",
            omit_empty_frames=bool((mask > 0.5).any()),
        )
    content = io.BytesIO()
    found.save_as(content)
    return write_whole(path, content.getvalue())


def import_highdicom() -> ModuleType:
    """highdicom, which only those need who write DICOM."""
    try:
        import highdicom
    except ImportError as error:
        raise ImportError('DICOM SEG needs highdicom, which is not installed; pip install -e ".[dicom]"') from error
    return highdicom


def _volume(mask: np.ndarray, affine: np.ndarray, frame_of_reference: str):
    """The mask as highdicom arranges it: (slices, rows, columns), voxel to LPS millimetres."""
    return import_highdicom().Volume(
        (mask > 0.5).T.astype(np.uint8),
        (LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame_of_reference,
    )


def _reference(file: str | Path):
    """A slice with nothing but what the SEG refers to and is filed by."""
    tags = (*FILING, *DEIDENTIFICATION, *REFERENCE)
    item = import_pydicom().dcmread(file, stop_before_pixels=True, specific_tags=tags)
    missing = [tag for tag in NEEDED if not item.get(tag)]
    if missing:
        raise BadCase(f"{file} has no {missing[0]}, which a DICOM SEG refers to; leave out --dicom_seg")
    for tag in FILING:
        item.setdefault(tag, None)
    return item
