"""What the command line refuses before a command runs, and that it is installed."""

import configparser
import pkgutil
from pathlib import Path

import pytest

from tissnet_components.__main__ import COMMANDS, main


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """A command that notes what it was given."""
    calls: list[str] = []

    def note(out: str = "here", spacing_mm: float = 1.0) -> None:
        calls.append(f"{out} {spacing_mm}")

    monkeypatch.setitem(COMMANDS, "note", note)
    return calls


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["tissnet_components", *words])
    main()


def test_a_command_gets_its_options(ran, monkeypatch):
    run(monkeypatch, "note", "--out", "there", "--spacing-mm=2")
    assert ran == ["there 2"]


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

    monkeypatch.setitem(COMMANDS, "note", note)
    run(monkeypatch, "note", "--resume")
    assert calls == [True]


def test_it_is_installed_as_tissnet():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    assert name == "tissnet"
    assert pkgutil.resolve_name(target) is main
