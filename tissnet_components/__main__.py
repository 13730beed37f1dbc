"""The command line: ``python -m tissnet_components COMMAND --help``."""

import sys

import fire

from tissnet_components.datasets.brats import prepare_brats
from tissnet_components.datasets.phantom import phantom
from tissnet_components.report.html import report
from tissnet_components.segment import segment

COMMANDS = {"phantom": phantom, "prepare_brats": prepare_brats, "segment": segment, "report": report}


def main() -> None:
    """Run one command; a mistake in what was given ends in one sentence and exit status 1."""
    try:
        fire.Fire(COMMANDS, name="tissnet_components")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
