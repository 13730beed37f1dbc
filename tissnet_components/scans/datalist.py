"""Read datalists, so that a bad one ends in one sentence that names the file.

A case is a dict: ``case`` (its name), ``image`` (one file or a list, the source modalities in order), ``target`` (the
missing modality) and ``label`` (the tumor mask). A partial patient lacks some of these three. One that was found to be
bad before its files were read has ``unusable``, the reason.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from os.path import abspath
from pathlib import Path

from tissnet_components.errors import BadCase, UserError
from tissnet_components.files import user_path
from tissnet_components.scans.naming import check_case_name
from tissnet_components.scans.splits import SECTIONS, patients_of, refuse_leaks

logger = logging.getLogger(__name__)

FILE_KEYS = ("image", "target", "label")


def load_datalist(
    path: str | Path, section: str, sources: Sequence[str] | None = None, needs: Sequence[str] = ()
) -> list[dict]:
    """Read the cases of one section ("training", "validation" or "test") of a datalist, paths made absolute.

    Relative paths start at the datalist's folder. ``image`` is always a list. Files are not opened here:
    `usable_cases` does that. With `sources`, the contrasts that a network expects, each case's `image` holds these in
    this order, chosen among those that the datalist names, if it names any. Cases without what is needed, among
    ``image``, ``target`` and ``label``, are left out, and the log says so.

    Raises:
        ValueError: sources it does not name, no such file or section, not JSON, an empty section, an entry without
            ``case`` or any image, a name not fit for a folder, a case or file that stands in it twice, a patient in
            two sections, who would leak into the test, or no case with what is needed.
    """
    path = user_path(path)
    cases, named = read_datalist(path)
    if sources is not None and named is not None and not set(sources) <= set(named):
        raise UserError(
            f"datalist {path} has the sources {list(named)}, expected {list(sources)}; set --source_modalities to the "
            f"former, or prepare the datalist again"
        )
    if not cases.get(section):
        problem = "an empty" if section in cases else "no"
        filled = {name: len(entries) for name, entries in cases.items() if entries}
        raise UserError(f"{path} has {problem} section '{section}'; it has {filled or 'no cases'}; prepare it again")
    refuse_leaks(
        {name: [entry["case"] for entry in entries] for name, entries in cases.items()},
        patients_in([entry for entries in cases.values() for entry in entries]),
        path,
    )
    chosen = cases[section]
    if sources is not None and named is not None:
        chosen = [case | _chosen(case, named, sources, path) for case in chosen]
    return cases_with(chosen, needs, f"section '{section}' of {path}")


def cases_with(cases: Sequence[dict], needs: Sequence[str], place: str) -> list[dict]:
    """The cases that have all of these, ``image``, ``target`` or ``label``; the log says who was left out of `place`.

    Raises:
        ValueError: none has.
    """
    kept = [case for case in cases if not lacking(case, needs)]
    if not kept:
        raise UserError(f"no case in {place} has all of {', '.join(needs)}; add one that has")
    if left_out := [case["case"] for case in cases if lacking(case, needs)]:
        logger.info(f"{place}: {len(left_out)} of {len(cases)} cases lack one of {', '.join(needs)}: {shown(left_out)}")
    return kept


def lacking(case: Mapping, needs: Sequence[str] = FILE_KEYS) -> list[str]:
    """What a case lacks of these, in their order."""
    return [key for key in needs if not case.get(key)]


def refuse_lacking(case: Mapping, absent: Sequence[str]) -> None:
    if absent:
        raise BadCase(
            f"case {case.get('case', '?')} has no {', '.join(absent)}; add it to the datalist or leave the case out"
        )


def shown(names: Sequence[str], most: int = 5) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_datalist(path: Path) -> tuple[dict[str, list[dict]], list[str] | None]:
    """Section -> its cases, paths made absolute, and the names of the source contrasts if the datalist gives them.

    Raises:
        ValueError: as `load_datalist`, but for what concerns one section, the sources or the patients.
    """
    sections, named = _read_sections(path)
    folder = path.absolute().parent
    cases = {name: [_absolute(entry, folder, path) for entry in entries] for name, entries in sections.items()}
    _refuse_twice([entry["case"] for entries in cases.values() for entry in entries], "case", path)
    _refuse_twice([file for entries in cases.values() for entry in entries for file in _files(entry)], "file", path)
    return cases, named


def patients_in(cases: Sequence[Mapping]) -> dict[str, str]:
    """Case -> its patient: as the datalist says, or by the case's name."""
    named = {case["case"]: str(case["patient"]) for case in cases if case.get("patient")}
    return {**patients_of([case["case"] for case in cases]), **named}


def _chosen(case: Mapping, named: Sequence[str], sources: Sequence[str], path: str | Path) -> dict[str, list[str]]:
    """The ``image`` of the wanted sources, of a case that has one."""
    if "image" not in case:
        return {}
    if len(case["image"]) != len(named):
        raise UserError(
            f"datalist {path} names the sources {list(named)}, but {case['case']} has {len(case['image'])} images; "
            f"prepare it again"
        )
    return {"image": [case["image"][named.index(source)] for source in sources]}


def _read_sections(path: Path) -> tuple[dict[str, list], list[str] | None]:
    """The cases by section, and the names of the source contrasts if the datalist gives them."""
    if not os.path.isfile(path):
        raise UserError(
            f"datalist {path} does not exist; write it with prepare_brats, prepare_vs or phantom of "
            f"`python -m tissnet_components`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"datalist {path} is not valid JSON ({error}); prepare it again") from error
    if not isinstance(content, dict):
        raise UserError(f"datalist {path} holds a {type(content).__name__}, expected sections {SECTIONS}")
    sections = {name: content[name] for name in SECTIONS if name in content}
    wrong = [name for name, entries in sections.items() if not isinstance(entries, list)]
    if wrong:
        raise UserError(f"section '{wrong[0]}' of datalist {path} is no list of cases; prepare it again")
    named = content.get("sources")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise UserError(f"'sources' of datalist {path} is {named}, expected a list of names; prepare it again")
    return sections, named


def _absolute(entry: dict, folder: Path, path: str | Path) -> dict:
    if not isinstance(entry, dict) or not entry.get("case") or not (entry.get("image") or entry.get("target")):
        raise UserError(
            f"datalist {path} has the entry {entry}, expected at least 'case', and 'image' or 'target'; add them"
        )
    check_case_name(entry["case"], f"datalist {path}")
    try:
        files = {key: [abspath(folder / user_path(file)) for file in as_list(entry.get(key))] for key in FILE_KEYS}
    except TypeError as error:
        raise UserError(f"datalist {path} has the entry {entry}, expected names of files; prepare it again") from error
    found = {key: named if key == "image" else named[0] for key, named in files.items() if named}
    return {key: found.get(key, value) for key, value in entry.items() if key in found or key not in FILE_KEYS}


def _refuse_twice(names: list[str], kind: str, path: str | Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"datalist {path} uses the {kind} {twice[0]} more than once ({len(twice)} such); remove it")


def _files(case: Mapping) -> list[str]:
    return [file for key in FILE_KEYS for file in as_list(case.get(key))]


def as_list(files: str | Path | Sequence | None) -> list:
    if files is None:
        return []
    return [files] if isinstance(files, str | Path) else list(files)
