"""``make peers``: what one would use instead, on the same patient, from files to files, in turn with ours.

nnU-Net v2 (`nnUNetv2_predict`, its default 3d_fullres plans for this patient), the architecture and settings of the
model zoo's `brats_mri_segmentation` (SegResNet, by `monai.bundle run`), MONAI's sliding window with its defaults on our
own network, and a training step of each at one patch. Weights of the peers are random, which does not change the time.

Each measurement is a process of its own, and its result a line in OUT/peers.jsonl: an interrupted run goes on.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import fire

from benchmarks.measure import run_process
from benchmarks.nnunet import describe, write_tumor
from benchmarks.scans import MODALITIES

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "tissnet_brats"
PYTHON = [sys.executable, "-W", "ignore", "-m"]
TISSNET = [*PYTHON, "tissnet_components", "segment", "--bundle", str(BUNDLE), "--overwrite", "--force"]
RUN = [*PYTHON, "monai.bundle", "run"]
ENTRIES = (
    "TISS-Net",
    "TISS-Net, the mask alone",
    "TISS-Net's network, MONAI's sliding window with its defaults, float32",
    "zoo's SegResNet, four contrasts",
    "nnU-Net, four contrasts, no mirroring",
    "nnU-Net, three contrasts, no mirroring",
    "training step of TISS-Net, 64 x 64 x 64, batch 2, bfloat16",
    "training step of SegResNet, 64 x 64 x 64, batch 2, float32",
    "training step of nnU-Net, 64 x 64 x 64, batch 2, float32",
    "nnU-Net, four contrasts",  # these two last: each takes as long as all of the others
    "nnU-Net, three contrasts",
)


def peers(
    patient: str, out: str = "benchmarks/results/peers", rounds: int = 3, minutes: float = 20, entries: str = ""
) -> None:
    """Measure every entry in turn, round by round, until the rounds or the minutes are over; print the table.

    Args:
        patient: folder of one prepared patient, CASE_t1.nii.gz, CASE_t1ce.nii.gz, CASE_t2.nii.gz, CASE_flair.nii.gz
            and the label, CASE_seg.nii.gz, for nnU-Net's plans.
        out: folder of results; what is measured there is not measured again.
        rounds: of each entry.
        minutes: nothing is begun after these.
        entries: parts of names, apart by commas, such as nnU-Net,zoo; by default all.
    """
    folder, wanted = Path(out).absolute(), [part.strip() for part in entries.split(",")]
    folder.mkdir(parents=True, exist_ok=True)
    scans = {name: str(next(Path(patient).absolute().glob(f"*_{name}.nii.gz"))) for name in (*MODALITIES, "seg")}
    log, start = folder / "peers.jsonl", time.monotonic()
    for number in range(rounds):
        for name in [name for name in ENTRIES if any(part in name for part in wanted)]:
            if len(measured(log).get(name, [])) > number:
                continue
            if time.monotonic() - start > 60 * minutes:
                break
            command = _prepare(name, scans, folder)
            row = {"name": name, "round": number, **_measure(command, folder / "log.txt")}
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            print(row, flush=True)
    text = table(measured(log))
    (folder / "peers.md").write_text(text, encoding="utf-8")
    print(text)


def measured(log: Path) -> dict[str, list[dict]]:
    """Entry -> what was measured of it."""
    found: dict[str, list[dict]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        row = json.loads(line)
        found.setdefault(row["name"], []).append(row)
    return found


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: medians, how often slower than ours, peak memory of the largest process."""
    own = median(row["seconds"] for row in found[ENTRIES[0]]) if ENTRIES[0] in found else None
    lines = ["| | seconds | times ours | peak memory | runs |", "|---|---:|---:|---:|---:|"]
    for name in ENTRIES:
        if rows := found.get(name):
            seconds = median(row["seconds"] for row in rows)
            times = f"{seconds / own:.1f}" if own and not name.startswith("training") else ""
            peak = max(row["peak_mib"] for row in rows) / 1024
            lines.append(f"| {name} | {seconds:.3g} | {times} | {peak:.1f} GiB | {len(rows)} |")
    return "\n".join([*lines, ""])


def _measure(command: Sequence[str] | tuple[Sequence[str], dict[str, str]], log: Path) -> dict[str, float]:
    """Wall-clock and CPU seconds of a process with its children, and the peak of the largest of them."""
    words, environment = command if isinstance(command, tuple) else (command, {})
    with log.open("a", encoding="utf-8") as told:
        given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        used = run_process(words, stdout=told, stderr=told, cwd=ROOT, env=given)
    if "step" in words:
        used["seconds"] = json.loads(log.read_text(encoding="utf-8").strip().splitlines()[-1])["step"]
    return used


