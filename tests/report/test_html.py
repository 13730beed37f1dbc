import base64
import json
import re
import shutil

import numpy as np
import pytest
from tissnet_components.files import write_atomic
from tissnet_components.report.html import report
from tissnet_components.report.layouts import typical_cases
from tissnet_components.report.runs import Run
from tissnet_components.results.overview import overview, save_slices

CASES = """protocol,case,label_ml,fine_dice,fine_assd_mm,fine_hd95_mm,fine_ml
whole volume,patient_1,30,0.9,1.5,4,28
whole volume,patient_2,12,0,,,0
"""
SYNTHESIS = """protocol,case,label_ml,fine_dice,fine_assd_mm,fine_hd95_mm,fine_ml,ssim,local_psnr,predicted_dice
whole volume,patient_1,30,0.95,1.1,4,28,0.8,18,0.9
whole volume,patient_2,12,0,,,0,0.9,20,0.2
"""
CALIBRATION = """protocol,case,error_from,error_to,voxels,predicted,mistakes
whole volume,patient_1,0,0.5,90,10,5
whole volume,patient_1,0.5,1,10,8,6
whole volume,patient_2,0,0.5,80,9,4
whole volume,patient_2,0.5,1,20,15,11
"""


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    write_atomic(folder / "direct" / "cases.csv", CASES.encode())
    write_atomic(folder / "tissnet" / "cases.csv", SYNTHESIS.encode())
    write_atomic(folder / "tissnet" / "calibration.csv", CALIBRATION.encode())
    return folder


def page_of(runs, **settings):
    out = runs.parent / "report.html"
    assert report(str(runs), str(out), **settings) == str(out)
    return out.read_text(encoding="utf-8")


def row_of(page, first_cell, after=""):
    """Cells of the first table row that starts with this text, after some place on the page."""
    row = re.search(rf'<tr><th scope="row">{re.escape(first_cell)}</th>(.*?)</tr>', page[page.index(after) :]).group(1)
    return re.findall(r"<td.*?>(.*?)</td>", row)


def test_the_headline_compares_the_methods_with_their_sd_and_what_is_missing(runs):
    page = page_of(runs)
    assert row_of(page, "direct") == ["45.00 ± 63.64", "1.50 (1 missing)", "4.00 (1 missing)"]
    assert row_of(page, "tissnet") == ["47.50 ± 67.18", "1.10 (1 missing)", "4.00 (1 missing)"]
    assert '<td class="best">47.50 ± 67.18</td>' in page
    assert "Empty predictions: direct 1, tissnet 1." in page


def test_every_method_is_compared_with_the_reference_that_was_chosen(runs):
    page = page_of(runs)
    assert row_of(page, "tissnet", "compared with direct")[:4] == ["Dice (%)", "2", "+2.50 [+0.00, +5.00]", "1 / 0"]
    page = page_of(runs, reference="tissnet")
    assert row_of(page, "direct", "compared with tissnet")[2] == "-2.50 [-5.00, +0.00]"


def test_an_unknown_reference_is_refused_with_the_known_ones(runs):
    with pytest.raises(
        ValueError, match=r"no evaluation of 'tisnet' to compare with; there are \['direct', 'tissnet'\]"
    ):
        page_of(runs, reference="tisnet")


def test_the_synthesis_table_holds_only_methods_that_synthesise(runs):
    page = page_of(runs)
    table = page[page.index("<caption>Synthetic image") :]
    assert row_of(table, "tissnet") == ["0.850 ± 0.071", "n/a", "n/a", "n/a", "n/a", "19.00 ± 1.41"]
    assert '<th scope="row">direct' not in table[: table.index("</table>")]


def test_each_case_stands_beside_its_other_methods(runs):
    page = page_of(runs)
    assert row_of(page, "patient_1") == ["30.0", "90.0", "4.00", "28.0", "95.0", "4.00", "28.0"]
    assert row_of(page, "patient_2") == ["12.0", "0.0", "n/a", "0.0", "0.0", "n/a", "0.0"]


def test_pictures_are_inside_the_page_and_nothing_is_loaded_from_elsewhere(runs):
    maps = {"source": np.random.default_rng(0).random((16, 16, 4))}
    picture = overview(maps, runs / "tissnet" / "p1" / "p1_overview.png")
    page = page_of(runs)
    assert base64.b64encode(picture.read_bytes()).decode() in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "http" not in page


