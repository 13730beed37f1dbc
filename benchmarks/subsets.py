"""``python -m benchmarks.subsets``: the Dice and HD95 of trained weights in every subset of the contrasts.

What `studies/glioma_any_missing.json` evaluates subset by subset, in one process and on the network's own grid: each
patient is prepared once. Not part of ``make bench``: it needs data and weights.
"""

from collections.abc import Sequence
from itertools import combinations

import fire
import pandas as pd
import torch
from tissnet_components.largest_component import largest_components
from tissnet_components.metrics import MEANS, dice, predicted_dice, surface_distances_mm
from tissnet_components.regions import nested

from benchmarks.evaluation import evaluation


def subsets(
    datalist: str,
    ckpt_dir: str,
    configs: Sequence[str],
    out: str,
    section: str = "test",
    bundle: str = "bundles/tissnet_brats",
    only: Sequence[str] | None = None,
    maps: Sequence[str] = ("fine",),
    distances: bool = False,
    doubts: bool = False,
) -> None:
    """Write a row per patient, subset, region and map.

    Args:
        datalist: of the patients.
        ckpt_dir: folder of the weights, and of the perceptor.
        configs: of the training, over train.json; names below the bundle's configs, or paths.
        out: CSV file to write, patient by patient.
        section: of the datalist.
        only: subsets such as t1+t2; by default all.
        maps: among coarse, fine, refined, perceived, average and consensus; ``fine`` alone is the quickest.
        distances: HD95 of ``fine`` too, which takes about as long as the segmentation.
        doubts: of a cascade also what the warnings of a segmentation rest on, ``agreement`` (with ``refined``) and
            ``predicted_dice``, and ``perceived_agreement``.
    """
    parser = evaluation(bundle, datalist, ckpt_dir, configs, section)
    network = parser.get_parsed_content("evaluated_network").eval()
    inferer = parser.get_parsed_content("validate::inferer")
    components = parser["components"]
    regions, view = parser.get_parsed_content("regions"), getattr(network.network, "view", None)
    contrasts = [*parser.get_parsed_content("source_modalities"), parser["target_modality"]]
    spacing = tuple(parser.get_parsed_content("spacing_mm"))
    sizes = range(1 if view else len(contrasts), len(contrasts) + 1)
    wanted = [some for size in sizes for some in combinations(contrasts, size) if not only or "+".join(some) in only]
    rows = []
    for case in parser.get_parsed_content("validate::dataset"):
        image, label = case["image"].as_tensor()[None], case["label"].as_tensor()
        for present in wanted:
            if view:
                view.hidden = [name not in present for name in contrasts]
            with torch.inference_mode(), inferer.autocast(image.device):
                found = inferer.inferer(image, network.cascade if doubts or list(maps) != ["fine"] else network.network)
            found = found if isinstance(found, dict) else {"fine": found}
            found |= {name: sum(found[one] for one in MEANS[name]) / 2 for name in maps if name in MEANS}
            others = ("refined", "perceived") if doubts else ()
            shown = {name: largest_components(nested(found[name][0].float()), components) for name in (*maps, *others)}
            for name in maps:
                for part, (mask, true, region) in enumerate(zip(shown[name], label, regions, strict=True)):
                    row = {"case": case["case"], "present": "+".join(present), "map": name, "region": region}
                    row["dice"] = round(dice(mask, true), 4)
                    if distances and name == "fine":
                        row["hd95_mm"] = round(surface_distances_mm(mask, true, spacing)["hd95_mm"], 2)
                    if doubts:
                        row["agreement"] = round(dice(mask, shown["refined"][part]), 4)
                        row["perceived_agreement"] = round(dice(mask, shown["perceived"][part]), 4)
                        coarse, error = (found[one][0, part].float() for one in ("coarse", "error"))
                        row["predicted_dice"] = round(predicted_dice(coarse, error), 4)
                    rows.append(row)
        pd.DataFrame(rows).to_csv(out, index=False)
        print(case["case"], flush=True)


if __name__ == "__main__":
    fire.Fire(subsets)
