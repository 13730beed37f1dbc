import json

import numpy as np
import pytest
from tissnet_components.files import digest, write_atomic
from tissnet_components.report.runs import notes, read_runs, records_of, study_of
from torch.utils.tensorboard import SummaryWriter

HEAD = "protocol,case,label_ml,fine_dice,fine_hd95_mm,fine_ml\n"
BINS = "protocol,case,error_from,error_to,voxels,predicted,mistakes\n"


def evaluation(folder, *cases, protocol="whole volume", dice="0.8"):
    rows = [f"{protocol},{case},30,{dice},4,28\n" for case in cases]
    write_atomic(folder / "cases.csv", (HEAD + "".join(rows)).encode())


def study(root, **runs):
    (root / "study.json").write_text(json.dumps({"rows": [{"name": name} for name in runs], "runs": runs}))


def test_evaluations_are_found_through_links(tmp_path):
    evaluation(tmp_path / "elsewhere" / "TISS-Net", "anna")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(read_runs(tmp_path / "runs")) == ["linked/TISS-Net"]


def test_the_folds_of_a_method_are_one_run_with_every_patient(tmp_path):
    evaluation(tmp_path / "TISS-Net" / "fold_1", "anna", "bert")
    evaluation(tmp_path / "TISS-Net" / "fold_2", "carl")
    [run] = read_runs(tmp_path).values()
    assert (run.name, sorted(run.cases)) == ("TISS-Net", ["anna", "bert", "carl"])
    assert run.folders["carl"] == tmp_path / "TISS-Net" / "fold_2" / "carl"
    assert run.values("fine_dice") == {"anna": 0.8, "bert": 0.8, "carl": 0.8}


def test_a_case_that_two_folds_tested_is_refused(tmp_path):
    for fold in ("fold_1", "fold_2"):
        evaluation(tmp_path / "TISS-Net" / fold, "anna")
    with pytest.raises(ValueError, match=r"TISS-Net holds the case anna twice: in .*fold_1 and .*fold_2"):
        read_runs(tmp_path)


def test_folds_of_different_protocols_are_refused(tmp_path):
    evaluation(tmp_path / "TISS-Net" / "fold_1", "anna")
    evaluation(tmp_path / "TISS-Net" / "fold_2", "bert", protocol="tumor slab")
    with pytest.raises(ValueError, match=r"TISS-Net has the protocols \['tumor slab', 'whole volume'\]"):
        read_runs(tmp_path)


def test_an_evaluation_without_a_case_is_refused(tmp_path):
    evaluation(tmp_path / "TISS-Net")
    with pytest.raises(ValueError, match="TISS-Net has no case in"):
        read_runs(tmp_path)


def test_a_study_gives_the_names_and_the_order_of_its_rows(tmp_path):
    for slug in ("A_first", "b"):
        evaluation(tmp_path / slug, "anna")
    study(tmp_path, **{"b": ["b"], "A, first": ["A_first"]})
    assert list(read_runs(tmp_path)) == ["b", "A, first"]


def test_calibrations_of_all_cases_and_folds_are_added_up(tmp_path):
    for fold, case, mistakes in (("fold_1", "anna", 1), ("fold_2", "bert", 4)):
        folder = tmp_path / "TISS-Net" / fold
        evaluation(folder, case)
        bins = [f"whole volume,{case},0,0.5,10,1.5,{mistakes}\n", f"whole volume,{case},0.5,1,6,5,3\n"]
        write_atomic(folder / "calibration.csv", (BINS + "".join(bins)).encode())
    [run] = read_runs(tmp_path).values()
    assert run.calibration.tolist() == [[0, 0.5, 20, 3, 5], [0.5, 1, 12, 10, 6]]


def test_a_calibration_that_lacks_cases_is_refused(tmp_path):
    evaluation(tmp_path / "TISS-Net", "anna", "bert")
    write_atomic(tmp_path / "TISS-Net" / "calibration.csv", f"{BINS}whole volume,anna,0,1,10,1.5,1\n".encode())
    with pytest.raises(ValueError, match=r"calibration.csv holds other cases than cases.csv \(bert\): evaluate again"):
        read_runs(tmp_path)


@pytest.mark.parametrize("dice", ["inf", "1.5", "-0.1"])
def test_a_dice_that_cannot_be_is_refused(tmp_path, dice):
    evaluation(tmp_path / "TISS-Net", "anna", dice=dice)
    with pytest.raises(ValueError, match=r"cases.csv holds the fine_dice .* of anna, expected 0 to 1: evaluate again"):
        read_runs(tmp_path)


def said(root, *groups):
    runs = read_runs(root)
    return " ".join(notes(runs, [root], groups or [list(runs)]))


def test_a_fold_without_an_evaluation_is_named(tmp_path):
    evaluation(tmp_path / "TISS-Net" / "fold_1", "anna")
    study(tmp_path, **{"TISS-Net": ["TISS-Net/fold_1", "TISS-Net/fold_2"], "direct": ["direct/fold_1"]})
    assert "TISS-Net is not complete: no finished evaluation of fold 2. Run the study again" in said(tmp_path)
    assert "direct is not complete: no finished evaluation of fold 1." in said(tmp_path)


