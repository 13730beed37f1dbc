"""The benchmarks: that what is compared gives the same results, and the table; the timings are for `make bench`."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from cohort import write_case, write_datalist
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from tissnet_components.inference import CascadeInferer
from tissnet_components.losses import DiscriminatorLoss, TissNetLoss
from tissnet_components.metrics import box_around, ssim
from tissnet_components.training import AdversarialUpdate, Player
from tissnet_components.unet25d import UNet25D
from torch.utils.tensorboard import SummaryWriter

from benchmarks import __main__ as everything
from benchmarks import (
    gpu_check,
    growth,
    inference,
    loading,
    metrics,
    nnunet,
    peers,
    quality,
    scans,
    similarity,
    subsets,
    training,
)
from benchmarks.__main__ import benchmark, table
from benchmarks.evaluation import evaluation
from benchmarks.measure import compare, run_process
from benchmarks.reference import FoldedSlices, PlainUpdate, plain

WEIGHTS = {
    "global_l1": 50,
    "global_adversarial": 1,
    "tumor_adversarial": 1,
    "perceptibility": 25,
    "coarse": 1,
    "fine": 1,
}
TINY = {"patch_size": [64, 64, 16], "widths": [2, 2, 2, 2, 2], "discriminator_channels": 2, "norm": "batch"}


def test_the_reference_gives_the_same_maps_with_the_same_weights(network, perceptor, sample):
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_()
    network.eval(), perceptor.eval()
    reference = plain(network).eval()
    assert any(isinstance(layer, FoldedSlices) for layer in reference.modules())
    torch.testing.assert_close(reference.cascade(sample.source), network.cascade(sample.source), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain(perceptor)(sample.target), perceptor(sample.target), atol=1e-5, rtol=1e-4)


def test_the_reference_trains_to_the_same_loss(network, perceptor, discriminators, sample):
    images = {"image": sample.source, "target": sample.target, "label": sample.label}
    batch = {name: MetaTensor(value) for name, value in images.items()}
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    reference = plain(network), plain(perceptor), copy.deepcopy(discriminators)
    losses = {}
    for kind, players in ((AdversarialUpdate, (network, perceptor, discriminators)), (PlainUpdate, reference)):
        trained, judge, rivals = players
        loss, rivals_loss = TissNetLoss(WEIGHTS, 25, judge.eval(), rivals), DiscriminatorLoss(rivals, WEIGHTS)
        update = kind(
            Player(trained, loss, torch.optim.Adam(trained.parameters())),
            CascadeInferer(SimpleInferer()),
            Player(rivals, rivals_loss, torch.optim.Adam(rivals.parameters())),
        )
        losses[kind] = float(update(training.Engine(torch.device("cpu")), batch)["loss"])
    assert losses[PlainUpdate] == pytest.approx(losses[AdversarialUpdate], rel=1e-4)
    assert all(weight.grad is not None for weight in reference[2].parameters())


def test_every_training_variant_runs_an_iteration():
    losses = {variant: training.build(variant, **TINY)()["loss"] for variant in training.VARIANTS}
    first = losses.pop("reference")
    assert all(loss == pytest.approx(first, rel=0.1) for loss in losses.values())


def test_every_inference_variant_looks_at_the_whole_image(monkeypatch):
    monkeypatch.setattr(inference, "REFERENCE_WINDOWS", {"tissnet_vs": (32, 32, 8)})
    counts = {variant: inference.build(variant, "tissnet_vs", (40, 32, 8))() for variant in inference.VARIANTS}
    assert counts["reference"] == {"windows": 2, "window": (32, 32, 8)}
    assert counts["best precision (package)"] == {"windows": 1, "window": (64, 64, 16)}  # the smallest


def test_the_package_measures_what_monai_measures():
    values = {variant: metrics.build(variant, (48, 48, 32))()["values"] for variant in metrics.VARIANTS}
    ours = {name: values["package"][name] for name in values["MONAI"]}
    assert ours == pytest.approx(values["MONAI"], rel=1e-4)


def test_variants_run_in_processes_and_report_time_memory_and_what_they_return():
    """The action of a variant ((key, value),) is dict(variant)."""
    first, second = (("answer", 6),), (("answer", 7),)
    found = compare(partial(partial, dict), [first, second], repeats=3)
    assert (found[first]["answer"], found[second]["answer"]) == (6, 7)
    assert found[first]["times_faster"] == 1 and len(found[second]["seconds"]) == 3
    assert found[second]["times_faster"] == found[first]["median"] / found[second]["median"]
    assert found[second]["peak_mib"] > 10


def test_an_epoch_is_loaded_with_and_without_preparing_the_scans_anew(monkeypatch):
    monkeypatch.setattr(scans, "HEAD_MM", (96, 96, 48))
    monkeypatch.setattr(scans, "BRAIN_MM", (90, 90, 45))
    assert [loading.build(variant)()["batches"] for variant in loading.VARIANTS] == [1, 1]


def test_growth_is_drawn_for_every_axis(tmp_path):
    growth.draw(
        {"modalities": {1: {"seconds": 1, "peak_mib": 9}, 2: {"seconds": 2, "peak_mib": 9}}}, tmp_path / "g.png"
    )
    assert (tmp_path / "g.png").stat().st_size > 5000


def test_the_table_gives_medians_ratios_memory_and_the_machines_limit():
    row = {"median": 4.0, "seconds": [4.0], "times_faster": 2.5, "peak_mib": 100.4, "windows": 3, "window": [8, 8, 4]}
    found = {
        "limit": {"machine": {"threads": 2}, "results": {"matmul float32": 99.6}},
        "inference": {"machine": {}, "results": {"package": row}},
    }
    text = table(found)
    assert "threads: 2." in text and "matmul float32 100." in text
    assert "| inference | package | 4 s | 2.5 | 100 MiB | windows 3, window 8 x 8 x 4 |" in text


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    measured = []
    points = {"modalities": {1: {"seconds": 1, "peak_mib": 9}}}
    runs = {"limit": lambda: measured.append("limit") or {"matmul": 5.0}, "growth": lambda: points}
    monkeypatch.setattr(everything, "BENCHMARKS", runs)
    for _ in range(2):
        benchmark(str(tmp_path))
    assert measured == ["limit"]
    assert {file.name for file in tmp_path.iterdir()} == {"limit.json", "growth.json", "growth.png", "table.md"}
    benchmark(str(tmp_path), anew=True)
    assert measured == ["limit", "limit"]


ANY_SUBSET = {
    "regions": ["whole tumor", "tumor core"],
    "widths": [2] * 5,
    "patch_size": [32, 32, 16],
    "norm": "instance",
}


@pytest.fixture
def measured(tmp_path) -> Callable[..., pd.DataFrame]:
    """The rows of a tiny network for any subset, of one patient."""
    tiny, configs = tmp_path / "tiny.json", Path("bundles/tissnet_brats/configs")
    tiny.write_text(json.dumps(ANY_SUBSET))
    parser = ConfigParser()
    parser.read_config([str(configs / "train.json"), str(configs / "any_missing.json"), str(tiny)])
    for network, file in (("network_def", "any_missing.pt"), ("perceptor_def", "direct_image_target.pt")):
        torch.save(parser.get_parsed_content(network).state_dict(), tmp_path / file)
    datalist = write_datalist(tmp_path, test=[write_case(tmp_path / "anna")])

    def run(components: int = 0, **options: object) -> pd.DataFrame:
        tiny.write_text(json.dumps(ANY_SUBSET | {"components": components}))
        rows = str(tmp_path / "rows.csv")
        subsets.subsets(str(datalist), str(tmp_path), ["any_missing", str(tiny)], rows, **options)
        return pd.read_csv(rows)

    return run


def test_every_subset_and_part_of_the_tumor_is_measured(measured, monkeypatch):
    found = measured()
    assert len(found) == 15 * 2
    assert set(found["present"]) >= {"t1", "t1ce+flair", "t1+t1ce+t2+flair"}
    assert found["dice"].between(0, 1).all()
    monkeypatch.setattr(subsets, "dice", lambda mask, true: float(mask.mean()))  # the map itself
    maps = ["fine", "perceived", "consensus"]
    found = measured(only=["t1+flair"], maps=maps).query("region == 'tumor core'").set_index("map")["dice"]
    assert found["consensus"] == pytest.approx((found["fine"] + found["perceived"]) / 2, abs=1e-3)  # the innermost
    assert abs(found["fine"] - found["perceived"]) > 1e-2
    monkeypatch.setattr(subsets, "largest_components", lambda maps, components: maps * 0 + components)
    assert set(measured(components=1, only=["t1+flair"])["dice"]) == {1}


def test_blurring_stops_at_the_wanted_similarity():
    real = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(similarity.blurred_to(real, 0.5), real) == pytest.approx(0.5, abs=0.02)
    sharp, flat = (ssim(similarity.blurred_to(real, wanted), real) for wanted in (1, -1))
    assert sharp > 0.99 and flat < 0.05, "beyond reach: the least and the most blur"


def test_features_are_as_far_apart_as_their_directions():
    network = UNet25D(1, [2] * 5)
    levels = {
        1.0: [torch.tensor([3.0, 0]), torch.tensor([1.0, 0])],
        0.0: [torch.tensor([0.0, 1]), torch.tensor([2.0, 0])],
    }
    network.encoder.forward = lambda image: [level.view(1, 2, 1, 1, 1) for level in levels[image.max().item()]]
    one, other = torch.ones(4, 4, 4), torch.zeros(4, 4, 4)
    assert similarity.feature_distance(network, one, one) == 0
    assert similarity.feature_distance(network, one, other) == pytest.approx((2 + 0) / 2)  # right angles, one direction


def test_the_synthetic_image_is_held_against_the_sources_and_a_blurred_one(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(ANY_SUBSET | {"regions": ["whole tumor"]}))
    parser = evaluation("bundles/tissnet_brats", "", str(tmp_path), [str(tmp_path / "tiny.json")], "test")
    for network, file in (("network_def", "model.pt"), ("perceptor_def", "perceptor.pt")):
        torch.save(parser.get_parsed_content(network).state_dict(), tmp_path / file)
    without_flair = {key: value for key, value in write_case(tmp_path / "bert").items() if key != "target"}
    datalist = str(write_datalist(tmp_path, test=[write_case(tmp_path / "anna"), without_flair]))
    rows, configs = str(tmp_path / "rows.csv"), [str(tmp_path / "tiny.json")]
    similarity.similarity(datalist, str(tmp_path), rows, configs)
    found = pd.read_csv(rows)
    assert set(found["case"]) == {"anna"}
    assert found["image"].tolist() == ["synthetic", "t1", "t1ce", "t2", "blurred"]
    assert found["distance"].between(1e-3, 2).all()
    case = evaluation("bundles/tissnet_brats", datalist, "", configs, "test").get_parsed_content("validate::dataset")[0]
    sources, real = case["image"].as_tensor(), case["target"].as_tensor()[0]
    box = box_around(real > -1)
    expected = [ssim(source[box], real[box]) for source in sources]
    assert found["ssim"].tolist()[1:4] == pytest.approx(expected, abs=1e-4)


def test_the_doubts_compare_a_map_with_the_second_answers(measured, monkeypatch):
    monkeypatch.setattr(subsets, "dice", lambda mask, other: float((mask - other).abs().mean()))  # 0: the same map
    found = measured(only=["t1"], maps=["refined", "perceived"], doubts=True)
    found = found.query("region == 'whole tumor'").set_index("map")
    assert found.loc["refined", "agreement"] == found.loc["perceived", "perceived_agreement"] == 0
    assert found.loc["perceived", "agreement"] == found.loc["refined", "perceived_agreement"] > 1e-2
    assert found["predicted_dice"].between(0, 1).all() and found["predicted_dice"].nunique() == 1


def test_the_check_of_a_gpu_runs_in_short_and_names_what_fails(capsys, monkeypatch):
    rows = gpu_check.rows
    monkeypatch.setattr(gpu_check, "rows", lambda *given: rows(*given) | {"no such": lambda: 1 / 0})
    gpu_check.gpu_check("cpu")
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("CPU; PyTorch") and table[0].endswith("short form.")
    assert [row.split(" | ")[0] for row in table[-3:]] == ["| training step", "| inference of a brain", "| no such"]
    assert all("%" in row for row in table[-3:-1]) and "failed ZeroDivisionError: division by zero" in table[-1]


def test_the_check_of_a_gpu_has_every_precision_and_layout():
    names = " ".join(gpu_check.rows("cuda", short=False))
    assert all(word in names for word in ("float16", "bfloat16", "float32", "contiguous", "compile", "segment, 200"))


def test_peers_are_measured_in_turn_and_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch, capsys):
    for name in (*peers.MODALITIES, "seg"):
        (tmp_path / f"anna_{name}.nii.gz").touch()
    monkeypatch.setattr(peers, "_prepare", lambda name, scans, folder: [name])
    asked = []

    def measure(command, log):
        asked.append(command[0])
        return {"seconds": 2.0 * len(asked), "cpu": 1.0, "peak_mib": 2048.0}

    monkeypatch.setattr(peers, "_measure", measure)
    for rounds in (1, 2):
        peers.peers(str(tmp_path), str(tmp_path / "out"), rounds, entries="TISS-Net's,nnU-Net")
    entries = [name for name in peers.ENTRIES if "TISS-Net's" in name or "nnU-Net" in name]
    assert asked == entries * 2
    row = f"| {entries[0]} | {2 + len(entries):.3g} |  | 2.0 GiB | 2 |"
    assert row in (tmp_path / "out" / "peers.md").read_text().splitlines()


def test_a_table_of_peers_says_how_often_slower_they_are_than_ours():
    runs = {"TISS-Net": [{"seconds": 5, "peak_mib": 1024}], "nnU-Net, four contrasts": [{"seconds": 50, "peak_mib": 1}]}
    assert "| nnU-Net, four contrasts | 50 | 10.0 | 0.0 GiB | 1 |" in peers.table(runs).splitlines()


def test_time_to_quality_counts_the_work_and_no_breaks(tmp_path, capsys):
    minutes, dice = [0, 1, 2, 62, 63], {2: 0.5, 63: 0.7}
    with SummaryWriter(str(tmp_path / "one" / "model_tensorboard")) as writer:
        for step, minute in enumerate(minutes):
            writer.add_scalar("loss", 1, step, walltime=60 * minute + 1)
            if minute in dice:
                writer.add_scalar("val_dice", dice[minute], step, walltime=60 * minute + 1)
    quality.quality(str(tmp_path), cores=2, out=str(tmp_path / "quality.png"))
    assert "one/model_tensorboard: 0.700 after 6.0 core-minutes" in capsys.readouterr().out
    found, values = quality.curve(tmp_path / "one" / "model_tensorboard", "val_dice")
    assert found.tolist() == pytest.approx([2, 3]) and values.tolist() == pytest.approx([0.5, 0.7])
    assert (tmp_path / "quality.png").stat().st_size > 1000


def test_a_small_process_peaks_at_little_whatever_its_parent_holds():
    held = torch.ones(2**27)  # 512 MiB
    used = run_process([sys.executable, "-S", "-c", "pass"])
    assert len(held) and 0 < used["peak_mib"] < 100 and used["cpu"] < used["seconds"]


def test_a_process_that_fails_is_not_measured():
    with pytest.raises(subprocess.CalledProcessError):
        run_process([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_nnunet_is_laid_out_and_measured_on_the_patients_of_a_datalist(tmp_path):
    anna, ben, carla = (write_case(tmp_path / name) for name in ("anna", "ben", "carla"))
    datalist = write_datalist(tmp_path, training=[anna], validation=[ben], test=[carla])
    turned = json.loads(datalist.read_text())
    turned["sources"].reverse()  # the datalist says which file shows what
    for name in ("training", "validation", "test"):
        turned[name][0]["image"].reverse()
    datalist.write_text(json.dumps(turned))
    raw = tmp_path / "raw"
    for _ in range(2):  # also after an interruption
        tested = nnunet.lay_out(datalist, raw, ["t2", "flair"])
    assert tested == {"carla": carla["label"]}
    assert (raw / "imagesTr" / "ben_0001.nii.gz").resolve() == Path(ben["target"]).resolve()
    assert (raw / "imagesTs" / "carla_0000.nii.gz").resolve() == Path(carla["image"][2]).resolve()
    assert set(np.unique(nib.load(raw / "labelsTr" / "anna.nii.gz").dataobj)) == {0, 1}
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 2
    (tmp_path / "masks" / "t2+flair").mkdir(parents=True)
    shutil.copy(carla["label"], tmp_path / "masks" / "t2+flair" / "carla.nii.gz")
    nnunet.measure(tested, tmp_path, ["t2+flair"])
    (row,) = pd.read_csv(tmp_path / "cases.csv").to_dict("records")
    assert row["case"] == "carla" and row["fine_dice"] == 1 and row["fine_hd95_mm"] == 0


def test_nnunet_names_regions_each_inside_the_one_before(tmp_path):
    regions = ["whole tumor", "tumor core", "enhancing tumor"]
    labels = np.array([0, 2, 1, 4], np.uint8)  # as BraTS: edema, necrosis, enhancing tumor
    nib.save(nib.Nifti1Image(labels.reshape(4, 1, 1), np.eye(4)), tmp_path / "label.nii")
    nnunet.write_tumor(str(tmp_path / "label.nii"), tmp_path / "levels.nii", regions)
    assert nib.load(tmp_path / "levels.nii").get_fdata().ravel().tolist() == [0, 1, 2, 3]
    content = nnunet.describe(tmp_path, ["t1"], 1, regions)
    assert content["labels"] == {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    }
    for name, levels in {"t1": [0, 1, 2, 3], "t1+t2": [0, 1, 2, 2]}.items():
        (tmp_path / "masks" / name).mkdir(parents=True)
        mask = np.array(levels, np.uint8).reshape(4, 1, 1)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "masks" / name / "anna.nii.gz")
    nnunet.measure({"anna": str(tmp_path / "label.nii")}, tmp_path, ["t1", "t1+t2"], regions)
    dices = pd.read_csv(tmp_path / "subsets.csv").set_index(["present", "region"])["dice"]
    assert dices["t1"].tolist() == [1, 1, 1] and dices["t1+t2"].tolist() == [1, 1, 0]
    mask = np.array([3, 0, 2, 2], np.uint8).reshape(4, 1, 1)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "masks" / "t1" / "anna.nii.gz")
    nnunet.measure({"anna": str(tmp_path / "label.nii")}, tmp_path, ["t1"], regions, components=1)
    assert pd.read_csv(tmp_path / "subsets.csv")["dice"].tolist() == pytest.approx([0.8, 1, 0])


def test_the_minutes_of_a_stage_that_ended_stay_when_nnunet_goes_on(tmp_path):
    nnunet.keep(tmp_path / "minutes.json", prepare=1.6)
    nnunet.keep(tmp_path / "minutes.json", train=11.0, steps=500)
    nnunet.keep(tmp_path / "minutes.json", train=12.0)
    assert json.loads((tmp_path / "minutes.json").read_text()) == {"prepare": 1.6, "train": 12.0, "steps": 500}


def test_nnunet_sees_a_random_subset_in_a_share_of_the_samples():
    image = torch.ones(400, 2, 1, 1, 1)
    assert torch.equal(nnunet.hide(image, 0), image)
    torch.manual_seed(0)
    shown = nnunet.hide(image, 0.5)[:, :, 0, 0, 0]
    assert shown.any(1).all(), "never nothing"
    assert 0.25 < 1 - shown.all(1).float().mean() < 0.42, "two of three subsets hide something, in half of the samples"


def test_weights_in_bfloat16_follow_the_optimizer():
    layer = torch.nn.Linear(1, 1, bias=False)
    step = nnunet.in_bfloat16(layer)
    image, before = torch.ones(1, 1), float(layer.weight)
    for _ in range(2):
        layer.weight.grad = None
        step(image).sum().backward()
        with torch.no_grad():
            layer.weight -= layer.weight.grad
    assert step(image).dtype == torch.bfloat16
    assert step(image).item() == pytest.approx(before - 2, rel=0.01)
