"""The commands that a study consists of: each trains or evaluates one row on one fold, and keeps how far it is."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tissnet_components.files import digest, to_json, write_atomic
from tqdm import tqdm

STARTED = "=== started "
FINISHED_EPOCH = re.compile(r"Epoch\[(\d+)\] Complete")


@dataclass(frozen=True)
class Step:
    """One command of a study: the training or the evaluation of one row on one fold."""

    kind: str  # of STEPS
    row: str
    label: str
    folder: Path
    configs: list[str]
    settings: dict
    built_on: list[str]  # weights of other rows
    epochs: int

    @property
    def overlay(self) -> Path:
        """The settings, as a config that lies over the others."""
        return self.folder / f"{self.kind}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.kind}.txt"

    @property
    def weights(self) -> Path:
        """What a training writes and an evaluation reads."""
        return Path(self.settings["ckpt_dir"], f"{self.settings['model_name']}.pt")

    @property
    def record(self) -> dict:
        """What it was started with, the minutes so far, and whether it is finished."""
        file = self.folder / f"{self.kind}_record.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def keep(self, minutes: float, finished: bool, what: Mapping) -> None:
        record = {"minutes": round(minutes, 2), "finished": finished, "machine": machine(), **what}
        write_atomic(self.folder / f"{self.kind}_record.json", to_json(record))

    @property
    def what(self) -> dict:
        """Configs, settings, and the content of the files that it builds on."""
        return {"configs": self.configs, "settings": self.settings, "reads": {str(f): digest(f) for f in self.reads}}

    @property
    def reads(self) -> list[Path]:
        own = [self.weights] if self.kind == "evaluating" else []
        return [Path(self.settings["datalist"]), *map(Path, self.built_on), *own]

    @property
    def state(self) -> str:
        record, what = self.record, self.what
        if not record:
            return "to do"
        known = {"reads": what["reads"], **record}  # older records do not say what was read
        return "done" if record["finished"] and known.items() >= what.items() else "begun"


def refusal(step: Step) -> str:
    """Why a training would mix: one that was begun goes on only with what it began with, but for more epochs."""
    record, what = step.record, step.what
    if step.kind != "training" or not record:
        return ""
    old, new = ({**run["settings"], "configs": run["configs"]} for run in (record, what))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    found = [f"{key} {old.get(key)}, now it is {new.get(key)}" for key in changed]
    if changed == ["epochs"] and new.get("epochs", 0) > old.get("epochs", 0):
        found = []
    read = {file: content for file, content in record.get("reads", {}).items() if content}
    found += [f"another content of {file}" for file, now in what["reads"].items() if read.get(file, now) != now]
    cure = f"give another --out, or remove {step.folder} and its weights {step.weights.with_suffix('')}*.pt"
    return f"was begun with {found[0]}: {cure}" if found else ""


def run_steps(steps: Sequence[Step], bundle: Path, processes: int = 1) -> list[str]:
    """Run what is not done, with a progress line; returns what failed and why."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no training may outlive the study
    failed: dict[Path, str] = {}
    done = [step for step in steps if step.state == "done"]
    shown: dict[str, Any] = {"desc": "study", "unit": "run", "file": sys.stdout, "dynamic_ncols": True}
    with tqdm(total=len(steps), initial=len(done), **shown) as progress:
        for step in steps:
            if (
                step.state != "done"
                and step.folder not in failed
                and (reason := refusal(step) or run_step(step, bundle, processes, progress))
            ):
                failed[step.folder] = f"{step.label}: {reason}; log: {step.log}"
                progress.write(f"failed: {failed[step.folder]}")
            progress.update(step not in done)
    return list(failed.values())


def run_step(step: Step, bundle: Path, processes: int, progress: tqdm) -> str:
    """Run one step to its end, its output going to its log; returns why it failed, or nothing."""
    begun, what, status = time.monotonic() - 60 * step.record.get("minutes", 0), step.what, None
    write_atomic(step.overlay, to_json(step.settings))

    def keep() -> float:
        minutes = (time.monotonic() - begun) / 60
        step.keep(minutes, status == 0, what)
        return minutes

    kept = keep()
    progress.set_postfix_str(step.label)
    with step.log.open("a") as log:
        print(f"{STARTED}{time.ctime()}: {step.label}", file=log, flush=True)
        child = subprocess.Popen(command(step, processes), cwd=bundle, stdout=log, stderr=log, env=_environment())
        try:
            while status is None:
                progress.set_postfix_str(f"{step.label} {_epoch(step)}".strip(), refresh=sys.stdout.isatty())
                status = _wait(child, seconds=1)
                if time.monotonic() - begun > 60 * (kept + 1):  # a machine that loses power says nothing at the end
                    kept = keep()
        except KeyboardInterrupt:
            child.terminate()  # torchrun ends its processes then
            _wait(child, seconds=20)
            raise SystemExit("stopped; the same command goes on where it stopped") from None
        finally:
            child.kill()
            keep()
    return "" if status == 0 else _reason(step.log, status)


def command(step: Step, processes: int = 1) -> list[str]:
    """What a user would type in the bundle's folder."""
    files = [f"configs/{name}.json" for name in step.configs] + [str(step.overlay)]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] * (processes > 1)
    return [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        *torchrun,
        "monai.bundle",
        "run",
        step.kind,
        "--config_file",
        str(files),
    ]


def machine() -> str:
    """What the minutes were measured on, as one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} CPU cores, {gpu}, PyTorch {version('torch')}, MONAI {version('monai')}"


def print_steps(steps: Sequence[Step]) -> None:
    table = Table("run", "configs", "state", "minutes")
    for step in steps:
        table.add_row(step.label, ", ".join(step.configs), step.state, f"{step.record.get('minutes', 0):.1f}")
    Console().print(table)


def _environment() -> dict[str, str]:
    """A line of progress every half minute is enough for a log."""
    return {**os.environ, "TQDM_MININTERVAL": "30", "PYTHONUNBUFFERED": "1"}


def _wait(child: subprocess.Popen, seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _epoch(step: Step) -> str:
    epochs = FINISHED_EPOCH.findall(_last_start(step.log)) if step.kind == "training" else []
    return f"epoch {epochs[-1]}/{step.epochs}" if epochs else ""


def _reason(log: Path, status: int) -> str:
    """The sentence that the run ended with."""
    lines = [line.strip() for line in _last_start(log).splitlines()[1:] if line.strip()] or ["no output"]
    errors = [line for line in lines if line.startswith("error: ")] or lines
    return f"{errors[-1].removeprefix('error: ')} (status {status})"


def _last_start(log: Path, most: int = 100_000) -> str:
    """The end of a log, at most some bytes, of the last start alone."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - most, 0))
        return file.read().decode(errors="replace").rpartition(STARTED)[2]
