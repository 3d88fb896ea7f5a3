"""Export of a model to a file that runs without this package: ONNX, OpenVINO, TorchScript, ExportedProgram."""
import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram
from torchvision.transforms.v2 import functional as TF

from .. import __version__
from ..data.datasets import dataset_classes, open_dataset
from ..data.transforms import EvalTransform
from ..device import PRECISIONS
from ..files import atomic_path
from ..inference import MIN_SIZE, ImageLike, class_info, find_images, load_image
from ..models import BSSNet, create_trained_model, deploy
from ..models.checkpoints import checkpoint_num_classes, read_checkpoint
from ..models.weights import ASSETS
from .evaluate import default_split, evaluate, run_recipe
from .export_graph import ExportedGraph, with_exported_upsamples
from .exported import ExportedModel, file_input, require

__all__ = ["FORMATS", "ExportReport", "accuracy", "export_model", "trained_model"]

# largest difference of the logits, as a share of the largest, and least share of pixels with the same class
TOLERANCES = {"float32": (1e-3, 0.999), "float16": (0.05, 0.98), "bfloat16": (0.2, 0.95), "int8": (1., 0.9)}
CALIBRATION_IMAGES = 300
FLOAT_LAYERS = r".*attention.*"  # tiny, and in int8 they would cost B half a point of mIoU


class ExportReport(NamedTuple):
    """What `export_model` wrote, and how it compares with the deployed float32 model on the check image.

    ``max_difference`` of the logits is a share of the largest one (None for a file that ends in labels);
    ``same_class`` is the share of the pixels with the same class.
    """

    path: Path
    max_difference: float | None
    same_class: float

    def within(self, max_difference: float, same_class: float) -> bool:
        return (self.max_difference or 0.) <= max_difference and self.same_class >= same_class

    def __str__(self) -> str:
        difference = "" if self.max_difference is None else (
            f"largest difference of the logits {self.max_difference:.1e} of the largest, ")
        return f"{self.path}: {difference}same class at {100 * self.same_class:.3f} % of the pixels"


def export_program(
        graph: ExportedGraph,
        size: Sequence[int] | None,
        batch: bool = False,
        transposed: bool = False,
) -> ExportedProgram:
    """Torch's graph for images of one size, or of any; with ``batch`` for any number of them too.

    ``transposed`` says how `ExportedUpsample` works.

    From a smaller example than this one torch would conclude that pooled maps of `PAPPM` are always one pixel.
    """
    height, width = size or (640, 576)
    images = torch.zeros(2 if batch else 1, graph.model.in_chans, height, width)
    axes = [0, 2, 3]
    if graph.normalize:
        images, axes = images.permute(0, 2, 3, 1).byte(), [0, 1, 2]
    shapes = None if size else {"images": dict.fromkeys(axes if batch else axes[1:], torch.export.Dim.AUTO)}
    program = torch.export.export(with_exported_upsamples(graph, transposed), (images,), dynamic_shapes=shapes)
    # torch's own lerp computes two formulas and picks one for each pixel
    return program.run_decompositions({torch.ops.aten.lerp.Tensor: lambda x, y, weight: x + weight * (y - x)})


def convert_onnx(graph: ExportedGraph, size: Sequence[int] | None, transposed: bool = False):
    """An ``onnx.ModelProto``."""
    program = torch.onnx.export(
        export_program(graph, size, batch=size is None, transposed=transposed), dynamo=True, opset_version=18,
        external_data=False, verbose=False, input_names=["images"],
        output_names=["labels" if graph.labels else "logits"])
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # the exporter writes where each line of code was
        if node.op_type == "Conv":
            node.name = node.input[1].removeprefix("model.").removesuffix(".weight")
    shapes = [value.type.tensor_type.shape.dim for value in (model.graph.input[0], model.graph.output[0])]
    unknown = [axis.dim_param for axis in shapes[0] if axis.dim_param]
    names = dict(zip(unknown, ("batch", "height", "width")[:len(unknown)], strict=True))
    for axis in (*shapes[0], *shapes[1]):
        if axis.dim_param in names:
            axis.dim_param = names[axis.dim_param]
    return model


def convert_openvino(graph: ExportedGraph, size: Sequence[int] | None):
    """An ``openvino.Model``."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        # for any size, a map may be doubled or not
        path.write_bytes(convert_onnx(graph, size, transposed=size is not None).SerializeToString())
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


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: How its name ends.
        precisions: What it can hold.
        convert: From an `ExportedGraph` and the size of the images to the format's own object.
        write: Writes that object with the metadata.
        packages: What ``convert`` and ``write`` need besides torch.
        check_sizes: Where a file for any size is compared, None is the image's own size.
    """

    suffix: str
    precisions: tuple[str, ...]
    convert: Callable
    write: Callable
    packages: tuple[str, ...] = ()
    check_sizes: tuple[tuple[int, int] | None, ...] = (None, (131, 200))


