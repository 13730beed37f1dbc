import csv
import io
import math

import pytest
from tissnet_components.report.formats import to_csv, to_latex, to_markdown
from tissnet_components.report.runs import Run
from tissnet_components.report.tables import Cell, Layout, Table, comparison_table, comparisons, result_table


def run_with(name, dice, hd95=None, protocol="whole volume", first=0, **more):
    hd95 = hd95 or [1.0] * len(dice)
    rows = [{"fine_dice": d, "fine_hd95_mm": h, "fine_ml": 5 * (d > 0)} for d, h in zip(dice, hd95, strict=True)]
    for metric, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[metric] = value
    return Run(name, protocol, {f"case_{first + index}": row for index, row in enumerate(rows)})


def runs_of(*runs):
    return {run.name: run for run in runs}


def layout_of(*names, **settings):
    return Layout("Table 4", ["Method"], {name: [name] for name in names}, ["dice", "hd95_mm"], **settings)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def bold(table):
    return [cell.text for row in table.rows for cell in row if cell.bold]


GOOD = run_with("good", [0.8, 0.9, 0.91, 0.99], [2.0, 1, 2, 3])
POOR = run_with("poor", [0.7, 0.75, 0.8, 0.85], [4.0, 5, 6, 9])


def test_a_row_is_the_mean_and_the_sample_sd_in_the_metrics_unit():
    table = result_table(layout_of("good"), runs_of(run_with("good", [0.5, 0.7], [1.0, 3.0])))
    assert texts(table) == [["good", "60.00 ± 14.14", "2.00 ± 1.41"]]
    assert table.head == ["Method", "Dice (%) ↑", "HD95 (mm) ↓"]


def test_the_best_is_bold_the_highest_dice_and_the_lowest_distance():
    table = result_table(layout_of("good", "poor"), runs_of(GOOD, POOR))
    assert bold(table) == ["90.00 ± 7.79", "2.00 ± 0.82"]


def test_an_unranked_upper_bound_is_never_bold_and_said_to_be_aside():
    bound = run_with("bound", [1.0, 1.0, 1.0, 1.0], [0.0] * 4)
    layout = layout_of("good", "poor", "bound", unranked=["bound"], reference="good")
    table = result_table(layout, runs_of(GOOD, POOR, bound))
    assert bold(table) == ["90.00 ± 7.79", "2.00 ± 0.82"]
    assert any(note.startswith("Bold: best of its column, bound aside; ") for note in table.notes)


def test_a_mean_over_fewer_cases_cannot_win():
    """Without its worst case the mean distance of `gap` would be the best."""
    gap = run_with("gap", [0, 0.5, 0.5, 0.5], [math.nan, 0, 0, 0])
    table = result_table(layout_of("good", "gap"), runs_of(GOOD, gap))
    assert texts(table)[1][2] == "0.00 ± 0.00 (1 missing)"
    assert bold(table) == ["90.00 ± 7.79"]
    assert "Empty predictions: gap 1." in table.notes


def test_a_row_that_was_not_evaluated_stays_in_the_table():
    table = result_table(layout_of("good", "absent"), runs_of(GOOD))
    assert texts(table)[1] == ["absent", "not evaluated", "not evaluated"]


def test_a_metric_that_a_method_does_not_have_is_not_applicable():
    layout = Layout("t", ["Method"], {"good": ["good"]}, ["ssim"])
    assert texts(result_table(layout, runs_of(GOOD))) == [["good", "n/a"]]


def test_a_row_may_show_another_stage_of_the_same_run():
    run = run_with("TISS-Net", [0.8, 0.8], refined_dice=[0.6, 0.7], refined_hd95_mm=[1, 1])
    rows = {"TISS-Net:fine": ["y_f"], "TISS-Net:refined": ["y_r"]}
    table = result_table(Layout("Table 3", ["Result used"], rows, ["dice"]), runs_of(run))
    assert texts(table) == [["y_f", "80.00 ± 0.00"], ["y_r", "65.00 ± 7.07"]]


def test_a_table_says_whose_segmentation_it_measures_where_it_is_not_fine():
    rows = {"TISS-Net": ["a"], "no fine:refined": ["b"]}
    notes = " ".join(result_table(Layout("Table 2", ["Input"], rows, ["dice"]), {}).notes)
    assert "Segmentation of no fine: refined, coarse with its predicted mistakes flipped." in notes
    rows = {"TISS-Net:perceptibility": ["a"], "TISS-Net (T2):perceptibility": ["b"]}
    notes = " ".join(result_table(Layout("Table 1", ["Input"], rows, ["dice", "ssim"]), {}).notes)
    assert "Segmentation of every row: perceptibility, the perceptor's of the synthetic image." in notes
    for shown, metric in ((rows, "ssim"), ({"TISS-Net": ["a"]}, "dice")):
        assert "Segmentation of" not in " ".join(result_table(Layout("t", ["Input"], shown, [metric]), {}).notes)


def test_significant_differences_from_the_reference_are_marked():
    steady = run_with("steady", [0.60, 0.66, 0.69, 0.76], [4, 5, 6, 9.0])
    table = result_table(layout_of("poor", "steady", reference="poor"), runs_of(POOR, steady))
    assert texts(table) == [["poor", "77.50 ± 6.45", "6.00 ± 2.16"], ["steady", "67.75 ± 6.65†", "6.00 ± 2.16"]]
    assert any("differs from poor" in note for note in table.notes)


