"""Export of a model to a file that runs without this package: ONNX, OpenVINO, TorchScript, ExportedProgram."""
import copy
import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.export import ExportedProgram
from torchvision.transforms.v2 import functional as TF

from .. import __version__
from ..device import PRECISIONS
from ..files import atomic_path
from ..inference import ImageLike, class_info, load_image
from ..models import BSSNet, deploy
from ..models.deploy import UpsampleConvReLU, UpsampleHead
from ..models.weights import ASSETS

__all__ = ["FORMATS", "ExportReport", "ExportedModel", "export_model"]

Run = Callable[[torch.Tensor], torch.Tensor]

# largest difference of the logits, as a share of the largest, and least share of pixels with the same class
TOLERANCES = {"float32": (1e-3, 0.999), "float16": (0.05, 0.98), "bfloat16": (0.2, 0.95), "int8": (1., 0.9)}


class ExportReport(NamedTuple):
    """What `export_model` wrote, and how it compares with the deployed float32 model on the check image.

    ``max_difference`` of the logits is a share of the largest one (None for a file that ends in labels);
    ``same_class`` is the share of the pixels with the same class.
    """

    path: Path
    max_difference: float | None
    same_class: float

    def __str__(self) -> str:
        difference = "" if self.max_difference is None else (
            f"largest difference of the logits {self.max_difference:.1e} of the largest, ")
        return f"{self.path}: {difference}same class at {100 * self.same_class:.3f} % of the pixels"


class ResizeConvReLU(nn.Module):
    """`UpsampleConvReLU` as it says, at any size: ONNX Runtime and OpenVINO do this faster than the interleaving."""

    def __init__(self, upsample: UpsampleConvReLU):
        super().__init__()
        self.conv = upsample.conv

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return F.relu(self.conv(F.interpolate(x, size=[height, width], mode="nearest")))


class ResizeHead(nn.Module):
    """`UpsampleHead` as it says: x2 resize, convolution, classifier."""

    def __init__(self, head: UpsampleHead):
        super().__init__()
        self.conv = ResizeConvReLU(head.conv)
        self.classifier = nn.Conv2d(head.classifier.in_features, head.classifier.out_features, 1)
        self.classifier.weight.data = head.classifier.weight.data[:, :, None, None]
        self.classifier.bias.data = head.classifier.bias.data

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.classifier(self.conv(x, 2 * x.shape[2], 2 * x.shape[3]))


def without_phases(module: nn.Module) -> nn.Module:
    """Puts the plain resizes back into a deployed model."""
    for name, child in module.named_children():
        if isinstance(child, UpsampleHead):
            setattr(module, name, ResizeHead(child))
        elif isinstance(child, UpsampleConvReLU):
            setattr(module, name, ResizeConvReLU(child))
        else:
            without_phases(child)
    return module


class ExportedGraph(nn.Module):
    """What the file computes: a deployed model with what comes before and after it.

    Args:
        model: A deployed `BSSNet`.
        labels: End in class ids, uint8 (N, H, W), instead of float32 logits (N, num_classes, H, W).
        normalize: Take RGB images as a decoder gives them, uint8 (N, H, W, 3), instead of normalised float32 ones
            (N, in_chans, H, W).
        raw: End at the model's own stride, without the resize to the images' size.
    """

    def __init__(self, model: BSSNet, labels: bool, normalize: bool, raw: bool):
        super().__init__()
        self.model, self.labels, self.normalize, self.raw = model, labels, normalize, raw
        cfg = model.pretrained_cfg
        for key, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(key, torch.tensor(cfg.get(key) or default), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2], images.shape[-1]
        if self.normalize:
            height, width = images.shape[1], images.shape[2]
            images = ((images.float() - 255 * self.mean) / (255 * self.std)).permute(0, 3, 1, 2)
        images = images.to(self.model.stem[0].conv.weight.dtype)
        logits = self.model.forward_head(self.model.forward_features(images)).float()
        if not self.raw:
            logits = F.interpolate(logits, size=[height, width], mode="bilinear", align_corners=True)
        return logits.argmax(1).to(torch.uint8) if self.labels else logits



