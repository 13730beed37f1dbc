"""A study: what is run, in which order, what is skipped, and what is refused before anything runs."""

import json
import os
import sys
from pathlib import Path

import pytest
from cohort import write_cohort
from tissnet_components.report import slug
from tissnet_components.report.html import report
from tissnet_components.study import steps
from tissnet_components.study.folds import fold_datalists
from tissnet_components.study.study import check_options, read_study, study, study_steps

BUNDLE = Path(__file__).parents[2] / "bundles" / "tissnet_brats"
EXAMPLES = sorted((Path(__file__).parents[2] / "studies").glob("*.json"))
TINY = {"patch_size": [32, 32, 16], "widths": [2, 2, 2, 2, 2], "discriminator_channels": 2, "val_interval": 1}


@pytest.fixture
def file(tmp_path):
    """A study of two rows on three patients, each entry of a datalist a name alone."""
    cases = [
        {"case": name, "image": f"{name}.nii", "target": f"{name}_t.nii", "label": f"{name}_l.nii"}
        for name in ("anna", "bert", "carl")
    ]
    (tmp_path / "datalist.json").write_text(json.dumps({"sources": ["t2"], "training": cases}))
    return write_study(tmp_path)


def write_study(folder, **changes):
    rows = [
        {"name": "real FLAIR", "configs": ["direct_segmentation"], "options": {"model_name": "perceptor"}},
        {"name": "no consistency", "options": {"loss_weights::consistency": 0}},
    ]
    content = {"bundle": str(BUNDLE), "dataset_dir": ".", "out": "out", "rows": rows, "options": {"epochs": 3}}
    path = folder / "study.json"
    path.write_text(json.dumps(content | changes))
    return path


@pytest.fixture
def progress(monkeypatch):
    """The study's progress lines."""
    lines = []

    class Kept(steps.tqdm):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            lines.append(self)

    monkeypatch.setattr(steps, "tqdm", Kept)
    return lines


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """The steps that were run; each leaves what its script says instead of training."""
    calls, scripts = [], {}

    def fake(step, processes=1):
        calls.append(step.label)
        return [sys.executable, "-c", scripts.get(step.label, "print('Epoch[3] Complete. Time taken')")]

    monkeypatch.setattr(steps, "command", fake)
    calls_and_scripts = type("Ran", (), {"calls": calls, "scripts": scripts})
    return calls_and_scripts


def steps_of(file, **settings):
    content = read_study(file)
    return list(study_steps(content, fold_datalists(content), **settings))


def test_rows_are_trained_and_evaluated_in_their_order(file, ran):
    study(str(file))
    assert ran.calls == [
        "real FLAIR, training",
        "real FLAIR, evaluating",
        "no consistency, training",
        "no consistency, evaluating",
    ]


def test_the_settings_of_a_row_lie_over_its_configs(file, ran):
    study(str(file))
    training, evaluating = steps_of(file)[2:]
    assert training.configs == ["train"] and evaluating.configs == ["train", "evaluate"]
    assert json.loads(training.overlay.read_text()) == training.settings
    out = str(file.parent / "out")
    assert training.settings == {
        "model_name": "no_consistency",
        "seed": 0,
        "epochs": 3,
        "loss_weights::consistency": 0,
        "dataset_dir": str(file.parent),
        "datalist": str(file.parent / "datalist.json"),
        "ckpt_dir": f"{out}/models",
        "output_dir": f"{out}/no_consistency/training",
    }
    assert evaluating.settings == training.settings | {"output_dir": f"{out}/no_consistency"}


def test_the_command_is_what_a_user_types_in_the_bundles_folder(file):
    step = steps_of(file)[1]
    words = steps.command(step)
    assert words[-4:-1] == ["run", "evaluating", "--config_file"]
    assert words[-1] == str(
        [f"configs/{n}.json" for n in ("train", "evaluate", "direct_segmentation")] + [str(step.overlay)]
    )


def test_under_torchrun_the_bundles_overlays_for_several_processes_join(file):
    step = steps_of(file, processes=2)[1]
    assert step.configs[-2:] == ["multi_gpu_train", "multi_gpu_evaluate"]
    words = " ".join(steps.command(step, 2))
    assert "torch.distributed.run --standalone --nproc_per_node=2 -m monai.bundle run" in words


