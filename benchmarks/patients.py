"""``python -m benchmarks.patients --root FOLDER``: does the package segment real patients as the reference does?

FOLDER holds patients as BraTS unpacks them. Not part of ``make bench``: it needs data, and a minute or two per patient.
"""

from pathlib import Path

import fire
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from tissnet_components.inference import CascadeInferer
from tissnet_components.inversion import InvertTogetherd
from tissnet_components.metrics import dice
from tissnet_components.scans.loading import LoadCased
from tissnet_components.scans.naming import find_cases

from benchmarks.inference import REFERENCE_WINDOWS, read


def patients(root: str, limit: int | None = None) -> None:
    """Print the Dice with the label, on the scans' grid, of reference and package, and of one with the other.

    Args:
        root: folder of the patients.
        limit: how many; by default all.
    """
    bundle = "tissnet_brats"
    parser = read(bundle)
    network, preprocessing = parser.get_parsed_content("network").eval(), parser.get_parsed_content("preprocessing")
    restore = InvertTogetherd("fine", preprocessing, "image")
    windows = SlidingWindowInferer(REFERENCE_WINDOWS[bundle], 1, overlap=0.5, mode="gaussian", cval=-1)
    inferers = {"reference": CascadeInferer(windows), "package": parser.get_parsed_content("inferer")}
    sources = parser.get_parsed_content("source_modalities")
    found = list(find_cases(Path(root), [*sources, "seg"]).items())[:limit]
    print("| patient | reference | package | difference | one with the other |\n|---|---|---|---|---|")
    differences = []
    for case, files in found:
        data = preprocessing({"case": case, "image": [str(files[name]) for name in sources]})
        label = LoadCased("label")({"case": case, "label": str(files["seg"])})["label"] > 0
        masks = {}
        for name, inferer in inferers.items():
            with torch.inference_mode():
                maps = inferer(data["image"].as_tensor()[None], network)
            masks[name] = restore({**data, "fine": MetaTensor(maps["fine"][0])})["fine"].as_tensor().clone() > 0.5
        reference, package = (dice(mask.float(), label.as_tensor().float()) for mask in masks.values())
        both = dice(*(mask.float() for mask in masks.values()))
        differences.append(package - reference)
        print(f"| {case} | {reference:.4f} | {package:.4f} | {package - reference:+.4f} | {both:.4f} |", flush=True)
    print(f"\nMean difference {sum(differences) / len(differences):+.4f} over {len(differences)} patients.")


if __name__ == "__main__":
    fire.Fire(patients)