def export_program(graph: ExportedGraph, size: Sequence[int] | None, batch: bool = False) -> ExportedProgram:
    """Torch's graph for images of one size, or of any; with ``batch`` for any number of them too.

    From a smaller example than this one torch would conclude that pooled maps of `PAPPM` are always one pixel.
    """
    height, width = size or (640, 576)
    images = torch.zeros(2 if batch else 1, graph.model.in_chans, height, width)
    axes = [0, 2, 3]
    if graph.normalize:
        images, axes = images.permute(0, 2, 3, 1).byte(), [0, 1, 2]
    shapes = None if size else {"images": dict.fromkeys(axes if batch else axes[1:], torch.export.Dim.AUTO)}
    program = torch.export.export(without_phases(graph), (images,), dynamic_shapes=shapes)
    # torch's own lerp computes two formulas and picks one for each pixel
    return program.run_decompositions({torch.ops.aten.lerp.Tensor: lambda x, y, weight: x + weight * (y - x)})


def convert_onnx(graph: ExportedGraph, size: Sequence[int] | None):
    """An ``onnx.ModelProto``."""
    program = torch.onnx.export(
        export_program(graph, size, batch=size is None), dynamo=True, opset_version=18, external_data=False,
        verbose=False, input_names=["images"], output_names=["labels" if graph.labels else "logits"])
    return program.model_proto


def convert_openvino(graph: ExportedGraph, size: Sequence[int] | None):
    """An ``openvino.Model``."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(convert_onnx(graph, size).SerializeToString())
        return openvino.convert_model(path)


def convert_torchscript(graph: ExportedGraph, size: Sequence[int] | None) -> torch.jit.ScriptModule:
    return torch.jit.script(graph)


def write_onnx(model, path: Path, metadata: dict[str, str]) -> None:
    import onnx

    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def write_openvino(model, path: Path, metadata: dict[str, str]) -> None:
    import openvino

    for key, value in metadata.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, path, compress_to_fp16=metadata["precision"] == "float16")


def write_torchscript(model: torch.jit.ScriptModule, path: Path, metadata: dict[str, str]) -> None:
    model.save(str(path), _extra_files={"metadata.json": json.dumps(metadata)})


def write_program(model: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    torch.export.save(model, path, extra_files={"metadata.json": json.dumps(metadata)})


def open_onnx(path: Path, threads: int | None, precision: str) -> tuple[Run, dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), metadata


def open_openvino(path: Path, threads: int | None, precision: str) -> tuple[Run, dict[str, str]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    metadata = model.get_rt_info("model_info").value if model.has_rt_info("model_info") else {}
    config = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", config)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0]), metadata


def open_torchscript(path: Path, threads: int | None, precision: str) -> tuple[Run, dict[str, str]]:
    files = {"metadata.json": ""}
    module = torch.jit.load(path, _extra_files=files)
    return module, json.loads(files["metadata.json"] or "{}")


def open_program(path: Path, threads: int | None, precision: str) -> tuple[Run, dict[str, str]]:
    files = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=files)
    return program.module(), json.loads(files["metadata.json"] or "{}")


class Format(NamedTuple):
    """How a format is made, written and opened again, and what it can hold."""

    suffix: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    convert: Callable
    write: Callable
    open: Callable


FORMATS = {
    "onnx": Format(".onnx", ("float32", "float16", "int8"), ("onnx", "onnxscript", "onnxruntime"),
                   convert_onnx, write_onnx, open_onnx),
    "openvino": Format(".xml", ("float32", "float16", "int8"), ("onnx", "onnxscript", "openvino"),
                       convert_openvino, write_openvino, open_openvino),
    "torchscript": Format(".pt", ("float32", "float16", "bfloat16"), (),
                          convert_torchscript, write_torchscript, open_torchscript),
    "exported-program": Format(".pt2", ("float32", "float16", "bfloat16"), (),
                               export_program, write_program, open_program),
}


def require(packages: Sequence[str], what: str) -> None:
    """RuntimeError that names the extra if one of the packages can't be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise RuntimeError(f"{what} needs {package}, which can't be imported ({error}): "
                               "pip install 'bssnet_zoo[export]'") from error