def test_an_evaluation_older_than_a_training_that_was_cut_is_not_complete(tmp_path):
    evaluation(tmp_path / "TISS-Net" / "fold_1", "anna")
    study(tmp_path, **{"TISS-Net": ["TISS-Net/fold_1"]})
    record = tmp_path / "TISS-Net" / "fold_1" / "training_record.json"
    record.write_text(json.dumps({"minutes": 1.5, "finished": True, "machine": "two cores"}))
    assert "not complete" not in said(tmp_path)
    assert records_of(tmp_path, study_of(tmp_path))["TISS-Net"][0]["minutes"] == 1.5
    record.write_text(json.dumps({"minutes": 1.5, "finished": False, "machine": "two cores"}))
    assert "TISS-Net is not complete: no finished evaluation of fold 1." in said(tmp_path)


def test_an_evaluation_of_other_weights_than_those_that_are_there_is_not_complete(tmp_path):
    evaluation(tmp_path / "TISS-Net", "anna")
    study(tmp_path, **{"TISS-Net": ["TISS-Net"]})
    weights = tmp_path / "TISS-Net.pt"
    weights.write_text("first")
    reads = {str(weights): digest(weights), str(tmp_path / "left at home.pt"): "a1b2"}
    record = {"minutes": 1.5, "finished": True, "machine": "two cores", "reads": reads}
    (tmp_path / "TISS-Net" / "evaluating_record.json").write_text(json.dumps(record))
    assert "not complete" not in said(tmp_path)
    weights.write_text("trained on")
    assert "TISS-Net is not complete: no finished evaluation of TISS-Net." in said(tmp_path)


def test_missing_cases_other_protocols_and_a_single_run_are_said(tmp_path):
    evaluation(tmp_path / "a", "anna", "bert")
    assert "a is the only run: there is nothing to compare it with." in said(tmp_path)
    evaluation(tmp_path / "b", "anna", protocol="tumor slab")
    assert "b lacks 1 of 2 cases: bert." in said(tmp_path)
    assert "different protocols (tumor slab, whole volume)" in said(tmp_path)


def test_cases_that_every_run_lacks_are_known_from_the_datalist_beside_them(tmp_path):
    datalist = {"training": [{"case": "carl"}], "test": [{"case": "anna"}, {"case": "bert"}], "sources": ["t2"]}
    for name in ("a", "b"):
        evaluation(tmp_path / name, "anna")
        write_atomic(tmp_path / name / "datalist.json", json.dumps(datalist).encode())
        assert f"{name} has no result of bert, which its datalist asks for" in said(tmp_path)
    assert "carl" not in said(tmp_path)


def test_runs_that_no_table_shows_together_may_have_other_cases(tmp_path):
    evaluation(tmp_path / "test patients", "anna")
    evaluation(tmp_path / "validation patients", "bert")
    assert said(tmp_path, ["test patients"], ["validation patients"]) == ""
    assert "lacks 1 of 2 cases" in said(tmp_path, ["test patients", "validation patients"])


def test_a_metric_without_a_value_is_said_and_so_is_a_case_without_a_dice(tmp_path):
    evaluation(tmp_path / "a", "anna", dice="nan")
    assert "a has no value at all of fine_dice: look at its pictures." in said(tmp_path)
    file = tmp_path / "a" / "cases.csv"
    file.write_text(file.read_text() + "whole volume,bert,30,0.7,,28\n")
    assert "a has no fine_dice of anna: evaluate it again." in said(tmp_path)


def test_complete_runs_of_one_test_set_need_no_note(tmp_path):
    for name in ("a", "b"):
        evaluation(tmp_path / name, "anna", "bert")
    assert said(tmp_path) == ""


def test_what_a_training_showed_stands_at_its_iterations_and_as_it_was_shown_last(tmp_path):
    """Killed in its second epoch of two iterations, and resumed: iteration 3 came twice."""
    evaluation(tmp_path / "TISS-Net", "anna")
    shown = [("loss", 0.9, 1), ("loss", 0.8, 2), ("val_dice", 0.1, 1), ("loss", 0.7, 3)]
    again = [("loss", 0.6, 3), ("loss", 0.5, 4), ("val_dice", 0.3, 2)]
    for second, events in enumerate((shown, again)):
        with SummaryWriter(tmp_path / "TISS-Net" / "training" / "TISS-Net_tensorboard") as writer:
            for moment, (tag, value, step) in enumerate(events):
                writer.add_scalar(tag, value, step, walltime=10 * second + moment)
    [learning] = read_runs(tmp_path)["TISS-Net"].learning
    assert learning["loss"] == pytest.approx(np.array([[1, 0.9], [2, 0.8], [3, 0.6], [4, 0.5]]))
    assert learning["val_dice"] == pytest.approx(np.array([[2, 0.1], [4, 0.3]]))


def test_a_log_of_a_training_that_is_damaged_shows_nothing(tmp_path):
    evaluation(tmp_path / "TISS-Net", "anna")
    write_atomic(tmp_path / "TISS-Net" / "training" / "a_tensorboard" / "events.out.tfevents.1", b"no event" * 20)
    assert read_runs(tmp_path)["TISS-Net"].learning == [{}]
