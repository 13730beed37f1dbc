"""One clear sentence instead of a traceback, for mistakes that a user can mend."""

import sys
import traceback
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).parent
MENDABLE = (ValueError, FileNotFoundError, PermissionError, FloatingPointError)


def mendable_cause(error: BaseException) -> BaseException | None:
    """The first cause of an error, if this package raised it to tell the user what to mend; else None."""
    while error.__cause__ is not None and not _raised_here(error):
        error = error.__cause__
    return error if _raised_here(error) else None


def _raised_here(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, MENDABLE) and bool(frames) and PACKAGE in Path(frames[-1].filename).parents


def explain_errors() -> None:
    """Let uncaught mistakes that a user can mend end in one sentence; anything else keeps its traceback.

    MONAI wraps what a component raises into a chain of ``RuntimeError``; the bundles call this first.
    """
    sys.excepthook = _explain


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = mendable_cause(error)
    if cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {cause}", file=sys.stderr)
