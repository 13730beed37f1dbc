"""Commands in processes forked from one that has imported everything, which saves each the seconds of importing.

To the command it is the same as `python -m MODULE ...`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FORKS = """
import gc, json, os, runpy, sys
import ignite.handlers, monai.bundle, monai.engines, torch._dynamo, tissnet_components.__main__
import tissnet_components.handlers, tissnet_components.inference, tissnet_components.losses, tissnet_components.training

gc.freeze()  # otherwise each process takes a second to tear down what this one imported
for line in sys.stdin:
    if (child := os.fork()) == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
command = json.loads(line)
for descriptor in (1, 2):
    os.dup2(os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
os.chdir(command["folder"])
exec(command["before"])
sys.argv = [command["module"], *command["arguments"]]
runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
"""


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    printed: str

    @property
    def succeeded(self) -> bool:
        assert self.status == 0, self.printed
        return True

    @property
    def sentence(self) -> str:
        """The one line that begins with "error:"; anything like a traceback fails the test."""
        assert self.status == 1, self.printed
        assert "Traceback" not in self.printed, self.printed
        [line] = [line for line in self.printed.splitlines() if line.startswith("error: ")]
        return line


class Forks:
    """One command at a time: ``start``, then ``wait``; calling does both.

    Args:
        folder: where commands start.
        logs: keeps what they print.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs, self.count = folder, logs, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, module: str, *arguments: str, before: str = "") -> int:
        """Start `python -m MODULE ARGUMENTS`, after some Python to simulate faults with; returns the process's id."""
        self.count += 1
        self.log = self.logs / f"{self.count}.txt"
        self.log.touch()
        request = {"module": module, "arguments": arguments, "folder": str(self.folder), "log": str(self.log)}
        print(json.dumps(request | {"before": before}), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def wait(self) -> Ended:
        return Ended(int(self.server.stdout.readline()), self.log.read_text())

    def __call__(self, module: str, *arguments: str, before: str = "") -> Ended:
        self.start(module, *arguments, before=before)
        return self.wait()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