def test_the_page_says_how_many_pictures_were_left_out(runs):
    for name in ("a", "b", "c"):
        overview({"source": np.ones((8, 8, 2))}, runs / f"{name}_overview.png")
    page = page_of(runs, max_pictures=2)
    assert page.count("<figcaption>") - page.count("<h3>") == 2 and "2 of 3 pictures are shown" in page


def test_the_page_has_the_figures_that_the_runs_allow(runs):
    titles = re.findall("<h3>(.*?)</h3>", page_of(runs))
    assert titles == [
        "Who gains, who loses",
        "Tumor volume",
        "Does a high predicted error mean a real error?",
        "If the worst cases go to a human",
    ]
    (runs / "tissnet").rename(runs.parent / "elsewhere")
    assert re.findall("<h3>(.*?)</h3>", page_of(runs)) == ["Tumor volume"]


def test_a_folder_gets_the_page_the_tables_and_the_figures_as_files(runs):
    folder = runs.parent / "out"
    assert report(str(runs), str(folder)) == str(folder / "report.html")
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")}
    assert {"report.md", "tables/segmentation.csv", "tables/segmentation_compared_with_direct.tex"} <= files
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| tissnet | **47.50 ± 67.18** |" in text
    for shown in re.findall(r"\]\((.*?)\)", text):
        assert (folder / shown).read_bytes().startswith(b"\x89PNG")


def test_tables_of_similar_titles_are_files_of_their_own(runs):
    tables = [{"title": title, "head": ["Method"], "rows": {"TISS-Net": ["a"]}} for title in ("Dice: all", "Dice, all")]
    as_study(runs, tables=[tables[0], tables[1] | {"rows": {"without FLAIR": ["b"]}}])
    folder = runs.parent / "out"
    report(str(runs), str(folder))
    assert "\na," in (folder / "tables" / "dice_all.csv").read_text()
    assert "\nb," in (folder / "tables" / "dice_all_2.csv").read_text()


def test_several_folders_make_one_report(runs, tmp_path):
    shutil.copytree(runs / "direct", tmp_path / "more" / "another")
    out = tmp_path / "report.html"
    report([str(runs), str(tmp_path / "more")], str(out))
    assert row_of(out.read_text(encoding="utf-8"), "another")[0] == "45.00 ± 63.64"
    with pytest.raises(ValueError, match="two runs are called 'direct'"):
        report([str(runs), str(runs)], str(out))


def as_study(runs, **wanted):
    names = {"without FLAIR": ["direct"], "TISS-Net": ["tissnet"], "Pix2Pix": ["Pix2Pix"]}
    content = {"rows": [{"name": name, "options": {"epochs": 3}} for name in names], "runs": names, "report": wanted}
    write_atomic(runs / "study.json", json.dumps(content).encode())


def test_a_study_chooses_the_tables_and_what_describes_a_row(runs):
    rows = {"without FLAIR": ["x_s", ""], "Pix2Pix": ["x_s", "✓"], "TISS-Net": ["x_s", "✓"]}
    table = {"title": "Table 4", "head": ["Input", "GAN"], "rows": rows, "metrics": ["dice"]}
    as_study(runs, tables=[table], reference="without FLAIR")
    page = page_of(runs)
    shown = re.findall(r'<tr><th scope="row">x_s</th>(.*?)</tr>', page)
    assert [re.findall(r"<td.*?>(.*?)</td>", row) for row in shown] == [
        ["", "45.00 ± 63.64"],
        ["✓", "not evaluated"],
        ["✓", "47.50 ± 67.18"],
    ]
    assert row_of(page, "TISS-Net", "Table 4: compared with without FLAIR")[0] == "Dice (%)"
    assert "Pix2Pix is not complete: no finished evaluation of Pix2Pix." in page
    assert "epochs 3" in page


def keep(folder, step, minutes, machine="one GPU", **settings):
    record = {"minutes": minutes, "finished": True, "machine": machine, "configs": ["train"], "settings": settings}
    write_atomic(folder / f"{step}_record.json", json.dumps(record).encode())


