"""What the benchmarks of trained weights share: the configs of an evaluation, on the network's own grid."""

from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser


def evaluation(bundle: str, datalist: str, ckpt_dir: str, configs: Sequence[str], section: str) -> ConfigParser:
    """The configs, read and not yet parsed.

    Args:
        bundle: folder.
        datalist: of the patients.
        ckpt_dir: folder of the weights, and of the perceptor.
        configs: of the training, over train.json; names below the bundle's configs, or paths.
        section: of the datalist.
    """
    parser = ConfigParser()
    folder = Path(bundle, "configs")
    overlays = [Path(name) if Path(name).is_file() else folder / f"{name}.json" for name in configs]
    parser.read_config([str(file) for file in (folder / "train.json", *overlays, folder / "evaluate.json")])
    parser.update({"bundle_root": bundle, "datalist": datalist, "ckpt_dir": ckpt_dir, "section": section})
    parser.update({"precision": "auto", "validate::preprocessing": "@evaluated_preprocessing"})
    return parser
