"""Times and memory of alternatives, each in a process of its own, run in turn because machines drift."""

import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tqdm import tqdm


def compare(build: Callable[[str], Callable[[], object]], variants: Sequence[str], repeats: int) -> dict[str, dict]:
    """Run variants in turn, A B C A B C.

    Args:
        build: gives the action of a variant, in a process of its own.
        variants: the first is what the others are compared with.
        repeats: rounds.

    Returns:
        variant -> ``seconds`` of each round, their ``median``, ``times_faster`` than the first variant, ``peak_mib`` of
        memory of the process, and what the action returned, if that is a dict.
    """
    workers = {variant: Worker(build, variant) for variant in variants}
    for worker in tqdm(list(workers.values()) * repeats, build.__module__):
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
        other.close()  # so that a process that fails ends the waiting
        self.connection.recv()

    def run(self) -> None:
        self.connection.send("run")
        self.seconds.append(self.connection.recv())

    def finish(self) -> dict:
        self.connection.send("finish")
        returned, peak = self.connection.recv()
        self.process.join()
        return {"median": statistics.median(self.seconds), "seconds": self.seconds, "peak_mib": peak, **returned}


def _serve(build: Callable[[str], Callable[[], object]], variant: str, connection: Connection) -> None:
    action, returned = build(variant), None
    connection.send("ready")
    while connection.recv() == "run":
        start = time.perf_counter()
        returned = action()
        connection.send(time.perf_counter() - start)
    peak = in_mib(resource.getrusage(resource.RUSAGE_SELF))
    connection.send((returned if isinstance(returned, dict) else {}, peak))


def in_mib(usage: resource.struct_rusage) -> float:
    """The largest resident memory that a process had."""
    return usage.ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def show(results: dict) -> None:
    """Print what one benchmark found, and on what."""
    print(json.dumps({**machine(), **results}, indent=2))


def machine() -> dict[str, object]:
    """What ran it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "time": time.ctime()}
