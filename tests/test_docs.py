"""The pages of this repository: what they link to and name is there."""

import json
import re
import shlex
from itertools import chain
from pathlib import Path

import pytest
from tissnet_components.__main__ import COMMANDS, find_command, refuse_wrong_options

ROOT = Path(__file__).parents[1]
PAGES = sorted(chain(ROOT.glob("*.md"), ROOT.glob("docs/**/*.md"), ROOT.glob("bundles/*/docs/*.md")))
SOURCES = sorted(
    chain(ROOT.glob("tissnet_components/**/*.py"), ROOT.glob("benchmarks/*.py"), ROOT.glob("bundles/*/configs/*.json"))
)
BUNDLES = sorted(ROOT.glob("bundles/tissnet_*"))
BUNDLE_RUN = {"tracking"}  # MONAI's own option
CODE = [file for room in ("tissnet_components", "benchmarks", "tests") for file in (ROOT / room).rglob("*.py")]
METHOD = ROOT / "docs/reference/method.md"
PACKAGE = ROOT / "tissnet_components"
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
NAMED_PAGE = re.compile(r"\bdocs/[\w/.-]*\w\.(?:md|txt|csv|png)\b")


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The links of a page to files that are not there, or to headings that their page lacks."""
    broken = []
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        if "://" not in path and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(f"{path}#{anchor}" if anchor else path)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_of_a_page_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_link_to_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n[a](page.md#a-heading-here) [b](gone.md) [c](#no-heading) [d](https://e.org/f)\n"
    )
    assert broken_links(page) == ["gone.md", "#no-heading"]


def test_every_page_that_code_or_prose_names_is_there():
    named = {(relative(file), name) for file in [*PAGES, *SOURCES] for name in NAMED_PAGE.findall(file.read_text())}
    assert {
        (file, name) for file, name in named if not any((home / name).is_file() for home in (ROOT, *BUNDLES))
    } == set()


def commands(page: Path) -> list[list[str]]:
    """The words of each `tissnet` command in the code blocks of a page."""
    lines = page.read_text().replace("\\\n", " ")
    found = re.findall(r"^(?: {4})?(?:tissnet|python -m tissnet_components) (\w.*)$", lines, re.MULTILINE)
    return [shlex.split(words, comments=True) for words in found]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_of_a_page_exists_with_its_options(page):
    for words in commands(page):
        assert words[0] in COMMANDS
        refuse_wrong_options(find_command(words[0]), words[1:])


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_config_that_a_page_lays_over_another_exists(page):
    named = set(re.findall(r"configs/[\w/]+\.json", page.read_text()))
    assert {name for name in named if not any((bundle / name).is_file() for bundle in BUNDLES)} == set()


def test_the_readme_is_a_front_door():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", ["README.md", "docs/results/README.md"])
def test_results_stand_on_the_pages_that_they_link_to(page):
    rows = re.findall(r"^\| \[.*?\]\(([^)#]+)(.*)\|$", (ROOT / page).read_text(), re.MULTILINE)
    rows = [(target, numbers) for target, cells in rows if (numbers := re.findall(r"\b0\.\d{3}", cells))]
    assert len(rows) >= 3
    for target, numbers in rows:
        text = ((ROOT / page).parent / target).read_text()
        percents = {number: f"{100 * float(number):.1f}" for number in numbers}
        assert [number for number in numbers if number not in text and percents[number] not in text] == [], target


def test_every_option_of_the_reference_is_an_id_of_a_config():
    ids = {name for file in BUNDLES[0].glob("configs/*.json") for name in json.loads(file.read_text())}
    first_cells = re.findall(r"^\| (`--.*?) \|", (ROOT / "docs/reference/options.md").read_text(), re.MULTILINE)
    options = {option for cell in first_cells for option in re.findall(r"`--(\w+)", cell)}
    assert {"epochs", "precision", "quality"} <= options <= {*ids, *BUNDLE_RUN}


def test_every_message_of_the_reference_is_in_the_code():
    code = re.sub(r'"\s*(?:f|rf)?"', "", "".join(file.read_text() for file in SOURCES))
    listed = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/reference/messages.md").read_text(), re.MULTILINE)
    messages = [message for cell in listed for message in re.findall(r"`(.*?)`", cell)]
    assert len(messages) > 20
    parts = {part.strip() for message in messages for part in message.split("...")}
    assert {part for part in parts if part not in code} == set()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_module_that_a_page_names_exists(page):
    text = page.read_text()
    dotted = re.findall(r"\btissnet_components\.(?!__)[\w.]*\w", text)
    named = {*re.findall(r"`([\w/]+\.py)`", text), *(f"{name.replace('.', '/')}.py" for name in dotted)}
    tree = [f"/{relative(file)}" for file in CODE] + [f"/{relative(file.parent)}.py" for file in CODE]
    assert {name for name in named if not any(file.endswith(f"/{name}") for file in tree)} == set()


def equations() -> list[tuple[str, str]]:
    """What implements an equation, and the files where docs/reference/method.md says that it stands."""
    rows = re.findall(
        r"^\| [^|]*(?:Eq|Sec|Fig|Table)[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|", METHOD.read_text(), re.MULTILINE
    )
    return [(name, files) for names, files in rows for name in re.findall(r"`([\w.]+)`", names)]


@pytest.mark.parametrize(("name", "files"), sorted(set(equations())))
def test_every_equation_is_where_the_map_says(name, files):
    code = "".join((PACKAGE / file).read_text() for file in re.findall(r"`([\w/]+\.py)`", files))
    for part in name.split("."):
        assert re.search(rf"^\s*(?:def|class) {part}\b", code, re.MULTILINE), f"{part} is not in {files}"


def test_the_map_names_every_equation():
    listed = re.findall(r"^\| Eqs?\. ([\d, ]+)\|", METHOD.read_text(), re.MULTILINE)
    assert {int(number) for cell in listed for number in cell.split(",")} == set(range(1, 12))
