"""What a study's `report` may ask for, and one sentence for what it cannot mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from tissnet_components.errors import UserError
from tissnet_components.report.plots import QUALITIES
from tissnet_components.report.tables import Layout, run_of

TABLE_KEYS = {
    "title": str,
    "head": list[str],
    "rows": dict,
    "metrics": list[str],
    "reference": str | None,
    "unranked": list[str],
    "mean": str,
}
PICTURE_KEYS = {"title": str, "rows": list | dict, "cases": list[str], "contours": bool, "zoom": bool}
CURVE_KEYS = {"x": str, "rows": dict}
REPORT_KEYS = {
    "tables": list,
    "pictures": list,
    "curves": list,
    "methods": list[str],
    "reference": str | None,
    "alarm": dict,
}
ALARM_KEYS = dict.fromkeys(("dice", *QUALITIES), int | float)
KIND_NAMES: dict[Any, str] = {
    str: "a text",
    str | None: "a text",
    int: "a whole number",
    int | float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    list[str]: "a list of texts",
    list | dict: "a list or an object",
}


def check_report(wanted: Mapping, rows: Sequence[str]) -> None:
    """Refuse what a study's `report` cannot mean: keys and values of other kinds, rows that the study does not have.

    Raises:
        ValueError: one sentence.
    """
    check_keys(wanted, REPORT_KEYS, "report")
    if "alarm" in wanted:
        check_keys(wanted["alarm"], ALARM_KEYS, "report's alarm", required=["dice"])
    named = [("methods", name) for name in wanted.get("methods", [])]
    for key, known in (("pictures", PICTURE_KEYS), ("curves", CURVE_KEYS)):
        for entry in wanted.get(key, []):
            check_keys(entry, known, f"an entry of report's {key}", required=list(known)[:2])
            named += [(key, name) for name in entry.get("rows", [])]
    for curve in wanted.get("curves", []):
        if texts := [row for row, value in curve["rows"].items() if not isinstance(value, int | float)]:
            found = f"a number for {texts[0]!r}, not {curve['rows'][texts[0]]!r}"
            raise UserError(f"report's curve {curve['x']!r} needs {found}: the value of the parameter")
    for entry in wanted.get("tables", []):
        named += [(layout.title, run_of(row)) for layout in [layout_of(entry)] for row in layout.rows]
    if wanted.get("reference"):
        named.append(("reference", wanted["reference"]))
    for where, name in named:
        if name not in rows:
            absent = "which the study does not have, or not evaluate"
            raise UserError(f"report asks in {where} for the row {name!r}, {absent}: {[*rows]}")


def layout_of(entry: Mapping) -> Layout:
    """A table that a study asks for."""
    check_keys(entry, TABLE_KEYS, "a table of report", required=("title", "head", "rows"))
    return Layout(**entry)


def evaluated(study: Mapping) -> list[str]:
    """The rows of which there are results to show."""
    return [row["name"] for row in study.get("rows", []) if row.get("evaluate", True)]


def check_keys(given: object, known: Mapping[str, Any], where: str, required: Sequence[str] = ()) -> None:
    """Refuse what is no object, a key that is not known or is missing, and a value of another kind.

    Raises:
        ValueError: one sentence.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where} is a {type(given).__name__}, expected an object; docs/guide/study.md shows one")
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{where} has the unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if missing := [key for key in required if key not in given]:
        raise UserError(f"{where} lacks {missing[0]!r}; it has {list(given)}")
    for key, value in given.items():
        if not _is_of(value, known[key]):
            raise UserError(
                f"{key!r} of {where} is {value!r}, expected {KIND_NAMES[known[key]]}; docs/guide/study.md shows one"
            )


def _is_of(value: object, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)
