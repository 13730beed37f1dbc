"""Read tables as spreadsheets write them: a CSV in any of their separators and encodings."""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from tissnet_components.errors import UserError

SEPARATORS = ",;\t"


def read_table(path: str | Path, columns: Sequence[str], names: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows of a CSV, with ``line``, their number in the file; cells without blanks around them.

    Commas, semicolons or tabs part the cells. UTF-8, UTF-16 with its mark, and else Windows-1252 are read. The first
    line names the columns, in any case of letters, unless ``names`` does.

    Raises:
        UserError: the file cannot be read, or lacks one of the columns.
    """
    try:
        text = _decoded(Path(path).read_bytes())
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a CSV with columns {','.join(columns)}") from error
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        found = list(names or [name.strip().lower() for name in next(rows, [])])
        cells = [(rows.line_num, [cell.strip() for cell in row]) for row in rows if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path} cannot be read ({error}); expected a CSV with columns {','.join(columns)}") from error
    if not set(columns) <= set(found):
        raise UserError(f"{path} has the columns {','.join(found) or 'none'}, expected {','.join(columns)}; correct it")
    empty = dict.fromkeys(found, "")
    return [{**empty, **dict(zip(found, row, strict=False)), "line": str(line)} for line, row in cells]


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")
