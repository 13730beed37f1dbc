"""Times and memory of alternatives, each in a process of its own, run in turn because machines drift."""

import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"


def compare(build: Callable[[str], Callable[[], object]], variants: Sequence[str], repeats: int) -> dict[str, dict]:
    """Run variants in turn, A B C A B C, after one warm-up each.

    Args:
        build: gives the action of a variant; it and its module are imported anew by every process.
        variants: the first is what the others are compared with.
        repeats: timed rounds.

    Returns:
        variant -> ``seconds`` (every one), ``median``, ``times_faster`` than the first, ``peak_mib`` of the process, and
        what the action returned, if that is a dict.
    """
    workers = {variant: Worker(build, variant) for variant in variants}
    rounds = [(variant, worker) for _ in range(repeats) for variant, worker in workers.items()]
    for variant, worker in tqdm(rounds, build.__module__):
        worker.run()
    results = {variant: worker.finish() for variant, worker in workers.items()}
    for result in results.values():
        result["times_faster"] = results[variants[0]]["median"] / result["median"]
    return results


class Worker:
    """A process that holds one action and runs it when told to."""

    def __init__(self, build: Callable[[str], Callable[[], object]], variant: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.seconds: list[float] = []
        self.process = context.Process(target=_serve, args=(build, variant, other), daemon=True)
        self.process.start()

    def run(self) -> None:
        self.connection.send("run")
        self.seconds.append(self.connection.recv())

    def finish(self) -> dict:
        self.connection.send("finish")
        returned, peak_mib = self.connection.recv()
        self.process.join()
        median = statistics.median(self.seconds)
        return {"median": median, "seconds": self.seconds, "peak_mib": peak_mib, **returned}


def _serve(build: Callable[[str], Callable[[], object]], variant: str, connection: Connection) -> None:
    action, returned = build(variant), None
    while connection.recv() == "run":
        start = time.perf_counter()
        returned = action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        connection.send(time.perf_counter() - start)
    connection.send((returned if isinstance(returned, dict) else {}, peak_mib()))


def peak_mib(who: int = resource.RUSAGE_SELF) -> float:
    """The largest resident memory so far, of this process or of the largest finished child."""
    kilobytes = resource.getrusage(who).ru_maxrss
    return kilobytes / (2**20 if platform.system() == "Darwin" else 2**10)
