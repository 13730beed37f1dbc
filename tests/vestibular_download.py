"""A download of Vestibular-Schwannoma-SEG, made of simulated patients: a head in which a ball is the tumor."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from dicom_files import RAS_TO_LPS, rtstruct, save_all, slices_of
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

SPACING_MM = np.array([0.8, 0.8, 1.5])
SHAPE = (36, 40, 14)
RADIUS_MM = 5.0
TUMOR_IN_T1 = np.array([-1.0, 2.0, 0.4])  # LPS mm


@dataclass
class SimulatedPatient:
    """Both scans, each in its own space, and what TCIA supplies with them."""

    number: int
    t1: nib.Nifti1Image
    t2: nib.Nifti1Image
    t1_to_t2: np.ndarray  # points in LPS mm
    contours: dict[str, list[np.ndarray]]
    uids: dict[str, str]

    @property
    def name(self) -> str:
        return f"VS-SEG-{self.number:03d}"

    @property
    def tumor_in_t2(self) -> np.ndarray:
        return self.t1_to_t2[:3, :3] @ TUMOR_IN_T1 + self.t1_to_t2[:3, 3]


def simulate(number: int) -> SimulatedPatient:
    """Both scans show the same head, turned and moved by several voxels in between."""
    t1_to_t2 = np.eye(4)
    t1_to_t2[:3, :3] = Rotation.from_rotvec([0.02, -0.015, 0.05]).as_matrix()
    t1_to_t2[:3, 3] = [1.7, -2.4, 0.6]
    t1 = scan(grid([0, 0, 0]), np.eye(4), 1)
    t2 = scan(grid([0.3, 0.2, 0.7]), np.linalg.inv(t1_to_t2), -1)
    loops = tumor_contours()
    contours = {"t1": loops, "t2": [loop @ t1_to_t2[:3, :3].T + t1_to_t2[:3, 3] for loop in loops]}
    return SimulatedPatient(number, t1, t2, t1_to_t2, contours, {"t1": generate_uid(), "t2": generate_uid()})


def grid(shift_mm: list[float]) -> np.ndarray:
    """Affine in LPS mm, the volume's middle near 0."""
    affine = np.diag([*SPACING_MM, 1])
    affine[:3, 3] = -SPACING_MM * (np.array(SHAPE) - 1) / 2 + shift_mm
    return affine


def scan(lps: np.ndarray, to_t1: np.ndarray, contrast: float) -> nib.Nifti1Image:
    """Smooth intensities that depend on the place in T1's space, so that both scans show one head."""
    points = np.stack(np.indices(SHAPE), -1) @ lps[:3, :3].T + lps[:3, 3]
    x, y, z = np.moveaxis(points @ to_t1[:3, :3].T + to_t1[:3, 3], -1, 0)
    values = 500 + contrast * (200 * np.sin(x / 6) + 150 * np.cos(y / 7 + z / 9))
    return nib.Nifti1Image(values.round().astype(np.int16), RAS_TO_LPS @ lps)


def tumor_contours() -> list[np.ndarray]:
    """The ball's sections by T1's slices, closed explicitly as in the collection."""
    heights = grid([0, 0, 0])[2, 3] + SPACING_MM[2] * np.arange(SHAPE[2])
    angle = np.linspace(0, 2 * np.pi, 61)
    loops = []
    for height in heights[np.abs(heights - TUMOR_IN_T1[2]) < RADIUS_MM - 0.2]:
        radius = np.sqrt(RADIUS_MM**2 - (height - TUMOR_IN_T1[2]) ** 2)
        x, y = TUMOR_IN_T1[:2, None] + radius * np.stack([np.cos(angle), np.sin(angle)])
        loops.append(np.stack([x, y, np.full_like(x, height)], axis=1))
    return loops


def descriptive(root: Path, patient: SimulatedPatient, weighting: str) -> Path:
    """TCIA's descriptive folder names."""
    visit = "05-11-1997-NA-MRI Stereo Gamma Knife-39471"
    return root / patient.name / visit / f"{2 if weighting == 't1' else 5}.000000-{DESCRIPTIONS[weighting]}-90471"


