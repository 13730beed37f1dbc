"""A cohort shared out among jobs that know nothing of each other, such as those of a Slurm array."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from tissnet_components.errors import UserError
from tissnet_components.results.files import is_finished

Case = TypeVar("Case")


def shard_of(cases: Sequence[Case], shard: str | None) -> list[Case]:
    """Of ``3/16`` every sixteenth case, from the third on; by default all.

    Raises:
        ValueError: no such part.
    """
    if shard is None:
        return list(cases)
    given = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    part, parts = map(int, given.groups()) if given else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard is {shard!r}, expected a part and the number of parts, from 1/16 to 16/16")
    return list(cases[part - 1 :: parts])


def remaining(
    cases: Sequence[dict[str, Any]], shard: str | None, resume: bool, output_dir: str, outputs: Sequence[str]
) -> list[dict[str, Any]]:
    """The cases that a job has to do: those of its shard, on resuming without those whose results are all there."""
    mine = shard_of(cases, shard)
    return [case for case in mine if not (resume and is_finished(Path(output_dir), case["case"], outputs))]
