"""The command line: ``tissnet COMMAND --help``, or ``python -m tissnet_components``."""

import inspect
import sys

import fire

from tissnet_components.cascade import compact
from tissnet_components.datasets.brats import prepare_brats
from tissnet_components.datasets.phantom import phantom
from tissnet_components.datasets.vestibular import prepare_vs
from tissnet_components.federated import federate
from tissnet_components.package import package, verify
from tissnet_components.report.html import report
from tissnet_components.segment import segment
from tissnet_components.study import study

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
    for word, following in zip(words[1:], [*words[2:], "--"], strict=True):
        name = word[2:].split("=")[0].replace("-", "_")
        if not word.startswith("--") or not name:
            continue
        if name not in known:
            raise ValueError(f"{words[0]} has no option --{name}; it has --{', --'.join(known)}")
        flag = name == "help" or options[name].annotation in (bool, "bool")
        if not flag and "=" not in word and following.startswith("--"):
            raise ValueError(f"--{name} is given without a value; see {words[0]} --help")


def main() -> None:
    """Run one command; a mistake in what was given ends in one sentence and exit status 1."""
    try:
        refuse_wrong_options(sys.argv[1:])
        fire.Fire(COMMANDS, name="tissnet")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
