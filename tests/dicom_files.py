"""Volumes written as DICOM series, slice by slice, as a scanner would."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RTStructureSetStorage, generate_uid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def dataset(sop_class: str, modality: str, patient: str) -> FileDataset:
    """An empty object of a patient, with UIDs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    item.Modality, item.PatientID, item.PatientName = modality, patient, "Simulated"
    item.StudyInstanceUID, item.SeriesInstanceUID = generate_uid(), generate_uid()
    item.FrameOfReferenceUID = generate_uid()
    item.StudyDate, item.StudyTime, item.StudyID, item.AccessionNumber = "20200101", "120000", "1", ""
    item.PatientBirthDate, item.PatientSex, item.ReferringPhysicianName = "", "", ""
    return item


def slices_of(volume: nib.Nifti1Image, patient: str = "P1", description: str = "t2_ci3d_tra") -> list[FileDataset]:
    """The slices (last axis) of a non-negative volume as MR images, in the order of the axis."""
    lps = RAS_TO_LPS @ volume.affine
    spacing_mm = np.linalg.norm(lps[:3, :3], axis=0)
    common = dataset(MRImageStorage, "MR", patient)
    items = []
    for index in range(volume.shape[2]):
        item = dataset(MRImageStorage, "MR", patient)
        for uid in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(item, uid, common[uid].value)
        item.SeriesDescription, item.SeriesNumber, item.InstanceNumber = description, 1, index + 1
        item.ImageType, item.Manufacturer = ["ORIGINAL", "PRIMARY"], "simulated"
        item.ImageOrientationPatient = [f"{x:.8f}" for x in (lps[:3, :2] / spacing_mm[:2]).T.ravel()]
        item.ImagePositionPatient = [f"{x:.5f}" for x in (lps @ [0, 0, index, 1])[:3]]
        item.PixelSpacing = [f"{spacing_mm[1]:.6f}", f"{spacing_mm[0]:.6f}"]  # between rows, then between columns
        item.SliceThickness = f"{spacing_mm[2]:.6f}"
        pixels = np.ascontiguousarray(np.asarray(volume.dataobj)[..., index].T.astype(np.uint16))
        item.Rows, item.Columns = pixels.shape
        item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 0
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.PixelData = pixels.tobytes()
        items.append(item)
    return items


def save_all(items: Sequence[FileDataset], folder: Path, name: str = "1-{:03d}.dcm") -> list[Path]:
    """Write objects as DICOM files, numbered from 1 in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name.format(number) for number in range(1, len(items) + 1)]
    for item, file in zip(items, files, strict=True):
        item.save_as(file, enforce_file_format=True)
    return files


def rtstruct(
    structures: dict[str, list], series_uid: str, patient: str = "P1", geometry: str = "CLOSED_PLANAR"
) -> FileDataset:
    """Structures, name -> loops (N, 3) in LPS mm, drawn on a series."""
    item = dataset(RTStructureSetStorage, "RTSTRUCT", patient)
    item.StructureSetLabel, item.SeriesDescription = "simulated", "RT structures"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = series_uid
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    item.ReferencedFrameOfReferenceSequence = [frame]
    item.StructureSetROISequence, item.ROIContourSequence = [], []
    for number, (name, loops) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        drawn.ContourSequence = [contour(loop, geometry) for loop in loops]
        item.StructureSetROISequence.append(roi)
        item.ROIContourSequence.append(drawn)
    return item


def contour(loop: np.ndarray, geometry: str) -> Dataset:
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = geometry, len(loop)
    item.ContourData = [f"{value:.4f}" for value in np.ravel(loop)]
    return item