def test_the_minutes_are_those_of_every_fold_and_of_rows_that_only_prepare(runs):
    as_study(runs)
    for fold, minutes in (("fold_1", 20), ("fold_2", 4.5)):
        keep(runs / "TISS-Net" / fold, "training", minutes)
        keep(runs / "TISS-Net" / fold, "evaluating", 0.5, "two cores")
    study = json.loads((runs / "study.json").read_text())
    study["rows"].append({"name": "Pix2Pix's generator", "evaluate": False})
    write_atomic(runs / "study.json", json.dumps(study).encode())
    keep(runs / "Pix2Pix_s_generator", "training", 12)
    page = page_of(runs)
    assert row_of(page, "TISS-Net", "How it was made</caption>")[-1] == "25.5"
    assert row_of(page, "Pix2Pix&#39;s generator")[-1] == "12.0"
    assert row_of(page, "without FLAIR", "How it was made</caption>")[-1] == "n/a"
    assert "on one GPU and two cores." in page


def test_how_it_was_made_is_what_the_runs_were_given_whatever_the_study_says_now(runs):
    as_study(runs)  # which asks for three epochs
    given = {"learning_rate": 0.01, "datalist": "a.json"}
    keep(runs / "without_FLAIR", "training", 1, epochs=4, model_name="without_FLAIR", **given)
    for fold, epochs in (("fold_1", 4), ("fold_2", 500)):
        keep(runs / "TISS-Net" / fold, "training", 1, epochs=epochs, model_name="ours", **given)
    keep(runs / "Pix2Pix", "training", 1, epochs=4, vgg_weights="untrained", **given)
    page = page_of(runs)
    assert row_of(page, "without FLAIR", "How it was made</caption>")[1] == "epochs 4"
    assert row_of(page, "TISS-Net", "How it was made</caption>")[1] == "epochs 4 or 500, model_name ours"
    assert row_of(page, "Pix2Pix", "How it was made</caption>")[1] == "epochs 4, vgg_weights untrained"
    assert "Options of all rows: learning_rate 0.01; configs of all rows: none." in page


def test_a_study_chooses_what_is_pictured_and_which_cases(runs):
    volume = np.random.default_rng(0).random((16, 16, 4))
    for folder in ("direct", "tissnet"):
        save_slices({"source": volume, "label": volume > 0.9}, runs / folder / "patient_2" / "patient_2_slice.npz")
    figure = {"title": "Fig. 7", "rows": {"without FLAIR": "direct", "TISS-Net": "ours"}, "cases": ["patient_2"]}
    as_study(runs, pictures=[figure])
    assert "<h3>Fig. 7</h3>" in page_of(runs)
    as_study(runs, pictures=[figure | {"cases": ["patient_9"]}])
    with pytest.raises(ValueError, match=r"figure 'Fig. 7' asks for the case 'patient_9', which TISS-Net did not test"):
        page_of(runs)


def test_how_well_a_quality_without_a_label_finds_the_bad_cases(runs):
    """Ranks 4 1 3 2 and 2 1 4 3: 1 - 6 * 6 / (4 * 15). Of the two bad cases one has an alarm, and of the good ones."""
    rows = zip("abcd", (0.9, 0.2, 0.7, 0.4), (0.45, 0.3, 0.9, 0.85), strict=True)
    lines = "".join(f"whole volume,{case},9,{dice},{agreement}\n" for case, dice, agreement in rows)
    write_atomic(runs / "tissnet" / "cases.csv", f"protocol,case,label_ml,fine_dice,agreement\n{lines}".encode())
    (runs / "tissnet" / "calibration.csv").unlink()
    title = "<caption>Quality without a label"
    cells = row_of(page_of(runs), "tissnet", title)
    assert cells[:2] == ["agreement of fine and refined", "4"] and cells[2].startswith("0.40 [") and len(cells) == 3
    as_study(runs, alarm={"dice": 0.5, "agreement": 0.5})
    page = page_of(runs)
    assert row_of(page, "TISS-Net", title)[3:] == ["1 / 2 (50 %)", "1 / 2 (50 %)"]
    report(str(runs), str(runs.parent / "out"))
    kept = (runs.parent / "out" / "tables" / "quality_without_a_label.csv").read_text().splitlines()
    assert kept[0].endswith(",Bad cases found,Bad cases found of,False alarms,False alarms of")
    assert kept[1].endswith(",1,2,1,2")
    assert "Bad: Dice below 50 %. Alarm: agreement of fine and refined below 0.5." in page


