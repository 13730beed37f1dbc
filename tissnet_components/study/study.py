"""Train and evaluate a list of configurations one after another: ``python -m tissnet_components study STUDY.json``."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from os.path import abspath
from pathlib import Path

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from tissnet_components.errors import UserError
from tissnet_components.files import to_json, user_path, write_atomic
from tissnet_components.report import slug
from tissnet_components.report.wanted import check_keys, check_report, evaluated
from tissnet_components.study.folds import fold_datalists
from tissnet_components.study.steps import Step, print_steps, refusal, run_steps

ROW_KEYS = {  # of a row, and of all rows
    "configs": list[str],
    "options": dict,
    "evaluation_configs": list[str],
    "evaluation_options": dict,
}
STUDY_KEYS = {
    "base": str,
    "title": str,
    "bundle": str,
    "dataset_dir": str,
    "out": str,
    "folds": int,
    "groups": str,
    "datalists": list[str],
    "validation": int,
    "seed": int,
    "rows": list,
    "report": dict,
}
PATHS = ("base", "bundle", "dataset_dir", "out")
REQUIRED_KEYS = ("bundle", "dataset_dir", "out", "rows")
STEPS = {  # the bundle's entry points -> their configs, and those that torchrun needs
    "training": (["train"], ["multi_gpu_train"]),
    "evaluating": (["train", "evaluate"], ["multi_gpu_train", "multi_gpu_evaluate"]),
}
DOES = {"training": "train", "evaluating": "evaluate"}  # a row's keys
OWN = re.compile(r"models|folds|fold_\d+|report|study\.json")  # what lies beside the folders of rows


def study(
    file: Path,
    out: Path | None = None,
    dataset_dir: Path | None = None,
    only: str | Sequence[str] | None = None,
    fold: int | None = None,
    processes: int = 1,
    dry_run: bool = False,
) -> None:
    """Train and evaluate every row of a study, fold by fold; the same command again goes on where it stopped.

    What is finished is skipped; a training that was cut resumes from the bundle's own checkpoint. A run that fails is
    named at the end with its reason, and the others go on. `report --runs OUT` then writes tables and figures.

        python -m tissnet_components study studies/smoke.json

    Args:
        file: the study, JSON; docs/guide/study.md lists its keys. Relative paths in it start at its folder.
        out: folder for all that comes out, instead of the study's.
        dataset_dir: folder of the data, which holds datalist.json, instead of the study's.
        only: names of the rows to run, separated by commas; by default all.
        fold: number of the one fold to run; by default all, one after another. Jobs of a cluster can share the folds.
        processes: of one machine, by torchrun, usually one per GPU; above 1, the bundle's multi_gpu_train.json and
            multi_gpu_evaluate.json lie over the other configs.
        dry_run: list the runs and how far they are, and run nothing.

    Raises:
        ValueError: before anything is run, a mistake in the study, or a row that was begun with other settings.
    """
    content = read_study(file, out, dataset_dir)
    datalists = fold_datalists(content)
    steps = list(study_steps(content, _chosen_folds(datalists, fold), processes))
    check_options(content, steps)
    check_weights(steps)
    steps = chosen_steps(steps, only)
    for step in steps:
        if reason := refusal(step):
            raise UserError(f"{step.label} {reason}")
    if dry_run:
        print_steps(steps)
        return
    write_atomic(Path(content["out"], "study.json"), to_json(content | {"runs": _folders(content, datalists)}))
    failed = run_steps(steps, Path(content["bundle"]), processes)
    print(f"report: python -m tissnet_components report --runs {content['out']} --out {content['out']}/report")
    if failed:
        print(f"{len(failed)} failed:", *failed, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)


def _chosen_folds(datalists: Mapping[str, str], fold: int | None) -> Mapping[str, str]:
    name = f"fold_{fold}"
    if fold is not None and name not in datalists:
        raise UserError(f"there is no fold {fold}; the study has {', '.join(filter(None, datalists)) or 'no folds'}")
    return datalists if fold is None else {name: datalists[name]}


def read_study(file: str | Path, out: Path | None = None, dataset_dir: Path | None = None) -> dict:
    """A study with all its keys, paths absolute.

    Raises:
        ValueError: no such file, not JSON, an unknown or missing key, no rows, two rows of one name, no such bundle.
    """
    file = Path(abspath(file))
    given = _read_with_base(file)
    given |= {key: abspath(value) for key, value in {"out": out, "dataset_dir": dataset_dir}.items() if value}
    if missing := [key for key in REQUIRED_KEYS if not given.get(key)]:
        raise UserError(f"study {file} lacks {', '.join(missing)}; docs/guide/study.md lists the keys")
    for row in given["rows"]:
        check_keys(row, {"name": str, "train": bool, "evaluate": bool} | ROW_KEYS, f"a row of study {file}")
    names = [slug(row.get("name", "")) for row in given["rows"]]
    if "" in names or len(set(names)) < len(names) or any(set(row["name"]) & set(",:") for row in given["rows"]):
        raise UserError(f"the rows of study {file} need different names, without comma and colon; found {names}")
    if own := [name for name in names if OWN.fullmatch(name)]:
        raise UserError(f"study {file} calls a row {own[0]!r}, like a file of its own in 'out'; give it another name")
    check_report(given.get("report", {}), evaluated(given))
    if not Path(given["bundle"], "configs", "train.json").is_file():
        raise UserError(f"{given['bundle']} is not a bundle: it has no configs/train.json; mend 'bundle' in {file}")
    return {"title": file.stem, "seed": 0, "validation": 1, "folds": 0, "groups": "", "datalists": [], **given}


def study_steps(content: Mapping, datalists: Mapping[str, str], processes: int = 1) -> Iterator[Step]:
    """Every training and evaluation, fold by fold, rows in their order: what others build on stands first.

    Raises:
        ValueError: a config that is not there, or a row's option that none of its configs has.
    """
    for fold, datalist in datalists.items():
        for row in content["rows"]:
            for kind in [kind for kind, key in DOES.items() if row.get(key, True)]:
                yield _step(kind, content, row, fold, datalist, processes)


def chosen_steps(steps: Sequence[Step], only: str | Sequence[str] | None) -> list[Step]:
    """The steps of the rows that were named; all when none was.

    Raises:
        ValueError: a name that no row has.
    """
    wanted = [name.strip() for name in only.split(",")] if isinstance(only, str) else list(only or [])
    names = list(dict.fromkeys(step.row for step in steps))
    if unknown := [name for name in wanted if name not in names]:
        raise UserError(f"the study has no row {unknown[0]!r}; it has {names}")
    return [step for step in steps if not wanted or step.row in wanted]


def check_options(content: Mapping, steps: Sequence[Step]) -> None:
    """Refuse an option of all rows that no step took."""
    taken = {key for step in steps for key in step.settings}
    given = [*content.get("options", {}), *content.get("evaluation_options", {})]
    if steps and (unknown := [key for key in given if key not in taken]):
        raise UserError(f"no config of any row has the option {unknown[0]!r}; mend 'options' in the study")


def check_weights(steps: Sequence[Step]) -> None:
    """Refuse two trainings of the same weights: the second would find them finished, and train nothing."""
    trainings: dict[Path, Step] = {}
    for step in steps:
        if step.kind == "training" and (other := trainings.setdefault(step.weights, step)) is not step:
            raise UserError(
                f"{other.label} and {step.label} would both write {step.weights}: give one row another model_name, or "
                f'"train": false to evaluate the weights of the other'
            )


def _read_with_base(file: Path, derived: Sequence[Path] = ()) -> dict:
    """A study's own keys, paths absolute, over those of the study that it starts from."""
    if file in derived:
        raise UserError(f"study {file} is its own base; mend 'base'")
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"study {file} cannot be read as JSON ({error}); docs/guide/study.md shows one") from error
    check_keys(given, STUDY_KEYS | ROW_KEYS, f"study {file}")
    given |= {key: abspath(file.parent / user_path(given[key])) for key in PATHS if given.get(key)}
    if "datalists" in given:
        given["datalists"] = [abspath(file.parent / user_path(path)) for path in given["datalists"]]
    base = given.pop("base", None)
    return {**_read_with_base(Path(base), [*derived, file]), **given} if base else given


