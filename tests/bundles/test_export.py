"""TorchScript, ONNX and MONAI Deploy give what PyTorch gives, on real patches where there are some."""

import hashlib
import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import NAMES, TINY, read_config, tiny_bundle
from conftest import REAL_GLIOMAS
from monai.networks.utils import convert_to_onnx
from tissnet_components.transforms import NormalizeBrain
from tissnet_components.weights import engine_path
from torch import nn
from torch.torch_version import TorchVersion

REAL_SCHWANNOMA = REAL_GLIOMAS.parent / "vs_real_crops" / "vs_gk_98_t2.nii.gz"
SIZES = ((64, 48, 16), (40, 56, 11))  # the second is no multiple of what the pooling needs


@pytest.fixture(scope="module", params=NAMES)
def bundle(request, tmp_path_factory) -> Path:
    return tiny_bundle(request.param, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def glioma_bundle(tmp_path_factory) -> Path:
    return tiny_bundle("tissnet_brats", tmp_path_factory.mktemp("export"))


def eager(bundle: Path) -> nn.Module:
    parser = read_config(bundle)
    return monai.bundle.load(
        bundle.name, model=parser.get_parsed_content("network_def"), bundle_dir=str(bundle.parent)
    ).eval()


def volume(bundle: Path) -> torch.Tensor:
    """A prepared image, (C, X, Y, Z) in [-1, 1]: a real one where there is one, else noise."""
    if bundle.name == "tissnet_vs" and REAL_SCHWANNOMA.is_file():
        return torch.from_numpy(nib.load(REAL_SCHWANNOMA).get_fdata(dtype=np.float32))[None]
    if bundle.name == "tissnet_brats" and REAL_GLIOMAS.is_dir():
        patient = sorted(REAL_GLIOMAS.iterdir())[0]
        files = [
            patient / f"{patient.name}_{name}.nii.gz"
            for name in read_config(bundle).get_parsed_content("source_modalities")
        ]
        return NormalizeBrain()(
            torch.from_numpy(np.stack([nib.load(file).get_fdata(dtype=np.float32) for file in files]))
        )
    return 2 * torch.rand(len(read_config(bundle).get_parsed_content("source_modalities")), 128, 128, 30) - 1


def patches(bundle: Path) -> list[torch.Tensor]:
    """One patch of each size from the middle."""
    image = volume(bundle)
    starts = [[(full - part) // 2 for full, part in zip(image.shape[1:], size, strict=True)] for size in SIZES]
    return [
        image[None, :, x : x + size[0], y : y + size[1], z : z + size[2]]
        for (x, y, z), size in zip(starts, SIZES, strict=True)
    ]


def export(bundle: Path, kind: str, **options: object) -> Path:
    """`python -m monai.bundle KIND`, in this process."""
    file = bundle / "models" / {"ckpt_export": "model.ts", "onnx_export": "model.onnx"}[kind]
    configs = bundle / "configs"
    getattr(monai.bundle, kind)(
        "network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        **options,
    )
    return file


def agree(found: np.ndarray | torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-3, and not because both are constant."""
    assert expected.std() > 0.02
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_torchscript_gives_every_map_and_carries_metadata_and_config(bundle):
    export(bundle, "ckpt_export")
    module, metadata, files = monai.bundle.load(
        bundle.name, load_ts_module=True, bundle_dir=str(bundle.parent), config_files=("inference.json",), device="cpu"
    )
    described = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] == described["version"]
    assert metadata["network_data_format"] == described["network_data_format"]
    assert json.loads(files["inference.json"])["widths"] == list(TINY)
    network = eager(bundle)
    for patch in patches(bundle):
        agree(module(patch), network(patch))
        found, expected = module.cascade(patch), network.cascade(patch)
        assert set(found) == set(expected) == {"synthetic", "coarse", "fine", "error", "refined"}
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-3)


@pytest.mark.skipif(torch.__version__ < TorchVersion("2.9"), reason="exports by scripting, which knows no dict")
@torch.no_grad()
def test_onnx_takes_any_size(glioma_bundle):
    """Of the glioma bundle, whose network differs from the other in its number of channels alone."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    axes = {2: "x", 3: "y", 4: "z"}
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes, "pred": axes}}
    file = export(glioma_bundle, "onnx_export", input_shape=[1, 3, 32, 48, 8], converter_kwargs=names)
    session = onnxruntime.InferenceSession(str(file))
    network = eager(glioma_bundle)
    for patch in patches(glioma_bundle):
        agree(session.run(None, {"image": patch.numpy()})[0], network(patch))


def test_tensorrt_gets_each_half_of_the_cascade_with_its_maps_by_name(bundle, monkeypatch):
    parser = monai.bundle.ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", "inference_trt")])
    calls = []

    def note(model: nn.Module, base_path: str, args: dict, submodule: str) -> nn.Module:
        calls.append((submodule, args["output_names"], list(getattr(model, submodule).decoders), base_path))
        return model

    monkeypatch.setattr("monai.networks.trt_compile", note)
    parser.update({"bundle_root": str(bundle), "device": torch.device("cpu")})
    network = parser.get_parsed_content("network")
    engine = engine_path(bundle / "models" / "model.pt", "fp16", parser.get_parsed_content("window_size"))
    assert calls == [
        ("generator", ["synthetic", "coarse"], ["synthetic", "coarse"], engine),
        ("segmentor", ["fine", "error"], ["fine", "error"], engine),
    ]
    assert isinstance(network, nn.Module)


@torch.no_grad()
def test_tensorrt_gets_a_graph_of_float32_and_one_window_even_of_a_small_patient(glioma_bundle, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    parser = monai.bundle.ConfigParser()
    parser.read_config([str(glioma_bundle / "configs" / f"{name}.json") for name in ("inference", "inference_trt")])
    network, graphs, windows = parser.get_parsed_content("network_def").eval(), [], []
    run = network.generator.forward

    def export_and_run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        windows.append(tuple(image.shape))
        network.generator.forward = run
        graphs.append(convert_to_onnx(network.generator, [image], filename=str(tmp_path / "generator.onnx")))
        network.generator.forward = export_and_run
        return run(image)

    network.generator.forward = export_and_run
    parser.get_parsed_content("inferer")(torch.rand(1, 3, 20, 30, 8), network)
    assert windows == [(1, 3, *parser.get_parsed_content("window_size"))]
    stored = {tensor.data_type for tensor in graphs[0].graph.initializer}
    shaped = {value.type.tensor_type.elem_type for value in (*graphs[0].graph.input, *graphs[0].graph.value_info)}
    halves = {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.FLOAT in stored and not (stored | shaped) & halves


def test_an_engines_name_holds_what_it_depends_on(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    begin = hashlib.sha256(b"weights").hexdigest()[:8]
    engine = engine_path(tmp_path / "model.pt", "fp32", (64, 64, 56))
    assert engine == str(tmp_path / f"model.fp32.64x64x56.{begin}")


class FromMemory:
    """The operator's input: one image with its channels last, as MONAI Deploy hands it over."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    def receive(self, name: str) -> np.ndarray:
        assert name == "image"
        return self.image


class ToMemory:
    """The operator's output."""

    def get(self, name: str) -> None:
        return None

    def emit(self, value: np.ndarray, name: str) -> None:
        self.emitted = {name: value}


def test_monai_deploys_operator_reads_the_folder(bundle):
    operators = pytest.importorskip(
        "monai.deploy.operators.monai_bundle_inference_operator", reason="needs the extra [deploy]: make deploy-test"
    )
    from monai.deploy.core import AppContext, Fragment, IOType

    channels = read_config(bundle).get_parsed_content("source_channels")
    image = np.random.default_rng(0).uniform(1, 100, (40, 36, 12, channels))
    operator = operators.MonaiBundleInferenceOperator(
        Fragment(),
        app_context=AppContext({}),
        input_mapping=[operators.IOMapping("image", np.ndarray, IOType.IN_MEMORY)],
        output_mapping=[operators.IOMapping("pred", np.ndarray, IOType.IN_MEMORY)],
        bundle_config_names=operators.BundleConfigNames(config_names=["inference", "deploy"]),
        bundle_path=bundle,
    )
    output = ToMemory()
    operator.compute(FromMemory(image.astype(np.float32)), output, None)
    mask = output.emitted["pred"]
    assert mask.shape == (1, 40, 36, 12)
    assert 0.01 < mask.mean() < 0.99
    assert set(np.unique(mask)) == {0, 1}
