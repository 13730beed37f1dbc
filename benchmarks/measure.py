"""Times and memory of alternatives, each in a process of its own, run in turn because machines drift."""

import json
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
    connection.send((returned if isinstance(returned, dict) else {}, peak_mib()))


def peak_mib() -> float:
    """The largest resident memory that this process had; Linux counts what its parent had, except in this file."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    told = [int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")]
    return told[0] if told else in_mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_mib(maxrss: float) -> float:
    """What ``ru_maxrss`` counts in bytes on a Mac and in KiB elsewhere."""
    return maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


LAUNCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as told:
    print(usage.ru_maxrss, usage.ru_utime, file=told)
sys.exit(status)
"""


def run_process(command: Sequence[str], **options: Any) -> dict[str, float]:
    """Wall-clock and CPU seconds of a process with its children, and the peak memory of the largest of them.

    A small process starts it, since no process peaks below the one that started it.

    Args:
        options: of ``subprocess.run``.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with TemporaryDirectory() as folder:
        told, start = Path(folder, "usage"), time.perf_counter()
        subprocess.run([sys.executable, "-S", "-c", LAUNCH, str(told), *command], check=True, **options)
        seconds = time.perf_counter() - start
        maxrss, cpu = map(float, told.read_text(encoding="utf-8").split())
    return {"seconds": seconds, "cpu": cpu, "peak_mib": in_mib(maxrss)}


def show(results: dict) -> None:
    """Print what one benchmark found, and on what."""
    print(json.dumps({**machine(), **results}, indent=2))


def machine() -> dict[str, object]:
    """What ran it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "time": time.ctime()}
