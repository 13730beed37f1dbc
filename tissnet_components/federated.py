"""Federated training across hospitals with NVFLARE: the job for its server, and the script that it runs at each site.

MONAI's ``MonaiAlgo`` trains and validates; NVFLARE sends, receives and averages. See docs/clusters.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject
from torch import nn

TRAINING = ("configs/train.json",)


def federated_job(
    bundle: str, site_config: str, sites: int, rounds: int, configs: Sequence[str] = TRAINING, weights: str | None = None
) -> Any:
    """NVFLARE's recipe of federated averaging; ``execute`` it in an environment of NVFLARE, or ``export`` it.

    In each round every site measures the mean network on its validation cases and trains it for one epoch. The mean is
    weighted by the sites' iterations. The server keeps it as ``FL_global_model.pt``, and the one of the best mean
    ``val_dice`` as ``best_FL_global_model.pt``.

    Args:
        bundle: folder of the bundle, the same at the server and at every site.
        site_config: a site's own overlay, such as its ``dataset_dir``; ``{site}`` stands for the site's name.
        sites: how many take part; a round waits for all.
        rounds: how many epochs each site trains.
        configs: configs that all share, in the bundle.
        weights: file of weights at the server to start from; by default new ones.

    Raises:
        ImportError: NVFLARE is not installed.
        ValueError: a path contains a blank, at which NVFLARE would part it.
    """
    try:
        from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    except ImportError as error:
        raise ImportError('federated training needs NVFLARE; pip install -e ".[federated]"') from error
    words = [str(Path(bundle).resolve()), *configs, site_config]
    parted = [word for word in words if len(word.split()) != 1]
    if parted:
        raise ValueError(f"{parted[0]!r} contains a blank, at which NVFLARE parts it; move it to a path without")
    return FedAvgRecipe(
        name=Path(words[0]).name,
        model={"class_path": f"{__name__}.new_network", "args": {"bundle": words[0], "configs": list(configs)}},
        initial_ckpt=weights and str(Path(weights).resolve()),
        min_clients=sites,
        num_rounds=rounds,
        train_script=__file__,
        train_args=" ".join(words),
        key_metric="val_dice",
    )


def new_network(bundle: str, configs: Sequence[str]) -> nn.Module:
    """The network of a bundle's configs with the weights of its seed, for the server to begin with."""
    parser = ConfigParser()
    parser.read_config([str(Path(bundle) / name) for name in configs])
    torch.manual_seed(parser["seed"])
    return parser.get_parsed_content("network_def")


def train_at_site(bundle: str, *configs: str) -> None:
    """Train in every round that the server starts, with the site's data.

    To the server go the network's weights (batch norm's statistics among them), the validation's mean Dice and the
    number of iterations.
    """
    import nvflare.client as flare

    flare.init()
    site = flare.get_site_name()
    algorithm = MonaiAlgo(
        bundle,
        send_weight_diff=False,
        config_train_filename=[name.replace("{site}", site) for name in configs],
        config_evaluate_filename=[name.replace("{site}", site) for name in configs],
        eval_kwargs={"model_name": "federated"},
    )
    algorithm.initialize({ExtraItems.CLIENT_NAME: site})
    while flare.is_running():
        shared = ExchangeObject(weights=flare.receive().params)
        dice = float(algorithm.evaluate(shared).metrics["val_dice"])
        algorithm.train(shared)
        trained = algorithm.get_weights()
        meta = {"NUM_STEPS_CURRENT_ROUND": trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]}
        flare.send(flare.FLModel(params=trained.weights, metrics={"val_dice": dice}, meta=meta))
    algorithm.finalize()


if __name__ == "__main__":
    train_at_site(*sys.argv[1:])