def test_a_case_of_unknown_quality_is_an_alarm(runs):
    as_study(runs, alarm={"dice": 0.5, "predicted_dice": 0.1})
    (runs / "tissnet" / "cases.csv").write_text(SYNTHESIS.replace("20,0.2", "20,"))
    assert row_of(page_of(runs), "TISS-Net", "<caption>Quality without a label")[3:] == ["1 / 1 (100 %)", "0 / 1 (0 %)"]


def test_typical_cases_are_those_at_the_90th_50th_and_10th_percentile_of_the_dice():
    cases = {f"case_{number}": {"fine_dice": number / 10} for number in (3, 10, 0, 7, 1, 9, 5, 2, 8, 4, 6)}
    assert typical_cases(Run("a", "whole volume", cases)) == ["case_9", "case_5", "case_1"]


def two_row_table(**settings):
    return {"title": "Table 4", "head": ["Method"], "rows": {"without FLAIR": ["a"], "TISS-Net": ["b"]}, **settings}


def test_gains_are_over_the_chosen_reference_or_that_of_the_last_table_that_ranks_several_runs(runs):
    stages = {"TISS-Net:fine": ["fine"], "TISS-Net:refined": ["refined"]}
    tables = [
        two_row_table(reference="without FLAIR", unranked=["TISS-Net"]),
        two_row_table(title="Table 3", rows=stages, reference="TISS-Net:fine"),
        two_row_table(reference="TISS-Net", unranked=["TISS-Net"]),
    ]
    as_study(runs, tables=tables)
    assert "Each case&#39;s Dice minus that of without FLAIR:" in page_of(runs)
    assert "Each case&#39;s Dice minus that of TISS-Net:" in page_of(runs, reference="TISS-Net")


def test_the_reference_of_a_study_is_that_of_its_tables_without_one(runs):
    as_study(
        runs, tables=[two_row_table(reference="TISS-Net"), two_row_table(title="Table 5")], reference="without FLAIR"
    )
    page = page_of(runs)
    assert "Table 4: compared with TISS-Net" in page and "Table 5: compared with without FLAIR" in page
    assert "Table 4: compared with without FLAIR" in page_of(runs, reference="without FLAIR")


