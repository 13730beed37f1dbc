"""A real MONAI Label server, asked as 3D Slicer asks it; `make label-test` runs this in an environment of its own.

It serves both bundles from their packages. Where a bundle has no weights yet, it gets random ones.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from bundle_copies import BUNDLES, NAMES, any_subset_weights, bundle_with_weights, read_config
from tissnet_components.label_server import label_bundle
from tissnet_components.package import package_bundle
from tissnet_components.regions import LABELS_OF_REGIONS

pytest.importorskip("monailabel", reason="needs MONAI Label: make label-test")

APP = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
LABELS = {"tissnet_brats": "whole tumor", "tissnet_vs": "vestibular schwannoma"}
ANY_SUBSET = "tissnet_brats_any_missing"
PATIENT = ("anna_t1", "anna_t1ce", "anna_t2")
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, 0.1, 0.3) @ np.diag([-1.1, -0.9, 1]), [20, 30, -7]
)  # turned LPS axes, the origin elsewhere


def save(file: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), file)


def scan(seed: int, shape: tuple[int, ...] = (40, 36, 12)) -> np.ndarray:
    """A ball of noise, 0 around it."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in shape[:3]), indexing="ij"))
    values = np.random.default_rng(seed).uniform(50, 200, shape)
    inside = (place**2).sum(0) < 0.8
    return (values * (inside if len(shape) == 3 else inside[..., None])).astype(np.int16)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Plain files, as a lab has them."""
    folder = tmp_path_factory.mktemp("studies")
    for seed, name in enumerate((*PATIENT, "anna_flair")):
        save(folder / f"{name}.nii.gz", scan(seed))
    save(folder / "whole.nii.gz", np.stack([scan(seed) for seed in range(3)], axis=-1))
    save(folder / "four.nii.gz", np.stack([scan(seed) for seed in range(4)], axis=-1))
    save(folder / "ear 7.nii.gz", scan(7))
    save(folder / "ben_t1.nii.gz", scan(0))
    save(folder / "ben_t2.nii.gz", scan(2))
    for name in ("carl_t1", "carl_t1ce", "carl_t1c", "carl_t2"):
        save(folder / f"{name}.nii.gz", scan(0))
    save(folder / "complex.nii.gz", scan(0).astype(np.complex64))
    (folder / "broken.nii.gz").write_bytes(b"not a scan")
    return folder


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    """The stock monaibundle app with both bundles, unpacked from their packages, and one with foreign weights."""
    folder = shutil.copytree(APP, tmp_path_factory.mktemp("app") / "monaibundle")
    packing = tmp_path_factory.mktemp("packing")
    for name in NAMES:
        with zipfile.ZipFile(package_bundle(bundle_with_weights(name, packing), packing)) as archive:
            archive.extractall(folder / "model")
        config = folder / "model" / name / "configs" / "inference.json"
        content = json.loads(config.read_text())  # the server's layout in memory, on which the last digits depend
        content |= {"precision": "float32", "memory_format": "$torch.contiguous_format"}
        config.write_text(json.dumps(content))
    any_subset_weights(folder / "model" / "tissnet_brats", regions=list(LABELS_OF_REGIONS))
    label_bundle(folder / "model" / "tissnet_brats")
    for name in ("tissnet_wrong", "tissnet_damaged"):
        shutil.copytree(folder / "model" / "tissnet_vs", folder / "model" / name)
    (folder / "model" / "tissnet_damaged" / "models" / "model.pt").write_bytes(b"no weights")
    shutil.copy(
        folder / "model" / "tissnet_brats" / "models" / "model.pt", folder / "model" / "tissnet_wrong" / "models"
    )
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """What the server writes."""
    return tmp_path_factory.mktemp("log") / "server.txt"


@pytest.fixture(scope="module")
def server(app, studies, log) -> Iterator[str]:
    """The address of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = ",".join((*NAMES, ANY_SUBSET, "tissnet_wrong", "tissnet_damaged"))
    command = [Path(sys.executable).parent / "monailabel", "start_server", "--app", app, "--studies", studies]
    command += ["--host", "127.0.0.1", "--port", str(port), "--conf", "models", models]
    command += ["--conf", "zoo_source", "ngc", "--conf", "sam2", "false", "--conf", "skip_trainers", "true"]
    here = Path(sys.executable).parent  # the command looks for its Python on the path, as in an activated environment
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # the bundles bring their own tissnet_components
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                break
            try:
                requests.get(f"{address}/info/", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.5)
        else:
            raise AssertionError(f"the server does not answer: {log.read_text()[-3000:]}")
        assert process.poll() is None, log.read_text()[-3000:]
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(server: str, model: str, image: str, **params: object) -> requests.Response:
    return requests.post(
        f"{server}/infer/{model}",
        params={"image": image, "output": "image"},
        data={"params": json.dumps({"device": "cpu", **params})},
        timeout=300,
    )


