"""One clear sentence instead of a traceback, for mistakes that a user can mend."""

import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).parent
MENDABLE = (ValueError, FileNotFoundError, PermissionError, FloatingPointError, ImportError)


def mendable_cause(error: BaseException) -> BaseException | None:
    """The first cause of an error, if this package raised it to tell the user what to mend; else None."""
    while error.__cause__ is not None and not _raised_here(error):
        error = error.__cause__
    return error if _raised_here(error) else None


def _raised_here(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, MENDABLE) or not frames:
        return False
    return PACKAGE in Path(frames[-1].filename).parents and frames[-1].line.startswith("raise ")


def ensure_writable(folder: str) -> None:
    """Make a folder if needed and try to write into it, before hours are spent on what should go there.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder") from error


@contextmanager
def answered(status: int) -> Iterator[None]:
    """In MONAI Label's server, let a mistake become the answer: its sentence, under this HTTP status.

    MONAI Label would answer 500, without a word. Elsewhere the mistake passes as it is.
    """
    try:
        yield
    except ValueError as error:
        if "monailabel" not in sys.modules:
            raise
        from starlette.exceptions import HTTPException

        raise HTTPException(status, str(error)) from error


def explain_errors() -> None:
    """Let uncaught mistakes that a user can mend end in one sentence; anything else keeps its traceback.

    MONAI wraps what a component raises into a chain of ``RuntimeError``; the bundles call this first.
    """
    sys.excepthook = _explain


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = mendable_cause(error)
    if kind is KeyboardInterrupt:
        print("stopped; the same command starts again, a training after its last finished epoch", file=sys.stderr)
    elif cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {cause}", file=sys.stderr)
