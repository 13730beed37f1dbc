"""The commands of docs/guide/zip.md, read from it and run as they stand."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
from cohort import oblique_affine, write_case

PAGE = Path(__file__).parents[1] / "docs/guide/zip.md"


def page_blocks() -> list[str]:
    """The indented blocks of the page, each as one text without continued lines."""
    blocks = re.findall(r"(?:^ {4}.+\n)+", PAGE.read_text(), re.MULTILINE)
    return ["\n".join(line[4:] for line in block.splitlines()).replace("\\\n", " ") for block in blocks]


def required(bundle: Path) -> set[str]:
    """The packages that a bundle's metadata requires, as pip takes them."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    own = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"], "numpy": metadata["numpy_version"]}
    return {f"{name}=={version}" for name, version in {**own, **metadata["required_packages_version"]}.items()}


def the_pages_commands_make_a_mask(folder: Path, python_folder: Path) -> None:
    """Run the two commands in a folder that holds the zip; the Python found there knows nothing of this repository."""
    case = write_case(folder.parent / "anna", shape=(30, 32, 12), affine=oblique_affine((0.8, 0.7, 1.6)))
    shutil.copy(case["image"][2], folder / "anna_t2.nii.gz")
    commands = page_blocks()[1]
    assert len(commands.splitlines()) == 2
    environment = {"PATH": f"{python_folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder.parent)}
    ended = subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    mask, scan = nib.load(folder / "results" / "anna" / "anna_seg.nii.gz"), nib.load(folder / "anna_t2.nii.gz")
    assert set(np.unique(mask.get_fdata())) <= {0, 1}
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
