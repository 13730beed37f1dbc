"""Tables and figures of finished runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A hidden file to write to; it takes the name of ``path`` when it is complete and on the disk. Makes the folder.

    Raises:
        ValueError: the disk is full, or the folder cannot be written to; what stood under the name still does.
    """
    path = Path(path)
    unfinished = path.with_name(f".{os.getpid()}_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}); make room or choose another folder, and start again"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write_whole(path: str | Path, content: bytes | memoryview) -> Path:
    """Write a file that appears under its name only when it is complete, see `whole`."""
    with whole(path) as unfinished:
        unfinished.write_bytes(content)
    return Path(path)
