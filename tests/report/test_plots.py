import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from tissnet_components.report import plots
from tissnet_components.report.runs import Run
from tissnet_components.results.overview import CONTOURS, save_slices


def run_of(name, dice, quality=None, **more):
    rows = [{"fine_dice": d, "fine_ml": 10 * d, "label_ml": 9.0} for d in dice]
    for row, value in zip(rows, quality or [], strict=bool(quality)):
        row["predicted_dice"] = value
    calibration = np.array([[0, 0.5, 80, 20, 40], [0.5, 1, 20, 15, 10]], dtype=float)
    return Run(name, "whole volume", {f"case_{i}": row for i, row in enumerate(rows)}, calibration=calibration, **more)


def panel(figure, start):
    return next(axes for axes in figure.axes if axes.get_title().startswith(start))


def kept(folder, name, **maps):
    volume = np.full((24, 20, 4), -1.0)
    volume[4:-4, 4:-4] = np.linspace(0, 1, 12)[:, None]
    label = np.zeros((24, 20, 4))
    label[8:14, 8:12, 2] = 1
    path = save_slices({"source": volume, "target": volume, "label": label} | maps, folder / f"{name}.npz")
    return dict(np.load(path))


def test_learning_is_drawn_for_every_fold_as_a_dice():
    folds = [{"fine": np.array([[1, 0.5], [2, 0.25]]), "val_dice": np.array([[2, dice]])} for dice in (0.6, 0.7)]
    run = run_of("TISS-Net", [0.5], learning=folds)
    lines = panel(plots.learning([run]), "TISS-Net").get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[0.5, 0.75], [0.6], [0.5, 0.75], [0.7]]
    assert plots.learns(run) and not plots.learns(run_of("no log", [0.5]))
    assert not plots.learns(run_of("other losses", [0.5], learning=[*folds, {"loss": folds[0]["fine"]}]))


def test_the_worst_by_quality_go_first():
    """Quality ranks the cases 0.2, 0.9, 0.7: means of all, of the last two, of the last."""
    left = plots.left_after(np.array([0.9, 0.2, 0.7]), np.array([0.5, 0.1, 0.8]))
    assert left == pytest.approx([0.6, 0.8, 0.7])


def test_a_case_of_unknown_quality_goes_to_the_human_first():
    assert plots.left_after(np.array([0.2, 0.8]), np.array([math.nan, 0.1])) == pytest.approx([0.5, 0.8])


def test_the_volume_plot_shows_the_bias_and_the_limits():
    """Predicted 8 and 12 ml of 9 ml: bias 1 ml, SD 2 sqrt(2), limits 1.96 times that."""
    axes = panel(plots.volume_agreement([run_of("a", [0.8, 1.2])]), "a\nbias +1.0 ml, limits ± 5.5 ml")
    assert axes.collections[0].get_offsets().tolist() == [[8.5, -1], [10.5, 3]]
    lines = sorted(line.get_ydata()[0] for line in axes.lines)
    assert lines == pytest.approx([1 - 1.96 * 8**0.5, 0, 1, 1 + 1.96 * 8**0.5])


def test_each_case_is_drawn_as_a_gain_or_a_loss():
    reference = run_of("direct", [0.5, 0.5, 0.5])
    figure = plots.gains([reference, run_of("TISS-Net", [0.6, 0.3, 0.5])], reference)
    axes = panel(figure, "TISS-Net\n1 gain, 1 lose")
    dots = axes.collections[-1]
    assert dots.get_offsets()[:, 0].tolist() == pytest.approx([-20, 0, 10])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["case_1", "case_2", "case_0"]
    assert [to_hex(colour) for colour in dots.get_facecolors()] == [plots.LOSS, plots.TRUTH, plots.GAIN]
    assert len(figure.axes) == 1  # the reference has no panel of its own


