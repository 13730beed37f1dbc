"""Tiny networks and one seeded patch for the tests of networks, losses and training."""

from pathlib import Path

import pytest
import torch
from tissnet_components.cascade import TissNet
from tissnet_components.losses import Batch
from tissnet_components.patchgan import PatchGAN
from tissnet_components.unet25d import DualBranchUNet25D, UNet25D
from torch import nn

WIDTHS = [2, 4, 4, 4, 4]
REAL_GLIOMAS = Path(__file__).parents[2] / "shared" / "data" / "glioma_brats18_tcia"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def sample() -> Batch:
    """A batch of two patches, 32 x 32 x 8, each with a tumor that is bright in the target."""
    label = torch.zeros(2, 1, 32, 32, 8)
    label[0, 0, 4:14, 6:18, 1:5] = 1
    label[1, 0, 16:26, 8:20, 3:7] = 1
    source = (0.3 * torch.randn(2, 3, 32, 32, 8) + 0.3 * label).clamp(-1, 1)
    target = (1.2 * label + source.mean(1, keepdim=True) - 0.6).clamp(-1, 1)
    return Batch(source, target, label)


@pytest.fixture
def network() -> TissNet:
    generator = DualBranchUNet25D(3, WIDTHS, {"synthetic": "tanh", "coarse": "sigmoid"})
    segmentor = DualBranchUNet25D(5, WIDTHS, {"fine": "sigmoid", "error": "sigmoid"})
    return TissNet(generator, segmentor)


@pytest.fixture
def perceptor() -> UNet25D:
    return UNet25D(1, WIDTHS)


@pytest.fixture
def discriminators() -> nn.ModuleDict:
    return nn.ModuleDict({"global": PatchGAN(4, channels=2), "tumor": PatchGAN(4, channels=2)})


@pytest.fixture
def real_gliomas() -> Path:
    """The folder of the twelve real patients; the test is skipped where it is not."""
    if not REAL_GLIOMAS.is_dir():
        pytest.skip(f"no real patients at {REAL_GLIOMAS}")
    return REAL_GLIOMAS
