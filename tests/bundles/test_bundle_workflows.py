"""The bundle really trained, resumed, evaluated and run, by the commands that a user types; networks of two channels.

They run in forked processes; in one of its own, the training that Ctrl-C ends, and those of test_in_zoo.py.
"""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import oblique_affine, save, write_case, write_cohort, write_datalist
from forks import Forks

pytestmark = pytest.mark.slow

BUNDLE = Path(__file__).parents[2] / "bundles" / "tissnet_brats"
TRAIN = "configs/train.json"
DIRECT = "['configs/train.json','configs/direct_segmentation.json']"
EVALUATE = "['configs/train.json','configs/evaluate.json']"
EVALUATE_CROP = "['configs/train.json','configs/evaluate.json','configs/tumor_crop.json']"
INFERENCE = "configs/inference.json"
OUTPUTS = ("disagreement.nii.gz", "error.nii.gz", "overview.png", "seg.nii.gz", "summary.json", "synthetic.nii.gz")


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Iterator[Forks]:
    """`command("monai.bundle", "run", ...)` is `python -m monai.bundle run ...` in the bundle's folder."""
    forks = Forks(BUNDLE, tmp_path_factory.mktemp("logs"))
    yield forks
    forks.close()


def run(entry_point: str, config_file: str, data: Path, models: Path, output: Path, **settings: object) -> list[str]:
    """Arguments of `monai.bundle run` for a tiny network; settings may replace any of them."""
    tiny = {"patch_size": [32, 32, 16], "widths": [2, 2, 2, 2, 2], "discriminator_channels": 2, "val_interval": 1}
    folders = {"dataset_dir": data, "ckpt_dir": models, "output_dir": output}
    options = {"config_file": config_file, **folders, **tiny, **settings}
    return [
        "monai.bundle",
        "run",
        entry_point,
        *(word for key, value in options.items() for word in (f"--{key}", str(value))),
    ]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def epochs_done(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["epoch"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def work(command, tmp_path_factory, data) -> Path:
    """What the bundle's four commands leave: models, training, evaluation, inference and their logs."""
    folder = tmp_path_factory.mktemp("work")
    steps = {
        "perceptor": run("training", DIRECT, data, folder / "models", folder / "training", epochs=2),
        "training": run("training", TRAIN, data, folder / "models", folder / "training", epochs=2),
        "evaluating": run("evaluating", EVALUATE, data, folder / "models", folder / "evaluation"),
        "inferring": run("inferring", INFERENCE, data, folder / "models", folder / "inference"),
    }
    for name, arguments in steps.items():
        ended = command(*arguments)
        assert ended.succeeded
        (folder / f"{name}.txt").write_text(ended.printed)
    return folder


def test_training_leaves_the_best_and_the_last_of_each_network(work):
    kept = {f"{name}{end}" for name in ("model", "perceptor") for end in (".pt", ".json", "_last.pt")}
    assert files_below(work / "models") == kept
    assert epochs_done(work / "models" / "model_last.pt") == 2


def test_training_shows_every_loss_term_and_the_validation_dice(work):
    printed = (work / "training.txt").read_text()
    terms = json.loads((BUNDLE / TRAIN).read_text())["loss_weights"]
    shown = [f"{term}=" for term in (*terms, "global_discriminator", "tumor_discriminator", "loss")]
    assert [term for term in shown if term not in printed] == []
    assert "val_dice: " in printed


def test_training_draws_pictures_and_logs_scalars_of_each_network_apart(work):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("perceptor", "model"):
        assert (work / "training" / f"{name}_pictures" / "epoch_0001.png").is_file()
        events = EventAccumulator(str(work / "training" / f"{name}_tensorboard"))
        events.Reload()
        tags = " ".join(events.Tags()["scalars"])
        assert "val_dice" in tags
        assert ("perceptibility" in tags) == (name == "model")
        assert events.Tags()["images"] == ["validation"]


def test_evaluation_measures_every_test_case(work):
    cases = rows(work / "evaluation" / "cases.csv")
    assert [row["case"] for row in cases] == ["case_4", "case_5"]
    assert {row["protocol"] for row in cases} == {"whole volume"}
    segmentations = ("coarse", "fine", "refined", "average", "perceptibility", "consensus")
    measured = {f"{name}_{metric}" for name in segmentations for metric in ("dice", "assd_mm", "hd95_mm")}
    measured |= {f"{region}{metric}" for region in ("", "brain_", "local_") for metric in ("ssim", "psnr")}
    assert measured <= set(cases[0])
    assert (work / "evaluation" / "case_4" / "case_4_overview.png").is_file()


def test_the_summary_is_the_mean_over_the_cases(work):
    summary = {row["metric"]: row for row in rows(work / "evaluation" / "summary.csv")}
    cases = rows(work / "evaluation" / "cases.csv")
    for metric in ("psnr", "perceptibility_dice"):
        values = [float(row[metric]) for row in cases]
        assert float(summary[metric]["mean"]) == pytest.approx(np.mean(values), rel=1e-4)
        assert float(summary[metric]["sd"]) == pytest.approx(np.std(values, ddof=1), rel=1e-2, abs=1e-6)
        assert (summary[metric]["n"], summary[metric]["missing"]) == ("2", "0")


def test_inference_writes_every_map_of_every_test_case(work):
    assert files_below(work / "inference") == {f"{n}/{n}_{name}" for n in ("case_4", "case_5") for name in OUTPUTS}


def test_evaluation_around_the_tumor_says_so(command, work, data, tmp_path):
    assert command(*run("evaluating", EVALUATE_CROP, data, work / "models", tmp_path)).succeeded
    assert {row["protocol"] for row in rows(tmp_path / "cases.csv")} == {"z-crop around the tumor"}


def test_mixed_precision_trains_and_infers(command, work, data, tmp_path):
    shutil.copy(work / "models" / "perceptor.pt", tmp_path)
    # PyTorch 2.13's bfloat16 gradients on CPU read unset memory where a 3x3x3 convolution sees a volume of X = 2,
    # as the deepest one does in patches of 32
    options = {"epochs": 1, "precision": "bfloat16", "patch_size": [64, 64, 16]}
    for entry_point, config_file in (("training", TRAIN), ("inferring", INFERENCE)):
        assert command(*run(entry_point, config_file, data, tmp_path, tmp_path / "out", **options)).succeeded
    assert (tmp_path / "out" / "case_4" / "case_4_seg.nii.gz").is_file()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert weights["generator.decoders.coarse.head.bias"].dtype == torch.float32


def test_a_second_start_resumes_and_a_finished_training_does_not_start_over(command, work, data, tmp_path):
    for file in (work / "models").iterdir():
        shutil.copy(file, tmp_path)
    resumed = command(*run("training", TRAIN, data, tmp_path, tmp_path / "out", epochs=3))
    assert "resuming after epoch 2" in resumed.printed
    assert "Epoch[3] Complete" in resumed.printed
    assert "Epoch[2] Complete" not in resumed.printed
    assert epochs_done(tmp_path / "model_last.pt") == 3
    before = (tmp_path / "model_last.pt").read_bytes()
    again = command(*run("training", TRAIN, data, tmp_path, tmp_path / "out", epochs=3))
    assert again.status == 0
    assert "has finished 3 epochs or more" in again.printed
    assert (tmp_path / "model_last.pt").read_bytes() == before


def hear_ctrl_c() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_training_promptly_and_the_second_start_resumes(command, data, tmp_path):
    arguments = run("training", DIRECT, data, tmp_path / "models", tmp_path / "out", epochs=10_000)
    last = tmp_path / "models" / "perceptor_last.pt"
    with (tmp_path / "log.txt").open("w") as log:
        training = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=BUNDLE, stdout=log, stderr=log, preexec_fn=hear_ctrl_c
        )
    while not last.is_file() and training.poll() is None:
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    try:
        assert training.wait(timeout=15) != 0
    finally:
        training.kill()
    printed = (tmp_path / "log.txt").read_text()
    assert "stopped; the same command" in printed
    assert "Traceback" not in printed
    done = epochs_done(last)
    resumed = command(*run("training", DIRECT, data, tmp_path / "models", tmp_path / "out", epochs=done + 1))
    assert f"resuming after epoch {done} " in resumed.printed
    assert epochs_done(last) == done + 1


THIRD_LOSS_IS_NAN = """
import itertools
from tissnet_components import losses

calls, dice_loss = itertools.count(), losses.dice_loss
losses.dice_loss = lambda *maps: dice_loss(*maps) * (float("nan") if next(calls) == 2 else 1)
"""


def test_a_loss_that_is_not_finite_names_its_cases_and_the_training_goes_on_without_them(command, data, tmp_path):
    last, options = tmp_path / "models" / "perceptor_last.pt", {"epochs": 3}
    training = run("training", DIRECT, data, tmp_path / "models", tmp_path, **options)
    sentence = command(*training, before=THIRD_LOSS_IS_NAN).sentence
    assert re.match(r"error: the loss became nan on case_\d, case_\d; look at these, then resume with", sentence)
    assert epochs_done(last) == 1
    resumed = command(*training, "--on_non_finite", "skip", before=THIRD_LOSS_IS_NAN)
    assert resumed.succeeded
    assert resumed.printed.count(": skipped") == 1
    assert epochs_done(last) == 3
    assert all(value.isfinite().all() for value in torch.load(last, weights_only=True)["network"].values())


def test_tracking_with_mlflow_records_losses_and_dice(command, data, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra [tracking]")
    settings = run("training", DIRECT, data, tmp_path / "models", tmp_path, epochs=1, tracking="mlflow")
    assert command(*settings).succeeded
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlruns.db'}")
    metrics = {
        name
        for row in mlflow.search_runs(search_all_experiments=True, output_format="list")
        for name in row.data.metrics
    }
    assert {"train_loss", "val_dice"} <= metrics


def write_text(file: Path) -> None:
    file.write_text("<html>404 not found</html>")


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(
    voxels: Callable[[np.ndarray], np.ndarray] = lambda array: array, shift: float = 0
) -> Callable[[Path], None]:
    def rewrite(file: Path) -> None:
        image = nib.load(file)
        affine = image.affine.copy()
        affine[0, 3] += shift
        save(file, voxels(np.asarray(image.dataobj)), affine)

    return rewrite


def holding(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.where(array == array.max(), value, array).astype(np.float32)


DEFECTS = {  # what happened to a file, and what is said about it
    "missing": (Path.unlink, "does not exist"),
    "truncated": (cut_in_half, "cannot be read as NIfTI"),
    "not NIfTI": (write_text, "cannot be read as NIfTI"),
    "NaN": (change(holding(np.nan)), "NaN or infinite"),
    "infinite": (change(holding(np.inf)), "NaN or infinite"),
    "all zero": (change(np.zeros_like), "there is no image in it"),
    "other shape": (change(lambda array: array[:-1]), "resample one to the other's grid"),
    "other affine": (change(shift=3), "resample one to the other's grid"),
}


@pytest.fixture(params=["truncated", "other affine"])  # the others are in `damaged`
def defect(request, tmp_path) -> tuple[dict, str, str]:
    """A case with one bad file: its entry, the file, what is wrong with it."""
    case = write_case(tmp_path / "data" / "bad")
    damage, reason = DEFECTS[request.param]
    damage(Path(case["image"][2]))
    return case, case["image"][2], reason


def test_training_names_a_bad_file_at_the_start(command, defect, tmp_path):
    case, file, reason = defect
    write_datalist(tmp_path / "data", training=[case], validation=[write_case(tmp_path / "data" / "sound")])
    sentence = command(*run("training", DIRECT, tmp_path / "data", tmp_path, tmp_path / "out", epochs=1)).sentence
    assert file in sentence
    assert reason in sentence
    assert not list(tmp_path.glob("*.pt"))


def test_training_names_a_bad_label(command, tmp_path):
    case = write_case(tmp_path / "bad")
    change(lambda array: array * 7)(Path(case["label"]))
    write_datalist(tmp_path, training=[case], validation=[write_case(tmp_path / "sound")])
    sentence = command(*run("training", DIRECT, tmp_path, tmp_path, tmp_path / "out", epochs=1)).sentence
    assert f"{case['label']} holds" in sentence
    assert "value 14; a label map holds only" in sentence


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """A folder of scans, each damaged in its own way, but for two: an oblique one and one with thick slices."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, (damage, _) in DEFECTS.items():
        damage(Path(write_case(folder / name.replace(" ", "_"))["image"][2]))
    write_case(folder / "oblique", shape=(34, 36, 20), affine=oblique_affine((1.1, 0.9, 1.3)))
    write_case(folder / "thick", shape=(34, 36, 6), affine=np.diag([-1.0, -1.0, 5.0, 1.0]))
    return folder


def test_inference_of_a_folder_runs_the_sound_scans_and_lists_the_others(command, work, damaged, tmp_path):
    ended = command(*run("inferring", INFERENCE, damaged, work / "models", tmp_path))
    assert ended.status == 1
    assert "Traceback" not in ended.printed
    assert f"{len(DEFECTS)} not run:" in ended.printed
    for name, (_, reason) in DEFECTS.items():
        [line] = [line for line in ended.printed.splitlines() if line.startswith(f"  {name.replace(' ', '_')}: ")]
        assert reason in line
        assert "_t2.nii.gz" in line
    assert files_below(tmp_path) == {f"{n}/{n}_{name}" for n in ("oblique", "thick") for name in OUTPUTS}
    for name in ("oblique", "thick"):
        scan = nib.load(damaged / name / f"{name}_t1.nii.gz")
        for output in OUTPUTS:
            if output.endswith(".nii.gz"):
                saved = nib.load(tmp_path / name / f"{name}_{output}")
                assert saved.shape == scan.shape
                np.testing.assert_allclose(saved.affine, scan.affine, atol=1e-4)


def test_evaluation_measures_the_sound_cases_and_lists_the_others(command, work, damaged, tmp_path):
    cases = [write_case(tmp_path / "data" / name) for name in ("anna", "bert", "carl")]
    change(lambda array: array * 7)(Path(cases[1]["label"]))
    del cases[2]["target"]
    write_datalist(tmp_path / "data", test=cases)
    ended = command(*run("evaluating", EVALUATE, tmp_path / "data", work / "models", tmp_path / "out"))
    assert ended.status == 1
    assert "2 not run:" in ended.printed
    assert f"bert: {cases[1]['label']} holds" in ended.printed
    assert "carl: case carl has no target; add it to the datalist" in ended.printed
    assert [row["case"] for row in rows(tmp_path / "out" / "cases.csv")] == ["anna"]


def test_a_cohort_without_a_sound_scan_lists_all(command, work, tmp_path):
    case = write_case(tmp_path / "data" / "bad")
    Path(case["image"][0]).unlink()
    for entry_point, config in (("inferring", INFERENCE), ("evaluating", EVALUATE)):
        write_datalist(tmp_path / "data", test=[case])
        ended = command(*run(entry_point, config, tmp_path / "data", work / "models", tmp_path / entry_point))
        assert ended.status == 1
        assert f"1 not run:\n  bad: {case['image'][0]} does not exist" in ended.printed
        assert files_below(tmp_path / entry_point) <= {"datalist.json"}


def test_training_without_a_perceptor_stops_at_once_with_the_command_that_trains_one(command, data, tmp_path):
    ended = command(*run("training", TRAIN, data, tmp_path / "models", tmp_path / "out", epochs=1))
    assert f"no weights at {tmp_path / 'models' / 'perceptor.pt'}" in ended.sentence
    assert f'python -m monai.bundle run training --config_file "{DIRECT}"' in ended.sentence
    assert "Loading dataset" not in ended.printed


@pytest.mark.parametrize("name", ["tissnet_brats", "tissnet_vs"])
def test_training_as_shipped_needs_the_data_alone(command, data, tmp_path, name):
    models = tmp_path / "models"
    models.mkdir()
    for file in (BUNDLE.parent / name / "models").glob("perceptor.*"):
        shutil.copy(file, models)
    config = BUNDLE.parent / name / TRAIN
    sizes = {"patch_size": [32, 32, 16], "box_size": [32, 32, 16], "epochs": 1}
    options = {"bundle_root": tmp_path, "dataset_dir": data, **sizes, "source_modalities": ["t2"]}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    ended = command("monai.bundle", "run", "training", "--config_file", str(config), *words)
    assert ended.succeeded
    assert "it sees the synthetic image resampled" in ended.printed
    assert (models / "model.pt").is_file()


@pytest.mark.parametrize(
    ("entry_point", "config_file", "file"),
    [
        ("training", TRAIN, "perceptor.pt"),
        ("training", DIRECT, "perceptor_last.pt"),
        ("evaluating", EVALUATE, "model.pt"),
        ("inferring", INFERENCE, "model.pt"),
    ],
    ids=["perceptor", "resumed training", "evaluation", "inference"],
)
def test_weights_of_other_widths_are_refused(command, work, data, tmp_path, entry_point, config_file, file):
    settings = run(entry_point, config_file, data, work / "models", tmp_path, epochs=3, widths=[4, 4, 4, 4, 4])
    before = (work / "models" / file).read_bytes()
    sentence = command(*settings).sentence
    told = (
        "does not fit the configured network"
        if entry_point == "inferring"
        else "was trained with widths [2, 2, 2, 2, 2]"
    )
    assert f"{work / 'models' / file.replace('_last', '')} {told}" in sentence
    assert "widths" in sentence
    assert (work / "models" / file).read_bytes() == before


@pytest.mark.parametrize(
    ("entry_point", "config_file", "option"),
    [
        ("training", TRAIN, "output_dir"),
        ("training", TRAIN, "ckpt_dir"),
        ("evaluating", EVALUATE, "output_dir"),
        ("inferring", INFERENCE, "output_dir"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(command, work, data, tmp_path, entry_point, config_file, option):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    settings = run(entry_point, config_file, data, work / "models", tmp_path, **{option: folder})
    assert f"cannot write to {folder} (Not a directory)" in command(*settings).sentence


def test_a_bad_datalist_is_named(command, tmp_path):
    (tmp_path / "datalist.json").write_text('{"test": [{"case": "a", "image": "a.nii"}]}')
    sentence = command(*run("training", DIRECT, tmp_path, tmp_path / "models", tmp_path / "out")).sentence
    assert f"{tmp_path / 'datalist.json'} has no section 'training'" in sentence


@pytest.fixture(scope="module")
def tiny_bundle(work, tmp_path_factory) -> Path:
    """The bundle, with the network that was trained here."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    shutil.copytree(work / "models", folder / "models")
    config = json.loads((folder / INFERENCE).read_text()) | {"widths": [2, 2, 2, 2, 2], "patch_size": [32, 32, 16]}
    (folder / INFERENCE).write_text(json.dumps(config))
    return folder


def segment(bundle: Path, image: list[str], output: Path) -> list[str]:
    scans = [word for name, file in zip(("t1", "t1ce", "t2"), image, strict=True) for word in (f"--{name}", file)]
    return ["tissnet_components", "segment", "--bundle", str(bundle), *scans, "--out", str(output), "--case", "anna"]


def test_segmenting_a_bad_scan_ends_in_one_sentence(command, tiny_bundle, defect, tmp_path):
    case, file, reason = defect
    sentence = command(*segment(tiny_bundle, case["image"], tmp_path / "out")).sentence
    assert file in sentence
    assert reason in sentence
    assert not files_below(tmp_path / "out")


def test_segmenting_follows_the_recipe_beside_the_weights_and_refuses_other_widths_without_it(command, work, tmp_path):
    case = write_case(tmp_path / "data" / "anna")
    weights = work / "models" / "model.pt"
    assert command(*segment(BUNDLE, case["image"], tmp_path / "out"), "--weights", str(weights)).succeeded
    alone = shutil.copy(weights, tmp_path / "alone.pt")
    sentence = command(*segment(BUNDLE, case["image"], tmp_path / "other"), "--weights", str(alone)).sentence
    assert f"{alone} does not fit the configured network" in sentence


def test_segmenting_into_a_folder_that_cannot_be_written_ends_in_one_sentence(command, tiny_bundle, tmp_path):
    case = write_case(tmp_path / "data" / "anna")
    sentence = command(*segment(tiny_bundle, case["image"], Path(case["label"]) / "out")).sentence
    assert f"cannot write to {case['label']}/out" in sentence
