"""One name, one thing: two modules of the package never define the same public name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tissnet_components"
SHARED = {
    "OUT": "where each command writes by default",
    "logger": "each module's own, as in Python's documentation",
    **dict.fromkeys(("load_perceptor", "load_weights"), "as bundles of version 0.2 call them, and as they are"),
    **dict.fromkeys(("fool", "tell_apart"), "the paper's two sides of a game: least squares, and pix2pix's"),
    **dict.fromkeys(
        ("Anatomy", "Grid", "scan", "t1_weighted", "t2_weighted", "vary"),
        "the same step of the two simulators, of gliomas and of schwannomas",
    ),
}


def public_names(file: Path) -> Iterator[str]:
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names = [statement.name]
        else:
            targets = getattr(statement, "targets", [getattr(statement, "target", None)])
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def test_only_names_that_mean_the_same_are_defined_in_two_modules():
    modules = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        for name in public_names(file):
            modules[name].add(file.relative_to(PACKAGE).as_posix())
    assert {name: files for name, files in modules.items() if len(files) > 1 and name not in SHARED} == {}
    assert [name for name in SHARED if len(modules[name]) < 2] == []


def test_every_kind_of_definition_is_seen(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "import json\ndef step(): ...\nclass Batch: ...\nONE = TWO = 1\nTHREE: int = 3\n_four = 4\njson.x = 1\n"
    )
    assert list(public_names(module)) == ["step", "Batch", "ONE", "TWO", "THREE"]