def test_the_comparison_says_how_large_the_difference_is_and_who_gains():
    layout = layout_of("poor", "good", reference="poor")
    table = comparison_table(layout, comparisons(layout, runs_of(GOOD, POOR)))
    dice, distance = texts(table)
    assert dice[:3] == ["good", "Dice (%)", "4"] and dice[3].startswith("+12.50 [+10.") and dice[4] == "4 / 0"
    assert distance[3].startswith("-4.00 [-5.") and distance[4] == "4 / 0"  # a smaller distance is better
    assert table.title == "Table 4: compared with poor"


def test_p_values_are_corrected_over_the_methods_of_a_metric():
    layout = layout_of("poor", "good", "also good", reference="poor")
    twin = run_with("also good", [0.8, 0.9, 0.91, 0.99], [2.0, 1, 2, 3])
    alone = comparisons(layout_of("poor", "good", reference="poor"), runs_of(GOOD, POOR))["good", "dice"]
    both = comparisons(layout, runs_of(GOOD, POOR, twin))["good", "dice"]
    assert both.t_test == pytest.approx(2 * alone.t_test)
    assert both.wilcoxon == pytest.approx(2 * alone.wilcoxon)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(run_with("good", [0.9, 0.9, 0.9, 0.9], protocol="tumor slab"), id="another protocol"),
        pytest.param(run_with("good", [0.9, 0.9, 0.9, 0.9], first=1), id="another test set"),
        pytest.param(run_with("good", [0.9, 0.9, 0.9]), id="a case fewer"),
    ],
)
def test_runs_of_other_test_sets_are_shown_but_neither_compared_nor_ranked(other):
    layout = layout_of("poor", "good", reference="poor")
    runs = runs_of(POOR, other)
    assert comparisons(layout, runs) == {}
    assert comparison_table(layout, {}) is None
    assert bold(result_table(layout, runs)) == []
    assert texts(result_table(layout, runs))[1][1].startswith("90.00")


def test_equal_means_have_no_best():
    assert bold(result_table(layout_of("a", "b"), runs_of(run_with("a", [0.5, 0.5]), run_with("b", [0.5, 0.5])))) == []


def test_the_definitions_stand_under_the_table():
    notes = " ".join(result_table(Layout("t", [], {"good": []}, ["dice", "hd95_mm", "ssim"]), runs_of(GOOD)).notes)
    for said in ("over 4 cases", "whole volume", "empty prediction", "95th percentiles", "data range 2", "11 voxels"):
        assert said in notes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"metrics": ["dise"]}, "unknown metric 'dise'", id="metric"),
        pytest.param({"rows": {"a:finest": ["a"]}}, "the stages are", id="stage"),
        pytest.param({"rows": {"a": []}}, "needs 1 texts", id="description"),
        pytest.param({"reference": "b"}, "has no row 'b'", id="reference"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Layout(**({"title": "t", "head": ["Method"], "rows": {"a": ["a"]}} | settings))


@pytest.fixture
def small():
    rows = [
        [Cell("A_1 | x"), Cell("90.0 ± 1.0†", True, {"mean": 90.04, "sd": 1.0, "n": 4})],
        [Cell("100 %"), Cell("not evaluated")],
    ]
    return Table("Table 1", ["Method", "Dice (%) ↑"], rows, ["Empty: Dice < 1."])


def test_markdown_has_the_best_in_bold_and_keeps_bars_in_cells(small):
    lines = to_markdown(small).splitlines()
    assert lines[0] == "**Table 1**"
    assert lines[2:6] == [
        "| Method | Dice (%) ↑ |",
        "|---|---:|",
        "| A_1 \\| x | **90.0 ± 1.0†** |",
        "| 100 % | not evaluated |",
    ]


def test_latex_escapes_what_latex_reserves(small):
    text = to_latex(small)
    assert r"A\_1 | x & \textbf{90.0 $\pm$ 1.0$^\dagger$} \\" in text
    assert r"100 \% & not evaluated \\" in text
    assert r"\begin{tabular}{lr}" in text and "Dice $<$ 1." in text


def test_csv_has_the_unrounded_numbers_in_columns_of_their_own(small):
    head, first, second = csv.reader(io.StringIO(to_csv(small)))
    assert head == ["Method", "Dice (%) mean", "Dice (%) sd", "Dice (%) n"]
    assert first == ["A_1 | x", "90.04", "1", "4"]
    assert second == ["100 %", "", "", ""]


def test_a_last_row_is_the_mean_over_subsets_of_the_contrasts():
    """The literature's layout: dots for what is present, a column per region, the mean over all subsets."""
    rows = {"one": ["●", "○"], "two": ["●", "●"]}
    metrics = ["dice", "tumor_core_dice"]
    layout = Layout("Any subset", ["T1", "FLAIR"], rows, metrics, mean="mean")
    one = run_with("one", [0.5, 0.7], fine_tumor_core_dice=[0.2, 0.2])
    two = run_with("two", [0.8, 0.8], fine_tumor_core_dice=[0.3, 0.5])
    table = result_table(layout, runs_of(one, two))
    assert table.head == ["T1", "FLAIR", "Dice (%) ↑", "tumor core, Dice (%) ↑"]
    assert texts(table)[-1] == ["mean", "", "70.00", "30.00"]
    assert texts(result_table(layout, runs_of(one)))[-1] == ["mean", "", "n/a", "n/a"]
