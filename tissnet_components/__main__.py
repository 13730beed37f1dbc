"""The command line: ``tissnet COMMAND --help``, or ``python -m tissnet_components``."""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

import fire
from fire.decorators import SetParseFns
from tissnet_components.errors import UserError, user_error
from tissnet_components.files import user_path
from tissnet_components.start import without_collecting

COMMANDS = {  # name -> where it is, below this package, and its purpose; imported when it is called
    "segment": ("segment.segment", "segment patients, and synthesise the contrast that they lack"),
    "view": ("results.page.view", "open a page that shows a case, or all cases of a folder"),
    "phantom": ("phantom.cohort.phantom", "simulate a cohort, to start without any data"),
    "prepare_brats": ("prepare.brats.prepare_brats", "check a BraTS download and write its datalist"),
    "prepare_vs": ("prepare.vestibular.prepare_vs", "convert Vestibular-Schwannoma-SEG and write its datalist"),
    "study": ("study.study.study", "run many trainings and evaluations from one file"),
    "report": ("report.html.report", "one page of tables and figures about evaluations"),
    "federate": ("federated.federate", "write a job for training across hospitals"),
    "label_bundle": ("label_server.label_bundle", "write a bundle for MONAI Label that takes any contrasts"),
    "compact": ("weights.compact", "write weights in half precision, as the bundles ship them"),
    "package": ("package.package", "pack a bundle with its weights and code into one zip"),
    "verify": ("package.verify", "check that a packaged bundle is whole and unchanged"),
}


def find_command(name: str) -> Callable:
    """The function behind a command; only its own imports are made."""
    if not _is_here(name):
        raise UserError(f"{name} is not part of a packaged bundle; run it in the repository")
    with without_collecting():
        return resolve_name(f"{__package__}.{COMMANDS[name][0]}")


def _is_here(name: str) -> bool:
    """Whether this copy of the package has the command: a bundle's zip leaves rooms out.

    Only this copy's folder is asked: an editable install beside it would answer with rooms of its own.
    """
    room = COMMANDS[name][0].split(".")[0]
    return PathFinder.find_spec(f"{__package__}.{room}", [str(Path(__file__).parent)]) is not None


def print_commands() -> None:
    commands = {name: purpose for name, (_, purpose) in COMMANDS.items() if _is_here(name)}
    width = max(map(len, commands))
    print("TISS-Net: synthesise a missing MR contrast and segment the brain tumor. For research only.\n")
    print(*(f"  tissnet {name:{width}}  {purpose}" for name, purpose in commands.items()), sep="\n")
    print("\ntissnet COMMAND --help explains a command, with examples.")


def refuse_wrong_options(command: Callable, words: list[str]) -> None:
    """Raise ValueError on an option that the command does not have, or without its value; Fire would run it first."""
    options = inspect.signature(command).parameters
    known = [*options, "help"]
    for word, following in pairwise([*words, "--"]):
        name = word[2:].split("=")[0].replace("-", "_")
        if not word.startswith("--") or not name:
            continue
        if name not in known:
            raise UserError(f"{command.__name__} has no option --{name}; it has --{', --'.join(known)}")
        flag = name == "help" or options[name].annotation in (bool, "bool")
        if not flag and "=" not in word and following.startswith("--"):
            raise UserError(f"--{name} is given without a value; see {command.__name__} --help")


def read_as_annotated(command: Callable) -> Callable:
    """Let Fire read the options of a command as their annotations say: a name is text, also when it looks like 7."""
    readers = {name: _reader(name, hint) for name, hint in get_type_hints(command).items() if name != "return"}
    return SetParseFns(**{name: reader for name, reader in readers.items() if reader})(command)


def _reader(name: str, hint: Any) -> Callable[[str], Any] | None:
    """Text -> value; None where Fire's own reading will do."""
    kinds = get_args(hint) or (hint,)
    if any(get_origin(kind) is Sequence for kind in (hint, *kinds)):
        if {Path, Sequence[Path]} & {hint, *kinds}:
            return lambda text: [user_path(name) for name in _names(text)]
        return _names if {str, Sequence[str]} & {hint, *kinds} else None
    if Path in kinds:
        return lambda text: user_path(_read(name, "a path", _text, text))
    if str in kinds:
        return partial(_read, name, "a name", _text)
    known: dict[Any, tuple[str, Callable[[str], Any]]] = {
        bool: ("true or false", _truth),
        int: ("a whole number", int),
        float: ("a number", float),
    }
    return next((partial(_read, name, *known[kind]) for kind in kinds if kind in known), None)


def _names(text: str) -> list[str]:
    """a,b or [a,b] or ['a','b']."""
    text = text.strip()
    inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    return [name.strip(" '\"") for name in inner.split(",") if name.strip(" '\"")]


def _text(text: str) -> str:
    if not text.strip():
        raise UserError("empty")
    return text


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _read(name: str, expected: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"--{name} is {text!r}, expected {expected}; correct it") from error


def main() -> None:
    """Run one command; a mistake in what was given ends in one sentence and exit status 1."""
    name, words = (sys.argv[1] if sys.argv[1:] else "--help"), sys.argv[2:]
    if name in ("--help", "-h", "help"):
        return print_commands()
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name!r}; choose one of {', '.join(COMMANDS)}")
    try:
        command = find_command(name)
        refuse_wrong_options(command, words)
        fire.Fire({name: read_as_annotated(command)}, name="tissnet")
    except Exception as error:
        if (cause := user_error(error)) is None and not isinstance(error, OSError):
            raise
        sys.exit(f"error: {cause or error}")


if __name__ == "__main__":
    main()
