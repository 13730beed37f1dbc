import csv
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from tissnet_components.metrics import ssim
from tissnet_components.results.case_table import CaseTable, empty_predictions, mean_and_sd, summarise
from volumes import MILLIMETRE, cube, noisy_pair, voxels


def test_missing_values_are_left_out_of_the_mean_and_counted():
    summary = summarise([{"hd95_mm": 1.0}, {"hd95_mm": 3.0}, {"hd95_mm": math.nan}, {}])
    assert summary["hd95_mm"] == pytest.approx({"mean": 2, "sd": math.sqrt(2), "n": 2, "missing": 2})


def test_one_value_has_no_sd_and_none_has_no_mean():
    summary = summarise([{"one": 5.0, "none": math.nan}])
    assert mean_and_sd(summary["one"]["mean"], summary["one"]["sd"]) == "5.000"
    assert mean_and_sd(summary["none"]["mean"], summary["none"]["sd"]) == "n/a"


def test_empty_predictions_are_counted_per_segmentation():
    rows = [{"fine_ml": 0.0, "coarse_ml": 2.0}, {"fine_ml": 0.0, "coarse_ml": 1.0}, {"fine_ml": 4.0, "coarse_ml": 3.0}]
    assert empty_predictions(rows) == {"coarse": 0, "fine": 2}


def run_case_table(folder, items, **settings):
    engine = Engine(lambda engine, batch: batch)
    CaseTable(folder, **settings).attach(engine)
    return engine, engine.run([[item] for item in items])


def meta(mask, spacing=MILLIMETRE):
    return MetaTensor(mask[None], affine=torch.diag(torch.tensor([*spacing, 1.0])))


def rows_of(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture
def two_cases():
    return [
        {"case": "b", "label": meta(voxels((5, 5, 4)), (1, 1, 1.5)), "fine": meta(voxels((5, 5, 2)))},
        {"case": "a", "label": meta(cube(2, 5), (1, 1, 1.5)), "fine": meta(cube(0, 0))},
    ]


def test_the_case_table_writes_one_row_per_case_with_the_labels_spacing(tmp_path, two_cases):
    run_case_table(tmp_path, two_cases, protocol="tumor slab")
    first, second = rows_of(tmp_path / "cases.csv")
    assert (first["case"], first["protocol"], first["fine_dice"], first["fine_hd95_mm"]) == ("a", "tumor slab", "0", "")
    assert (second["case"], second["fine_hd95_mm"], second["fine_ml"]) == ("b", "3", "0.0015")


def test_the_summary_counts_what_is_missing_and_the_engine_gets_the_means(tmp_path, two_cases):
    _, state = run_case_table(tmp_path, two_cases)
    summary = {row["metric"]: row for row in rows_of(tmp_path / "summary.csv")}
    assert (summary["fine_hd95_mm"]["mean"], summary["fine_hd95_mm"]["n"], summary["fine_hd95_mm"]["missing"]) == (
        "3",
        "1",
        "1",
    )
    assert state.metrics["fine_dice"] == 0 and state.metrics["fine_assd_mm"] == pytest.approx(3)


def test_the_case_table_says_how_many_predictions_were_empty(tmp_path, two_cases, capsys):
    run_case_table(tmp_path, two_cases)
    assert "empty predictions: fine 1" in capsys.readouterr().out


def test_the_case_table_writes_the_calibration_of_the_cases_with_an_error_map(tmp_path, two_cases):
    two_cases[0] |= {"coarse": meta(voxels((5, 5, 2))), "error": meta(voxels((5, 5, 2), (5, 5, 4)))}
    run_case_table(tmp_path, two_cases)
    rows = rows_of(tmp_path / "calibration.csv")
    assert [row["case"] for row in rows] == ["b"] * 10
    assert (rows[-1]["voxels"], rows[-1]["predicted"], rows[-1]["mistakes"]) == ("2", "2", "2")


def test_without_an_error_map_there_is_no_calibration(tmp_path, two_cases):
    run_case_table(tmp_path, two_cases)
    assert not (tmp_path / "calibration.csv").exists()


def test_a_second_run_forgets_the_cases_of_the_first(tmp_path, two_cases):
    engine, _ = run_case_table(tmp_path, two_cases)
    engine.run([two_cases[:1]])
    assert [row["case"] for row in rows_of(tmp_path / "cases.csv")] == ["b"]


def test_reference_keys_can_be_renamed(tmp_path):
    synthetic, target = noisy_pair()
    label = meta(cube(2, 5, shape=tuple(target.shape)))
    item = {"case": "a", "original_label": label, "original_target": target[None], "synthetic": synthetic[None]}
    run_case_table(tmp_path, [item], label_key="original_label", target_key="original_target")
    assert float(rows_of(tmp_path / "cases.csv")[0]["ssim"]) == pytest.approx(ssim(synthetic, target), abs=1e-5)


def test_the_case_table_names_the_case_that_cannot_be_measured(tmp_path, two_cases):
    two_cases[0]["fine"] = two_cases[0]["fine"] * np.nan
    with pytest.raises(ValueError, match="case b: fine holds NaN"):
        run_case_table(tmp_path, two_cases)
    assert not list(tmp_path.iterdir())


def test_a_label_without_affine_or_output_that_is_not_decollated_is_refused(tmp_path, two_cases):
    with pytest.raises(TypeError, match="has no affine"):
        run_case_table(tmp_path, [two_cases[0] | {"label": cube(2, 5)}])
    engine = Engine(lambda engine, batch: {"fine": batch})
    CaseTable(tmp_path).attach(engine)
    with pytest.raises(TypeError, match="decollate"):
        engine.run([0])


def test_each_region_has_columns_and_holds_the_parts_inside_it(tmp_path):
    whole, core, nothing = cube(2, 8), cube(3, 5), cube(0, 0)
    label = MetaTensor(torch.stack([whole, core, nothing]), affine=torch.eye(4))
    case = {"case": "a", "label": label, "fine": torch.stack([nothing, core, nothing])}
    regions = ["whole tumor", "tumor core", "enhancing tumor"]
    run_case_table(tmp_path, [case], regions=regions)
    (row,) = rows_of(tmp_path / "cases.csv")
    assert float(row["fine_dice"]) == pytest.approx(2 * 8 / (8 + 216), abs=1e-5)  # the core raises the whole
    assert (row["fine_tumor_core_dice"], row["fine_tumor_core_ml"]) == ("1", "0.008")
    assert row["fine_enhancing_tumor_dice"] == "1"  # both are empty
    assert row["label_enhancing_tumor_ml"] == "0"


def test_several_synthetic_contrasts_are_compared_in_the_mean(tmp_path):
    synthetic, target = noisy_pair()
    case = {"case": "a", "label": meta(cube(2, 8, synthetic.shape)), "target": torch.stack([target] * 3)}
    case["synthetic"] = torch.stack([target, synthetic, target])
    run_case_table(tmp_path, [case], synthesised=[1, 2])
    (row,) = rows_of(tmp_path / "cases.csv")
    assert float(row["ssim"]) == pytest.approx((ssim(synthetic, target) + 1) / 2, abs=1e-5)
