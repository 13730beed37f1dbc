"""Where a component went that released bundles name: their configs load until bundles of version 0.2 are two years old.

Nothing here is for new code: a bundle names a component where it is.
"""

from collections.abc import Callable, Mapping, Sequence
from pydoc import locate
from types import SimpleNamespace
from typing import Any

PREFIX = __name__.rpartition(".")[0]

MOVED = {  # as bundles of version 0.2 to 0.4 name it, below `tissnet_components` -> where it is
    "case_table": "results.case_table",
    "cascade.load_generator": "comparators.pix2pix.load_generator",
    "cascade.load_perceptor": "moved.load_perceptor",
    "cascade.load_weights": "moved.load_weights",
    "cascade.read_image_settings": "weights.read_recipe",
    "datasets.cases": "scans.datalist",
    "files.copy_whole": "files.copy_atomic",
    "inference.CheckedCases": "moved.CheckedCases",
    "inference.ChooseMapd": "label_server.ChooseMapd",
    "inference.InvertTogetherd": "inversion.InvertTogetherd",
    "inference.find_scans": "scans.cases.find_scans",
    "inference.report_failed": "errors.report_failed",
    "quality": "results.summary",
    "saving": "results.maps",
    "transforms.InvertTogetherd": "inversion.InvertTogetherd",
    "transforms.LoadCased": "scans.loading.LoadCased",
    "transforms.LoadImageCased": "scans.loading.LoadImageCased",
}


class CheckedCases:
    """For bundles of version 0.2: the cases that can be run, and the reasons of the others, after reading all."""

    def __init__(self, cases: Sequence[Mapping[str, Any]], keys: Sequence[str] = ("image",)) -> None:
        self.good, self.failed = _at("scans.cases.usable_cases")(
            [{key: case[key] for key in ("case", *keys)} for case in cases]
        )


def load_weights(network: Any, path: str, image_settings: Mapping[str, Any] | None = None) -> Any:
    """What bundles of version 0.2 call `image_settings` is a part of the recipe."""
    return _at("weights.load_weights")(network, path, image_settings)


def load_perceptor(perceptor: Any, path: str, image_settings: Mapping[str, Any] | None = None) -> Any:
    """Likewise."""
    return _at("weights.load_perceptor")(perceptor, path, image_settings)


def _at(place: str) -> Any:
    return locate(f"{PREFIX}.{place}")


def forwarding(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module, which finds what has left it."""

    def find(name: str) -> Any:
        place = f"{module}.{name}".removeprefix(f"{PREFIX}.")
        if place in MOVED:
            return _at(MOVED[place])
        inside = {old.removeprefix(f"{place}."): new for old, new in MOVED.items() if old.startswith(f"{place}.")}
        if not inside:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return SimpleNamespace(**{old: _at(new) for old, new in inside.items()})

    return find
