"""Files that appear under their name only when they are complete, and the files below a folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from os.path import abspath
from pathlib import Path

from tissnet_components.errors import UserError
from tissnet_components.moved import forwarding


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A hidden file to write to; it takes the name of ``path`` when it is complete and on the disk. Makes the folder.

    Raises:
        ValueError: the disk is full, or the folder cannot be written to; what stood under the name still does.
    """
    path = Path(path)
    unfinished = path.with_name(f".{os.getpid()}_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _replace(unfinished, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); make room or choose another folder, and start again"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write_atomic(path: str | Path, content: bytes | memoryview) -> Path:
    """Write a file that appears under its name only when it is complete, see `atomic_write`."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)
    return Path(path)


def copy_atomic(src: str | Path, dst: str | Path) -> None:
    """Copy a file, as `write_atomic` writes; onto itself, nothing is to be done."""
    if not (os.path.exists(dst) and os.path.samefile(src, dst)):
        write_atomic(dst, Path(src).read_bytes())


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write files to, which move to ``folder`` together once all are written and on the disk."""
    hidden = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.mkdir(parents=True)
        yield hidden
        folder.mkdir(exist_ok=True)
        for file in hidden.iterdir():
            _replace(file, folder / file.name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _replace(file: Path, path: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
    file.replace(path)


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content; nothing without the file."""
    path = Path(path)
    return _digest(path, path.stat().st_mtime_ns) if path.is_file() else ""


@cache
def _digest(path: Path, modified_ns: int) -> str:
    """Once for each content: a study asks for the same weights again and again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, links followed once; hidden ones are macOS's shadows or half-written, pipes are none.

    Raises:
        ValueError: no such folder, or one in it that cannot be listed.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder; give the folder that the files lie in")
    seen = set()
    for parent, subfolders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(parent))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files = (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))
        yield from (Path(file) for file in files if os.path.isfile(file) or not os.path.exists(file))


def _refuse_folder(error: OSError) -> None:
    raise UserError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable or move it away"
    ) from error


def user_path(typed: str | os.PathLike) -> Path:
    """A path as a user types it: ``~`` is the home folder, which no shell expands behind ``=`` or in a table.

    Raises:
        ValueError: the home folder of an unknown user, or no path.
    """
    try:
        return Path(str(typed)).expanduser()
    except RuntimeError as error:
        raise UserError(f"{typed} begins with the name of an unknown user; write the folder in full") from error


def existing_folder(root: str | Path) -> Path:
    folder = Path(abspath(root))
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder; give the folder that the download was unpacked to")
    return folder


__getattr__ = forwarding(__name__)
