"""Cases shared out among processes that end with the one that started them, also when that is killed."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

from tissnet_components.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def share_out(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """The result of every job, in order; one worker is this process itself.

    Raises:
        ValueError: a process died.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
            yield from pool.map(work, jobs)
    except BrokenProcessPool as error:
        raise UserError("a process died, perhaps for lack of memory; run again with --workers 1") from error


def _end_with_parent() -> None:
    """Without this, the workers of a killed process would wait for work forever, each with its memory."""
    parent = parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    Thread(target=end, daemon=True).start()