def test_a_bundle_without_overlays_for_several_processes_says_so(file, tmp_path):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "train.json").write_text("{}")
    write_study(tmp_path, bundle=str(tmp_path / "bundle"), rows=[{"name": "a"}])
    with pytest.raises(ValueError, match=r"--processes 2 needs .*/configs/multi_gpu_train.json, which does not exist"):
        steps_of(file, processes=2)


def test_what_is_done_is_skipped(file, ran):
    study(str(file))
    ran.calls.clear()
    study(str(file))
    assert ran.calls == []


def test_a_log_shows_what_runs_now(file, ran, monkeypatch, capsys):
    shown, command_of_ran = [], steps.command
    monkeypatch.setattr(
        steps, "command", lambda *given: shown.append(capsys.readouterr().out) or command_of_ran(*given)
    )
    study(str(file))
    assert [label in text for label, text in zip(ran.calls, shown, strict=True)] == [True] * 4


def test_what_was_done_before_does_not_count_for_the_time_that_is_left(file, ran, progress):
    study(str(file), only="real FLAIR")
    study(str(file))
    assert [(line.initial, line.n, line.total) for line in progress] == [(0, 2, 2), (2, 4, 4)]


def test_the_number_of_epochs_is_known_from_the_configs(file, ran, progress):
    write_study(file.parent, configs=["recipe"], options={})
    study(str(file), only="real FLAIR")
    step = steps_of(file)[0]
    assert steps._epoch(step) == "epoch 3/128"


def test_only_the_rows_that_were_named_are_run(file, ran):
    study(str(file), only="no consistency")
    assert ran.calls == ["no consistency, training", "no consistency, evaluating"]
    with pytest.raises(ValueError, match="has no row 'consistency'; it has"):
        study(str(file), only="consistency")


def test_a_dry_run_runs_nothing_and_says_how_far_each_is(file, ran, capsys):
    study(str(file), only="real FLAIR")
    ran.calls.clear()
    study(str(file), dry_run=True)
    shown = capsys.readouterr().out
    assert ran.calls == [] and "done" in shown and "to do" in shown


def test_a_run_that_fails_is_named_with_its_reason_and_the_others_go_on(file, ran, capsys):
    ran.scripts["real FLAIR, training"] = "import sys; print('x'); sys.exit('error: no weights')"
    with pytest.raises(SystemExit) as ended:
        study(str(file))
    assert ended.value.code == 1
    assert ran.calls == ["real FLAIR, training", "no consistency, training", "no consistency, evaluating"]
    said = capsys.readouterr().err
    assert "1 failed:" in said and "real FLAIR, training: no weights (status 1); log: " in said


def test_the_reason_is_that_of_the_last_start(file, ran, capsys):
    ran.scripts["real FLAIR, training"] = "import sys; sys.exit('error: first')"
    for message in ("first", "second"):
        ran.scripts["real FLAIR, training"] = f"import sys; sys.exit('{message} of the lines')"
        with pytest.raises(SystemExit):
            study(str(file), only="real FLAIR")
    said = capsys.readouterr().err.splitlines()[-1]
    assert "second of the lines" in said and "first" not in said


def test_a_failed_run_is_tried_again_by_the_same_command_and_its_log_kept(file, ran):
    ran.scripts["real FLAIR, training"] = "raise SystemExit('cut')"
    with pytest.raises(SystemExit):
        study(str(file), only="real FLAIR")
    ran.scripts.clear()
    ran.calls.clear()
    study(str(file), only="real FLAIR")
    assert ran.calls == ["real FLAIR, training", "real FLAIR, evaluating"]
    log = steps_of(file)[0].log.read_text()
    assert "cut" in log and "Epoch[3] Complete" in log


def test_ctrl_c_ends_the_study_in_a_sentence_and_the_run_counts_as_cut(file, ran, monkeypatch):
    ran.scripts["real FLAIR, training"] = "import time; time.sleep(60)"

    def interrupt(child, seconds):
        if seconds == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, "_wait", interrupt)
    with pytest.raises(SystemExit, match="stopped; the same command goes on where it stopped"):
        study(str(file))
    assert steps_of(file)[0].state == "begun"
    assert ran.calls == ["real FLAIR, training"]