def answer(server: str, folder: Path, model: str, image: str, **params: object) -> nib.Nifti1Image:
    response = ask(server, model, image, **params)
    assert response.status_code == 200, response.text
    file = folder / "answer.nii.gz"
    file.write_bytes(response.content)
    return nib.load(file)


def refusal(server: str, status: int, model: str, image: str, **params: object) -> str:
    response = ask(server, model, image, **params)
    assert response.status_code == status, (response.status_code, response.text)
    return response.json()["detail"]


def run_here(app: Path, model: str, files: list[Path]) -> dict[str, np.ndarray]:
    """What `monai.bundle run inferring` writes for these files, by name of the map."""
    parser = read_config(app / "model" / model)
    out = files[0].parents[1] / f"here_{model}"
    parser.update(
        {
            "bundle_root": str(app / "model" / model),
            "cases": [{"case": "case", "image": [str(file) for file in files]}],
            "output_dir": str(out),
            "device": torch.device("cpu"),
        }
    )
    for entry in ("initialize", "inferring"):
        parser.get_parsed_content(entry)
    names = {"mask": "seg", **{name: name for name in ("synthetic", "error", "disagreement")}}
    maps = {name: nib.load(out / "case" / f"case_{file}.nii.gz").get_fdata() for name, file in names.items()}
    shutil.rmtree(out)
    return maps


@pytest.fixture(scope="module")
def expected(app, studies) -> dict[str, dict[str, np.ndarray]]:
    return {
        "tissnet_brats": run_here(app, "tissnet_brats", [studies / f"{name}.nii.gz" for name in PATIENT]),
        "tissnet_vs": run_here(app, "tissnet_vs", [studies / "ear 7.nii.gz"]),
    }


def test_both_bundles_are_offered_with_their_label_and_their_maps(server):
    models = requests.get(f"{server}/info/", timeout=30).json()["models"]
    assert {name: models[name]["labels"] for name in NAMES} == {name: {label: 1} for name, label in LABELS.items()}
    for name in NAMES:
        assert models[name]["config"]["map"] == ["mask", "synthetic", "error", "disagreement"]
        assert (
            models[name]["version"] == json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())["version"]
        )


def test_any_subset_of_the_contrasts_is_segmented_and_the_parts_are_labelled(server, tmp_path):
    models = requests.get(f"{server}/info/", timeout=30).json()["models"]
    assert models[ANY_SUBSET]["labels"] == {"edema": 2, "necrosis": 1, "enhancing tumor": 4}
    mask = answer(server, tmp_path, ANY_SUBSET, "ben_t2")  # who has neither enhanced T1 nor FLAIR
    assert mask.shape == (40, 36, 12)
    assert set(np.unique(mask.get_fdata())) <= {0, 1, 2, 4}


