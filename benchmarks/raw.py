"""What `tissnet segment --raw` is worth.

    python benchmarks/raw.py study ../shared/data/raw_ms/patient01_study1
    python benchmarks/raw.py unprepared ../shared/data/glioma_brats18_tcia --bundle bundles/tissnet_brats
    python benchmarks/raw.py n4 results/CASE/prepared A/A B/B --bundle bundles/tissnet_brats

The first compares with a study's published transforms and brain mask. The third asks what a correction of uneven
brightness by N4 would change, in what `--raw` prepared and in prepared patients (A/A_t1.nii.gz and so on) whose
brightness is made uneven. The second turns prepared patients, cuts them into thick slices, and brings them back.
Every contrast is turned and shifted on its own, and gets its own grid. Printed for each patient: the error of the
registration between the contrasts (median over the brain), the Dice of the prepared scans, of those that were cut into
the same slices but not moved, and of the raw ones, the time of the processor for these, and the most memory.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import process_time

import fire
import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tissnet_components.files import user_path
from tissnet_components.raw.register import moved, read_matrix, register
from tissnet_components.raw.strip import brain_mask_of
from tissnet_components.segment import segment

CONTRAST_OF = {"T1W": "t1", "T2W": "t2", "FLAIR": "flair"}
CONTRASTS = ("t1", "t1ce", "t2")
GRIDS = {  # spacing in mm along the scan's axes, and their turn against the head
    "t1": ((1.0, 1.0, 3.0), (0, 0, 8)),
    "t1ce": ((3.0, 1.0, 1.0), (0, 0, 0)),
    "t2": ((0.5, 0.5, 5.0), (12, 0, 0)),
}
MOST_DEGREES, MOST_MM = 20, 20


def study(folder: str) -> None:
    """Print the mean distance over the brain from the published transforms to FLAIR, and the Dice of the masks."""
    root = user_path(folder)
    brain = nib.load(root / "brainmask.nii.gz")
    to_flair = read_matrix(root / "study1_FLAIR_to_common_space.txt")
    flair = nib.load(root / "study1_FLAIR.nii.gz")
    points = apply_affine(to_flair @ brain.affine, np.argwhere(np.asarray(brain.dataobj) > 0)[::97])
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [15, -12, 18], degrees=True).as_matrix()
    turned[:3, 3] = 20, -15, 10
    for name in ("T1W", "T2W", "FLAIR"):
        volume = nib.load(root / f"study1_{name}.nii.gz")
        published = np.eye(4)
        if name != "FLAIR":
            published = read_matrix(root / f"study1_{name}_intrastudy_to_FLAIR.txt")
            for pose in (np.eye(4), turned):
                found = np.linalg.inv(pose) @ register(flair, nib.Nifti1Image(volume.dataobj, pose @ volume.affine))
                apart = apply_affine(found, points) - apply_affine(published, points)
                print(f"{name}: {np.linalg.norm(apart, axis=1).mean():.2f} mm")
        mask = moved(brain_mask_of(volume, CONTRAST_OF[name]), published @ to_flair)
        print(f"{name}: Dice of the brain {_dice(brain, resample_from_to(mask, brain, order=0)):.3f}")


def unprepared(cases: str, bundle: str, number: int = 12, start: int = 0, seed: int = 0) -> None:
    """Print a line per patient, each measured by a process of its own; `start` leaves out as many."""
    rng = np.random.default_rng(seed)
    folders = sorted(folder for folder in user_path(cases).iterdir() if folder.is_dir())[:number]
    poses = [{name: _pose(rng) for name in CONTRASTS} for _ in folders]
    print("| patient | registration, mm | Dice prepared | Dice cut alone | Dice raw | CPU s | memory, GiB |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for folder, moves in list(zip(folders, poses, strict=True))[start:]:
            print(pool.submit(_row, folder, user_path(bundle), moves).result(), flush=True)


def n4(prepared: str, *patients: str, bundle: str, seed: int = 1) -> None:
    """Print the Dice of each patient untouched, uneven and after N4, and how far N4 changes the mask of a raw one."""
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as temporary:
        folder, rows = Path(temporary), []
        for patient in patients:
            scans = {name: nib.load(user_path(f"{patient}_{name}.nii.gz")) for name in CONTRASTS}
            uneven = {name: _uneven(scan, rng) for name, scan in scans.items()}
            even = {name: _n4(scan) for name, scan in uneven.items()}
            for kind, volumes in (("untouched", scans), ("uneven", uneven), ("N4", even)):
                rows.append(_written(f"{Path(patient).name}-{kind}", volumes, folder))
        case = next(user_path(prepared).glob("*_brain.nii.gz")).name.removesuffix("_brain.nii.gz")
        scans = {name: nib.load(user_path(prepared) / f"{case}_{name}.nii.gz") for name in CONTRASTS}
        rows.append(_written("raw", scans, folder))
        rows.append(_written("raw-N4", {name: _n4(scan) for name, scan in scans.items()}, folder))
        (folder / "cases.csv").write_text("\n".join([",".join(["case", *CONTRASTS]), *rows]))
        segment(user_path(bundle), cases=folder / "cases.csv", out=folder / "out", outputs=["seg"], force=True)
        masks = {
            row.split(",")[0]: nib.load(next((folder / "out" / row.split(",")[0]).glob("*_seg.*"))) for row in rows
        }
        for patient in patients:
            label, name = nib.load(user_path(f"{patient}_seg.nii.gz")), Path(patient).name
            dices = {kind: _dice(label, masks[f"{name}-{kind}"]) for kind in ("untouched", "uneven", "N4")}
            print(name, *(f"{kind} {dice:.3f}" for kind, dice in dices.items()))
        volumes = [(np.asarray(masks[name].dataobj) > 0).sum() / 1000 for name in ("raw", "raw-N4")]
        print(
            f"{case}: {volumes[0]:.1f} ml, with N4 {volumes[1]:.1f} ml, Dice {_dice(masks['raw'], masks['raw-N4']):.3f}"
        )


def _uneven(volume: nib.Nifti1Image, rng: np.random.Generator) -> nib.Nifti1Image:
    """Brighter here and darker there, smoothly, by a standard deviation of 15 % inside the brain."""
    array = np.asarray(volume.dataobj, dtype=np.float32)
    field = ndimage.zoom(rng.normal(size=(3, 3, 3)), np.array(array.shape) / 3, order=3)
    inside = array > 0
    field = (field - field[inside].mean()) / field[inside].std()
    return nib.Nifti1Image(array * np.exp(0.15 * field).astype(np.float32), volume.affine)


def _n4(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    """Without uneven brightness, by N4 on a grid four times as coarse."""
    import SimpleITK

    array = np.asarray(volume.dataobj, dtype=np.float32)
    images = [SimpleITK.GetImageFromArray(part.T) for part in (array, (array > 0).astype(np.uint8))]
    method = SimpleITK.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([30] * 3)
    start = process_time()
    method.Execute(*(SimpleITK.Shrink(image, [4] * 3) for image in images))
    field = np.exp(SimpleITK.GetArrayFromImage(method.GetLogBiasFieldAsImage(images[0])).T)
    low, high = np.percentile(field[array > 0], (1, 99))
    print(f"N4: {process_time() - start:.0f} s, field from {low:.2f} to {high:.2f}", flush=True)
    return nib.Nifti1Image(array / field, volume.affine)


def _written(case: str, volumes: dict[str, nib.Nifti1Image], folder: Path) -> str:
    """A row of the table of cases, whose scans are written."""
    files = [folder / f"{case}_{name}.nii.gz" for name in CONTRASTS]
    for file, volume in zip(files, volumes.values(), strict=True):
        nib.save(volume, file)
    return ",".join([case, *map(str, files)])


def _row(folder: Path, bundle: Path, poses: dict[str, np.ndarray]) -> str:
    with TemporaryDirectory() as temporary:
        return _measured(folder, bundle, Path(temporary), poses)


def _measured(folder: Path, bundle: Path, temporary: Path, poses: dict[str, np.ndarray]) -> str:
    case = folder.name
    scans = {name: folder / f"{case}_{name}.nii.gz" for name in CONTRASTS}
    label = nib.load(folder / f"{case}_seg.nii.gz")
    for name, file in scans.items():
        nib.save(_cut(nib.load(file), poses[name], name), temporary / f"{name}.nii.gz")
    segment(bundle, **scans, out=temporary / "prepared", case="case", outputs=["seg"])
    cut = {name: _cut_alone(file, name, temporary) for name, file in scans.items()}
    segment(bundle, **cut, out=temporary / "cut", case="case", outputs=["seg"], force=True)
    start = process_time()
    raw = {name: temporary / f"{name}.nii.gz" for name in CONTRASTS}
    segment(bundle, **raw, out=temporary / "raw", case="case", outputs=["seg"], raw=True)
    seconds = process_time() - start
    found = {name: read_matrix(temporary / f"raw/case/prepared/case_{name}.tfm") for name in CONTRASTS}
    reference = json.loads((temporary / "raw/case/case_summary.json").read_text())["raw"]["reference"]
    to_common = np.linalg.inv(found[reference]) @ poses[reference]
    brain = np.asarray(nib.load(scans["t1"]).dataobj) > 0
    points = apply_affine(label.affine, np.argwhere(brain)[::101])
    errors = [
        np.linalg.norm(apply_affine(found[name] @ to_common, points) - apply_affine(poses[name], points), axis=1)
        for name in CONTRASTS
        if name != reference
    ]
    back = resample_from_to(moved(nib.load(temporary / "raw/case/case_seg.nii.gz"), to_common), label, order=0)
    still = [nib.load(temporary / f"{kind}/case/case_seg.nii.gz") for kind in ("prepared", "cut")]
    dices = [_dice(label, mask) for mask in (*still, back)]
    gib = getrusage(RUSAGE_SELF).ru_maxrss / 2**20
    cells = [f"{np.median(errors):.2f}", *(f"{dice:.3f}" for dice in dices), f"{seconds:.0f}", f"{gib:.1f}"]
    return f"| {case} | {' | '.join(cells)} |"


def _pose(rng: np.random.Generator) -> np.ndarray:
    """Where the points of the head lie after it turned and moved at random."""
    pose = np.eye(4)
    axis = rng.normal(size=3)
    turn = rng.uniform(0, MOST_DEGREES) * axis / np.linalg.norm(axis)
    pose[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    pose[:3, 3] = rng.uniform(-MOST_MM, MOST_MM, 3)
    return pose


def _cut(volume: nib.Nifti1Image, pose: np.ndarray, name: str) -> nib.Nifti1Image:
    """The head after a move by `pose`, in the slices of a contrast."""
    spacing, oblique = GRIDS[name]
    shape = (np.array([230, 230, 200]) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", oblique, degrees=True).as_matrix() * spacing
    centre = apply_affine(pose @ volume.affine, (np.array(volume.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    there = nib.Nifti1Image(np.asarray(volume.dataobj, dtype=np.float32), pose @ volume.affine)
    return _thick(there, shape, affine, spacing)


def _cut_alone(file: Path, name: str, folder: Path) -> Path:
    """A prepared scan whose slices alone became thick: on its own grid, with its own brain, where it was."""
    volume = nib.load(file)
    thick = _cut(volume, np.eye(4), name)
    inside = nib.Nifti1Image((np.asarray(thick.dataobj) != 0).astype(np.float32), thick.affine)
    values, share = (np.asarray(resample_from_to(image, volume, order=1).dataobj) for image in (thick, inside))
    filled = np.divide(values, share, out=np.zeros_like(values), where=share > 0.5)
    nearest = ndimage.distance_transform_edt(filled == 0, return_distances=False, return_indices=True)
    brain = np.asarray(volume.dataobj) != 0
    nib.save(nib.Nifti1Image(filled[tuple(nearest)] * brain, volume.affine), folder / f"cut_{name}.nii.gz")
    return folder / f"cut_{name}.nii.gz"


def _thick(volume: nib.Nifti1Image, shape: np.ndarray, affine: np.ndarray, spacing: tuple) -> nib.Nifti1Image:
    """On a grid, each voxel the mean of the brain along its thickest axis: as stripped after the scan, not before."""
    axis = int(np.argmax(spacing))
    parts = int(np.ceil(spacing[axis]))
    fine_shape, fine = shape.copy(), affine.copy()
    fine_shape[axis] *= parts
    fine[:3, axis] /= parts
    fine[:3, 3] -= fine[:3, axis] * (parts - 1) / 2
    split = [*shape[: axis + 1], parts, *shape[axis + 1 :]]
    brain = nib.Nifti1Image((np.asarray(volume.dataobj) != 0).astype(np.float32), volume.affine)
    mean, share = (
        np.asarray(resample_from_to(image, (tuple(fine_shape), fine), order=1).dataobj).reshape(split).mean(axis + 1)
        for image in (volume, brain)
    )
    return nib.Nifti1Image(np.divide(mean, share, out=np.zeros_like(mean), where=share > 0.5), affine)


def _dice(label: nib.Nifti1Image, mask: nib.Nifti1Image) -> float:
    one, other = np.asarray(label.dataobj) > 0, np.asarray(mask.dataobj) > 0
    return 2 * float((one & other).sum()) / max(float(one.sum() + other.sum()), 1)


if __name__ == "__main__":
    fire.Fire({"study": study, "unprepared": unprepared, "n4": n4})