def test_a_study_that_is_terminated_takes_its_training_along(file, ran):
    script = "import os, signal, time; print('pid', os.getpid(), flush=True); os.kill(os.getppid(), signal.SIGTERM); "
    ran.scripts["real FLAIR, training"] = script + "time.sleep(60)"
    with pytest.raises(SystemExit, match="stopped"):
        study(str(file))
    pid = int(steps_of(file)[0].log.read_text().split("pid ")[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_minutes_are_kept_while_a_run_goes_on_and_added_up_over_its_starts(file, ran, monkeypatch):
    """Each waiting takes 50 seconds and each start four waitings: kept after 100 seconds, and at the end."""
    step, now, kept = steps_of(file)[0], [0], []

    def wait(child, seconds):
        kept.append(step.record["minutes"])
        now[0] += 50
        return None if len(kept) % 4 else child.wait()

    monkeypatch.setattr(steps, "_wait", wait)
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    ran.scripts[step.label] = "raise SystemExit('cut')"
    with pytest.raises(SystemExit):
        study(str(file), only="real FLAIR")
    ran.scripts.clear()
    study(str(file), only="real FLAIR")
    assert kept[:8] == [0, 0, 1.67, 1.67, 3.33, 3.33, 5.0, 5.0]
    assert step.record["minutes"] == 6.66


def test_a_run_is_asked_to_end_before_it_is_killed(file, ran, monkeypatch):
    said = "signal.signal(signal.SIGTERM, lambda *_: (print('ended well', flush=True), os._exit(0)))"
    script = f"import os, signal, time; {said}; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    ran.scripts["real FLAIR, training"] = script
    with pytest.raises(SystemExit, match="stopped"):
        study(str(file))
    assert "ended well" in steps_of(file)[0].log.read_text()


def test_other_options_of_the_evaluation_evaluate_again(file, ran):
    study(str(file), only="real FLAIR")
    ran.calls.clear()
    write_study(file.parent, evaluation_options={"section": "validation"})
    study(str(file), only="real FLAIR")
    assert ran.calls == ["real FLAIR, evaluating"]


def test_more_epochs_train_on_and_evaluate_again(file, ran):
    study(str(file), only="real FLAIR")
    ran.calls.clear()
    write_study(file.parent, options={"epochs": 5})
    study(str(file), only="real FLAIR")
    assert ran.calls == ["real FLAIR, training", "real FLAIR, evaluating"]


def test_the_seed_of_a_study_is_that_of_every_training_unless_a_row_has_its_own(tmp_path):
    rows = [{"name": "first"}, {"name": "second", "options": {"seed": 7}}]
    seeds = {step.label: step.settings["seed"] for step in steps_of(write_study(tmp_path, rows=rows, seed=3))}
    assert seeds == {
        f"{row}, {does}": seed for row, seed in (("first", 3), ("second", 7)) for does in ("training", "evaluating")
    }


@pytest.mark.parametrize("options", [{"epochs": 2}, {"epochs": 5, "seed": 1}], ids=str)
def test_other_settings_for_weights_that_exist_are_refused_before_anything_runs(file, ran, options):
    study(str(file), only="real FLAIR")
    ran.calls.clear()
    write_study(file.parent, options=options)
    with pytest.raises(ValueError, match=r"real FLAIR, training was begun with .*: give another --out, or remove"):
        study(str(file))
    assert ran.calls == []


def replace_patients(folder):
    path = folder / "datalist.json"
    path.write_text(path.read_text().replace("anna", "dora"))


def test_a_training_does_not_go_on_with_other_patients(file, ran):
    study(str(file), only="real FLAIR")
    ran.calls.clear()
    replace_patients(file.parent)
    with pytest.raises(ValueError, match=r"training was begun with another content of .*datalist.json: give another"):
        study(str(file))
    assert ran.calls == []


def test_patients_that_are_replaced_during_a_training_are_not_its_own(file, ran):
    path = file.parent / "datalist.json"
    ran.scripts["real FLAIR, training"] = f"open({str(path)!r}, 'a').write(' ')"
    study(str(file), only="no consistency")
    study(str(file), only="real FLAIR")
    assert [step.state for step in steps_of(file)] == ["begun", "done", "begun", "begun"]


@pytest.fixture
def trains(ran, tmp_path):
    """Makes the training of a row leave weights of some content."""

    def leave(row, name, content):
        weights = tmp_path / "out" / "models" / f"{name}.pt"
        weights.parent.mkdir(parents=True, exist_ok=True)
        ran.scripts[f"{row}, training"] = f"open({str(weights)!r}, 'w').write({content!r})"

    return leave


def test_a_network_that_trained_on_is_evaluated_again_wherever_it_is(file, ran, trains):
    rows = [{"name": "TISS-Net"}, {"name": "on validation", "train": False, "options": {"model_name": "TISS-Net"}}]
    for epochs in (3, 5):
        write_study(file.parent, rows=[rows[0] | {"options": {"epochs": epochs}}, rows[1]])
        trains("TISS-Net", "TISS-Net", f"after {epochs} epochs")
        ran.calls.clear()
        study(str(file))
    assert ran.calls == ["TISS-Net, training", "TISS-Net, evaluating", "on validation, evaluating"]


def test_a_network_does_not_go_on_with_another_perceptor(file, ran, trains, capsys):
    trains("real FLAIR", "perceptor", "first")
    study(str(file))
    ran.calls.clear()
    trains("real FLAIR", "perceptor", "second")
    rows = json.loads(file.read_text())["rows"]
    rows[0]["options"]["epochs"] = 5
    write_study(file.parent, rows=rows)
    with pytest.raises(SystemExit):
        study(str(file))
    assert ran.calls == ["real FLAIR, training", "real FLAIR, evaluating"]
    assert "no consistency, training: was begun with another content of" in capsys.readouterr().err


def test_a_training_that_failed_for_want_of_a_perceptor_goes_on_with_it(file, ran, trains):
    ran.scripts["real FLAIR, training"] = ran.scripts["no consistency, training"] = "raise SystemExit('no')"
    with pytest.raises(SystemExit):
        study(str(file))
    ran.scripts.clear()
    ran.calls.clear()
    trains("real FLAIR", "perceptor", "first")
    study(str(file))
    assert len(ran.calls) == 4


@pytest.mark.parametrize(
    ("row", "training", "evaluating"),
    [
        pytest.param({}, ["perceptor"], ["perceptor", "a"], id="TISS-Net"),
        pytest.param({"configs": ["direct_segmentation"]}, [], ["a"], id="direct segmentation"),
        pytest.param(
            {"configs": ["direct_segmentation", "comparators/pgan"]},
            ["pgan_generator"],
            ["pgan_generator", "a"],
            id="of a generator",
        ),
        pytest.param({"configs": ["ablations/no_perceptibility"]}, [], ["perceptor", "a"], id="by its config"),
        pytest.param(
            {"options": {"+loss_weights": {"perceptibility": 0}}}, [], ["perceptor", "a"], id="by its options"
        ),
    ],
)
def test_a_run_knows_which_weights_it_reads(file, row, training, evaluating):
    write_study(file.parent, rows=[{"name": "a", **row}])
    models = file.parent / "out" / "models"
    for step, names in zip(steps_of(file), (training, evaluating), strict=True):
        assert step.reads == [file.parent / "datalist.json", *(models / f"{name}.pt" for name in names)]


def test_a_record_that_does_not_say_what_was_read_counts_as_done(file, ran):
    study(str(file))
    for record in (file.parent / "out").rglob("*_record.json"):
        content = json.loads(record.read_text())
        del content["reads"]
        record.write_text(json.dumps(content))
    replace_patients(file.parent)
    ran.calls.clear()
    study(str(file))
    assert ran.calls == []


def test_the_folder_says_what_belongs_to_the_study(file, ran):
    study(str(file))
    kept = json.loads((file.parent / "out" / "study.json").read_text())
    assert kept["runs"] == {"real FLAIR": ["real_FLAIR"], "no consistency": ["no_consistency"]}


def test_a_row_that_only_prepares_is_not_evaluated(file, ran):
    write_study(file.parent, rows=[{"name": "Pix2Pix's generator", "evaluate": False}])
    study(str(file))
    assert ran.calls == ["Pix2Pix's generator, training"]
    assert json.loads((file.parent / "out" / "study.json").read_text())["runs"] == {}


def test_a_row_may_evaluate_the_weights_of_another_one(file, ran):
    rows = [
        {"name": "TISS-Net"},
        {
            "name": "on validation",
            "train": False,
            "options": {"model_name": "TISS-Net"},
            "evaluation_options": {"section": "validation"},
        },
    ]
    write_study(file.parent, rows=rows)
    study(str(file))
    assert ran.calls == ["TISS-Net, training", "TISS-Net, evaluating", "on validation, evaluating"]
    settings = steps_of(file)[-1].settings
    assert (settings["model_name"], settings["section"]) == ("TISS-Net", "validation")


def test_a_study_may_start_from_another_one(file, tmp_path):
    (tmp_path / "smaller.json").write_text(json.dumps({"base": "study.json", "options": {"epochs": 1}, "out": "less"}))
    content = read_study(tmp_path / "smaller.json")
    assert [row["name"] for row in content["rows"]] == ["real FLAIR", "no consistency"]
    assert (content["options"], content["out"]) == ({"epochs": 1}, str(tmp_path / "less"))


def test_the_paths_of_a_base_start_at_its_own_folder(file, tmp_path):
    write_study(tmp_path, datalists=["a.json"])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "smaller.json").write_text(json.dumps({"base": "../study.json", "dataset_dir": "data"}))
    content = read_study(tmp_path / "sub" / "smaller.json")
    assert (content["out"], content["datalists"]) == (str(tmp_path / "out"), [str(tmp_path / "a.json")])
    assert content["dataset_dir"] == str(tmp_path / "sub" / "data")


def test_the_configs_of_all_rows_lie_over_those_of_a_row_and_a_rows_options_over_those_of_all(file):
    rows = [{"name": "a", "configs": ["direct_segmentation"], "options": {"epochs": 7}}]
    write_study(file.parent, rows=rows, configs=["wide"])
    training = steps_of(file)[0]
    assert training.configs == ["train", "direct_segmentation", "wide"]
    assert training.settings["epochs"] == 7


def test_an_option_of_all_rows_goes_to_those_that_have_it(file, ran):
    write_study(file.parent, options={"loss_weights::consistency": 0.5})
    assert ["loss_weights::consistency" in step.settings for step in steps_of(file)] == [False, False, True, True]


def test_evaluation_has_configs_and_options_of_its_own(file):
    write_study(file.parent, evaluation_configs=["tumor_crop"], evaluation_options={"section": "validation"})
    training, evaluating = steps_of(file)[:2]
    assert "section" not in training.settings and evaluating.settings["section"] == "validation"
    assert evaluating.configs == ["train", "evaluate", "direct_segmentation", "tumor_crop"]


def test_one_fold_may_be_run_alone_and_the_others_stand_in_the_study(file, ran):
    write_study(file.parent, folds=3)
    study(str(file), fold=2, only="real FLAIR")
    assert ran.calls == ["real FLAIR, fold 2, training", "real FLAIR, fold 2, evaluating"]
    assert len(json.loads((file.parent / "out" / "study.json").read_text())["runs"]["real FLAIR"]) == 3
    with pytest.raises(ValueError, match="there is no fold 4; the study has fold_1, fold_2, fold_3"):
        study(str(file), fold=4)


def test_folds_run_one_after_the_other_with_weights_of_their_own(file, ran):
    write_study(file.parent, folds=3)
    study(str(file), only="real FLAIR")
    assert ran.calls[:3] == [
        "real FLAIR, fold 1, training",
        "real FLAIR, fold 1, evaluating",
        "real FLAIR, fold 2, training",
    ]
    assert {step.settings["ckpt_dir"].rpartition("/")[2] for step in steps_of(file)} == {"fold_1", "fold_2", "fold_3"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"epochs": 3}, "has the unknown key 'epochs'", id="unknown key"),
        pytest.param({"rows": [{"name": "a", "option": {}}]}, "unknown key 'option'", id="unknown key of a row"),
        pytest.param({"rows": []}, "lacks rows", id="no rows"),
        pytest.param({"rows": ["a"]}, "is a str, expected an object", id="a row that is a text"),
        pytest.param({"rows": [{"name": "a b"}, {"name": "a_b"}]}, "need different names", id="same folder"),
        pytest.param({"rows": [{"name": "a:fine"}]}, "without comma and colon", id="a name with a colon"),
        pytest.param({"rows": [{"name": "../.."}]}, "need different names", id="a name without a letter"),
        pytest.param({"bundle": "."}, "is not a bundle", id="no bundle"),
        pytest.param({"options": {"epohcs": 3}}, "no config of any row has the option 'epohcs'", id="mistyped option"),
        pytest.param(
            {"rows": [{"name": "a", "options": {"epohcs": 3}}]}, "a, training: no config has the option", id="of a row"
        ),
        pytest.param(
            {"rows": [{"name": "a", "options": {"model_name": "b"}}, {"name": "b"}]},
            "a, training and b, training would both write .*/out/models/b.pt: give one row another model_name",
            id="two trainings of one network",
        ),
        pytest.param({"configs": ["ablations/nothing"]}, "nothing.json does not exist", id="no such config"),
        pytest.param({"rows": 3}, "'rows' of study .* is 3, expected a list", id="rows that are a number"),
        pytest.param({"rows": [{"name": 3}]}, "'name' of a row of study .* is 3, expected a text", id="no name"),
        pytest.param({"options": ["epochs"]}, r"'options' of study .* expected an object", id="a list of options"),
        pytest.param({"rows": [{"name": "a", "options": None}]}, "'options' of a row .* is None, expected", id="null"),
        pytest.param({"configs": "direct_segmentation"}, "'configs' of study .* expected a list of texts", id="a text"),
        pytest.param({"base": "study.json"}, "study.json is its own base", id="a base of itself"),
        pytest.param({"report": {"methods": ["b"]}}, "the row 'b', which the study does not have", id="report"),
        pytest.param(
            {"report": {"tables": [{"title": "t", "head": ["a"], "rows": ["real FLAIR"]}]}},
            "'rows' of a table of report is .* expected an object",
            id="a table's rows",
        ),
        pytest.param({"report": {"pictures": {}}}, "'pictures' of report is {}, expected a list", id="no list"),
        pytest.param({"report": {"pictures": [{"rows": []}]}}, "report's pictures lacks 'title'", id="no title"),
        pytest.param({"report": {"pictures": [{"title": "a"}]}}, "report's pictures lacks 'rows'", id="no rows shown"),
        pytest.param({"report": {"curves": [{"rows": {}}]}}, "report's curves lacks 'x'", id="no parameter"),
        pytest.param(
            {"report": {"curves": [{"x": "a", "rows": ["real FLAIR"]}]}}, "'rows' of .* curves is", id="no values"
        ),
        pytest.param(
            {"report": {"curves": [{"x": "a", "rows": {"real FLAIR": "5"}}]}},
            "report's curve 'a' needs a number for 'real FLAIR', not '5'",
            id="a text as value",
        ),
        pytest.param(
            {"rows": [{"name": "a", "evaluate": False}, {"name": "b"}], "report": {"reference": "a"}},
            "report asks in reference for the row 'a', which the study does not have, or not evaluate: ",
            id="a reference that is not evaluated",
        ),
        *(
            pytest.param(
                {"rows": [{"name": name}]}, f"calls a row '{name}', like a file of its own", id=f"a row {name}"
            )
            for name in ("models", "folds", "fold_12", "report", "study.json")
        ),
        pytest.param({"report": {"alarm": {"agreement": 0.5}}}, "report's alarm lacks 'dice'", id="no bad Dice"),
        pytest.param({"report": {"table": []}}, "report has the unknown key 'table'", id="report's key"),
    ],
)
def test_a_mistake_in_a_study_is_named_before_anything_runs(file, ran, changes, message):
    write_study(file.parent, **changes)
    with pytest.raises(ValueError, match=message):
        study(str(file))
    assert ran.calls == []


