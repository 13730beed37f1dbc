import base64
import json
import re

import numpy as np
import pytest

from tissnet_components.report import write_whole
from tissnet_components.report.figures import overview
from tissnet_components.report.html import report

CASES = """protocol,case,label_ml,fine_dice,fine_assd_mm,fine_hd95_mm,fine_ml
whole volume,patient_1,30,0.9,1.5,4,28
whole volume,patient_2,12,0,,,0
"""
SUMMARY = """protocol,metric,mean,sd,n,missing
whole volume,label_ml,21,12.7279,2,0
whole volume,fine_dice,0.45,0.636396,2,0
whole volume,fine_assd_mm,1.5,,1,1
whole volume,fine_hd95_mm,4,,1,1
whole volume,fine_ml,14,19.799,2,0
"""
SYNTHESIS = "whole volume,ssim,0.8125,0.03,2,0\nwhole volume,local_psnr,19.75,2.05,2,0\n"


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    write_whole(folder / "evaluate_direct" / "cases.csv", CASES.encode())
    write_whole(folder / "evaluate_direct" / "summary.csv", SUMMARY.encode())
    write_whole(folder / "evaluate_tissnet" / "cases.csv", CASES.replace("0.9,1.5", "0.95,1.1").encode())
    write_whole(folder / "evaluate_tissnet" / "summary.csv", (SUMMARY.replace("0.45,", "0.475,") + SYNTHESIS).encode())
    return folder


def page_of(runs, **settings):
    out = runs.parent / "report.html"
    assert report(str(runs), str(out), **settings) == str(out)
    return out.read_text(encoding="utf-8")


def row_of(page, first_cell):
    """Cells of the first table row that starts with this text."""
    row = re.search(rf'<tr><th scope="row">{re.escape(first_cell)}</th>(.*?)</tr>', page).group(1)
    return re.findall(r"<td>(.*?)</td>", row)


def test_the_headline_compares_the_methods_with_their_sd_and_empty_predictions(runs):
    page = page_of(runs)
    assert row_of(page, "evaluate_direct") == [
        "fine", "45.0 ± 63.6", "1.50 (1 missing)", "4.00 (1 missing)", "1 of 2", "whole volume",
    ]  # fmt: skip
    assert row_of(page, "evaluate_tissnet")[1] == "47.5 ± 63.6"


def test_the_synthesis_table_holds_only_methods_that_synthesise(runs):
    page = page_of(runs)
    table = page[page.index('id="synthesis"') :]
    assert row_of(table, "evaluate_tissnet") == ["0.812 ± 0.030", "n/a", "n/a", "n/a", "n/a", "19.75 ± 2.05"]
    assert "evaluate_direct" not in table[: table.index("</table>")]


def test_each_case_stands_beside_its_other_methods(runs):
    page = page_of(runs)
    assert row_of(page, "patient_1") == ["30.0", "90.0", "4.00", "28.0", "95.0", "4.00", "28.0"]
    assert row_of(page, "patient_2") == ["12.0", "0.0", "n/a", "0.0", "0.0", "n/a", "0.0"]


def test_pictures_are_inside_the_page_and_nothing_is_loaded_from_elsewhere(runs):
    picture = overview({"source": np.random.default_rng(0).random((16, 16, 4))}, runs / "evaluate_tissnet" / "p1.png")
    page = page_of(runs)
    assert base64.b64encode(picture.read_bytes()).decode() in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "http" not in page


def test_the_page_says_how_many_pictures_were_left_out(runs):
    for name in ("a", "b", "c"):
        overview({"source": np.ones((8, 8, 2))}, runs / f"{name}.png")
    page = page_of(runs, max_pictures=2)
    assert page.count("<img") == 2 and "2 of 3 pictures are shown" in page


@pytest.mark.parametrize("name", ["dataset_description.json", "datalist.json"])
def test_simulated_data_are_called_simulated(runs, name):
    assert "Simulated data" not in page_of(runs)
    (runs / "evaluate_direct" / name).write_text(json.dumps({"simulated": True}))
    assert "Simulated data" in page_of(runs)


def test_methods_with_different_cases_or_protocols_are_pointed_out(runs):
    (runs / "evaluate_direct" / "cases.csv").write_text("".join(CASES.splitlines(keepends=True)[:2]))
    (runs / "evaluate_direct" / "summary.csv").write_text(SUMMARY.replace("whole volume", "tumor slab"))
    page = page_of(runs)
    assert "evaluate_direct lacks 1 of 2 cases: patient_2" in page
    assert "different protocols" in page


def test_a_run_without_cases_or_pictures_is_still_reported(runs):
    (runs / "evaluate_direct" / "cases.csv").unlink()
    assert row_of(page_of(runs), "evaluate_direct")[4] == "n/a"


def test_an_evaluation_given_as_the_current_folder_keeps_its_name(runs, monkeypatch):
    monkeypatch.chdir(runs / "evaluate_direct")
    report(".", "page.html")
    page = (runs / "evaluate_direct" / "page.html").read_text(encoding="utf-8")
    assert row_of(page, "evaluate_direct")[1] == "45.0 ± 63.6"


def test_names_from_outside_are_escaped(runs):
    (runs / "evaluate_direct").rename(runs / "<script>alert(1)<")
    page = page_of(runs, title="a & <b>")
    assert "<script" not in page and "a &amp; &lt;b&gt;" in page


def test_the_page_is_not_for_the_clinic(runs):
    assert "not a medical device" in page_of(runs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("metric,mean\nfine_dice,1\n", "has no column", id="columns missing"),
        pytest.param(SUMMARY.replace("0.45", "good"), "holds 'good'", id="not a number"),
        pytest.param(SUMMARY[:-20], "longer or shorter", id="cut off"),
        pytest.param("", "has no column", id="empty file"),
    ],
)
def test_a_damaged_summary_is_refused_by_name(runs, content, message):
    (runs / "evaluate_direct" / "summary.csv").write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        page_of(runs)
    assert "evaluate_direct/summary.csv" in str(refused.value)
    assert not (runs.parent / "report.html").exists()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        report(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        report(str(tmp_path / "nowhere"))


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "report.html", b"page")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
