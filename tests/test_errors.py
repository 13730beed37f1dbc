import compileall
import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tissnet_components import errors
from tissnet_components.errors import (
    FileMissing,
    NotFinite,
    PackageMissing,
    ensure_writable,
    explain_errors,
    user_error,
)
from tissnet_components.scans.datalist import load_datalist
from tissnet_components.scans.nifti import check_same_grid


def caught(action) -> BaseException:
    with pytest.raises(BaseException) as error:
        action()
    return error.value


def mistake():
    load_datalist("nowhere.json", "training")


def wrapped():
    try:
        try:
            mistake()
        except ValueError as error:
            raise RuntimeError("Failed to instantiate") from error
    except RuntimeError as error:
        raise RuntimeError("Failed to evaluate") from error


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    explain_errors()
    return lambda error: sys.excepthook(type(error), error, error.__traceback__)


@pytest.mark.parametrize("action", [mistake, wrapped], ids=["raised directly", "wrapped twice by MONAI"])
def test_a_mistake_ends_in_one_sentence(hook, capsys, action):
    hook(caught(action))
    shown = capsys.readouterr().err
    assert shown.startswith("error: datalist nowhere.json does not exist")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "action",
    [lambda: int("x"), lambda: {}["key"], lambda: Path("/nowhere").read_text()],
    ids=["a ValueError of Python's own", "a KeyError", "a file that some other code wanted"],
)
def test_anything_else_keeps_its_traceback(hook, capsys, action):
    error = caught(action)
    assert user_error(error) is None
    hook(error)
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_in_this_package_keeps_its_traceback():
    error = caught(lambda: check_same_grid({"file": (1, 2, 3)}))
    assert str(error).startswith("too many values to unpack")
    assert user_error(error) is None


def test_a_mistake_ends_in_one_sentence_without_the_sources_too(tmp_path):
    package = tmp_path / "tissnet_components"
    shutil.copytree(Path(errors.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(package, quiet=1, legacy=True)
    for source in package.rglob("*.py"):
        source.unlink()
    code = (
        "import tissnet_components.errors as errors; errors.explain_errors()\n"
        "from tissnet_components.scans.datalist import load_datalist\n"
        "assert errors.__file__.endswith('.pyc')\n"
        "load_datalist('nowhere.json', 'training')"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert ran.stderr.startswith("error: datalist nowhere.json does not exist")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [(FileMissing, FileNotFoundError), (PackageMissing, ImportError), (NotFinite, FloatingPointError)],
)
def test_a_mistake_keeps_the_kind_that_python_knows(error, kind):
    with pytest.raises(kind) as caught:
        raise error("say it")
    assert str(user_error(caught.value)) == "say it"


def test_a_full_disk_and_a_file_in_the_way_are_mended_by_who_owns_them(tmp_path):
    (tmp_path / "case").touch()
    in_the_way = caught(lambda: (tmp_path / "case").mkdir())
    assert str(user_error(in_the_way)) == (
        f"{tmp_path / 'case'}: File exists; correct the path or its permissions, then start again"
    )
    full = OSError(errno.ENOSPC, "No space left on device")  # as TensorBoard's writer says it, without a name
    assert str(user_error(full)) == "a file: No space left on device; make room, then start again"


@pytest.mark.parametrize(
    "lack",
    [
        MemoryError(),
        MemoryError("Unable to allocate 4.00 GiB for an array\nwith shape (1024, 1024, 1024)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=["Python", "NumPy", "PyTorch", "CUDA"],
)
def test_too_little_memory_is_said_in_one_sentence(lack):
    def wrapped_by_monai():
        raise RuntimeError("applying transform <LoadImageCased>") from lack

    assert re.fullmatch(r"out of memory \(.+\); close other programs, .+", str(user_error(caught(wrapped_by_monai))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said_in_one_sentence():
    error = caught(lambda: torch.zeros(1).to("cuda:0"))
    assert "the device cannot be used here" in str(user_error(error))


def test_ctrl_c_says_how_to_go_on(hook, capsys):
    hook(KeyboardInterrupt())
    shown = capsys.readouterr().err
    assert "the same command" in shown
    assert "Traceback" not in shown


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    ensure_writable(str(tmp_path / "new" / "folder"))
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    error = caught(lambda: ensure_writable(str(tmp_path / "file" / "results")))
    assert str(error) == f"cannot write to {tmp_path / 'file' / 'results'} (Not a directory); choose another folder"
    assert user_error(error) is error


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that refuses even root")
def test_a_read_only_folder_is_named():
    with pytest.raises(ValueError, match="cannot write to /proc"):
        ensure_writable("/proc")
