"""The command line: ``tissnet COMMAND --help``, or ``python -m tissnet_components``."""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import fire
from fire.decorators import SetParseFns

from tissnet_components.errors import mendable_cause
from tissnet_components.federated import federate
from tissnet_components.package import package, verify
from tissnet_components.phantom.cohort import phantom
from tissnet_components.prepare.brats import prepare_brats
from tissnet_components.prepare.vestibular import prepare_vs
from tissnet_components.report.html import report
from tissnet_components.segment import segment
from tissnet_components.study.study import study
from tissnet_components.weights import compact

COMMANDS = {
    "phantom": phantom,
    "prepare_brats": prepare_brats,
    "prepare_vs": prepare_vs,
    "segment": segment,
    "study": study,
    "federate": federate,
    "report": report,
    "compact": compact,
    "package": package,
    "verify": verify,
}


def refuse_wrong_options(words: list[str]) -> None:
    """Raise ValueError on an option that the command does not have, or without its value; Fire would run it first."""
    if not words or words[0] not in COMMANDS:
        return
    options = inspect.signature(COMMANDS[words[0]]).parameters
    known = [*options, "help"]
    for word, following in pairwise([*words[1:], "--"]):
        name = word[2:].split("=")[0].replace("-", "_")
        if not word.startswith("--") or not name:
            continue
        if name not in known:
            raise ValueError(f"{words[0]} has no option --{name}; it has --{', --'.join(known)}")
        flag = name == "help" or options[name].annotation in (bool, "bool")
        if not flag and "=" not in word and following.startswith("--"):
            raise ValueError(f"--{name} is given without a value; see {words[0]} --help")


def read_as_annotated(command: Callable) -> Callable:
    """Let Fire read the options of a command as their annotations say: a name is text, also when it looks like 7."""
    readers = {name: _reader(name, hint) for name, hint in get_type_hints(command).items() if name != "return"}
    return SetParseFns(**{name: reader for name, reader in readers.items() if reader})(command)


def _reader(name: str, hint: Any) -> Callable[[str], Any] | None:
    """Text -> value; None where Fire's own reading will do."""
    kinds = get_args(hint) or (hint,)
    if any(get_origin(kind) is Sequence for kind in (hint, *kinds)):
        return _names if {str, Sequence[str]} & {hint, *kinds} else None
    if {str, Path} & set(kinds):
        return partial(_read, name, "a name", _text)
    known = {bool: ("true or false", _truth), int: ("a whole number", int), float: ("a number", float)}
    return next((partial(_read, name, *known[kind]) for kind in kinds if kind in known), None)


def _names(text: str) -> list[str]:
    """a,b or [a,b] or ['a','b']."""
    text = text.strip()
    inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    return [name.strip(" '\"") for name in inner.split(",") if name.strip(" '\"")]


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _read(name: str, expected: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except (ValueError, KeyError) as error:
        raise ValueError(f"--{name} is {text!r}, expected {expected}; correct it") from error


def main() -> None:
    """Run one command; a mistake in what was given ends in one sentence and exit status 1."""
    try:
        refuse_wrong_options(sys.argv[1:])
        fire.Fire({name: read_as_annotated(command) for name, command in COMMANDS.items()}, name="tissnet")
    except Exception as error:
        if (cause := mendable_cause(error)) is None and not isinstance(error, (ValueError, OSError, ImportError)):
            raise
        sys.exit(f"error: {cause or error}")


if __name__ == "__main__":
    main()
