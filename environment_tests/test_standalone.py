"""A colleague's environment: a new one, with what docs/guide/zip.md installs and nothing of this repository."""

import subprocess
import sys
from pathlib import Path

import pytest
from bundle_copies import NAMES, bundle_with_weights
from tissnet_components.package import package_bundle
from zip_page import page_blocks, the_pages_commands_make_a_mask


@pytest.fixture(scope="module")
def python_folder(tmp_path_factory) -> Path:
    """The programs of an environment made by the page's `pip install`."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    programs = environment / "bin"
    install = page_blocks()[0].split()
    subprocess.run([programs / "python", "-m", *install, "--quiet"], check=True)
    return programs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the zips alone."""
    made = tmp_path_factory.mktemp("colleague") / "here"
    for name in NAMES:
        package_bundle(bundle_with_weights(name, made.parent), made)
    return made


def run_python(folder: Path, python_folder: Path, *words: str) -> str:
    command = [python_folder / "python", *words]
    ended = subprocess.run(command, cwd=folder, env={"PATH": str(python_folder)}, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_zips_pages_two_commands_make_a_mask(folder, python_folder):
    the_pages_commands_make_a_mask(folder, python_folder)


def test_the_unpacked_bundle_verifies_itself(folder, python_folder):
    printed = run_python(folder / "tissnet_vs", python_folder, "-m", "tissnet_components", "verify", "--bundle", ".")
    assert "files as they were packaged" in printed


def test_monai_loads_the_network_from_the_bundles_folder(folder, python_folder):
    load = "monai.bundle.load('tissnet_vs', bundle_dir='..', workflow_type='inference')"
    code = f"import monai.bundle; print(type({load}).__name__)"
    assert "TissNet" in run_python(folder / "tissnet_vs", python_folder, "-c", code)


def test_one_command_segments_a_scan_of_any_name(folder, python_folder):
    (folder / "anna_t2.nii.gz").rename(folder / "scan 7.nii.gz")
    words = ["-m", "tissnet_components", "segment", "--bundle", ".", "--t2", "../scan 7.nii.gz", "--out", "../seven"]
    run_python(folder / "tissnet_vs", python_folder, *words)
    assert list((folder / "seven").rglob("*_seg.nii.gz"))
