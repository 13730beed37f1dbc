"""``python -m benchmarks.similarity``: how like the real image the synthetic one is, to SSIM and to a network's eyes.

SSIM forgives a flat image. So each patient also gets a distance of features, and what it is for two images that are
easily understood: each source, and the real image, blurred until SSIM thinks as little of it as of the synthetic one.
Not part of ``make bench``: it needs data and weights.
"""

from collections.abc import Sequence
from itertools import pairwise

import fire
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from tissnet_components.metrics import box_around, ssim
from tissnet_components.unet25d import UNet25D, pad_far_ends
from torch.nn import functional as F

from benchmarks.evaluation import evaluation

BLURS = 0.2, 0.5, 1.0, 2.0, 4.0, 8.0  # standard deviations in voxels


def similarity(
    datalist: str,
    ckpt_dir: str,
    out: str,
    configs: Sequence[str] = ("recipe",),
    section: str = "test",
    bundle: str = "bundles/tissnet_brats",
) -> None:
    """Write a row per patient and image: SSIM and `feature_distance` to the real one, in the box of the real brain.

    Args:
        datalist: of the patients; those without the real image are left out.
        ckpt_dir: folder of the weights, and of the perceptor, whose encoder makes the features.
        out: CSV file to write, patient by patient.
        configs: of the training, over train.json; names below the bundle's configs, or paths.
        section: of the datalist.
    """
    parser = evaluation(bundle, datalist, ckpt_dir, configs, section)
    parser["validate::data::needs"] = ["image", "target"]
    network = parser.get_parsed_content("evaluated_network").eval()
    inferer = parser.get_parsed_content("validate::inferer")
    rows = []
    for case in parser.get_parsed_content("validate::dataset"):
        image, target = case["image"].as_tensor(), case["target"].as_tensor()
        with torch.inference_mode():
            found = inferer.inferer(image[None], network.network.cascade)["synthetic"][0].float()
            images = {"synthetic": found, **dict(zip(parser["source_modalities"], image.split(1), strict=True))}
            box = box_around(target[0] > -1)
            images = {name: shown[0][box] for name, shown in images.items()}
            real = target[0][box]
            images["blurred"] = blurred_to(real, ssim(images["synthetic"], real))
            for name, shown in images.items():
                distance = feature_distance(network.perceptor.network, shown, real)
                rows.append({"case": case["case"], "image": name, "ssim": ssim(shown, real), "distance": distance})
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.4f")
        print(case["case"], flush=True)


def blurred_to(real: torch.Tensor, wanted: float) -> torch.Tensor:
    """The image (X, Y, Z), blurred until its SSIM with what it was is `wanted`, or as near as `BLURS` reach."""

    def blurred(voxels: float) -> torch.Tensor:
        return torch.as_tensor(gaussian_filter(real.numpy(), voxels))

    def missing(voxels: float) -> float:
        return ssim(blurred(voxels), real) - wanted

    for little, much in pairwise(BLURS):
        if missing(much) < 0:
            return blurred(brentq(missing, little, much, xtol=0.02) if missing(little) > 0 else little)
    return blurred(BLURS[-1])


def feature_distance(network: UNet25D, one: torch.Tensor, other: torch.Tensor) -> float:
    """LPIPS without its learned weights (Zhang 2018, Eq. 1): squared difference of features of unit length.

    The mean over voxels and then over the encoder's levels: 0 for equal images, 2 for features at right angles.

    Shapes:
        one, other: (X, Y, Z) in [-1, 1].
    """
    images = (pad_far_ends(image[None, None], network.stride) for image in (one, other))
    levels = zip(*map(network.encoder, images), strict=True)
    return float(torch.stack([(2 - 2 * F.cosine_similarity(*pair, dim=1)).mean() for pair in levels]).mean())


if __name__ == "__main__":
    fire.Fire(similarity)