def test_runs_that_the_study_does_not_know_stand_beside_its_methods(runs, tmp_path):
    write_atomic(tmp_path / "eval" / "mine" / "cases.csv", SYNTHESIS.replace("0.95", "0.85").encode())
    as_study(runs, tables=[two_row_table()], methods=["TISS-Net"])
    page = page_of(runs)
    assert "further runs" not in page and "mine" not in page
    report([str(runs), str(tmp_path / "eval")], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = "<caption>Segmentation, with further runs</caption>"
    assert row_of(page, "mine", table)[0] == "42.50 ± 60.10" and row_of(page, "TISS-Net", table)
    assert {"mine: Dice (%)", "TISS-Net: Dice (%)"} <= set(re.findall(r'<th scope="col">(.*?)</th>', page))


def test_another_study_is_said_to_have_tables_of_its_own(runs, tmp_path):
    as_study(runs)
    shutil.copytree(runs / "direct", tmp_path / "second" / "other")
    write_atomic(tmp_path / "second" / "study.json", json.dumps({"rows": [{"name": "other"}]}).encode())
    report([str(runs), str(tmp_path / "second")], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{tmp_path / 'second'} holds a study of its own; its runs are shown here, its tables are not" in page
    assert f"{runs} holds a study" not in page


def test_the_table_of_cases_says_whose_segmentation_it_is_and_by_which_protocol(runs):
    write_atomic(runs / "direct" / "cases.csv", CASES.replace("fine", "refined").encode())
    assert "Segmentation: fine; refined of direct. Protocol: whole volume. Dice: overlap" in page_of(runs)


def test_a_picture_that_was_cut_off_is_named(runs):
    kept = save_slices({"source": np.ones((8, 8, 2))}, runs / "direct" / "patient_1" / "patient_1_slice.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"patient_1_slice.npz cannot be read .*: evaluate direct again"):
        page_of(runs)


def test_a_study_json_that_asks_for_what_cannot_be_is_refused(runs):
    as_study(runs, pictures=[{"rows": ["TISS-Net"]}])
    with pytest.raises(ValueError, match="an entry of report's pictures lacks 'title'"):
        page_of(runs)


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": ["TISS-Net"]}'])
def test_a_study_json_of_something_else_is_named(runs, content):
    (runs / "study.json").write_text(content)
    with pytest.raises(ValueError, match=r"study.json is not what a study leaves: run the study again, or remove it"):
        page_of(runs)


@pytest.mark.parametrize("name", ["dataset_description.json", "datalist.json"])
def test_simulated_data_are_called_simulated(runs, name):
    assert "Simulated data" not in page_of(runs)
    (runs / "direct" / name).write_text(json.dumps({"simulated": True}))
    assert "Simulated data" in page_of(runs)


def test_runs_of_other_test_sets_or_protocols_are_pointed_out_and_not_compared(runs):
    (runs / "direct" / "cases.csv").write_text(CASES.replace("patient_2", "patient_3").replace("whole volume", "slab"))
    page = page_of(runs)
    assert "direct lacks 1 of 3 cases: patient_2." in page
    assert "different protocols (slab, whole volume)" in page
    assert "compared with direct" not in page
    assert row_of(page, "direct")[0] == "45.00 ± 63.64"


def test_a_single_run_is_reported_and_said_to_be_alone(runs):
    shutil.rmtree(runs / "tissnet")
    page = page_of(runs)
    assert "direct is the only run: there is nothing to compare it with." in page
    assert row_of(page, "direct")[0] == "45.00 ± 63.64"


def test_an_evaluation_given_as_the_current_folder_keeps_its_name(runs, monkeypatch):
    monkeypatch.chdir(runs / "direct")
    report(".", "page.html")
    page = (runs / "direct" / "page.html").read_text(encoding="utf-8")
    assert row_of(page, "direct")[0] == "45.00 ± 63.64"


def test_names_from_outside_are_escaped(runs):
    (runs / "direct").rename(runs / "<script>alert(1)<")
    page = page_of(runs, title="a & <b>")
    assert "<script" not in page and "a &amp; &lt;b&gt;" in page


def test_the_page_is_not_for_the_clinic(runs):
    assert "not a medical device" in page_of(runs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("case,mean\nfine_dice,1\n", "has no column", id="columns missing"),
        pytest.param(CASES.replace("0.9", "good"), "holds 'good'", id="not a number"),
        pytest.param(CASES[:-6], "longer or shorter", id="cut off"),
        pytest.param("", "has no column", id="empty file"),
    ],
)
def test_a_damaged_table_is_refused_by_name(runs, content, message):
    (runs / "direct" / "cases.csv").write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        page_of(runs)
    assert "direct/cases.csv" in str(refused.value)
    assert not (runs.parent / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("study.json", "[]", "is not what a study leaves", id="a study that is a list"),
        pytest.param("study.json", '{"runs": []}', "is not what a study leaves", id="runs that are a list"),
        pytest.param("study.json", '{"runs": {"a": []}}', "is not what a study leaves", id="a run without folders"),
        pytest.param("study.json", "[" * 99999, "cannot be read as JSON", id="nested without end"),
        pytest.param("direct/direct_record.json", "{}", "does not hold minutes", id="an empty record"),
        pytest.param("direct/patient_1/patient_1_slice.npz", "", "cannot be read", id="an empty slice"),
    ],
)
def test_a_damaged_file_is_refused_by_name(runs, file, content, message):
    as_study(runs)
    write_atomic(runs / file, content.encode())
    with pytest.raises(ValueError, match=message) as refused:
        page_of(runs)
    assert str(runs / file) in str(refused.value)


@pytest.mark.filterwarnings("error")
def test_volumes_that_are_all_missing_are_no_reason_to_warn(runs):
    table = "protocol,case,label_ml,fine_dice,fine_ml\nwhole volume,patient_1,,0.5,\nwhole volume,patient_2,,0.4,\n"
    for name in ("direct", "tissnet"):
        (runs / name / "cases.csv").write_text(table)
    assert "Tumor volume" in page_of(runs)


@pytest.mark.parametrize("name", ["$\\foo$", "\udcfc"], ids=["dollar signs", "no UTF-8"])
def test_a_run_of_any_name_is_drawn(runs, name):
    (runs / "direct").rename(runs / name)
    assert "Who gains, who loses" in page_of(runs)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        report(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        report(str(tmp_path / "nowhere"))
