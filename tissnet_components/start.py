"""Start fast: what MONAI and Ignite import in advance, and a command may not need, comes when it is used."""

import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType
from typing import Any


@contextmanager
def without_collecting() -> Iterator[None]:
    """Hold Python's garbage collector while MONAI is imported: a fifth of that time, in which it finds nothing.

    What was imported is not looked at again later either. Once MONAI is there, nothing is held.
    """
    if "monai" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Later:
    """Stands for what an import would give, and makes the import when it is used: called, looked into, derived from."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = cache(load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._load())

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        return (self._load(),)


def import_monai() -> None:
    """Import MONAI in a third of the time: without Matplotlib, pandas, scikit-image and -learn, TensorBoard, SymPy...

    All of MONAI is there, and what it takes from such packages too, once it is used; MONAI itself puts an object in
    their place where one is not installed.
    """
    if "monai" in sys.modules:
        return
    parent = importlib.util.find_spec("monai")
    if parent is None or not parent.submodule_search_locations:
        return  # the import that follows says so
    with without_collecting(), _stand_ins("torch.distributed.optim", "matplotlib", "matplotlib.pyplot"):
        import_module("ignite.engine")
        module = _load_module("monai.utils.module", f"{parent.submodule_search_locations[0]}/utils/module.py")
        module.__dict__["optional_import"] = _when_used(module.__dict__["optional_import"])
        import_module("monai.utils").__dict__["module"] = module


@contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Modules that give a `Later` of whatever is asked of them, while others import them.

    For Ignite's checkpoints, which ask for an optimizer that brings PyTorch's FSDP and scripts its optimizers; and for
    MONAI's plots in notebooks.
    """
    added = [name for name in names if name not in sys.modules and importlib.util.find_spec(name.partition(".")[0])]
    for name in added:
        sys.modules[name] = stand_in = ModuleType(name)
        stand_in.__dict__["__getattr__"] = partial(_later_of, name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _later_of(module: str, name: str) -> Later:
    if name.startswith("__"):  # such as __file__, for which Python's own modules look through all that are imported
        raise AttributeError(name)
    return Later(lambda: resolve_name(f"{module}.{name}"))


def _load_module(name: str, path: str) -> ModuleType:
    """A module of a package before the package, whose import would use it."""
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _when_used(optional_import: Callable[..., tuple[Any, bool]]) -> Callable[..., tuple[Any, bool]]:
    """MONAI's ``optional_import``, which imports what is installed not before it is used."""

    def import_later(module: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        package = module.partition(".")[0]
        if module in sys.modules or package == "monai" or importlib.util.find_spec(package) is None:
            return optional_import(module, *args, **kwargs)
        return Later(lambda: optional_import(module, *args, **kwargs)[0]), True

    return import_later