class ExportedModel(nn.Module):
    """An exported file, run on the CPU by the library that it is for.

    ``forward`` takes what the model took, normalised float32 images (N, C, H, W), so that `evaluate` can measure it;
    ``run`` takes what the file takes. Both give what the file gives, as a tensor.

    Args:
        path: File of `export_model`.
        threads: Threads of ONNX Runtime or OpenVINO, None for what they choose; the torch formats run in torch's own.
        precision: What OpenVINO computes with: float32 or bfloat16.

    Raises:
        ValueError: Not a file of `export_model`.
        RuntimeError: A missing package.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None, precision: str = "float32"):
        super().__init__()
        path = Path(path)
        formats = {format.suffix: format for format in FORMATS.values()}
        if path.suffix not in formats:
            raise ValueError(f"{path} is no exported file: its name must end in {', '.join(formats)}")
        require(formats[path.suffix].packages, f"running {path.name}")
        self.run, self.metadata = formats[path.suffix].open(path, threads, precision)
        if "class_names" not in self.metadata:
            raise ValueError(f"{path} was not made by 'bssnet-zoo export': it does not say what its classes are")
        self.num_classes = len(json.loads(self.metadata["class_names"]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.run(file_input(images, self.metadata))


def file_input(images: torch.Tensor, metadata: dict[str, str]) -> torch.Tensor:
    """What a file with that metadata takes, from normalised images."""
    if metadata["normalize"] == "true":
        mean, std = (torch.tensor(json.loads(metadata[key])).reshape(-1, 1, 1) for key in ("mean", "std"))
        images = (255 * (images * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return images.contiguous()


def read_image(image: ImageLike, size: Sequence[int] | None, metadata: dict[str, str]) -> torch.Tensor:
    """An image as the model takes it, normalised (1, C, H, W), in 8 bits before that."""
    mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
    rgb = load_image(image)
    rgb = rgb if size is None else TF.resize(rgb, list(size), antialias=True)
    rgb = (255 * rgb).round().clamp(0, 255) / 255
    return TF.normalize(rgb[[i % 3 for i in range(len(mean))]], mean, std)[None]


@torch.inference_mode()
def compare(exported: ExportedModel, model: BSSNet, images: torch.Tensor) -> tuple[float | None, float]:
    """Largest difference of the logits (None for labels) and share of pixels with the same class."""
    raw = exported.metadata["raw"] == "true"
    expected = model.forward_head(model.forward_features(images)) if raw else model(images)
    result = exported(images)
    if exported.metadata["labels"] == "true":
        return None, (result == expected.argmax(1)).float().mean().item()
    difference = (result - expected).abs().max() / expected.abs().max()
    return difference.item(), (result.argmax(1) == expected.argmax(1)).float().mean().item()


def describe(graph: ExportedGraph, size: Sequence[int] | None, precision: str) -> dict[str, str]:
    """What a user of the file must know, as text: what isn't text is JSON."""
    cfg, classes = graph.model.pretrained_cfg, class_info(graph.model)
    values = dict(
        model=".".join(filter(None, (cfg.get("architecture"), cfg.get("tag")))) or "bssnet", class_names=classes.names,
        palette=classes.hex_palette, mean=graph.mean.tolist(), std=graph.std.tolist(), size=size and list(size),
        precision=precision, labels=graph.labels, normalize=graph.normalize, raw=graph.raw, bssnet_zoo=__version__)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def export_model(
        model: BSSNet,
        path: str | os.PathLike,
        format: str = "onnx",
        size: Sequence[int] | None = None,
        precision: str = "float32",
        labels: bool = False,
        normalize: bool = False,
        raw: bool = False,
        calibration: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        check_image: ImageLike = ASSETS / "street.png",
) -> ExportReport:
    """Writes a model as one file (for OpenVINO two, .xml and .bin) that runs without this package.

    The file is compared with the deployed float32 model before it gets its name: it is there and right, or not there.

    Args:
        model: A `BSSNet`, deployed or not; it is left as it is.
        path: File to write.
        format: A name of ``FORMATS``.
        size: Height and width of the images, for batches of 1; None for any.
        precision: One of the format's.
        labels: End in class ids, uint8 (N, H, W), instead of logits (N, num_classes, H, W), float32 in any precision.
        normalize: Take RGB images as a decoder gives them, uint8 (N, H, W, 3), instead of normalised ones, float32
            (N, in_chans, H, W) in any precision.
        raw: End at the model's own stride, without the resize to the images' size.
        calibration: For int8, a folder of images or a list of files like those that the model will see.
        check_image: What to compare on.

    Raises:
        ValueError: An unknown format, a precision that the format does not have, a model without classes.
        RuntimeError: A missing package, something in the model that the format can't express, a file that gives other
            answers than the model.
    """
    path = Path(path)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = deploy(model)
    model = copy.deepcopy(model).cpu().float().eval()
    graph = ExportedGraph(copy.deepcopy(model), labels, normalize, raw).eval()
    metadata = describe(graph, size, precision)
    if precision in PRECISIONS and format != "openvino":
        graph.model.to(PRECISIONS[precision])
    require(FORMATS[format].packages, f"--format {format}")
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FORMATS[format].write(FORMATS[format].convert(graph, size), temporary, metadata)
        images = read_image(check_image, size, metadata)
        report = ExportReport(path, *compare(ExportedModel(temporary), model, images))
        if format == "openvino":
            temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
    return report