def _folders(content: Mapping, datalists: Mapping[str, str]) -> dict[str, list[str]]:
    """Row -> folders of its evaluations below `out`, from which the report knows what is missing."""
    return {name: [Path(slug(name), fold).as_posix() for fold in datalists] for name in evaluated(content)}


def _step(kind: str, content: Mapping, row: Mapping, fold: str, datalist: str, processes: int) -> Step:
    base, parallel = STEPS[kind]
    label = ", ".join(part for part in (row["name"], fold.replace("_", " "), kind) if part)
    configs = [*base, *map(_config_name, _listed(kind, "configs", row, content))]
    if processes > 1:
        configs += parallel
        files = [Path(content["bundle"], "configs", f"{name}.json") for name in parallel]
        if absent := [file for file in files if not file.is_file()]:
            raise UserError(f"--processes {processes} needs {absent[0]}, which does not exist: leave --processes out")
    folder = Path(content["out"], slug(row["name"]), fold)
    ids = _ids(content["bundle"], tuple(configs))
    settings = {
        "model_name": slug(row["name"]),
        "seed": content["seed"],
        **_options(kind, row, content, ids, label),
        "dataset_dir": content["dataset_dir"],
        "datalist": datalist,
        "ckpt_dir": str(Path(content["out"], "models", fold)),
        "output_dir": str(folder / "training" if kind == "training" else folder),
    }
    return Step(
        kind,
        row["name"],
        label,
        folder,
        configs,
        settings,
        _built_on(ids, settings),
        settings.get("epochs", ids["epochs"]),
    )


