"""Two hospitals for tests of federated training, each with a few simulated patients of its own, and a tiny network."""

from pathlib import Path

from cohort import TINY, write_case, write_datalist

SITES = ("here", "there")
SETTINGS = TINY | {
    "val_interval": 1,
    "batch_size": 1,
    "learning_rate": 0.01,
    "loss_weights::perceptibility": 0,
    "device": "$torch.device('cpu')",
}


def write_site(name: str, bundle: str, folder: Path, training: int = 1) -> dict[str, str]:
    """Write FOLDER/NAME with so many patients to train and one to validate; returns the site's own settings."""
    home, sources = folder / name, ["t2"] if bundle == "tissnet_vs" else ["t1", "t1ce", "t2"]
    seed = 10 * SITES.index(name)
    cases = [write_case(home / f"{name}_{number}", seed + number, (32, 32, 12)) for number in range(training + 1)]
    for case in cases:
        case["image"] = case["image"][-len(sources) :]
    write_datalist(home, training=cases[:-1], validation=cases[-1:], sources=sources)
    return {"dataset_dir": str(home), "ckpt_dir": str(home / "models"), "output_dir": str(home / "eval")}