def classic(root: Path, patient: SimulatedPatient, weighting: str) -> Path:
    """TCIA's classic folder names, which are UIDs."""
    return root / patient.name / f"1.3.6.1.4.1.{patient.number}" / patient.uids[weighting]


DESCRIPTIONS = {"t1": "t1_fl3d_tra_gk_v1", "t2": "t2_ci3d_tra_1.5mm_v2_448"}


def write_dicom(root: Path, patient: SimulatedPatient, layout=descriptive, weightings=("t1", "t2")) -> None:
    for weighting in weightings:
        items = slices_of(getattr(patient, weighting), patient.name, DESCRIPTIONS[weighting])
        for item in items:
            item.SeriesInstanceUID = patient.uids[weighting]
        save_all(items, layout(root, patient, weighting))


def write_contours(root: Path, patient: SimulatedPatient, name: str = "TV", weightings=("t1", "t2")) -> None:
    for weighting in weightings:
        file = root / "contours" / f"vs_gk_{patient.number}_{weighting}" / "contours.json"
        write_json(file, patient, weighting, name)


def write_json(file: Path, patient: SimulatedPatient, weighting: str, name: str = "TV") -> None:
    cochlea = [patient.contours[weighting][0] + 2]
    items = [
        {
            "PatientID": patient.name,
            "MR_SeriesInstanceUID": patient.uids[weighting],
            "structure_name": structure,
            "LPS_contour_points": [loop.tolist() for loop in loops],
        }
        for structure, loops in {name: patient.contours[weighting], "Cochlea": cochlea, "Vol 2y": cochlea}.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(items))


def write_transforms(root: Path, patient: SimulatedPatient) -> None:
    """Both files; the one named T1 to T2 holds T2's points to T1's, which is how ITK resamples T1 into T2's grid."""
    folders = [root / "registration_matrices" / f"vs_gk_{patient.number}_{weighting}" for weighting in ("t1", "t2")]
    write_tfm(folders[0] / "inv_T1_LPS_to_T2_LPS.tfm", np.linalg.inv(patient.t1_to_t2))
    write_tfm(folders[1] / "inv_T2_LPS_to_T1_LPS.tfm", patient.t1_to_t2)


def write_tfm(file: Path, matrix: np.ndarray, kind: str = "AffineTransform_double_3_3") -> None:
    parameters = " ".join(repr(float(value)) for value in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\n"
        f"Parameters: {parameters} \nFixedParameters: 0 0 0\n#PatientID: VS-SEG-001\n"
    )


def write_rtstruct(root: Path, patient: SimulatedPatient, weighting: str) -> None:
    item = rtstruct({"TV": patient.contours[weighting]}, patient.uids[weighting], patient.name)
    save_all([item], root / patient.name / "1.3.6.1.4.1.77" / item.SeriesInstanceUID)


def write_download(root: Path, numbers=(1, 182, 202), layout=descriptive) -> list[SimulatedPatient]:
    patients = [simulate(number) for number in numbers]
    for patient in patients:
        write_dicom(root / "manifest-1614264588831" / "Vestibular-Schwannoma-SEG", patient, layout)
        write_contours(root, patient)
        write_transforms(root, patient)
    return patients


def write_bids(root: Path, patient: SimulatedPatient) -> None:
    name = f"sub-{patient.number:03d}"
    for weighting, suffix in (("t1", "T1w"), ("t2", "T2w")):
        for folder, file in (
            (root / name, f"{name}_{suffix}.nii.gz"),
            (root / "derivatives" / f"{suffix}_registered" / name, f"{name}_space-individual_{suffix}.nii.gz"),
        ):
            (folder / "anat").mkdir(parents=True, exist_ok=True)
            nib.save(getattr(patient, weighting), folder / "anat" / file)
        contours = root / "sourcedata" / "contours" / name / "anat"
        write_json(contours / f"{name}_contours_space-individual_{suffix}.json", patient, weighting)
    matrices = root / "sourcedata" / "registration_matrices" / name / "anat"
    write_tfm(matrices / f"{name}_inv_T1_LPS_to_T2_LPS.tfm", np.linalg.inv(patient.t1_to_t2))
    write_tfm(matrices / f"{name}_inv_T2_LPS_to_T1_LPS.tfm", patient.t1_to_t2)


def write_split(file: Path, *rows: tuple[str, str]) -> Path:
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file