def test_a_study_that_is_no_json_is_named(tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study.json cannot be read as JSON"):
        study(str(tmp_path / "study.json"))


def test_a_name_becomes_a_folder():
    assert slug("λ_p = 25 (T1, ceT1)") == "λ_p_25_T1_ceT1"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_names_configs_and_options_that_exist(example):
    content = read_study(example)
    datalists = {"fold_1": "a.json", "fold_2": "b.json"} if content["folds"] else {"": "a.json"}
    check_options(content, list(study_steps(content, datalists)))


@pytest.mark.slow
def test_a_study_really_trains_evaluates_and_is_reported(tmp_path):
    write_cohort(tmp_path)
    rows = [{"name": "real FLAIR", "configs": ["direct_segmentation"], "options": {"model_name": "perceptor"}}]
    file = write_study(tmp_path, rows=rows, options=TINY | {"epochs": 1})
    study(str(file))
    first, second = steps_of(file)
    assert first.record["finished"] and second.record["finished"] and first.record["minutes"] > 0
    assert (tmp_path / "out" / "models" / "perceptor.pt").is_file()
    page = Path(report(str(tmp_path / "out"), str(tmp_path / "page"))).read_text()
    assert "real FLAIR is the only run" in page and "Methods side by side" in page
    assert "over 2 cases" in page
