"""DICOM series below a folder, found by their headers alone, and read to one volume each.

Folder and file names mean nothing here, so that TCIA's "descriptive" and "classic" download layouts, a PACS export and
a single folder full of files are all the same.
"""

import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
from tissnet_components.errors import BadCase, PackageMissing
from tissnet_components.files import files_below
from tissnet_components.scans.nifti import check_extent, check_readable, is_nifti

IMAGE_MODALITIES = ("MR", "CT", "PT")
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
HEADER = (  # what tells instances, series and contrasts apart
    *("SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber", "SOPClassUID"),
    *("Modality", "SeriesDescription", "ProtocolName"),
    *("PatientID", "StudyDate", "AcquisitionTime", "SeriesTime", "ImageType", "ComplexImageComponent"),
    *("ScanningSequence", "AcquisitionContrast", "AngioFlag", "MRAcquisitionType"),
    *("EchoTime", "RepetitionTime", "InversionTime", "DiffusionBValue"),
    *("ContrastBolusAgent", "ContrastBolusAgentSequence", "ContrastBolusIngredient", "ContrastBolusVolume"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)
GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2, "Rows": 1, "Columns": 1}
RESCALING = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
PIXELS = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "NumberOfFrames", "HighBit")
TOLERANCE_MM = 0.1  # of a slice's place; headers round to 0.001 mm or finer, and a pixel is 0.4 mm
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """One DICOM series: what its headers say, and its files.

    ``headers`` are the texts of `HEADER`, file by file. ``unreadable`` are damaged DICOM files in the folders of the
    series that may be slices of it. ``contrast`` and ``reason`` are what it was chosen for and why, where it was.
    """

    uid: str
    modality: str
    description: str
    patient: str
    files: tuple[Path, ...]
    headers: tuple[Mapping[str, str], ...] = field(default=(), repr=False, compare=False)
    unreadable: tuple[Path, ...] = ()
    contrast: str = field(default="", compare=False)
    reason: str = field(default="", compare=False)

    @property
    def converted(self) -> bool:
        """Whether it is one NIfTI file, which dcm2niix made of the series."""
        return is_nifti(self.files[0].name)

    @property
    def told(self) -> dict[str, str]:
        """What a summary tells of it."""
        return {name: getattr(self, name) for name in ("contrast", "uid", "description", "reason")}

    def __str__(self) -> str:
        what = f"{self.modality} series {self.description}".strip()
        return f"{what} of {self.patient} in {self.files[0].parent} (UID {self.uid})"


@contextmanager
def quietly() -> Iterator[None]:
    """Without what pydicom and highdicom warn of and log, which shows the patient's name."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@quietly()
def find_series(folder: str | Path) -> list[Series]:
    """Find every DICOM series below a folder, at any depth; other files are passed over.

    Only headers are read. An instance that lies there twice counts once; slices that share one SOPInstanceUID, as some
    software that de-identifies writes, are told apart by the rest of `HEADER`. Sorted by patient, description and UID.

    Raises:
        ValueError: no such folder.
        ImportError: pydicom is not installed.
    """
    members: dict[str, dict[tuple[str, ...], tuple[Path, dict[str, str]]]] = defaultdict(dict)
    damaged, strangers = [], []
    for file in files_below(Path(folder)):
        header = _read_header(file) if file.name != "DICOMDIR" else None
        if header is None:
            strangers.append(file)
        elif not header.get("SeriesInstanceUID"):
            damaged.append(file)
        else:
            instance = header["SOPInstanceUID"] or str(file), *header.values()
            members[header["SeriesInstanceUID"]].setdefault(instance, (file, header))
    named = {_without_numbers(file) for instances in members.values() for file, _ in instances.values()}
    damaged += [s for s in strangers if s.suffix.lower() in DICOM_ENDINGS or _without_numbers(s) in named]
    slices = {uid: list(instances.values()) for uid, instances in members.items()}
    unreadable = _by_series(damaged, slices)
    series = [_series(uid, instances, unreadable[uid]) for uid, instances in slices.items()]
    return sorted(series, key=lambda one: (one.patient, one.description, one.uid))


def holds_dicom(folder: Path) -> bool:
    """Whether a file below a folder begins as DICOM files do."""
    return any(_begins_as_dicom(file) for file in files_below(folder))


def _begins_as_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            return content.read(132)[128:] == b"DICM"
    except OSError:
        return False


@quietly()
def read_series(series: Series) -> nib.Nifti1Pair:
    """Read a series to one volume, slices in the order of their positions.

    Returns:
        (X, Y, Z) int16 where that holds every value, else float32, after the headers' rescaling; affine in RAS mm.

    Raises:
        BadCase: an unreadable file, several orientations, sizes or pixel spacings, gantry tilt, missing, repeated or
            unevenly spaced slices, a multi-frame file, or no image at all.
    """
    if series.converted:
        return check_readable(series.files[0])
    if series.unreadable:
        raise BadCase(f"{series.unreadable[0]} cannot be read as DICOM; fetch it again, a slice may be missing")
    if series.modality not in IMAGE_MODALITIES:
        raise BadCase(
            f"{series.files[0]} is {series.modality or 'of no Modality'}, expected {' or '.join(IMAGE_MODALITIES)}"
        )
    files, affine = _in_order(series)
    import itk  # a tenth of a second, for those who have DICOM

    try:
        image = itk.imread([str(file) for file in files], itk.F, imageio=itk.GDCMImageIO.New())
    except Exception as error:  # of a file that no reader takes, ITK 5.4 raises UnboundLocalError
        raise BadCase(
            f"{_first_bad(files)} cannot be read to its end as DICOM; fetch it again, or export it uncompressed"
        ) from error
    check_extent(affine, image.shape[::-1], series.files[0].parent)
    array = itk.array_from_image(image).T
    whole = array.astype(np.int16)
    return nib.Nifti1Image(whole if np.array_equal(whole, array) else array, affine)


def import_pydicom() -> ModuleType:
    """pydicom, which only those need who have DICOM."""
    try:
        import pydicom
    except ImportError as error:
        raise PackageMissing('DICOM needs pydicom, which is not installed; pip install -e ".[dicom]"') from error
    return pydicom


def _read_header(file: Path) -> dict[str, str] | None:
    """The tags of `HEADER` as text, {} of a damaged DICOM file, None of a file that does not begin as DICOM does."""
    pydicom = import_pydicom()
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=HEADER)
        return {tag: _text(header, tag) for tag in HEADER}
    except pydicom.errors.InvalidDicomError:
        return None
    except Exception:  # a damaged header raises whatever its bytes happen to mean
        return {}


def _text(header: Any, tag: str) -> str:
    """The value of a tag as text, several joined by DICOM's backslash; "" where there is none, or none to be read."""
    try:
        value = header.get(tag)
    except Exception:  # a number that is none, for example
        return ""
    if tag == "ContrastBolusAgentSequence":
        value = [code.get("CodeMeaning", "agent") for code in value or ()]
    values = [value] if value is None or isinstance(value, str) or not isinstance(value, Sequence) else value
    return "\\".join(" ".join(str(one).split()) for one in values if one is not None)


