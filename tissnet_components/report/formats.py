"""A table as Markdown, LaTeX and CSV."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pandas as pd
from tissnet_components.report.tables import Cell, Table

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "✓": r"$\checkmark$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": "$<$",
    ">": "$>$",
    "λ": r"$\lambda$",
}


def to_markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [[f"**{cell.text}**" if cell.bold else cell.text for cell in row] for row in table.rows]
    rule = "|" + "".join("---|" if not _is_number_column(table, index) else "---:|" for index in range(len(table.head)))
    lines = [
        f"**{table.title}**",
        "",
        line(table.head),
        rule,
        *map(line, rows),
        "",
        *(f"{note}  " for note in table.notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(table: Table) -> str:
    """A table float for the package booktabs."""
    rows = [
        [rf"\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text) for cell in row] for row in table.rows
    ]
    columns = "".join("r" if _is_number_column(table, index) else "l" for index in range(len(table.head)))
    texts = pd.DataFrame(rows, columns=[_latex(name) for name in table.head])
    written = texts.to_latex(index=False, escape=False, column_format=columns, caption=_latex(table.title))
    end = "\\end{table}\n"
    notes = [rf"\par\footnotesize {_latex(note)}" for note in table.notes]
    return written.removesuffix(end) + "\n".join([*notes, end])


def to_csv(table: Table) -> str:
    """The numbers behind the cells, unrounded, each in a column of its own; texts where there are no numbers."""
    numbers = [
        list(dict.fromkeys(name for row in table.rows for name in row[index].numbers))
        for index in range(len(table.head))
    ]
    heads = (
        [f"{head.rstrip(' ↑↓')} {name}".rstrip() for name in names] or [head]
        for head, names in zip(table.head, numbers, strict=True)
    )
    rows = [
        [value for cell, names in zip(row, numbers, strict=True) for value in _values(cell, names)]
        for row in table.rows
    ]
    values = pd.DataFrame(rows, columns=[*chain.from_iterable(heads)])
    return values.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _values(cell: Cell, names: Sequence[str]) -> Sequence[Any]:
    return [cell.numbers.get(name) for name in names] or [cell.text]


def _is_number_column(table: Table, index: int) -> bool:
    return any(row[index].numbers for row in table.rows)


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