def _prepare(name: str, scans: dict[str, str], folder: Path) -> Sequence[str] | tuple[Sequence[str], dict[str, str]]:
    """The command of an entry, and what it needs in the environment."""
    own = [word for contrast in MODALITIES[:3] for word in (f"--{contrast}", scans[contrast])]
    if name.startswith("TISS-Net"):
        if "MONAI" in name:
            return _own_network_by_monai(scans, folder)
        some = ["--outputs", "seg"] if "alone" in name else []
        return [*TISSNET, *own, *some, "--out", str(folder / "own")]
    if name.startswith("zoo"):
        return _zoo(scans, folder)
    if name.startswith("training"):
        peer = next(peer for peer in ("TISS-Net", "SegResNet", "nnU-Net") if peer in name)
        environment = _nnunet(scans, folder, 3) if peer == "nnU-Net" else {}
        return [*PYTHON, "benchmarks.peers", "step", peer], environment
    contrasts = 4 if "four" in name else 3
    environment = _nnunet(scans, folder, contrasts)
    scripts = Path(sys.executable).parent
    options = ["-d", str(contrasts), "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    inout = ["-i", str(folder / f"nnunet{contrasts}" / "in"), "-o", str(folder / f"nnunet{contrasts}" / "out")]
    mirroring = ["--disable_tta"] if "no mirroring" in name else []
    return [str(scripts / "nnUNetv2_predict"), *inout, *options, *mirroring], environment


def _own_network_by_monai(scans: dict[str, str], folder: Path) -> list[str]:
    """`inferring` of our bundle with MONAI's `SlidingWindowInferer` and its defaults, windows as the bundle's."""
    listed = folder / "datalist.json"
    image = [scans[name] for name in MODALITIES[:3]]
    listed.write_text(json.dumps({"sources": MODALITIES[:3], "test": [{"case": "patient", "image": image}]}))
    overlay = folder / "monai_windows.json"
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": "@window_size"}
    overlay.write_text(json.dumps({"inferer::inferer": inferer, "precision": "float32", "force": True}))
    configs = [str(BUNDLE / "configs" / "inference.json"), str(overlay)]
    options = ["--bundle_root", str(BUNDLE), "--datalist", str(listed), "--output_dir", str(folder / "monai")]
    return [*RUN, "inferring", "--config_file", str(configs), *options]


def _zoo(scans: dict[str, str], folder: Path) -> list[str]:
    """The zoo's `brats_mri_segmentation` after its published inference: network, window, overlap, what is written."""
    config = {
        "imports": ["$import torch"],
        "network": {
            "_target_": "SegResNet",
            "blocks_down": [1, 2, 2, 4],
            "blocks_up": [1, 1, 1],
            "init_filters": 16,
            "in_channels": 4,
            "out_channels": 3,
            "dropout_prob": 0.2,
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": [{"image": [scans[name] for name in ("t1ce", "t1", "t2", "flair")]}],  # the zoo's order
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [240, 240, 160],
            "sw_batch_size": 1,
            "overlap": 0.5,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": str(folder / "zoo"), "output_dtype": "uint8"},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }
    file = folder / "zoo.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return [*RUN, "run", "--config_file", str(file)]


def _nnunet(scans: dict[str, str], folder: Path, contrasts: int) -> dict[str, str]:
    """Plans that nnU-Net makes of this patient, and untrained weights; made once. Returns its environment."""
    own = folder / f"nnunet{contrasts}"
    names = ("raw", "preprocessed", "results")
    environment = {f"nnUNet_{name}": str(own / name) for name in names} | {"nnUNet_def_n_proc": "1"}
    if (own / "ready").is_file():
        return environment
    dataset = own / "raw" / f"Dataset{contrasts:03d}_Patient"
    for part in (dataset / "imagesTr", dataset / "labelsTr", own / "in", own / "results", own / "preprocessed"):
        part.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(MODALITIES[:contrasts]):
        for link in (dataset / "imagesTr", own / "in"):
            (link / f"patient_{number:04d}.nii.gz").unlink(missing_ok=True)
            (link / f"patient_{number:04d}.nii.gz").symlink_to(scans[name])
    subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "plan", str(dataset), scans["seg"]],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (own / "ready").touch()
    return environment


def plan(dataset: str, label: str) -> None:
    """By nnU-Net's own API, in its environment: fingerprint, plans and a checkpoint of random weights."""
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw, number = Path(dataset), int(Path(dataset).name[7:10])
    write_tumor(label, raw / "labelsTr" / "patient.nii.gz")
    contrasts = len(list((raw / "imagesTr").iterdir()))
    content = describe(raw, MODALITIES[:contrasts], 1)
    extract_fingerprints([number], num_processes=1)
    plan_experiments([number])
    plans = Path(nnUNet_preprocessed) / raw.name / "nnUNetPlans.json"
    results = Path(nnUNet_results) / raw.name / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (results / "fold_0").mkdir(parents=True, exist_ok=True)
    for name, text in (("plans.json", plans.read_text()), ("dataset.json", json.dumps(content))):
        (results / name).write_text(text, encoding="utf-8")
    configuration = PlansManager(str(plans)).get_configuration("3d_fullres")
    checkpoint = {
        "network_weights": _planned(configuration, contrasts, True).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, results / "fold_0" / "checkpoint_final.pth")


def _planned(configuration: object, contrasts: int, deep_supervision: bool) -> object:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        contrasts,
        2,
        deep_supervision=deep_supervision,
    )


def step(peer: str, repeats: int = 3) -> None:
    """Print the median seconds of a training step of two patches of 64 x 64 x 64 voxels, after a first one."""
    import torch
    from monai.losses import DiceCELoss

    if peer == "TISS-Net":
        from benchmarks.training import build

        action = build("best precision (package)", patch_size=[64, 64, 64])
    else:
        network = _segresnet() if peer == "SegResNet" else _nnunet_network()
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
        loss = DiceCELoss(sigmoid=True)
        image = torch.rand(2, 4 if peer == "SegResNet" else 3, 64, 64, 64)

        def action() -> None:
            optimizer.zero_grad()
            found = network(image)
            loss(found, (torch.rand_like(found) > 0.9).float()).backward()
            optimizer.step()

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"step": median(seconds[1:])}))


def _segresnet() -> object:
    from monai.networks.nets import SegResNet

    return SegResNet(
        blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), init_filters=16, in_channels=4, out_channels=3, dropout_prob=0.2
    )


def _nnunet_network() -> object:
    """Of the plans for three contrasts, without deep supervision."""
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = next(Path(nnUNet_preprocessed).glob("*/nnUNetPlans.json"))
    return _planned(PlansManager(str(plans)).get_configuration("3d_fullres"), 3, False)


if __name__ == "__main__":
    fire.Fire({"run": peers, "plan": plan, "step": step})