def _without_numbers(file: Path) -> tuple[Path, str]:
    """Alike for the slices of a series, which lie together and differ in their numbers."""
    return file.parent, re.sub(r"\d+", "0", file.name)


def _by_series(
    damaged: Sequence[Path], slices: Mapping[str, Sequence[tuple[Path, dict[str, str]]]]
) -> dict[str, list[Path]]:
    """The damaged files that may be slices of each series.

    Those are all in its folders, unless as many slices are missing there as files are damaged: then it is only they
    that miss some. So one bad file among the scans of many patients stops one of them.
    """
    unreadable: dict[str, list[Path]] = defaultdict(list)
    for folder, files in groupby(sorted(damaged), lambda file: file.parent):
        lost = {
            uid: _missing_numbers([header["InstanceNumber"] for _, header in instances])
            for uid, instances in slices.items()
            if any(file.parent == folder for file, _ in instances)
        }
        bad = list(files)
        for uid, missing in lost.items():
            if missing or sum(lost.values()) != len(bad):
                unreadable[uid] += bad
    return unreadable


def _missing_numbers(numbers: Sequence[str]) -> int:
    """How many of 1 to the highest are not there."""
    found = {int(number) for number in numbers if number.isdecimal()} - {0}
    return max(found, default=0) - len(found)


def _series(uid: str, instances: list[tuple[Path, dict[str, str]]], unreadable: Sequence[Path]) -> Series:
    files, headers = zip(*instances, strict=True)
    modality, description, patient = (headers[0][tag] for tag in ("Modality", "SeriesDescription", "PatientID"))
    return Series(uid, modality, description, patient, files, headers, tuple(unreadable))


def _in_order(series: Series) -> tuple[list[Path], np.ndarray]:
    """The files along the normal of the slices, after checking that they make one regular stack, and its affine.

    The affine is that of the headers, in RAS mm: ITK 5.4 passes over the spacing of some SOPClassUIDs.
    """
    slices = [(file, _geometry(file)) for file in series.files]
    first = slices[0][1]
    for file, geometry in slices[1:]:
        for tag in ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
            if not np.allclose(geometry[tag], first[tag], atol=1e-3):
                raise BadCase(
                    f"{file} has {tag} {geometry[tag]} but {slices[0][0]} has {first[tag]}, in one series; "
                    f"keep the files of one volume"
                )
    normal = np.cross(first["ImageOrientationPatient"][:3], first["ImageOrientationPatient"][3:])
    slices.sort(key=lambda item: float(np.dot(item[1]["ImagePositionPatient"], normal)))
    files = [file for file, _ in slices]
    places = np.array([geometry["ImagePositionPatient"] for _, geometry in slices])
    _check_stack(files, places, normal)
    axes_mm = first["ImageOrientationPatient"].reshape(2, 3) * first["PixelSpacing"][::-1, None]
    lps = np.vstack(
        [np.column_stack([*axes_mm, (places[-1] - places[0]) / (len(places) - 1), places[0]]), [0, 0, 0, 1]]
    )
    return files, LPS_TO_RAS @ lps


