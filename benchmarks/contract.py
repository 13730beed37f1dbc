"""``python -m benchmarks.contract table --root FOLDER``: how often scans are refused or flagged, rightly and wrongly.

FOLDER holds real patients with T1, contrast-enhanced T1, T2 and FLAIR, named as in BraTS, in a folder for each source.
Every patient is looked at as it is and broken in many ways, with tables that were fitted without its source.
``fit`` writes the tables that are shipped. Not part of ``make bench``: it needs data, and some minutes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import fire
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from tissnet_components.inversion import InvertTogetherd
from tissnet_components.scans import appearance, appearance_tables
from tissnet_components.scans.appearance import KNOWN, Features, Tables, likeliest_names
from tissnet_components.scans.brain import largest_component
from tissnet_components.scans.naming import find_candidates
from tissnet_components.scans.plausible import DOUBTFUL, SURE, examine

from benchmarks.inference import read as read_bundle

GIVEN = ("t1", "t1ce", "t2")
STEP = 2  # 1 mm scans on a grid of 2 mm, as `examine` would take them
Scans = dict[str, np.ndarray]


def table(root: str) -> None:
    """Print how many of the patients are refused, flagged and passed, for each way of breaking them.

    Args:
        root: folder of the sources.
    """
    patients = list(read(root))
    print(
        f"{len(patients)} patients\n\n| input | refused | flagged alone | passed | flags |\n|---|---|---|---|---|",
        flush=True,
    )
    features = {case: appearance.measure(*_inside(scans)) for case, _, scans in patients}
    tables = {
        source: appearance.fit([features[case] for case, other, _ in patients if other != source])
        for source in {source for _, source, _ in patients}
    }
    for given in sorted(permutations(KNOWN, len(GIVEN)), key=lambda order: order != GIVEN):
        name = f"contrasts alone: {', '.join(given)} as {', '.join(GIVEN)}"
        _print_row(name, [(_named(features[case], given, tables[source])) for case, source, _ in patients])
    for name, change in BROKEN.items():
        _print_row(name, [_judge(change(scans), tables[source]) for _, source, scans in patients])


def _print_row(name: str, judged: list[tuple[set[str], set[str]]]) -> None:
    refused, flagged = sum(bool(sure) for sure, _ in judged), sum(not sure and bool(doubts) for sure, doubts in judged)
    reasons = Counter(reason for sure, doubts in judged for reason in (*sure, *doubts))
    told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    print(f"| {name} | {refused} | {flagged} | {len(judged) - refused - flagged} | {told} |", flush=True)


def _named(features: Features, given: tuple[str, ...], tables: Tables) -> tuple[set[str], set[str]]:
    own, pairs = features
    order = [KNOWN.index(name) for name in given]
    by = likeliest_names((own[order], pairs[np.ix_(order, order)]), GIVEN, tables)[1]
    return {"contrast"} if by > SURE else set(), {"contrast"} if DOUBTFUL < by <= SURE else set()


def _judge(scans: Scans, tables: Tables) -> tuple[set[str], set[str]]:
    found = examine(list(scans.values()), list(scans), (STEP,) * 3, tables)
    return set(found.refused), set(found.doubtful)


def dice(root: str, limit: int = 3) -> None:
    """Print the Dice with the label of some patients at 2 mm, as they are and broken where the background is mended.

    Args:
        root: folder of the patients, with labels.
        limit: how many.
    """
    parser = read_bundle("tissnet_brats")
    parser["force"] = True
    network, inferer = parser.get_parsed_content("network").eval(), parser.get_parsed_content("inferer")
    preprocessing = parser.get_parsed_content("preprocessing")
    restore = InvertTogetherd("fine", preprocessing, "image")
    inputs = ["as they are", *(name for name in BROKEN if name.startswith(("background", "noise", "turned", "z-sc")))]
    print("| input | Dice |\n|---|---|")
    labels = find_candidates(Path(root), ["seg"])
    patients = [(scans, labels[case]["seg"][0]) for case, _, scans in islice(read(root), limit)]
    for name in inputs:
        found = []
        for scans, label_file in patients:
            label = np.asanyarray(nib.as_closest_canonical(nib.load(label_file)).dataobj)[::STEP, ::STEP, ::STEP] > 0
            if name.startswith("turned"):
                label = ndimage.rotate(label.astype(float), 4, axes=(0, 1), reshape=False, order=1) > 0.5
            found.append(_dice_of(BROKEN[name](scans), label, preprocessing, inferer, network, restore))
        print(f"| {name} | {', '.join(f'{value:.3f}' for value in found)} |", flush=True)


def _dice_of(scans: Scans, label: np.ndarray, preprocessing, inferer, network, restore) -> float:
    with TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"a_{name}.nii") for name in scans]
        for file, scan in zip(files, scans.values(), strict=True):
            nib.save(nib.Nifti1Image(scan.astype(np.float32), np.diag([STEP, STEP, STEP, 1])), file)
        data = preprocessing({"case": "a", "image": files})
    with torch.inference_mode():
        maps = inferer(data["image"].as_tensor()[None], network)
    mask = restore({**data, "fine": MetaTensor(maps["fine"][0])})["fine"][0].numpy() > 0.5
    return float(2 * (mask & label).sum() / (mask.sum() + label.sum()))


def fit(root: str) -> None:
    """Write the tables of all patients into ``tissnet_components/scans/appearance_tables.py``."""
    fitted = appearance.fit([appearance.measure(*_inside(scans)) for _, _, scans in read(root)])
    lines = [
        f"    {name}=np.array(\n        {np.round(value, 3).tolist()}\n    )," for name, value in vars(fitted).items()
    ]
    heading = '"""How contrasts look, fitted by ``python -m benchmarks.contract fit``: see `appearance`."""'
    imports = "import numpy as np\n\nfrom tissnet_components.scans.appearance import Tables"
    text = "\n".join([heading, "", imports, "", "TABLES = Tables(", *lines, ")", ""])
    Path(appearance_tables.__file__).write_text(text, encoding="utf-8")


def read(root: str) -> Iterator[tuple[str, str, Scans]]:
    """Name, source and scans of every patient that has all four contrasts on one grid."""
    for case, files in sorted(find_candidates(Path(root), KNOWN).items()):
        if set(files) < set(KNOWN) or "raw" in str(files["t1"][0]):
            continue
        folder = files["t1"][0].parent
        hospital = folder.name.split("_")[1] if folder.name.startswith("Brats18") else folder.parent.name
        images = [nib.as_closest_canonical(nib.load(files[name][0])) for name in KNOWN]
        thin = [np.asanyarray(image.dataobj)[::STEP, ::STEP, ::STEP].astype(np.float32) for image in images]
        yield case, hospital, dict(zip(KNOWN, thin, strict=True))


def _inside(scans: Scans) -> tuple[list[np.ndarray], np.ndarray]:
    brain = np.pad(largest_component(np.logical_and.reduce([scan != 0 for scan in scans.values()])), 1)
    depth_mm = ndimage.distance_transform_edt(brain, sampling=(STEP,) * 3)
    return [np.pad(scan, 1) for scan in scans.values()], depth_mm


def _each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Scans], Scans]:
    return lambda scans: {name: change(scans[name]) for name in GIVEN}


def _noisy(scan: np.ndarray, share: float = 0.01, everywhere: bool = False) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, share * np.percentile(scan[scan > 0], 99.9), scan.shape)
    return (scan + noise if everywhere else np.where(scan == 0, abs(noise), scan)).astype(np.float32)


def _turned(scan: np.ndarray, kind: str = "") -> np.ndarray:
    turned = ndimage.rotate(scan, 4, axes=(0, 1), reshape=False, order=3)
    return turned if not kind else np.clip(turned.round(), 0 if kind == "clipped" else None, None)


def _with_head(scan: np.ndarray, skull_mm: float, scalp_mm: float) -> np.ndarray:
    """A dark shell and a bright one around the brain."""
    padded = np.pad(scan, 12)
    depth_mm = ndimage.distance_transform_edt(padded == 0, sampling=(STEP,) * 3)
    median, bright = np.percentile(scan[scan > 0], (50, 95))
    random = np.random.default_rng(0)
    skull = abs(random.normal(0.15 * median, 0.05 * median, padded.shape))
    scalp = abs(random.normal(bright, 0.2 * bright, padded.shape))
    shells = [(depth_mm > 0) & (depth_mm <= skull_mm), (depth_mm > skull_mm) & (depth_mm <= skull_mm + scalp_mm)]
    return np.select(shells, [skull, scalp], padded).astype(np.float32)


def _half(scan: np.ndarray) -> np.ndarray:
    middle = int(np.argwhere(scan)[:, 0].mean())
    return np.where(np.arange(len(scan))[:, None, None] < middle, scan, 0)


BROKEN = {
    "as they are": _each(lambda scan: scan),
    "T1 as T1 and as T1ce": lambda scans: {"t1": scans["t1"], "t1ce": scans["t1"], "t2": scans["t2"]},
    "T1, three times as bright, as T1ce": lambda s: {"t1": s["t1"], "t1ce": 3 * s["t1"], "t2": s["t2"]},
    "T1 with noise of 1 % as T1ce": lambda s: {
        "t1": s["t1"],
        "t1ce": _noisy(s["t1"], everywhere=True) * (s["t1"] > 0),
        "t2": s["t2"],
    },
    "T2 as T1ce and as T2": lambda scans: {"t1": scans["t1"], "t1ce": scans["t2"], "t2": scans["t2"]},
    "background -1024": _each(lambda scan: np.where(scan == 0, -1024, scan)),
    "noise of 1 % in the background": _each(_noisy),
    "noise of 1 % everywhere": _each(lambda scan: _noisy(scan, everywhere=True)),
    "turned by cubic interpolation": _each(_turned),
    "the same, rounded": _each(lambda scan: _turned(scan, "rounded")),
    "the same, rounded and clipped at 0": _each(lambda scan: _turned(scan, "clipped")),
    "turned by linear interpolation (no fault)": _each(
        lambda scan: ndimage.rotate(scan, 4, axes=(0, 1), reshape=False, order=1)
    ),
    "z-scored, whole volume": _each(lambda scan: (scan - scan.mean()) / scan.std()),
    "z-scored, brain alone (no fault)": _each(
        lambda scan: np.where(scan == 0, 0, (scan - scan[scan > 0].mean()) / scan[scan > 0].std())
    ),
    "skull of 6 mm and scalp of 6 mm": _each(lambda scan: _with_head(scan, 6, 6)),
    "skull of 3 mm and scalp of 4 mm": _each(lambda scan: _with_head(scan, 3, 4)),
    "half a brain": _each(_half),
    "T2 negated": lambda s: {"t1": s["t1"], "t1ce": s["t1ce"], "t2": np.where(s["t2"] > 0, s["t2"].max() - s["t2"], 0)},
    "brightest half cut off": _each(lambda scan: np.minimum(scan, np.median(scan[scan > 0]))),
    "FLAIR as T2, no T1ce": lambda scans: {"t1": scans["t1"], "t2": scans["flair"]},
    "T1 and T2 swapped, no T1ce": lambda scans: {"t1": scans["t2"], "t2": scans["t1"]},
    "T1 and T2 as they are": lambda scans: {"t1": scans["t1"], "t2": scans["t2"]},
    "all four as they are": lambda scans: scans,
    "T2 alone as it is": lambda scans: {"t2": scans["t2"]},
    "T1 alone as T2": lambda scans: {"t2": scans["t1"]},
    "FLAIR alone as T2": lambda scans: {"t2": scans["flair"]},
}


if __name__ == "__main__":
    fire.Fire({"table": table, "dice": dice, "fit": fit})
