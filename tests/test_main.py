"""What the command line refuses before a command runs, and that it is installed."""

import configparser
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tissnet_components import __main__ as command_line
from tissnet_components.__main__ import COMMANDS, find_command, main

NEEDED = {
    "prepare_brats": ["--root", "x"],
    "prepare_vs": ["--root", "x"],
    "report": ["--runs", "x"],
    "segment": ["--bundle", "x"],
}


def offer(monkeypatch, note: Callable) -> None:
    """Make a function the command ``note``."""
    monkeypatch.setitem(COMMANDS, "note", ("", "a command of this test"))
    monkeypatch.setattr(command_line, "find_command", lambda name: note if name == "note" else find_command(name))


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """A command that notes what it was given."""
    calls: list[str] = []

    def note(out: str = "here", spacing_mm: float = 1.0) -> None:
        calls.append(f"{out} {spacing_mm}")

    offer(monkeypatch, note)
    return calls


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["tissnet_components", *words])
    main()


def test_a_command_gets_its_options(ran, monkeypatch):
    run(monkeypatch, "note", "--out", "there", "--spacing-mm=2")
    assert ran == ["there 2.0"]


def test_a_command_runs_without_options(ran, monkeypatch):
    run(monkeypatch, "note")
    assert ran == ["here 1.0"]


def test_a_name_that_looks_like_a_number_stays_a_name(ran, monkeypatch):
    run(monkeypatch, "note", "--out", "007")
    assert ran == ["007 1.0"]


@pytest.mark.parametrize(
    ("command", "option", "value", "expected"),
    [
        ("prepare_brats", "seed", "[1]", "a whole number"),
        ("report", "max_pictures", "x", "a whole number"),
        ("phantom", "spacing", "two", "a number"),
        ("segment", "resume", "5", "true or false"),
        ("prepare_vs", "out", "", "a path"),
    ],
)
def test_a_value_of_another_kind_is_refused(monkeypatch, command, option, value, expected):
    with pytest.raises(SystemExit, match=rf"error: --{option} is '.*', expected {expected}"):
        run(monkeypatch, command, *NEEDED.get(command, []), f"--{option}", value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(text, ["t1", "t2"]) for text in ("t1,t2", "[t1, t2]", "['t1','t2']", "(t1,t2)")]
    + [("full input (fine)", ["full input (fine)"]), ("7", ["7"]), ("", [])],
)
def test_several_names_are_given_with_commas(monkeypatch, text, expected):
    names = []

    def note(names_: Sequence[str] | None = None) -> None:
        names.extend(names_)

    offer(monkeypatch, note)
    run(monkeypatch, "note", "--names_", text)
    assert names == expected


def test_a_mistyped_option_is_refused_before_the_command_runs(ran, monkeypatch):
    with pytest.raises(SystemExit, match=r"note has no option --spacing; it has --out, --spacing_mm"):
        run(monkeypatch, "note", "--spacing", "2")
    assert ran == []


@pytest.mark.parametrize("words", [["--out"], ["--out", "--spacing-mm", "2"]], ids=["at the end", "before another"])
def test_an_option_without_its_value_is_refused_before_the_command_runs(ran, monkeypatch, words):
    with pytest.raises(SystemExit, match=r"--out is given without a value; see note --help"):
        run(monkeypatch, "note", *words)
    assert ran == []


def test_a_switch_needs_no_value(monkeypatch):
    calls = []

    def note(resume: bool = False) -> None:
        calls.append(resume)

    offer(monkeypatch, note)
    run(monkeypatch, "note", "--resume")
    assert calls == [True]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says_and_explains_itself(name):
    assert find_command(name).__doc__


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_names_every_command_without_importing_one(words):
    program = f"import sys; sys.argv = {['tissnet', *words]}\nfrom tissnet_components.__main__ import main; main()\n"
    program += "assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules), 'slow'"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(f"tissnet {name} " in told for name in COMMANDS)


def test_segment_refuses_a_mistake_before_it_imports_what_takes_seconds():
    program = "import sys; sys.argv = ['tissnet', 'segment', '--bundle', 'nowhere', '--t2', 'x']\n"
    program += "from tissnet_components.__main__ import main\ntry: main()\nexcept SystemExit as end: print(end)\n"
    program += "assert not {'torch', 'monai', 'ignite', 'matplotlib', 'pandas', 'itk'} & set(sys.modules), 'slow'"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "nowhere is not a bundle" in told


def test_an_unknown_command_is_answered_with_those_that_there_are(monkeypatch):
    with pytest.raises(SystemExit, match="there is no command 'segmnt'; choose one of segment, view, phantom"):
        run(monkeypatch, "segmnt")


def test_a_path_behind_an_equals_sign_may_start_at_home(monkeypatch):
    paths = []

    def note(out: Path = Path()) -> None:
        paths.append(out)

    offer(monkeypatch, note)
    monkeypatch.setenv("HOME", "/home/anna")
    run(monkeypatch, "note", "--out=~/scans")
    assert paths == [Path("/home/anna/scans")]


def test_several_paths_may_each_start_at_home(monkeypatch):
    paths = []

    def note(runs: Path | Sequence[Path]) -> None:
        paths.extend(runs)

    offer(monkeypatch, note)
    monkeypatch.setenv("HOME", "/home/anna")
    run(monkeypatch, "note", "--runs", "~/a,b")
    assert paths == [Path("/home/anna/a"), Path("b")]


def test_it_is_installed_as_tissnet():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    assert name == "tissnet"
    assert pkgutil.resolve_name(target) is main
