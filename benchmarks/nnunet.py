"""``python -m benchmarks.nnunet``: nnU-Net v2 trained and measured on the patients of one of our datalists.

nnU-Net's own planner, preprocessing, augmentation, loss, optimizer and mirroring at inference; ours are the voxels, as
in the bundle's recipe, the memory that its planner is told, so that a step fits a CPU, bfloat16 and the count of steps.
Runs in the environment of ``make peers``, and leaves the `cases.csv` that ``tissnet report`` reads.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import fire

from benchmarks.scans import MODALITIES


def nnunet(
    datalist: str,
    out: str,
    epochs: int,
    contrasts: Sequence[str] = MODALITIES[:3],
    spacing_mm: float = 1.5,
    memory_gb: float = 2,
    steps: int = 10,
) -> None:
    """Train on a datalist's training and validation patients, segment its test patients and measure the masks.

    Args:
        datalist: written by ``tissnet prepare_brats``.
        out: folder for all of it; cases.csv and minutes.json stand there in the end.
        epochs: of nnU-Net, each of `steps` training steps and one of validation.
        contrasts: that the network sees, of t1, t1ce, t2, flair.
        spacing_mm: of the voxels that it works on.
        memory_gb: of the graphics card that its planner plans for: patch and batch follow from it.
        steps: per epoch.
    """
    folder = Path(out).absolute()
    raw = folder / "raw" / "Dataset001_Glioma"
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    tested = lay_out(Path(datalist), raw, contrasts)

    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(0)
    start = time.monotonic()
    if not (folder / "preprocessed" / raw.name / "ready").is_file():
        api.extract_fingerprints([1], num_processes=1)
        api.plan_experiments([1], gpu_memory_target_in_gb=memory_gb, overwrite_target_spacing=(spacing_mm,) * 3)
        api.preprocess([1], configurations=["3d_fullres"], num_processes=[1])
        (folder / "preprocessed" / raw.name / "ready").touch()
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augment in this process; its planner wants at least 1
    prepared = time.monotonic()
    plans = json.loads((folder / "preprocessed" / raw.name / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    content = json.loads((raw / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", content, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, steps, 1
    trainer.plot_network_architecture = lambda: None
    with torch.autocast("cpu", torch.bfloat16):
        trainer.run_training()
    trained = time.monotonic()
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",))
    (folder / "masks").mkdir(exist_ok=True)
    masks = [str(folder / "masks" / f"{case}.nii.gz") for case in tested]
    places = range(len(contrasts))
    scans = [[str(raw / "imagesTs" / f"{case}_{place:04d}.nii.gz") for place in places] for case in tested]
    with torch.autocast("cpu", torch.bfloat16):
        predictor.predict_from_files_sequential(scans, masks)
    minutes = {"prepare": prepared - start, "train": trained - prepared, "segment": time.monotonic() - trained}
    patch, batch = trainer.configuration_manager.patch_size, trainer.configuration_manager.batch_size
    told = {name: round(seconds / 60, 1) for name, seconds in minutes.items()}
    told |= {"steps": epochs * steps, "patch": [int(size) for size in patch], "batch": int(batch)}
    (folder / "minutes.json").write_text(json.dumps(told))
    measure(tested, folder)


def lay_out(datalist: Path, raw: Path, contrasts: Sequence[str]) -> dict[str, str]:
    """nnU-Net's folders, by links; labels are whole tumors. Returns the label of each test patient."""
    content = json.loads(datalist.read_text())
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    tested, trained = {}, 0
    for section in ("training", "validation", "test"):
        part = "imagesTs" if section == "test" else "imagesTr"
        for entry in content[section]:
            names = [*content["sources"], content["target_modality"]]
            files = dict(zip(names, [*entry["image"], entry["target"]], strict=True))
            label = str(datalist.parent / entry["label"])
            for place, name in enumerate(contrasts):
                scan, link = datalist.parent / files[name], raw / part / f"{entry['case']}_{place:04d}.nii.gz"
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(scan.resolve())
            if section == "test":
                tested[entry["case"]] = label
                continue
            write_tumor(label, raw / "labelsTr" / f"{entry['case']}.nii.gz")
            trained += 1
    describe(raw, contrasts, trained)
    return tested


def write_tumor(label: str, file: Path) -> None:
    """nnU-Net's label of the whole tumor: 1 where any part of it is."""
    import nibabel as nib
    import numpy as np

    image = nib.load(label)
    nib.save(nib.Nifti1Image((np.asanyarray(image.dataobj) > 0).astype(np.uint8), image.affine), file)


def describe(raw: Path, contrasts: Sequence[str], patients: int) -> dict:
    """Write and return the dataset.json of a folder of nnU-Net."""
    content = {
        "channel_names": {str(place): name for place, name in enumerate(contrasts)},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": patients,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return content


def measure(tested: dict[str, str], folder: Path) -> None:
    """cases.csv, with the columns of our evaluations."""
    import nibabel as nib
    import numpy as np
    import pandas as pd
    import torch
    from tissnet_components.metrics import case_metrics

    rows = []
    for case, label in tested.items():
        images = [nib.load(folder / "masks" / f"{case}.nii.gz"), nib.load(label)]
        mask, truth = (torch.from_numpy((np.asanyarray(image.dataobj) > 0).astype(np.float32)) for image in images)
        found = case_metrics({"fine": mask}, None, truth, tuple(float(size) for size in images[1].header.get_zooms()))
        rows.append({"protocol": "whole volume", "case": case} | found)
    table = pd.DataFrame(rows).sort_values("case")
    table.to_csv(folder / "cases.csv", index=False, float_format="%.6g")
    print(table[["case", "fine_dice", "fine_hd95_mm"]].to_string(index=False))


if __name__ == "__main__":
    fire.Fire(nnunet)
