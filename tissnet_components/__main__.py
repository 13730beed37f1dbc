"""The command line: ``tissnet COMMAND --help``, or ``python -m tissnet_components``."""

import inspect
import sys

import fire

from tissnet_components.cascade import compact
from tissnet_components.datasets.brats import prepare_brats
from tissnet_components.datasets.phantom import phantom
from tissnet_components.datasets.vestibular import prepare_vs
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
    "report": report,
    "compact": compact,
    "package": package,
    "verify": verify,
}


def refuse_unknown_options(words: list[str]) -> None:
    """Raise ValueError on an option that the command does not have; Fire would run it first and complain then."""
    if not words or words[0] not in COMMANDS:
        return
    known = [*inspect.signature(COMMANDS[words[0]]).parameters, "help"]
    given = [word[2:].split("=")[0].replace("-", "_") for word in words[1:] if word.startswith("--") and word != "--"]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{words[0]} has no option --{unknown[0]}; it has --{', --'.join(known)}")


def main() -> None:
    """Run one command; a mistake in what was given ends in one sentence and exit status 1."""
    try:
        refuse_unknown_options(sys.argv[1:])
        fire.Fire(COMMANDS, name="tissnet")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
