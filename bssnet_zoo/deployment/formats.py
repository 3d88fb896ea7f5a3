"""The kinds of exported file: how a graph becomes one, and how it is written with its metadata."""
import errno
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.export import ExportedProgram

from ..device import PRECISIONS
from .graph import ExportedGraph, for_runtime
from .int8 import quantize_onnx, quantize_openvino

if TYPE_CHECKING:
    import onnx

__all__ = ["FORMATS", "Format"]


def export_program(
        graph: ExportedGraph,
        size: Sequence[int] | None,
        batch: bool = False,
        runtime: str = "torch",
) -> ExportedProgram:
    """Torch's graph for images of one size, or of any; with ``batch`` for any number of them too.

    ``runtime`` is that of `for_runtime`.

    From a smaller example than this one torch would conclude that pooled maps of `PAPPM` are always one pixel.
    """
    height, width = size or (640, 576)
    images = torch.zeros(2 if batch else 1, graph.model.in_chans, height, width)
    axes = [0, 2, 3]
    if graph.normalize:
        images, axes = images.permute(0, 2, 3, 1).byte(), [0, 1, 2]
    shapes = None if size else {"images": dict.fromkeys(axes if batch else axes[1:], torch.export.Dim.AUTO)}
    program = torch.export.export(
        for_runtime(graph, runtime, fixed_size=size is not None), (images,), dynamic_shapes=shapes)
    # torch's own lerp computes two formulas and picks one for each pixel
    return program.run_decompositions({torch.ops.aten.lerp.Tensor: lambda x, y, weight: x + weight * (y - x)})


def convert_onnx(
        graph: ExportedGraph,
        size: Sequence[int] | None,
        runtime: str = "onnxruntime",
) -> "onnx.ModelProto":
    program = torch.onnx.export(
        export_program(graph, size, batch=size is None, runtime=runtime), dynamo=True, opset_version=18,
        external_data=False, verbose=False, input_names=["images"],
        output_names=["labels" if graph.labels else "logits"])
    assert program is not None  # with dynamo=True
    model = program.model_proto
    names = set[str]()
    for node in model.graph.node:
        del node.metadata_props[:]  # the exporter writes where each line of code was
        if node.op_type == "Conv":
            name = node.input[1].removeprefix("model.").removesuffix(".weight")
            node.name = f"{name}.{node.output[0]}" if name in names else name  # some share a weight
            names.add(name)
    shapes = [value.type.tensor_type.shape.dim for value in (model.graph.input[0], model.graph.output[0])]
    unknown = [axis.dim_param for axis in shapes[0] if axis.dim_param]
    axes = dict(zip(unknown, ("batch", "height", "width")[:len(unknown)], strict=True))
    for axis in (*shapes[0], *shapes[1]):
        if axis.dim_param in axes:
            axis.dim_param = axes[axis.dim_param]
    return model


def convert_openvino(graph: ExportedGraph, size: Sequence[int] | None) -> Any:
    """An ``openvino.Model``."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(convert_onnx(graph, size, "openvino").SerializeToString())
        return openvino.convert_model(path)


def convert_torchscript(graph: ExportedGraph, size: Sequence[int] | None) -> torch.jit.ScriptModule:
    return torch.jit.script(graph)


def write_onnx(model: "onnx.ModelProto", path: Path, metadata: dict[str, str]) -> None:
    import onnx

    onnx.helper.set_model_props(model, metadata)
    model.ir_version = 8  # that of opset 18; torch and onnxruntime.quantization write newer ones, which few need
    onnx.save(model, path)


def write_openvino(model: Any, path: Path, metadata: dict[str, str]) -> None:
    import openvino

    for key, value in metadata.items():
        model.set_rt_info(value, ["model_info", key])
    try:
        openvino.save_model(model, path, compress_to_fp16=metadata["precision"] == "float16")
    except RuntimeError as error:  # "iostream error" where a disk is full
        raise OSError(errno.EIO, str(error), str(path)) from error


def write_torchscript(model: torch.jit.ScriptModule, path: Path, metadata: dict[str, str]) -> None:
    buffer = BytesIO()  # torch aborts the process where a disk is full
    torch.jit.save(model, buffer, _extra_files={"metadata.json": json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


def write_program(model: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    buffer = BytesIO()
    torch.export.save(model, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: How its name ends.
        precisions: What it can hold.
        convert: From an `ExportedGraph` and the size of the images to the format's own object.
        write: Writes that object with the metadata.
        packages: What ``convert`` and ``write`` need besides torch.
        convert_int8: ``convert`` for ``quantize``, where it isn't the same.
        quantize: From the format's object and calibration files to one in int8.
        int8_packages: What ``quantize`` needs besides.
        check_sizes: Where a file for any size is compared, None is the image's own size.
    """

    suffix: str
    precisions: tuple[str, ...]
    convert: Callable
    write: Callable
    packages: tuple[str, ...] = ()
    convert_int8: Callable | None = None
    quantize: Callable | None = None
    int8_packages: tuple[str, ...] = ()
    check_sizes: tuple[tuple[int, int] | None, ...] = (None, (131, 200))


FORMATS = {
    "onnx": Format(".onnx", ("float32", "float16", "int8"), convert_onnx, write_onnx,
                   ("onnx", "onnxscript", "onnxruntime"), partial(convert_onnx, runtime="onnxruntime-int8"),
                   quantize_onnx),
    "openvino": Format(".xml", ("float32", "float16", "int8"), convert_openvino, write_openvino,
                       ("onnx", "onnxscript", "openvino"), None, quantize_openvino, ("nncf",)),
    "torchscript": Format(".torchscript", tuple(PRECISIONS), convert_torchscript, write_torchscript),
    "exported-program": Format(".pt2", tuple(PRECISIONS), export_program, write_program, check_sizes=((520, 716),)),
}
