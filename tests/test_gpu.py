"""What needs a GPU: ``pytest -m gpu``, or ``make gpu-check``."""

import pytest
import torch
from monai.bundle import ConfigParser
from tissnet_components.inference import best_precision
from tissnet_components.inversion import sample_where_not_zero

from benchmarks.gpu_check import BUNDLES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def read(device: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "tissnet_brats" / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLES / "tissnet_brats"), "device": f"$torch.device('{device}')"})
    return parser


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_gpu_finds_what_a_cpu_finds(precision):
    image = torch.rand(1, 3, 64, 64, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = {}
    for device, chosen in (("cpu", "float32"), ("cuda", precision)):
        parser = read(device)
        parser["precision"] = chosen
        network, inferer = parser.get_parsed_content("network").eval(), parser.get_parsed_content("inferer")
        with torch.inference_mode():
            maps[device] = inferer(image.to(device), network)
    near = 1e-3 if precision == "float32" or best_precision(torch.device("cuda")) == "float32" else 0.1
    for name, values in maps["cpu"].items():
        assert (maps["cuda"][name].cpu() - values).abs().mean() < near, name


def test_sampling_where_it_is_not_zero_is_pytorchs_on_a_gpu_too():
    volume = torch.zeros(1, 2, 9, 9, 9, device="cuda")
    volume[:, :, 3:6, 2:7, 4:8] = 1
    theta, size = torch.eye(3, 4, device="cuda")[None], [1, 2, 17, 13, 15]
    settings = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
    sampled = torch.nn.functional.grid_sample(volume, torch.nn.functional.affine_grid(theta, size, True), **settings)
    torch.testing.assert_close(sample_where_not_zero(volume, (theta, size), **settings), sampled)
