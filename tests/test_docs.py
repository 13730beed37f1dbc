"""The pages of this repository: what they link to and name is there."""

import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(chain(ROOT.glob("*.md"), ROOT.glob("docs/**/*.md"), ROOT.glob("bundles/*/docs/*.md")))
SOURCES = sorted(
    chain(ROOT.glob("tissnet_components/**/*.py"), ROOT.glob("benchmarks/*.py"), ROOT.glob("bundles/*/configs/*.json"))
)
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
    homes = [ROOT, *ROOT.glob("bundles/tissnet_*")]
    named = {(relative(file), name) for file in [*PAGES, *SOURCES] for name in NAMED_PAGE.findall(file.read_text())}
    assert {(file, name) for file, name in named if not any((home / name).is_file() for home in homes)} == set()