FORMATS = {
    "onnx": Format(".onnx", ("float32", "float16", "int8"), convert_onnx, write_onnx,
                   ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(".xml", ("float32", "float16", "int8"), convert_openvino, write_openvino,
                       ("onnx", "onnxscript", "openvino")),
    "torchscript": Format(".torchscript", tuple(PRECISIONS), convert_torchscript, write_torchscript),
    "exported-program": Format(".pt2", tuple(PRECISIONS), export_program, write_program, check_sizes=((520, 716),)),
}


def calibration_files(calibration: str | os.PathLike | Sequence[str | os.PathLike] | None) -> list[Path]:
    """Images to calibrate int8 on, at most ``CALIBRATION_IMAGES``, evenly from all that there are."""
    if not calibration:
        raise ValueError("int8 needs a calibration folder: images like those that the model will see, 100 or more")
    paths = [calibration] if isinstance(calibration, (str, os.PathLike)) else calibration
    for path in paths:
        if not Path(path).exists():
            raise ValueError(f"calibration images not found: {path}")
    files = [file for file, _ in find_images(paths, Path())]
    return files[::-(-len(files) // CALIBRATION_IMAGES)]


def quantize(converted, files: Sequence[Path], size: Sequence[int] | None, metadata: dict[str, str]):
    """int8 convolutions by post-training quantisation, except ``FLOAT_LAYERS``."""
    import nncf

    nncf.set_log_level(logging.WARNING)
    dataset = nncf.Dataset(
        files, lambda file: {"images": file_input(read_image(file, size, metadata), metadata).numpy()})
    return nncf.quantize(
        converted, dataset, subset_size=len(files), ignored_scope=nncf.IgnoredScope(patterns=[FLOAT_LAYERS]))


def read_image(image: ImageLike, size: Sequence[int] | None, metadata: dict[str, str]) -> torch.Tensor:
    """An image as the model takes it, normalised (1, C, H, W), that had 8 bits before."""
    mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
    rgb = load_image(image)
    rgb = rgb if size is None else TF.resize(rgb, list(size), antialias=True)
    rgb = (255 * rgb).round().clamp(0, 255) / 255
    return TF.normalize(rgb[[channel % 3 for channel in range(len(mean))]], mean, std)[None]


@torch.inference_mode()
def compare(exported: ExportedModel, model: BSSNet, images: torch.Tensor) -> tuple[float | None, float]:
    """Largest difference of the logits (None for labels) and share of pixels with the same class."""
    expected, scores = model.forward_head(model.forward_features(images)), exported(images)
    if exported.metadata["raw"] == "false":
        expected = F.interpolate(expected, size=images.shape[-2:], mode="bilinear", align_corners=True)
    same = (scores.argmax(1) == expected.argmax(1)).float().mean().item()
    if exported.metadata["labels"] == "true":
        return None, same
    return ((scores - expected).abs().max() / expected.abs().max()).item(), same


def describe(graph: ExportedGraph, size: Sequence[int] | None, precision: str) -> dict[str, str]:
    """What a user of the file must know, as text: what isn't text is JSON."""
    cfg, classes = getattr(graph.model, "pretrained_cfg", {}), class_info(graph.model)
    values = dict(
        model=".".join(filter(None, (cfg.get("architecture"), cfg.get("tag")))) or "bssnet", class_names=classes.names,
        palette=classes.hex_palette, mean=graph.mean.tolist(), std=graph.std.tolist(), size=size and list(size),
        precision=precision, labels=graph.labels, normalize=graph.normalize, raw=graph.raw, bssnet_zoo=__version__)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def check_options(model: BSSNet, path: Path, format: str, size: Sequence[int] | None, precision: str, labels: bool):
    """Raises ValueError for what `export_model` can't do, before it takes its time."""
    if not isinstance(model, BSSNet) or model.num_classes == 0:
        raise ValueError(f"export takes a BSSNet with classes, got {type(model).__name__}"
                         f"{' with num_classes=0' if isinstance(model, BSSNet) else ''}")
    if format not in FORMATS:
        raise ValueError(f"unknown format '{format}': there are {', '.join(FORMATS)}")
    suffix, precisions = FORMATS[format].suffix, FORMATS[format].precisions
    if precision not in precisions:
        hint = "; for bfloat16, export float32 and run it with INFERENCE_PRECISION_HINT" if format == "openvino" else ""
        raise ValueError(f"{format} files hold {', '.join(precisions)}, not {precision}{hint}")
    if path.suffix != suffix:
        raise ValueError(f"the name of an {format} file must end in {suffix}, got {path}")
    if size is not None and (len(size) != 2 or min(size) < MIN_SIZE):
        raise ValueError(f"size must be height and width of {MIN_SIZE} or more, got {list(size)}")
    if labels and model.num_classes > 256:
        raise ValueError(f"uint8 labels hold 256 classes at most, the model has {model.num_classes}")


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
        size: Height and width of the images, for batches of 1; None for any. TorchScript takes any in any case.
        precision: One of the format's.
        labels: End in class ids, uint8 (N, H, W), instead of logits (N, num_classes, H, W), float32 in any precision.
        normalize: Take RGB images as a decoder gives them, uint8 (N, H, W, 3), instead of normalised ones, float32
            (N, in_chans, H, W) in any precision.
        raw: End at the model's own stride, without the resize to the images' size.
        calibration: For int8, a folder of images or a list of files like those that the model will see.
        check_image: What to compare on.

    Raises:
        ValueError: An unknown format, a precision that the format does not have, a wrong name or size, no images to
            calibrate on, a model without classes.
        RuntimeError: A missing package, something in the model that the format can't express, a file that gives other
            answers than the model.
    """
    path = Path(path)
    check_options(model, path, format, size, precision, labels)
    files = calibration_files(calibration) if precision == "int8" else []
    require(FORMATS[format].packages + (("nncf",) if files else ()), f"exporting {precision} {format}")
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = deploy(model)
    model = copy.deepcopy(model).cpu().float().eval()
    graph = ExportedGraph(copy.deepcopy(model), None if format == "torchscript" else size, labels, normalize, raw)
    metadata = describe(graph, size, precision)
    if format != "openvino" and not files:
        graph.model.to(PRECISIONS[precision])
    sizes = [size] if size else FORMATS[format].check_sizes
    with whole_files(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        try:
            converted = FORMATS[format].convert(graph.eval(), size)
        except Exception as error:  # each exporter has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(f"this model can't become {format}: {reason}") from error
        converted = quantize(converted, files, size, metadata) if files else converted
        FORMATS[format].write(converted, temporary, metadata)
        exported = ExportedModel(temporary)
        images = [read_image(check_image, check_size, metadata) for check_size in sizes]
        differences, same = zip(*(compare(exported, model, image) for image in images), strict=True)
        report = ExportReport(path, None if labels else max(differences), min(same))
        if not report.within(*TOLERANCES[precision]):
            raise RuntimeError(f"not written, its answers are not those of the model: {report}")
    return report


@contextmanager
def whole_files(path: Path) -> Iterator[Path]:
    """`atomic_path` for a file and, if there is one, the file of its weights that OpenVINO writes beside it."""
    with atomic_path(path) as temporary:
        weights = temporary.with_suffix(".bin")
        try:
            yield temporary
            if weights.exists():
                weights.replace(path.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)


def trained_model(name: str | None = None, checkpoint: str | None = None, data: str | None = None) -> BSSNet:
    """The model to export: a pretrained one, or that of a checkpoint with the names and colours of its classes.

    Args:
        name: Model or model.tag; None for that of the checkpoint's run, else bssnet_t.
        checkpoint: Weights instead of the pretrained ones.
        data: ``KIND:DIR`` that it was trained on, for names and colours; None for what its run says.
    """
    recipe = run_recipe(checkpoint)
    model = create_trained_model(
        name or (recipe.model if recipe else "bssnet_t"), checkpoint,
        checkpoint and checkpoint_num_classes(read_checkpoint(checkpoint)))
    data = data or (recipe and recipe.data)
    if checkpoint and data:
        classes = dataset_classes(data)
        model.pretrained_cfg.update(tag=None, label_names=classes.names, label_descriptions=dict(
            zip(classes.names, classes.hex_palette, strict=True)))
    return model


def accuracy(model: BSSNet, path: str | os.PathLike, data: str, workers: int = 2) -> str:
    """mIoU of a model and of the file made from it, on a data set ``KIND:DIR``, at the file's size."""
    exported = ExportedModel(path)
    dataset = open_dataset(data, default_split(data), EvalTransform(size=exported.size))
    before, after = (100 * evaluate(m, dataset, workers=workers, progress=True).miou for m in (model, exported))
    return f"mIoU before {before:.3f}, after {after:.3f} ({after - before:+.3f}), {len(dataset)} images of {data}"