def test_the_calibration_curve_is_the_share_of_mistakes_over_the_mean_prediction():
    """20 predicted and 40 real mistakes among 80 voxels: (0.25, 0.5); then 15 and 10 among 20: (0.75, 0.5)."""
    curve, counts = plots.calibration_curves([run_of("TISS-Net", [0.5])]).axes
    assert curve.lines[1].get_xydata().tolist() == [[0.25, 0.5], [0.75, 0.5]]
    assert counts.lines[0].get_xydata().tolist() == [[0.25, 80], [0.75, 20]]


def test_referral_shows_the_qualities_beside_the_best_possible():
    figure = plots.referral([run_of("TISS-Net", [0.9, 0.2, 0.7], [0.5, 0.1, 0.8])])
    best, _, quality = panel(figure, "TISS-Net\nrank correlation 0.50").lines
    assert best.get_ydata().tolist() == pytest.approx([0.6, 0.8, 0.9])
    assert quality.get_ydata().tolist() == pytest.approx([0.6, 0.8, 0.7])


def test_a_sweep_is_drawn_in_the_order_of_its_values():
    runs = {name: run_of(name, dice) for name, dice in {"p5": [0.5, 0.7], "p25": [0.8, 0.8], "p0": [0.4, 0.4]}.items()}
    [axes] = plots.sweeps([{"x": "lambda_p", "rows": {"p25": 25, "p0": 0, "p5": 5, "absent": 50}}], runs).axes[:1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "5", "25"]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([40, 60, 80])


def test_pictures_show_truth_and_prediction_in_the_colours_of_the_overview(tmp_path):
    fine = np.zeros((24, 20, 4))
    fine[9:15, 8:12, 2] = 0.9
    slices = {"anna": {"direct": kept(tmp_path, "a", fine=fine), "absent": None}}
    target, direct, absent = plots.pictures(slices).axes
    assert [to_hex(contour.get_edgecolor()[0]) for contour in direct.collections] == [*CONTOURS.values()]
    assert [to_hex(contour.get_edgecolor()[0]) for contour in target.collections] == [CONTOURS["label"]]
    assert absent.texts[0].get_text() == "no picture"


def test_a_synthetic_image_is_shown_in_the_greys_of_the_real_target(tmp_path):
    archive = kept(tmp_path, "a", synthetic=np.full((24, 20, 4), 0.25))
    _, shown = plots.pictures({"anna": {"TISS-Net": archive}}, contours=False).axes
    assert shown.images[0].get_clim() == (-1, 1)
    assert shown.images[0].get_array().max() == 0.25
    assert not shown.collections


def test_a_zoom_cuts_to_the_tumor(tmp_path):
    archive = kept(tmp_path, "a", fine=np.zeros((24, 20, 4)))
    whole, zoomed = (
        plots.pictures({"anna": {"a": archive}}, zoom=zoom).axes[0].images[0].get_array().shape
        for zoom in (False, True)
    )
    assert whole == (20, 24)
    assert zoomed == (4 + 2 * 5, 6 + 2 * 5)  # rows, columns: the tumor's 4 x 6 voxels and 1 + 4 more on each side


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_small_multiples_are_as_wide_as_a_page_and_none_is_empty(count):
    figure = plots.volume_agreement([run_of(f"method {index}", [0.5, 0.7]) for index in range(count)])
    assert figure.get_size_inches()[0] == plots.WIDTH
    assert len(figure.axes) == count
    assert all(axes.has_data() for axes in figure.axes)


@pytest.mark.parametrize("draw", [plots.referral, plots.volume_agreement, plots.calibration_curves])
def test_no_texts_overlap_though_names_are_long(draw):
    figure = draw([run_of(f"a method with a rather long name {index}", [0.5, 0.7], [0.5, 0.6]) for index in range(8)])
    figure.canvas.draw()
    labels = [axes.get_xaxis().label for axes in figure.axes] + [figure._supxlabel, figure._supylabel]
    texts = [axes.title for axes in figure.axes] + [text for text in labels if text and text.get_text()]
    boxes = [item.get_window_extent() for item in (*texts, *figure.legends)]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
