"""A brain of 240 x 240 x 155 mm through the glioma bundle's network, and a box of 256 x 128 x 40 through the other's.

Timed from the prepared image (the bundle's spacing, [-1, 1]) to every map. The reference slides its windows over the
whole field of view, with half overlap; the variants go from there to the package, one change after the other.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import CropForeground
from tissnet_components.inference import CascadeInferer

from benchmarks.measure import compare, show
from benchmarks.reference import plain
from benchmarks.scans import BRAIN_MM, radius

BUNDLES = Path(__file__).parents[1] / "bundles"
REFERENCE_WINDOWS = {"tissnet_brats": (96, 96, 48), "tissnet_vs": (64, 64, 16)}
VARIANTS = ["reference", "within the brain", "channels last", "the package's windows", "best precision (package)"]


def brain(spacing_mm: float, channels: int) -> torch.Tensor:
    """Noise in a brain's shape, background around it: (1, C, X, Y, Z)."""
    inside = torch.from_numpy(radius(BRAIN_MM, 1 / spacing_mm) < 1)
    noise = torch.rand(channels, *inside.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.where(inside, noise, torch.tensor(-1.0))[None]


def read(bundle: str, **settings: object) -> ConfigParser:
    """The bundle's inference, on the CPU."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLES / bundle), "device": "$torch.device('cpu')", **settings})
    parser["inferer::inferer::progress"] = False
    return parser


def build(variant: str, bundle: str = "tissnet_brats", shape: tuple[int, ...] | None = None) -> Callable[[], dict]:
    """Every map of one image; of noise of the given shape, or of a brain."""
    step, parser = VARIANTS.index(variant), read(bundle)
    channels, spacing_mm = (parser.get_parsed_content(name) for name in ("source_channels", "spacing_mm"))
    image = torch.rand(1, channels, *shape) * 2 - 1 if shape else brain(spacing_mm[0], channels)
    network = parser.get_parsed_content("network").eval()
    network = plain(network).eval() if step < 2 else network
    if step >= 1 and not shape:
        image = CropForeground(select_fn=lambda image: image > -1, allow_smaller=True)(image[0])[None].as_tensor()
    windows = SlidingWindowInferer(REFERENCE_WINDOWS[bundle], 1, overlap=0.5, mode="gaussian", cval=-1)
    own = parser.get_parsed_content("inferer")
    inferer = own if step == 4 else CascadeInferer(own.inferer if step == 3 else windows)
    counted = Counted(network)

    def infer() -> dict:
        counted.windows = 0
        with torch.inference_mode():
            inferer(image, counted)
        return {"windows": counted.windows, "window": counted.shape}

    return infer


class Counted(torch.nn.Module):
    """A network that counts its windows and remembers their shape."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.windows, self.shape = network, 0, ()

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        self.windows, self.shape = self.windows + 1, tuple(image.shape[2:])
        return self.network.cascade(image)


build_box = partial(build, bundle="tissnet_vs", shape=(256, 128, 40))


def run(repeats: int = 1) -> dict:
    """The brain, whose reference takes a minute or more."""
    return compare(build, VARIANTS, repeats)


def run_box(repeats: int = 1) -> dict:
    """The box, which holds tissue everywhere."""
    return compare(build_box, [VARIANTS[0], VARIANTS[-1]], repeats)


if __name__ == "__main__":
    show({"brain": run(), "box": run_box()})
