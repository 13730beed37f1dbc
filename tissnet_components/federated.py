"""Federated training across hospitals: a job for NVFLARE, in which MONAI's ``MonaiAlgo`` trains at each site.

NVFLARE copies this file into the job and runs it as a script at each site. See docs/guide/clusters.md.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject
from tissnet_components.errors import PackageMissing, UserError
from torch import nn

OUT = Path("jobs")


def federate(
    bundle: Path,
    site_config: str,
    rounds: int,
    sites: int = 2,
    config_file: str | Sequence[str] = "configs/train.json",
    weights: Path | None = None,
    out: Path = OUT,
) -> None:
    """Write OUT/BUNDLE, a job of federated averaging for NVFLARE's server or simulator.

    Example:
        python -m tissnet_components federate --bundle bundles/tissnet_vs --rounds 250 --site_config /srv/{site}.json

    In each round every site measures the mean network on its validation cases and trains it for one epoch. The mean is
    weighted by the sites' iterations. The server keeps it as FL_global_model.pt, and the one of the highest val_dice,
    averaged over the sites, as best_FL_global_model.pt.

    Args:
        bundle: folder of the bundle, the same at the server and at every site.
        site_config: a site's own config, with its `dataset_dir`; {site} stands for the site's name.
        rounds: number of rounds.
        sites: number of sites; a round waits for all.
        config_file: configs of the bundle that all share, as in `monai.bundle run`.
        weights: weights to start from, a file at the server; by default new ones.
        out: folder for the job.

    Raises:
        ImportError: NVFLARE is not installed.
        ValueError: a blank in a path, at which NVFLARE would part it.
    """
    folder, out = Path(bundle).resolve(), Path(out).resolve()
    configs = [config_file] if isinstance(config_file, str) else list(config_file)
    words = [str(folder), *configs, site_config]
    for word in words:
        if len(word.split()) != 1:
            raise UserError(f"{word!r} contains a blank, at which NVFLARE would part it; give a path without")
    try:
        from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    except ImportError as error:
        raise PackageMissing('federated training needs NVFLARE; pip install -e ".[federated]"') from error
    network = {"class_path": f"{__name__}.new_network", "args": {"bundle": words[0], "configs": configs}}
    start = weights and str(Path(weights).resolve())
    here = Path.cwd()
    os.chdir(Path(__file__).parent)  # NVFLARE expects a script at the same place, seen from here, as in the job
    try:
        FedAvgRecipe(
            name=folder.name,
            model=network,
            initial_ckpt=start,
            min_clients=sites,
            num_rounds=rounds,
            train_script=Path(__file__).name,
            train_args=" ".join(words),
            key_metric="val_dice",
        ).export(str(out))
    finally:
        os.chdir(here)


def new_network(bundle: str, configs: Sequence[str]) -> nn.Module:
    """The network of a bundle's configs, with the weights of its seed, for the server to begin with."""
    parser = ConfigParser()
    parser.read_config([str(Path(bundle) / name) for name in configs])
    torch.manual_seed(parser["seed"])
    return parser.get_parsed_content("network_def")


def train_at_site(bundle: str, *configs: str) -> None:
    """Train in every round that the server starts, with the site's data.

    Three things go to the server: the network's weights (batch norm's statistics among them), the mean Dice of the
    validation and the number of iterations.
    """
    import nvflare.client as flare

    flare.init()
    site = flare.get_site_name()
    files = [name.replace("{site}", site) for name in configs]
    algorithm = MonaiAlgo(
        bundle,
        send_weight_diff=False,
        config_train_filename=files,
        config_evaluate_filename=files,
        eval_kwargs={"model_name": "federated"},
    )
    algorithm.initialize({ExtraItems.CLIENT_NAME: site})
    if (
        algorithm.trainer and algorithm.trainer.state.epoch
    ):  # then MONAI's one epoch is done, and each round would train nothing
        raise UserError(f"{site} resumes an earlier training; give an empty ckpt_dir in {files[-1]}")
    while flare.is_running():
        shared = ExchangeObject(weights=flare.receive().params)
        dice = float(algorithm.evaluate(shared).metrics["val_dice"])
        algorithm.train(shared)
        trained = algorithm.get_weights()
        steps = trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]
        meta = {"NUM_STEPS_CURRENT_ROUND": steps}
        flare.send(flare.FLModel(params=trained.weights, metrics={"val_dice": dice}, meta=meta))
    algorithm.finalize()


if __name__ == "__main__":
    train_at_site(*sys.argv[1:])
