"""The packaged bundles in the model zoo's folders, with the unit tests that go there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundle_copies import NAMES, bundle_with_weights
from tissnet_components.package import package_bundle

UNIT_TESTS = Path(__file__).parents[2] / "ci" / "unit_tests"


@pytest.fixture(scope="module", params=NAMES)
def zoo(request, tmp_path_factory) -> Path:
    """A folder like the zoo's repository: models/NAME from the zip, ci/unit_tests/test_NAME.py."""
    folder = tmp_path_factory.mktemp("zoo")
    with zipfile.ZipFile(package_bundle(bundle_with_weights(request.param, folder), folder)) as archive:
        archive.extractall(folder / "models")
    shutil.copytree(UNIT_TESTS, folder / "ci" / "unit_tests")
    return folder


@pytest.mark.slow
def test_the_zoos_unit_tests_train_evaluate_and_infer_with_the_zip(zoo):
    (bundle,) = (zoo / "models").iterdir()
    environment = {**os.environ, "PYTHONPATH": str(bundle)}
    command = [sys.executable, f"ci/unit_tests/test_{bundle.name}.py"]
    ended = subprocess.run(command, cwd=zoo, env=environment, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Ran 2 tests" in ended.stderr
