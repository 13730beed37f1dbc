"""What no one expects: odd headers, files and names to try, and what a command may end with."""

import contextlib
import gzip
import io
import re
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tissnet_components import errors

LONGEST_S = 60
NUMBERS = (0, -0.0, 1, -1, 0.5, 1.5, -4, 1e-3, 1e3, 1e-30, 1e6, 1e30, 3e38, float("nan"), float("inf"), -float("inf"))
COUNTS = (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 10, 34, 36, 72, 1000, 32767)
DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, -1)
EXTREMES = st.sampled_from(
    (0, 1, -1, 1e-300, 1e-42, 1e-10, 1e10, 1e38, -3e38, 3e38, 1e39, 1e300, np.nan, np.inf, -np.inf)
)
REAL_TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


def tried(short: int, full: int) -> pytest.MarkDecorator:
    """How many inputs a test tries: a few, the same every time, in `make test`; many in `make stress`."""
    amounts = [pytest.param(short, id="short"), pytest.param(full, id="full", marks=pytest.mark.stress)]
    return pytest.mark.parametrize("amount", amounts)


def inputs(amount: int, *given_by: st.SearchStrategy) -> Callable[[Callable], None]:
    """Run the decorated function on generated inputs, at once."""
    chosen = settings(
        max_examples=amount,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    return lambda check: chosen(given(*given_by)(check))()


def refusal(action: Callable[[], object], *names: object) -> str:
    """What a command says as it ends with status 1; "" where it went well. Anything else fails the test.

    Args:
        names: what a sentence has to name, one of them, such as the file at fault.
    """
    shown = io.StringIO()
    signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            said = _ending(action)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    printed = shown.getvalue()
    assert "Traceback" not in printed and not re.search(r"unexpected \w+(Error|Exception)", printed), printed
    if said is None:
        return ""
    said = said or re.split(r"\d+ not run:", printed)[-1]
    assert any(str(name) in said for name in names), f"{names} are not named: {said!r}"
    assert re.search(r"[;:,] \w", said), f"names no cure: {said!r}"
    return said


def _ending(action: Callable[[], object]) -> str | None:
    try:
        action()
    except SystemExit as ended:
        assert ended.code == 1 or (isinstance(ended.code, str) and ended.code.startswith("error: "))
        return "" if ended.code == 1 else ended.code
    except Exception as error:
        cause = errors.user_error(error)
        if cause is None:
            raise
        assert "\n" not in str(cause)
        return f"error: {cause}"
    return None


def _hang(*_: object) -> None:
    raise TimeoutError(f"took more than {LONGEST_S} s of a processor")


def odd_headers(fields: dict[str, st.SearchStrategy] | None = None) -> st.SearchStrategy[dict[str, object]]:
    """One to three fields of a NIfTI-1 header with values that may make no sense."""
    known = fields or _fields()
    chosen = st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: known[name] for name in names}))


def _fields() -> dict[str, st.SearchStrategy]:
    number, count = st.sampled_from(NUMBERS), st.sampled_from(COUNTS)
    floats = ("vox_offset", "scl_slope", "scl_inter", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_z")
    integers = ("sizeof_hdr", "bitpix", "qform_code", "sform_code", "intent_code", "slice_start")
    return {
        **dict.fromkeys(floats, number),
        **dict.fromkeys(integers, count),
        **dict.fromkeys(("srow_x", "srow_y", "srow_z"), st.lists(number, min_size=4, max_size=4)),
        "dim": st.tuples(st.sampled_from((-1, 0, 1, 2, 3, 4, 5, 7, 8)), *[count] * 7),
        "pixdim": st.lists(number, min_size=8, max_size=8),
        "datatype": st.sampled_from(DATATYPES),
        "magic": st.sampled_from((b"n+1", b"ni1", b"n+2", b"", b"\xff\xff\xff\xff")),
        "xyzt_units": st.integers(0, 255),
    }


def with_header(volume: bytes, changes: dict[str, object], big_endian: bool = False) -> bytes:
    """An uncompressed NIfTI-1 file with some fields of its header changed; if wanted, all in big-endian byte order."""
    header = np.frombuffer(volume[:348], nib.nifti1.header_dtype).copy()
    voxels = np.frombuffer(volume[352:], f"u{header['bitpix'][0] // 8}")
    with np.errstate(all="ignore"):
        for name, value in changes.items():
            header[name] = value
    if big_endian:
        header, voxels = header.byteswap(), voxels.byteswap()
    return header.tobytes() + volume[348:352] + voxels.tobytes()


def write(file: Path, content: bytes) -> Path:
    """Write a NIfTI file, packed if its name says so."""
    file.write_bytes(gzip.compress(content, 1) if file.name.endswith(".gz") else content)
    return file


def names() -> st.SearchStrategy[str]:
    """Names that a file system may hold, and some that it may not."""
    printable = (
        "a b",
        "$x$",
        "$\\foo$",
        "a$b",
        "[bold]x[/bold]",
        "{}",
        "%s",
        "-x",
        "*",
        "é",
        "患者",
        "🧠",
        "None",
        "x.nii",
    )
    leading_out = ("..", ".", "", "../x", "a/b", "/x", "a\\b", "C:x")
    unfit = ("a\nb", "a\tb", "\x1b[31m", "\0", "x" * 300, "患" * 90, "\udcfc")
    return st.one_of(st.sampled_from(printable + leading_out + unfit), st.text(min_size=1, max_size=20))