@pytest.mark.parametrize("image", [*PATIENT, "anna_flair"])
def test_any_scan_of_a_patient_gives_the_patients_mask_in_the_scans_geometry(server, expected, tmp_path, image):
    mask = answer(server, tmp_path, "tissnet_brats", image)
    np.testing.assert_array_equal(mask.get_fdata(), expected["tissnet_brats"]["mask"])
    np.testing.assert_allclose(mask.affine, OBLIQUE, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8


def test_a_file_of_four_axes_gives_the_same_mask(server, expected, tmp_path):
    mask = answer(server, tmp_path, "tissnet_brats", "whole")
    np.testing.assert_array_equal(mask.get_fdata(), expected["tissnet_brats"]["mask"])
    np.testing.assert_allclose(mask.affine, OBLIQUE, atol=1e-4)


def test_a_t2_of_any_name_is_enough_for_the_schwannoma_bundle(server, expected, tmp_path):
    mask = answer(server, tmp_path, "tissnet_vs", "ear 7")
    np.testing.assert_array_equal(mask.get_fdata(), expected["tissnet_vs"]["mask"])
    np.testing.assert_allclose(mask.affine, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize("name", ["synthetic", "error", "disagreement"])
def test_the_user_picks_another_map(server, expected, tmp_path, name):
    chosen = answer(server, tmp_path, "tissnet_vs", "ear 7", map=name)
    np.testing.assert_allclose(chosen.get_fdata(), expected["tissnet_vs"][name], atol=1e-4)
    assert chosen.get_data_dtype() == np.float32
    assert chosen.get_fdata().std() > 0


def test_after_another_map_the_mask_comes_again(server, expected, tmp_path):
    answer(server, tmp_path, "tissnet_vs", "ear 7", map="error")
    mask = answer(server, tmp_path, "tissnet_vs", "ear 7", map="mask")
    np.testing.assert_array_equal(mask.get_fdata(), expected["tissnet_vs"]["mask"])


@pytest.mark.parametrize(
    ("image", "status", "sentence"),
    [
        ("nobody", 404, "the studies folder holds no image of that name"),
        ("ben_t1", 422, "ben has no t1ce"),
        ("carl_t2", 422, "are t1ce of carl; keep one of them"),
        ("four", 422, "has 4 channels, expected 3 along its fourth axis: t1, t1ce, t2, in this order"),
        ("ear 7", 422, "its name tells no contrast"),
        ("broken", 422, "cannot be read as NIfTI"),
    ],
)
def test_a_mistake_in_the_studies_is_answered_with_its_sentence(server, image, status, sentence):
    assert sentence in refusal(server, status, "tissnet_brats", image)


def test_complex_voxels_are_refused(server):
    assert "expected real numbers" in refusal(server, 422, "tissnet_vs", "complex")


@pytest.mark.parametrize("name", ["flair", "", None, [], "$1 / 0"], ids=repr)
def test_an_unknown_map_is_refused_before_the_network_runs(server, log, name):
    before = log.read_text().count("Inferer:: ")
    assert f"there is no map {name!r}; choose one of mask" in refusal(server, 422, "tissnet_vs", "ear 7", map=name)
    assert log.read_text().count("Inferer:: ") == before


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [("wrong", "does not fit the configured network"), ("damaged", "is not a file of PyTorch weights")],
)
def test_wrong_weights_are_refused_instead_of_answered_with_noise(server, log, weights, sentence):
    before = log.read_text().count("Inferer:: ")
    assert sentence in refusal(server, 500, f"tissnet_{weights}", "ear 7")
    assert log.read_text().count("Inferer:: ") == before


def test_the_log_tells_when_the_network_runs(server, log):
    before = log.read_text().count("Inferer:: ")
    assert ask(server, "tissnet_vs", "ear 7").status_code == 200
    assert log.read_text().count("Inferer:: ") == before + 1


def test_the_server_writes_nothing_but_its_answers(server, app, studies, expected):
    assert ask(server, "tissnet_vs", "ear 7").status_code == 200
    assert not list((app / "model").glob("*/eval"))
    assert not list(studies.rglob("*.png"))
    assert not list((studies / "labels").rglob("*.nii.gz"))
