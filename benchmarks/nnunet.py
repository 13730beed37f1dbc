"""``python -m benchmarks.nnunet``: nnU-Net v2 trained and measured on the patients of one of our datalists.

nnU-Net's own planner, preprocessing, augmentation, loss, optimizer and mirroring at inference; ours are the voxels, as
in the bundle's recipe, the memory that its planner is told, so that a step fits a CPU, bfloat16, the count of steps and
the contrasts that are hidden.
Runs in the environment of ``make peers``, and leaves the `cases.csv` that ``tissnet report`` reads.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tissnet_components.largest_component import largest_components
from tissnet_components.metrics import case_metrics
from tissnet_components.regions import WHOLE, region_masks
from tissnet_components.subsets import random_subsets

from benchmarks.scans import MODALITIES


def nnunet(
    datalist: str,
    out: str,
    epochs: int,
    contrasts: Sequence[str] = MODALITIES[:3],
    regions: Sequence[str] = (WHOLE,),
    hidden: float = 0,
    only: Sequence[str] | None = None,
    mirror: bool = True,
    overlap: float = 0.5,
    components: int = 1,
    spacing_mm: float = 1.5,
    memory_gb: float = 0.4,
    steps: int = 10,
) -> None:
    """Train on a datalist's training and validation patients, segment its test patients and measure the masks.

    cases.csv, subsets.csv and minutes.json stand in the folder in the end. A training that ended is not done again.

    Args:
        datalist: written by ``tissnet prepare_brats``.
        out: folder for all of it.
        epochs: of nnU-Net, each of `steps` training steps and one of validation.
        contrasts: that the network sees, of t1, t1ce, t2, flair.
        regions: that it names, such as whole tumor, tumor core, enhancing tumor.
        hidden: share of the training's samples that show a random subset of the contrasts, the others filled with 0;
            above 0, every subset of them is tested.
        only: subsets to test, such as t1+t2, besides all contrasts.
        mirror: the scans at inference, as nnU-Net does by itself: eight times the work.
        overlap: of its windows at inference; the bundle's is 0.25.
        components: how many connected parts of a mask stay, the largest first, as in the bundle; 0 for all. nnU-Net
            decides this by itself, after a cross-validation.
        spacing_mm: of the voxels that it works on.
        memory_gb: of the graphics card that its planner plans for: patch and batch follow from it.
        steps: per epoch.
    """
    folder = Path(out).absolute()
    raw = folder / "raw" / "Dataset001_Glioma"
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    tested = lay_out(Path(datalist), raw, contrasts, regions)
    sizes = range(1 if hidden else len(contrasts), len(contrasts) + 1)
    subsets = ["+".join(some) for size in sizes for some in combinations(contrasts, size)]
    wanted = [only] if isinstance(only, str) else only
    subsets = [name for name in subsets[:-1] if not wanted or name in wanted] + subsets[-1:]

    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(0)
    record, start = folder / "minutes.json", time.monotonic()
    if not (folder / "preprocessed" / raw.name / "ready").is_file():
        api.extract_fingerprints([1], num_processes=1)
        api.plan_experiments([1], gpu_memory_target_in_gb=memory_gb, overwrite_target_spacing=(spacing_mm,) * 3)
        api.preprocess([1], configurations=["3d_fullres"], num_processes=[1])
        (folder / "preprocessed" / raw.name / "ready").touch()
        keep(record, prepare=minutes_since(start))
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augment in this process; its planner wants at least 1
    plans = json.loads((folder / "preprocessed" / raw.name / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    content = json.loads((raw / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", content, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, steps, 1
    trainer.plot_network_architecture = lambda: None
    step = in_bfloat16(trainer.train_step)
    trainer.train_step = lambda batch: step(batch | {"data": hide(batch["data"], hidden)})
    trainer.validation_step = in_bfloat16(trainer.validation_step)
    if not Path(trainer.output_folder, "checkpoint_final.pth").is_file():
        start, planned = time.monotonic(), trainer.configuration_manager
        trainer.run_training()
        patch = [int(side) for side in planned.patch_size]
        keep(record, train=minutes_since(start), steps=epochs * steps, patch=patch, batch=int(planned.batch_size))
    start = time.monotonic()
    predictor = nnUNetPredictor(
        tile_step_size=1 - overlap,
        use_mirroring=mirror,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",))
    for case in tested:
        image, properties = SimpleITKIO().read_images(
            [str(raw / "imagesTs" / f"{case}_{place:04d}.nii.gz") for place in range(len(contrasts))]
        )
        for present in subsets:
            (folder / "masks" / present).mkdir(parents=True, exist_ok=True)
            shown = np.array([name in present.split("+") for name in contrasts])[:, None, None, None]
            mask = str(folder / "masks" / present / case)
            in_bfloat16(predictor.predict_single_npy_array)(image * shown, properties, None, mask, False)
    keep(record, segment=minutes_since(start))
    measure(tested, folder, subsets, regions, components)


def keep(record: Path, **told: Any) -> None:
    """Add to a JSON file: what an earlier run told of the stages that it ended stays."""
    known = json.loads(record.read_text()) if record.is_file() else {}
    record.write_text(json.dumps(known | told))


def minutes_since(start: float) -> float:
    """By the clock of `time.monotonic`."""
    return round((time.monotonic() - start) / 60, 1)


def in_bfloat16(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step in bfloat16. Autocast once around a training would be wrong: it keeps the first step's weights."""

    def autocasted(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return step(*args)

    return autocasted


def hide(image: torch.Tensor, share: float) -> torch.Tensor:
    """The image (B, C, X, Y, Z); in a share of the samples, all contrasts but a random subset are 0."""
    shown = random_subsets(*image.shape[:2], image.device) | (torch.rand(len(image), 1) >= share)
    return image * shown[:, :, None, None, None]


def lay_out(datalist: Path, raw: Path, contrasts: Sequence[str], regions: Sequence[str] = (WHOLE,)) -> dict[str, str]:
    """nnU-Net's folders, by links. Returns the label of each test patient."""
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
            write_tumor(label, raw / "labelsTr" / f"{entry['case']}.nii.gz", regions)
            trained += 1
    describe(raw, contrasts, trained, regions)
    return tested


def write_tumor(label: str, file: Path, regions: Sequence[str] = (WHOLE,)) -> None:
    """nnU-Net's label: in how many of the regions, each inside the one before, a voxel lies."""
    image = nib.load(label)
    inside = region_masks(torch.from_numpy(np.asarray(image.dataobj, np.float32))[None], regions).sum(0)
    nib.save(nib.Nifti1Image(inside.numpy().astype(np.uint8), image.affine), file)


def describe(raw: Path, contrasts: Sequence[str], patients: int, regions: Sequence[str] = (WHOLE,)) -> dict:
    """Write and return the dataset.json of a folder of nnU-Net."""
    levels = range(1, len(regions) + 1)
    content = {
        "channel_names": {str(place): name for place, name in enumerate(contrasts)},
        "labels": {"background": 0} | {name: list(levels)[place:] for place, name in enumerate(regions)},
        "regions_class_order": list(levels),
        "numTraining": patients,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return content


def measure(
    tested: dict[str, str], folder: Path, subsets: Sequence[str], regions: Sequence[str] = (WHOLE,), components: int = 0
) -> None:
    """subsets.csv, and the columns of our evaluations of the last subset's whole tumor in cases.csv."""
    rows, cases = [], []
    for case, label in sorted(tested.items()):
        truth = nib.load(label)
        spacing = tuple(float(size) for size in truth.header.get_zooms())
        truths = region_masks(torch.from_numpy(np.asarray(truth.dataobj, np.float32))[None], regions)
        for present in subsets:
            levels = torch.from_numpy(np.asarray(nib.load(folder / "masks" / present / f"{case}.nii.gz").dataobj))
            parts = torch.stack([(levels > place).float() for place in range(len(regions))])
            masks = largest_components(parts, components)
            found = [
                case_metrics({"fine": mask}, None, true, spacing) for mask, true in zip(masks, truths, strict=True)
            ]
            rows += [
                {
                    "case": case,
                    "present": present,
                    "region": region,
                    "dice": one["fine_dice"],
                    "hd95_mm": one["fine_hd95_mm"],
                }
                for region, one in zip(regions, found, strict=True)
            ]
        cases.append({"protocol": "whole volume", "case": case} | found[0])
    pd.DataFrame(rows).to_csv(folder / "subsets.csv", index=False, float_format="%.6g")
    table = pd.DataFrame(cases)
    table.to_csv(folder / "cases.csv", index=False, float_format="%.6g")
    print(table[["case", "fine_dice", "fine_hd95_mm"]].to_string(index=False))


if __name__ == "__main__":
    fire.Fire(nnunet)
