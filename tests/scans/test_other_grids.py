"""The same patient on another grid, with other voxels, moved and turned, has the tumor in the same place."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import BUNDLES, read_config
from monai.data import MetaTensor
from nibabel.processing import resample_from_to
from tissnet_components.inversion import InvertTogetherd
from tissnet_components.segment import segment

RADIUS_MM = 14.0
CENTRE_MM = np.array([4.0, -3.0, 2.0])
LEAST_DICE = 0.99  # with the ball itself


def another_grid(image: nib.Nifti1Image, spacing_mm: float, degrees: float) -> nib.Nifti1Image:
    """A scan interpolated linearly on a grid with cubes for voxels, turned about two axes, that covers it."""
    turn = nib.eulerangles.euler2mat(np.radians(degrees), 0, np.radians(degrees))
    extent_mm = nib.affines.voxel_sizes(image.affine) * image.shape
    shape = np.ceil(1.2 * extent_mm / spacing_mm).astype(int)
    affine = nib.affines.from_matvec(turn @ np.diag([-spacing_mm, -spacing_mm, spacing_mm]))
    middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return resample_from_to(image, (shape, affine), order=1)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def dice_between(mask: nib.Nifti1Image, other: nib.Nifti1Image) -> float:
    """Of two masks, the other brought to the first's grid."""
    back = resample_from_to(nib.Nifti1Image(np.asarray(other.dataobj).astype(np.float32), other.affine), mask, order=1)
    return dice(np.asarray(mask.dataobj) > 0.5, np.asarray(back.dataobj) > 0.5)


def distances_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Of every voxel from the ball's centre."""
    places = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    return np.linalg.norm(places - CENTRE_MM, axis=-1)


@pytest.fixture(scope="module")
def ball() -> nib.Nifti1Image:
    """A head of 100 in which a ball with a soft edge is 200."""
    shape, affine = (64, 60, 40), nib.affines.from_matvec(np.diag([-1.0, -1.0, 1.5]), [31.5, 29.5, -29.0])
    empty = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    head = np.linalg.norm((np.indices(shape).T / (np.array(shape) - 1) - 0.5).T, axis=0) < 0.48
    soft = 1 / (1 + np.exp((distances_mm(empty) - RADIUS_MM) / 1.0))
    return nib.Nifti1Image((100 * head * (1 + soft)).astype(np.float32), affine)


@pytest.fixture(scope="module")
def threshold(tmp_path_factory) -> Callable[[nib.Nifti1Image], nib.Nifti1Image]:
    """The bundle's way from a scan to a mask on its grid, with a threshold instead of the network."""
    parser = read_config(BUNDLES / "tissnet_vs")
    parser["bundle_root"] = parser["ckpt_dir"] = str(tmp_path_factory.mktemp("bundle"))
    parser["spacing_mm"] = [1.5, 1.5, 1.5]
    preprocessing = parser.get_parsed_content("preprocessing")
    file = tmp_path_factory.mktemp("scan") / "ball.nii"

    def mask_of(scan: nib.Nifti1Image) -> nib.Nifti1Image:
        nib.save(scan, file)
        data = preprocessing({"case": "ball", "image": [str(file)]})
        middle = (data["image"].max() + data["image"][data["image"] > -1].median()) / 2  # of head and ball
        fine = MetaTensor(torch.sigmoid(8 * (data["image"].as_tensor() - middle)))
        fine = InvertTogetherd(["fine"], preprocessing, "image")({**data, "fine": fine})["fine"]
        assert fine.shape[1:] == scan.shape
        return nib.Nifti1Image((fine[0].numpy() > 0.5).astype(np.uint8), scan.affine)

    return mask_of


@pytest.mark.parametrize(("spacing_mm", "degrees"), [(1.2, 5), (2.0, 0), (0.9, -12), (1.5, 40)])
def test_a_ball_is_found_in_its_place_on_any_grid(ball, threshold, spacing_mm, degrees):
    scan = another_grid(ball, spacing_mm, degrees)
    mask, first = threshold(scan), threshold(ball)
    assert dice(np.asarray(mask.dataobj) > 0, distances_mm(mask) < RADIUS_MM) > LEAST_DICE
    assert dice_between(first, mask) > 0.95  # interpolated once more, and where a surface crosses voxels masks differ


@pytest.mark.stress
def test_a_patient_s_tumor_is_found_in_its_place_on_another_grid(real_gliomas, tmp_path):
    bundle = BUNDLES / "tissnet_brats"
    patient = sorted(real_gliomas.glob("Brats18_*"))[0]
    masks = []
    for name, on_grid in (("first", lambda image: image), ("turned", lambda image: another_grid(image, 1.2, 5))):
        files = {}
        for modality in ("t1", "t1ce", "t2"):
            [file] = patient.glob(f"*_{modality}.nii.gz")
            files[modality] = str(tmp_path / f"{name}_{modality}.nii.gz")
            nib.save(on_grid(nib.load(file)), files[modality])
        segment(str(bundle), **files, out=str(tmp_path), case=name, outputs="seg")
        masks.append(nib.load(Path(tmp_path) / name / f"{name}_seg.nii.gz"))
    found = dice_between(*masks)
    print(f"Dice {found:.3f}")
    assert found > 0.9
