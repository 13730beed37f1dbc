"""Copies of the bundles with weights, for tests that package, export or serve them."""

import json
import shutil
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from tissnet_components.weights import compact, keep_recipe

BUNDLES = Path(__file__).parents[1] / "bundles"
NAMES = ("tissnet_brats", "tissnet_vs")
TINY = (2, 4, 4, 4, 4)


def read_config(bundle: Path, name: str = "inference") -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / f"{name}.json"))
    return parser


def random_weights(bundle: Path) -> None:
    """Write models/model.pt as the bundles ship it: random, but half of a random image is tumor."""
    torch.manual_seed(0)
    parser = read_config(bundle)
    network = parser.get_parsed_content("network_def").eval()
    head = network.segmentor.decoders["fine"].head
    with torch.no_grad():
        head.weight *= 500
        image = 2 * torch.rand(1, len(parser.get_parsed_content("source_modalities")), 32, 32, 8) - 1
        head.bias -= network(image).double().logit().median()
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), bundle / "models" / "plain.pt")
    compact(str(bundle / "models" / "plain.pt"), str(bundle / "models" / "model.pt"))
    (bundle / "models" / "plain.pt").unlink()


def any_subset_weights(bundle: Path, **recipe: object) -> None:
    """Write models/any_missing.pt, its perceptor and their recipes: random, for any subset of the contrasts."""
    train = json.loads((bundle / "configs" / "train.json").read_text())
    contrasts = [*train["source_modalities"], train["target_modality"]]
    for name in ("any_missing", "any_missing_perceptor"):
        keep_recipe(bundle / "models" / f"{name}.pt", {"source_modalities": contrasts, **recipe})
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", "inference_any_missing")])
    parser["bundle_root"] = str(bundle)
    torch.manual_seed(0)
    state = parser.get_parsed_content("network_def").state_dict()
    for branch in ("generator.decoders.coarse", "segmentor.decoders.fine"):  # so that something is found
        state[f"{branch}.head.bias"] += 4
    torch.save(state, bundle / "models" / "any_missing.pt")
    perceptor = parser.get_parsed_content("perceptor_def").state_dict()
    next(value for name, value in perceptor.items() if name.endswith("head.bias")).add_(4)
    torch.save(perceptor, bundle / "models" / "any_missing_perceptor.pt")


def bundle_with_weights(name: str, folder: Path) -> Path:
    """A copy of a bundle with its weights, or with random ones while it has none."""
    copy = shutil.copytree(BUNDLES / name, folder / name, ignore=shutil.ignore_patterns("eval", "*_last.pt"))
    if not (copy / "models" / "model.pt").is_file():
        random_weights(copy)
    return copy


def tiny_bundle(name: str, folder: Path) -> Path:
    """A copy whose network has two to four channels, and random weights."""
    copy = shutil.copytree(BUNDLES / name, folder / name, ignore=shutil.ignore_patterns("eval", "models"))
    for config in (copy / "configs" / "train.json", copy / "configs" / "inference.json"):
        content = json.loads(config.read_text()) | {"widths": list(TINY), "patch_size": [32, 32, 16]}
        content |= {"consensus": False, "components": 0}  # there is no perceptor, and noise has many parts
        config.write_text(json.dumps(content))
    random_weights(copy)
    return copy