def _listed(kind: str, key: str, *levels: Mapping) -> list:
    """What several levels hold under a key and, for an evaluation, under its own key too."""
    keys = [key, f"evaluation_{key}"] if kind == "evaluating" else [key]
    return [value for name in keys for level in levels for value in level.get(name, [])]


def _options(kind: str, row: Mapping, content: Mapping, ids: ConfigParser, label: str) -> dict:
    """Options of all rows, as far as this row's configs have them, and the row's own over them.

    MONAI would add a mistyped id silently, and the run would not be what its name says.
    """
    keys = ["options", "evaluation_options"] if kind == "evaluating" else ["options"]
    common, own = ({k: v for key in keys for k, v in level.get(key, {}).items()} for level in (content, row))
    if unknown := [key for key in own if key.lstrip("+") not in ids]:
        raise UserError(f"{label}: no config has the option {unknown[0]!r}; mend 'options' in the study")
    return {key: value for key, value in common.items() if key.lstrip("+") in ids} | own


def _built_on(ids: ConfigParser, settings: Mapping) -> list[str]:
    """The weights of other rows, perceptor and generator, that merged configs read under these settings."""
    parser = ConfigParser(deepcopy(ids.get()))
    for key, value in settings.items():
        merge_kv(parser, key, value)
    perceived = parser.get("perceptor") is not None and not parser.get_parsed_content("perceptor_disabled")
    read = ["perceptor_path"] * perceived + ["generator_path"] * ("generator_path" in parser)
    return [str(parser.get_parsed_content(key)) for key in read]


def _config_name(name: str) -> str:
    return name.removeprefix("configs/").removesuffix(".json")


@cache
def _ids(bundle: str, configs: tuple[str, ...]) -> ConfigParser:
    """The ids of merged configs."""
    files = [Path(bundle, "configs", f"{name}.json") for name in configs]
    if absent := [file for file in files if not file.is_file()]:
        raise UserError(f"{absent[0]} does not exist; mend 'configs' in the study")
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return parser
