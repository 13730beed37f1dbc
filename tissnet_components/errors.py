"""One clear sentence instead of a traceback, for mistakes that a user can mend."""

import errno
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


class UserError(ValueError):
    """A mistake that the user can mend: one sentence with the file or option, what is wrong with it and what to do."""


class BadCase(UserError):
    """A case that cannot be used."""


class FileMissing(UserError, FileNotFoundError):
    """A file that the user has to provide."""


class PackageMissing(UserError, ImportError):
    """An optional package that is not installed."""


class NotFinite(UserError, FloatingPointError):
    """A training that became NaN or infinite."""


def user_error(error: BaseException | None) -> BaseException | None:
    """What a user can mend among an error and its causes, the outermost first; None where there is nothing.

    That is what this package raised to say so; what a file system refused; too little memory; and a GPU that is not
    there.
    """
    while error is not None:
        if isinstance(error, UserError):
            return error
        if _lacks_memory(error):
            return MemoryError(
                f"out of memory ({str(error).splitlines()[0] if str(error) else 'for a whole image'}); "
                f"close other programs, or resample the scan or crop it to the head"
            )
        if _lacks_device(error):
            return UserError(
                f"the device cannot be used here ({str(error).splitlines()[0]}); leave out --device, or give "
                f"--device \"\\$torch.device('cpu')\""
            )
        if isinstance(error, OSError) and error.errno in FULL | REFUSED:
            cure = "make room" if error.errno in FULL else "correct the path or its permissions"
            return OSError(f"{error.filename or 'a file'}: {error.strerror}; {cure}, then start again")
        error = error.__cause__
    return None


def _lacks_memory(error: BaseException) -> bool:
    """Python and NumPy say so by kind, PyTorch in words, one for the CPU and one for a GPU."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _lacks_device(error: BaseException) -> bool:
    """PyTorch's own ways to say so."""
    words = ("not compiled with CUDA", "No CUDA GPUs", "no NVIDIA driver", "invalid device ordinal")
    return isinstance(error, (RuntimeError, AssertionError)) and any(word in str(error) for word in words)


def ensure_writable(folder: str) -> None:
    """Make a folder if needed and try to write into it, before hours are spent on what should go there.

    Raises:
        ValueError: it cannot be made or written to, or begins with ``~``, which a shell does not expand behind ``=``.
    """
    if str(folder).startswith("~"):
        raise UserError(f"{folder} begins with ~, which was not expanded; write the folder in full")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another folder") from error


def explain_errors() -> None:
    """Let uncaught mistakes that a user can mend end in one sentence; anything else keeps its traceback.

    MONAI wraps what a component raises into a chain of ``RuntimeError``; the bundles call this first.
    """
    sys.excepthook = _explain
    warnings.filterwarnings("ignore", "Divide by zero", module="monai")  # scaling the map of what a patient lacks


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = user_error(error)
    if kind is KeyboardInterrupt:
        print("stopped; the same command starts again, a training after its last finished epoch", file=sys.stderr)
    elif cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {cause}", file=sys.stderr)


def in_one_sentence(error: Exception) -> str:
    """Why a case failed; what is no user's mistake also shows where it happened."""
    cause = user_error(error)
    if cause is None:
        tqdm.write("".join(traceback.format_exception(error)))
    return str(cause or f"{type(error).__name__}: {error}".splitlines()[0])


def report_failed(cases: Mapping[str, str]) -> None:
    """After a run, list the cases that could not be run (name -> reason), if any, and exit with status 1.

    Under torchrun every process calls this with its own cases, and one lists them all.
    """
    import ignite.distributed as idist  # not before it is needed: the command line's help waits for no PyTorch

    everyone: Any = idist.all_gather(dict(cases)) if idist.get_world_size() > 1 else [cases]
    reasons = [f"{case}: {reason}" for part in everyone for case, reason in part.items()]
    if not reasons:
        return
    if idist.get_rank() == 0:
        print(f"{len(reasons)} not run:", *reasons, sep="\n  ", file=sys.stderr)
    raise SystemExit(1)