def _geometry(file: Path) -> dict[str, np.ndarray]:
    """The tags of `GEOMETRY`, each with as many numbers as it says there, after checking that they place a slice."""
    try:
        tags = [*GEOMETRY, *PIXELS, *RESCALING, "PixelData"]
        header = import_pydicom().dcmread(file, specific_tags=tags)
        values = [header.get(tag) for tag in PIXELS]
        samples, allocated, stored, frames, high = (1 if value in (None, "") else int(value) for value in values)
        high = stored - 1 if values[-1] in (None, "") else high
        found = {tag: header[tag].value for tag in GEOMETRY if header.get(tag) is not None}
        geometry = {tag: np.array(value, dtype=float).reshape(-1) for tag, value in found.items()}
        rescaling = [
            usual if header.get(tag) in (None, "") else float(header[tag].value) for tag, usual in RESCALING.items()
        ]
        pixels = header.get(0x7FE00010)  # by number, which gives the element rather than its value
    except Exception as error:  # a damaged header raises whatever its bytes happen to mean
        raise BadCase(f"{file} has a damaged header ({type(error).__name__}); export the series again") from error
    if frames > 1:
        raise BadCase(f"{file} holds {frames} frames; export it as one file per slice, or as NIfTI")
    if samples != 1 or not 0 < stored <= allocated:
        raise BadCase(
            f"{file} says that {stored} bits of {allocated} are used, {samples} times per pixel; export it again as "
            f"grey values"
        )
    if high != stored - 1:  # ITK would read other values than the scanner wrote
        raise BadCase(f"{file} has HighBit {high}, expected {stored - 1} for {stored} BitsStored; export it again")
    if not np.isfinite(rescaling).all() or rescaling[0] == 0:  # ITK would pass over it
        raise BadCase(
            f"{file} has {' and '.join(RESCALING)} {rescaling}, which leave no image; export the series again"
        )
    for tag, count in GEOMETRY.items():
        if tag not in geometry:
            raise BadCase(f"{file} has no {tag}, so its place is unknown; export the series again, as slices")
        if len(geometry[tag]) != count or not np.isfinite(geometry[tag]).all():
            raise BadCase(f"{file} has {tag} {geometry[tag]}, expected {count} numbers; export the series again")
    promised = int(geometry["Rows"][0] * geometry["Columns"][0]) * allocated // 8
    held = promised if pixels is None or pixels.is_undefined_length else len(pixels.value or b"")  # compressed, unknown
    if held < promised:
        raise BadCase(f"{file} holds {held} of {promised} bytes of its pixels; fetch it again")
    axes = geometry["ImageOrientationPatient"].reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise BadCase(f"{file} has ImageOrientationPatient {axes.ravel()}, no right angle; export the series again")
    return geometry


def _check_stack(files: Sequence[Path], positions: np.ndarray, normal: np.ndarray) -> None:
    """Refuse anything but equidistant slices, one above the other."""
    if len(files) < 2:
        raise BadCase(f"{files[0]} is the only slice of its series; give a whole volume")
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    _check_gaps(files, gaps)
    sideways = steps - np.outer(gaps, normal)
    astray = np.linalg.norm(sideways - np.median(sideways, axis=0), axis=1)
    odd = int(astray.argmax())
    if astray[odd] > TOLERANCE_MM:
        raise BadCase(
            f"{files[odd]} and {files[odd + 1].name} are shifted sideways by {astray[odd]:.2f} mm, unlike the others; "
            f"fetch the series again, or resample it"
        )
    across = np.linalg.norm(sideways.sum(0))
    if across > TOLERANCE_MM:
        tilt = f"{np.degrees(np.arctan2(across, gaps.sum())):.1f} degrees (gantry tilt)"
        raise BadCase(f"{files[0].parent} has its slices tilted by {tilt}; resample it upright")


def _check_gaps(files: Sequence[Path], gaps: np.ndarray) -> None:
    narrow = int(gaps.argmin())
    if gaps[narrow] < TOLERANCE_MM:
        raise BadCase(
            f"{files[narrow]} and {files[narrow + 1].name} are two slices at one place, such as two echoes; "
            f"keep the files of one volume"
        )
    usual = float(np.percentile(gaps, 50, method="lower"))
    odd = int(np.abs(gaps - usual).argmax())
    if abs(gaps[odd] - usual) > TOLERANCE_MM:
        raise BadCase(
            f"{files[odd]} and {files[odd + 1].name} are {gaps[odd]:.2f} mm apart but other slices {usual:.2f} mm: "
            f"one is missing, or the spacing is uneven; fetch the series again, or resample it"
        )


def _first_bad(files: Sequence[Path]) -> Path:
    import itk

    for file in files:
        try:
            itk.imread(str(file), itk.F, imageio=itk.GDCMImageIO.New())
        except Exception:
            return file
    return files[0].parent
