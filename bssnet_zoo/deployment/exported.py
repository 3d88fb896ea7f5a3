"""Exported files, run on the CPU by the library that each is for."""
import functools
import importlib
import json
import os
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data.classes import ClassInfo, hex_colour
from ..device import has_vnni

__all__ = ["ExportedModel", "default_threads", "file_input", "is_exported", "openvino_core", "require"]

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
Run = Callable[[torch.Tensor], torch.Tensor]


class MissingPackage(RuntimeError):
    """A package of an extra isn't installed."""


def require(packages: Sequence[str], what: str) -> None:
    """RuntimeError that names the extra if one of the packages can't be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackage(f"{what} needs {package} ({error}): the extra [export], as in "
                               "pip install '.[export]'") from error


def default_threads() -> int:
    """``OMP_NUM_THREADS``, which torchrun sets and torch reads; 0, the runtime's own choice, where it isn't set."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 0


def onnx_session(path: str | Path, threads: int) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, with as many threads as it likes if 0."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not has_vnni():  # int8 sums overflow without these instructions
        options.add_session_config_entry("session.x64quantprecision", "1")  # it takes twice as long
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_onnx(path: Path, threads: int, precision: str) -> tuple[Run, dict[str, str]]:
    require(["onnxruntime"], path.name)
    session = onnx_session(path, threads)
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), metadata


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's, one for all, which lives as long as the process.

    Each has a stack for signal handlers, and puts back the one before it when it goes. If two go in the order in which
    they came, that one is gone: the next signal, such as Ctrl-C, ends the process.
    """
    import openvino

    core = openvino.Core()
    if sys.platform == "win32":  # where a mapped file can't be renamed, and `export` renames what it has checked
        core.set_property({"ENABLE_MMAP": False})
    core.set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": 100})  # of kernels for new sizes: 5000 take 1 GB
    return core


def open_openvino(path: Path, threads: int, precision: str) -> tuple[Run, dict[str, str]]:
    require(["openvino"], path.name)
    if b"<net" not in path.read_bytes()[:1000]:  # OpenVINO would try other formats, and complain of each
        raise ValueError("no OpenVINO IR")
    model = openvino_core().read_model(path)
    metadata = model.get_rt_info("model_info").value if model.has_rt_info("model_info") else {}
    config = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": threads}
    compiled, lock = openvino_core().compile_model(model, "CPU", config), threading.Lock()

    def run(images: torch.Tensor) -> torch.Tensor:
        with lock:  # it computes one thing at a time
            return torch.from_numpy(compiled(images.numpy())[0])
    return run, metadata


def torch_metadata(path: Path) -> dict[str, str]:
    """What `export_model` wrote into a file of torch, read without torch, which complains of damaged ones."""
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/extra/metadata.json")), None)
        return json.loads(archive.read(name)) if name else {}


def open_torchscript(path: Path, threads: int, precision: str) -> tuple[Run, dict[str, str]]:
    metadata = torch_metadata(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        return torch.jit.load(path), metadata


def open_program(path: Path, threads: int, precision: str) -> tuple[Run, dict[str, str]]:
    metadata = torch_metadata(path)
    module = torch.export.load(path).module()
    return lambda images: module(images), metadata  # not the module: it would be a part of ours, and refuses eval()


OPENERS = {
    ".onnx": ("onnxruntime", open_onnx),
    ".xml": ("openvino", open_openvino),
    ".torchscript": ("torchscript", open_torchscript),
    ".pt2": ("exported-program", open_program),
}
ANY_SIZE_FROM = {"exported-program": 513}  # height and width, of a file for any size; of others 64
RUN_CODE = (".torchscript", ".pt2")  # torch makes Python objects and calls operators that write files, if they say so


def is_exported(path: str | os.PathLike | None) -> bool:
    """Whether it has the name of an exported file."""
    return path is not None and Path(path).suffix.lower() in OPENERS


def file_input(images: torch.Tensor, metadata: dict[str, str]) -> torch.Tensor:
    """What a file with that metadata takes, from normalised images (N, C, H, W)."""
    if metadata["normalize"] == "true":
        mean, std = (torch.tensor(json.loads(metadata[key])).reshape(-1, 1, 1) for key in ("mean", "std"))
        images = (255 * (images * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return images.contiguous()


class ExportedModel(nn.Module):
    """An exported file as a model, to compare it and to measure its accuracy.

    Args:
        path: File of `export_model`.
        threads: Threads of ONNX Runtime or OpenVINO, None for `default_threads`; the torch formats run in torch's own.
        precision: What OpenVINO computes in; the other formats compute in what the file says.
        trust: Open a file of torch, which can run any code; others can't.

    Attributes:
        path: The file.
        run: Takes what the file takes and gives what it gives, as tensors.
        runtime: The library that runs it.
        metadata: What the file says of itself.
        classes: Names and colours.
        mean: Of the normalisation.
        std: Of the normalisation.
        size: Height and width that it takes, None for any.
        min_size: Height and width that it takes at least.
        trained_size: Height and width that its weights were made for, None if it doesn't say.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a file of `export_model`, or one of torch that isn't trusted.
        RuntimeError: A missing package.

    Example:
        >>> from bssnet_zoo import create_model
        >>> from bssnet_zoo.deployment.export import export_model
        >>> model = create_model("bssnet_t", pretrained=True).eval()
        >>> report = export_model(model, "street.torchscript", "torchscript", size=(64, 96))
        >>> exported = ExportedModel("street.torchscript", trust=True)
        >>> exported(torch.randn(1, 3, 64, 96)).shape, exported.classes.names[3]
        (torch.Size([1, 11, 64, 96]), 'road')
    """

    def __init__(
            self,
            path: str | os.PathLike,
            threads: int | None = None,
            precision: str = "float32",
            trust: bool = False,
    ):
        super().__init__()
        self.path = path = Path(path)
        if not is_exported(path):
            raise ValueError(f"{path} is no exported file: its name must end in {', '.join(OPENERS)}")
        if not path.is_file():
            raise FileNotFoundError(f"exported file not found: {path}")
        suffix = path.suffix.lower()
        if suffix in RUN_CODE and not trust:
            raise ValueError(f"{path} can run code when it is opened, as any {suffix} file: if you trust it, add "
                             "--trust, in Python trust=True; .onnx and OpenVINO files can't")
        self.runtime, opener = OPENERS[suffix]
        try:
            self.run, self.metadata = opener(path, default_threads() if threads is None else threads, precision)
        except MissingPackage:
            raise
        except Exception as error:  # each library has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is damaged or no exported file: {reason}") from error
        try:
            self._read_metadata()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} was not made by 'bssnet-zoo export': its metadata doesn't say what its classes "
                             f"and images are ({type(error).__name__}: {error})") from error

    def _read_metadata(self) -> None:
        facts = {key: json.loads(self.metadata[key]) for key in (
            "class_names", "palette", "mean", "std", "size", "labels", "normalize", "raw")}
        self.classes = ClassInfo(tuple(facts["class_names"]), tuple(map(hex_colour, facts["palette"])))
        self.num_classes = len(self.classes.names)
        self.mean: list[float] = facts["mean"]
        self.std: list[float] = facts["std"]
        self.size: list[int] | None = facts["size"]
        self.min_size = 0 if self.size else ANY_SIZE_FROM.get(self.runtime, 64)
        self.trained_size: list[int] | None = json.loads(self.metadata.get("trained_size", "null"))
        self.labels: bool = facts["labels"]
        self.raw: bool = facts["raw"]
        torch.tensor([self.mean, self.std])  # a ValueError if they aren't lists of as many numbers

    def check_precision(self, precision: str) -> None:
        """Raises ValueError if the file can't be computed in it: only OpenVINO's leave a choice."""
        own = self.metadata["precision"]
        if self.runtime != "openvino" and precision != own:
            raise ValueError(f"{self.path} computes in {own}, not in {precision}: export it in that precision")

    def answer(self, images: torch.Tensor) -> torch.Tensor:
        """From normalised images (N, C, H, W) to what the file gives: logits, or labels at their size, uint8 (N, H, W).

        Raises:
            RuntimeError: The library that runs it says so, of an image that is too large for memory, for example.
        """
        result = self._run(images)
        if self.labels and self.raw:
            for axis in (1, 2):  # nearest, with aligned corners as logits
                places = torch.linspace(0, result.shape[axis] - 1, images.shape[axis + 1]).round().long()
                result = result.index_select(axis, places)
        return result

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        try:
            return self.run(file_input(images, self.metadata))
        except Exception as error:  # each library has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RuntimeError(f"{self.path}: {reason}") from error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From normalised images (N, C, H, W) to scores (N, num_classes, H, W): logits, of a file with labels 0 and 1.
        """
        result = self._run(images)
        if self.labels:
            return F.one_hot(result.long(), self.num_classes).permute(0, 3, 1, 2).float()
        return result
