"""A training, a segmentation or a preparation that is killed at any moment, and started again, ends as if nothing was.

`make test` kills a few times, `make stress` often.
"""

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_copies import tiny_bundle
from cohort import write_case, write_cohort
from forks import Forks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_bundle_workflows import BUNDLE, run
from test_decathlon import decathlon
from test_resume import same
from vestibular_download import write_download

pytestmark = pytest.mark.slow

TRAINING = {
    "perceptor": "['configs/train.json','configs/direct_segmentation.json','configs/strong_augmentation.json']",
    "model": "['configs/train.json','configs/strong_augmentation.json']",
}
OPTIONS = {"epochs": 4, "batch_size": 1, "learning_rate": 0.01, "picture_interval": 2}
Moment = Callable[[int], None]  # waits for the moment at which to kill a process
WRITE_SLOWLY = """
import nibabel, pathlib, time

def write_slowly(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.5 if path.suffix in (".pt", ".gz") else 0)
        file.write(content[len(content) // 2 :])

def save_slowly(image, path, save=nibabel.save):
    save(image, path)
    write_slowly(pathlib.Path(path), pathlib.Path(path).read_bytes())

pathlib.Path.write_bytes, nibabel.save = write_slowly, save_slowly
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Forks]:
    forks = Forks(BUNDLE, tmp_path_factory.mktemp("logs"))
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("data"))


def training(name: str, data: Path, folder: Path, perceptor: Path) -> list[str]:
    folders = {"data": data, "models": folder / "models", "output": folder / "eval"}
    return run("training", TRAINING[name], **folders, **OPTIONS, perceptor_path=perceptor)


@pytest.fixture(scope="module")
def whole(forks, data, tmp_path_factory) -> dict[str, tuple[Path, int]]:
    """The folder of each uninterrupted training, and how many characters it printed."""
    trained = {}
    for name in TRAINING:
        folder = tmp_path_factory.mktemp(name)
        perceptor = trained["perceptor"][0] / "models" / "perceptor.pt" if trained else folder
        ended = forks(*training(name, data, folder, perceptor))
        assert ended.succeeded
        trained[name] = folder, len(ended.printed)
    return trained


def kill_until_done(forks: Forks, command: list[str], moments: Iterator[Moment], before: str = "") -> int:
    """Start a command again and again, killed at the moments, until it ends by itself; returns how often it was."""
    for kills, wait_for_moment in enumerate(moments):
        process = forks.start(*command, before=before)
        wait_for_moment(process)
        if alive(process):
            os.kill(process, signal.SIGKILL)
        ended = forks.wait()
        if ended.status != -signal.SIGKILL:
            assert ended.succeeded
            return kills
    assert forks(*command, before=before).succeeded
    return kills + 1


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def at_random(forks: Forks, length: int, seed: int) -> Iterator[Moment]:
    """Endless moments, each just after a random part of what an uninterrupted run prints, however fast it is."""
    chance = random.Random(seed)

    def wait(process: int) -> None:
        part = chance.uniform(0, length)
        while alive(process) and forks.log.stat().st_size < part:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))

    while True:
        yield wait


def as_files_appear(folder: Path, most: int, chance: random.Random) -> Iterator[Moment]:
    """Endless moments, each just after a random number of further files, at most some, has appeared below a folder."""

    def count() -> int:
        return sum(len(files) for _, _, files in os.walk(folder))

    def wait(process: int) -> None:
        enough = count() + chance.randrange(most)
        while alive(process) and count() < enough:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))

    while True:
        yield wait


def while_writing(folder: Path, pattern: str, skip: int = 0) -> Moment:
    """The moment when a file is half written, after skipping some of them; ``pattern`` has {} for the process."""

    def wait(process: int) -> None:
        seen, there = 0, False
        while alive(process) and seen <= skip:
            there, before = any(folder.glob(pattern.format(process))), there
            seen += there and not before
            time.sleep(0.01)

    return wait


def scalars(folder: Path) -> dict[tuple[str, int], set[float]]:
    """What TensorBoard shows: the values of every tag and step."""
    shown = defaultdict(set)
    for log in folder.glob("eval/*_tensorboard"):
        events = EventAccumulator(str(log), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                shown[tag, event.step].add(event.value)
    return shown


def assert_same_training(folder: Path, whole: Path) -> None:
    for pattern in ("models/[!.]*", "eval/*_pictures/*"):
        assert {file.name for file in folder.glob(pattern)} == {file.name for file in whole.glob(pattern)}
    for file in whole.glob("models/*.pt"):
        states = [torch.load(one, weights_only=True) for one in (file, folder / "models" / file.name)]
        assert same(*states), file.name
    assert scalars(folder) == scalars(whole)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        pytest.param("while writing", 3, id="while writing"),
        pytest.param("at random", 12, id="at random", marks=pytest.mark.stress),
    ],
)
def test_a_training_killed_at_any_moment_resumes_as_if_nothing_had_happened(
    forks, data, whole, name, kind, wanted, tmp_path
):
    folder, length = whole[name]
    kills, trainings, chance = 0, 0, at_random(forks, length, seed=len(name))
    while kills < wanted:
        trainings += 1
        here = tmp_path / str(trainings)
        files = [(f"models/.{{}}_{name}{part}.pt", skip) for part, skip in (("_last", 0), ("", 0), ("_last", 1))]
        moments = chance if kind == "at random" else (while_writing(here, file, skip) for file, skip in files)
        command = training(name, data, here, whole["perceptor"][0] / "models" / "perceptor.pt")
        kills += kill_until_done(forks, command, moments, WRITE_SLOWLY)
        assert_same_training(here, folder)
    print(f"{name}: {kills} kills {kind}, {trainings} trainings")


@pytest.fixture(scope="module")
def cohort(forks, tmp_path_factory) -> dict[str, Any]:
    """A tiny bundle, three scans, and what an uninterrupted segmentation of them leaves and prints."""
    folder = tmp_path_factory.mktemp("cohort")
    bundle = tiny_bundle("tissnet_brats", folder)
    for number in range(3):
        write_case(folder / "scans" / f"case_{number}", number)
    found = {"bundle": bundle, "scans": folder / "scans", "whole": folder / "whole"}
    ended = forks(*segmentation(found, folder / "whole"))
    assert ended.succeeded
    return found | {"length": len(ended.printed)}


def segmentation(cohort: dict[str, Any], out: Path) -> list[str]:
    command = f"segment --bundle {cohort['bundle']} --cases {cohort['scans']} --out {out} --resume"
    return ["tissnet_components", *command.split()]


def visible(folder: Path) -> dict[str, bytes]:
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not f"/{name}".count("/.")}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        pytest.param("while writing", 2, id="while writing"),
        pytest.param("at random", 10, id="at random", marks=pytest.mark.stress),
    ],
)
def test_a_cohort_killed_at_any_moment_is_segmented_as_if_nothing_had_happened(forks, cohort, kind, wanted, tmp_path):
    expected, kills, runs, chance = visible(cohort["whole"]), 0, 0, at_random(forks, cohort["length"], seed=0)
    assert len(expected) == 3 * 6
    while kills < wanted:
        runs += 1
        out = tmp_path / str(runs)
        files = ("case_0/.{}_case_0_seg.nii.gz", "case_1/.{}_case_1_error.nii.gz")
        moments = chance if kind == "at random" else (while_writing(out, file) for file in files)
        checked = (checking(moment, out, expected) for moment in moments)
        kills += kill_until_done(forks, segmentation(cohort, out), checked, WRITE_SLOWLY)
        assert visible(out) == expected
    print(f"segment: {kills} kills {kind}, {runs} runs")


def checking(moment: Moment, out: Path, expected: dict[str, bytes]) -> Moment:
    """The moment; whatever has its final name by then is whole."""

    def wait(process: int) -> None:
        moment(process)
        assert visible(out).items() <= expected.items()

    return wait


PREPARATIONS = {  # the command, which ends with the folder of its results, and files that take a while to write
    "phantom": (
        "phantom --cases 3 --spacing 6 --workers 1 --out {}",
        ".Phantom_0001.partial/Phantom_0001_seg.nii.gz",
        ".Phantom_0002.partial/Phantom_0002_t1.nii.gz",
    ),
    "prepare_brats": (
        "prepare_brats --root Task01_BrainTumour --workers 1 --out {}/datalist.json",
        "Task01_BrainTumour_3d/BRATS_001/.{}_BRATS_001_t1ce.nii.gz",
        "Task01_BrainTumour_3d/BRATS_003/.{}_BRATS_003_flair.nii.gz",
    ),
    "prepare_vs": (
        "prepare_vs --root vs --workers 1 --out {}",
        ".VS-SEG-001.partial/VS-SEG-001_seg.nii.gz",
        ".VS-SEG-182.partial/VS-SEG-182_t2.nii.gz",
    ),
}


@pytest.fixture(scope="module")
def preparing(tmp_path_factory) -> Iterator[Forks]:
    """Commands that start beside the downloads of both data sets."""
    downloads = tmp_path_factory.mktemp("downloads")
    decathlon(downloads / "Task01_BrainTumour")
    write_download(downloads / "vs", numbers=(1, 182))
    forks = Forks(downloads, tmp_path_factory.mktemp("logs"))
    yield forks
    forks.close()


@pytest.mark.parametrize("name", PREPARATIONS)
@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        pytest.param("while writing", 2, id="while writing"),
        pytest.param("at random", 10, id="at random", marks=pytest.mark.stress),
    ],
)
def test_data_prepared_by_a_command_killed_at_any_moment_are_the_same_bytes(preparing, name, kind, wanted, tmp_path):
    command, *files = PREPARATIONS[name]
    assert preparing("tissnet_components", *command.format(tmp_path / "whole").split()).succeeded
    expected, kills, runs = visible(tmp_path / "whole"), 0, 0
    assert sum(file.endswith(".nii.gz") for file in expected) in (3 * 5, 3 * 4, 2 * 3)
    chance = random.Random(name)
    while kills < wanted:
        runs += 1
        out = tmp_path / str(runs)
        halves = (while_writing(out, file) for file in files)
        moments = as_files_appear(out, len(expected), chance) if kind == "at random" else halves
        checked = (checking(moment, out, expected) for moment in moments)
        arguments = command.format(out).split()
        kills += kill_until_done(preparing, ["tissnet_components", *arguments], checked, WRITE_SLOWLY)
        assert visible(out) == expected
    print(f"{name}: {kills} kills {kind}, {runs} runs")
