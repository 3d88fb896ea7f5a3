"""int8 by quantisation after training, calibrated on images: by NNCF for OpenVINO, by ONNX Runtime for itself."""
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF

from ..data.images import IMAGE_SUFFIXES, ImageLike, image_files, load_image
from .exported import file_input

if TYPE_CHECKING:
    import onnx

__all__ = ["calibration_files", "quantize_onnx", "quantize_openvino", "read_image"]

CALIBRATION_IMAGES = 300
FLOAT_LAYERS = "attention"  # tiny, and in int8 they would cost B half a point of mIoU
INT8_OPERATORS = ["Conv", "Add", "Relu", "Concat", "Resize", "AveragePool", "ReduceMax"]


def calibration_files(calibration: str | os.PathLike | Sequence[str | os.PathLike] | None) -> list[Path]:
    """Images to calibrate int8 on, at most ``CALIBRATION_IMAGES``, evenly from all that there are."""
    if not calibration:
        raise ValueError("int8 needs a calibration folder: images like those that the model will see, 100 or more")
    paths = [calibration] if isinstance(calibration, (str, os.PathLike)) else calibration
    for path in paths:
        if not Path(path).exists():
            raise ValueError(f"calibration images not found: {path}")
    files = [file for path in map(Path, paths) for file in (image_files(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}: looked for {', '.join(IMAGE_SUFFIXES)}")
    return files[::-(-len(files) // CALIBRATION_IMAGES)]


def calibration_input(file: Path, size: Sequence[int] | None, metadata: dict[str, str]) -> dict[str, np.ndarray]:
    """What the file's network takes of an image."""
    return {"images": file_input(read_image(file, size, metadata), metadata).numpy()}


def quantize_openvino(model: Any, files: Sequence[Path], size: Sequence[int] | None, metadata: dict[str, str]) -> Any:
    """int8 convolutions, except ``FLOAT_LAYERS``."""
    import nncf

    nncf.set_log_level(logging.WARNING)
    dataset = nncf.Dataset(files, lambda file: calibration_input(file, size, metadata))
    return nncf.quantize(
        model, dataset, subset_size=len(files), ignored_scope=nncf.IgnoredScope(patterns=[f".*{FLOAT_LAYERS}.*"]))


def quantize_onnx(
        model: "onnx.ModelProto",
        files: Sequence[Path],
        size: Sequence[int] | None,
        metadata: dict[str, str],
) -> "onnx.ModelProto":
    """int8 from the first convolution to the last, except `float_nodes`; maps between two convolutions are int8 too."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    inputs = (calibration_input(file, size, metadata) for file in files)
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "int8"))
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, quantized, reader, QuantFormat.QDQ, INT8_OPERATORS, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=float_nodes(onnx.load(prepared).graph), extra_options=dict(CalibMovingAverage=True))
        return onnx.load(quantized)


def float_nodes(graph: "onnx.GraphProto") -> list[str]:
    """Names of the nodes that stay float: ``FLOAT_LAYERS``, what is concatenated for them, what follows the logits."""
    makers = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if any(FLOAT_LAYERS in name for name in (node.name, *node.input))]
    before = [makers[name] for node in layers for name in node.input if name in makers]
    found = {node.name for node in (*layers, *(node for node in before if node.op_type == "Concat"))}
    after = [output.name for output in graph.output]
    while after:
        node = makers.get(after.pop())
        if node is not None and node.op_type != "Conv" and node.name not in found:
            found.add(node.name)
            after += node.input
    return sorted(found)


def read_image(image: ImageLike, size: Sequence[int] | None, metadata: dict[str, str]) -> torch.Tensor:
    """An image as the model takes it, normalised (1, C, H, W), that had 8 bits before."""
    mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
    rgb = load_image(image)
    rgb = rgb if size is None else TF.resize(rgb, list(size), antialias=True)
    rgb = (255 * rgb).round().clamp(0, 255) / 255
    return TF.normalize(rgb[[channel % 3 for channel in range(len(mean))]], mean, std)[None]
