"""What `bench` times: models and peers on the runtimes there are, each as a maker for `rounds.time_by_turns`."""
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.transforms.v2 import functional as TF

from ..data.images import load_image
from ..deployment.export import FORMATS, export_model
from ..deployment.exported import HINTS, onnx_session, openvino_core
from ..deployment.graph import for_runtime
from ..deployment.openvino import RawLogits
from ..deployment.rewrites import deploy
from ..device import PRECISIONS, keep_freed_memory, why_slow
from ..models import BSSNet, create_model
from ..models.bssnet import as_bssnet
from ..models.summary import count_multiply_adds
from ..models.weights import STREET
from .peers import Peer, create_peer

__all__ = ["BACKENDS", "BASELINE", "PEAKS", "Backend", "Settings", "Side", "count", "is_peer", "make_peak", "make_side"]

NUM_CLASSES = 11  # of the peers: what the bundled weights have


@dataclass(frozen=True)
class Backend:
    """What runs a model.

    Attributes:
        about: What it does, for ``--help``.
        precisions: What it can compute in.
        devices: Where; empty for all.
        upsample: How the x2 resizes are computed, which decides the multiply-adds: "plain", as `deploy` writes them
            ("deploy"), or "exported" as a file for OpenVINO has them, and any in int8.
        peers: Whether it is run for peers.
        format: `export_model`'s format of the file that it reads, if it reads one.
    """

    about: str
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    devices: tuple[str, ...] = ()
    upsample: str = "deploy"
    peers: bool = False
    format: str | None = None


BACKENDS = {
    "eager": Backend("the model as created, NCHW", upsample="plain", peers=True),
    "eager_kept": Backend("the same, with keep_freed_memory()", devices=("cpu",), upsample="plain", peers=True),
    "channels_last": Backend("the same, channels_last", upsample="plain", peers=True),
    "deploy": Backend("bssnet_zoo.deploy, channels_last, with keep_freed_memory() on a CPU"),
    "compile": Backend("torch.compile of deploy (of peers: channels_last)", peers=True),
    "torchscript": Backend("deploy as TorchScript", format="torchscript"),
    "onnxruntime": Backend("deploy in ONNX Runtime", ("float32", "int8"), ("cpu",), "plain", format="onnx"),
    "openvino": Backend(
        "deploy in OpenVINO", ("float32", "bfloat16", "int8"), ("cpu",), "exported", format="openvino"),
}
BASELINE = ("eager", "float32")


@dataclass(frozen=True)
class Side:
    """One row of the table: a model (or peer) on a backend in a precision."""

    model: str
    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.model} {self.backend} {self.precision}"

    @property
    def upsample(self) -> str:
        """`Backend.upsample` in this precision."""
        return "exported" if self.precision == "int8" else BACKENDS[self.backend].upsample

    def why_not(self, device: torch.device) -> str | None:
        """Why there is no such side, if there is none."""
        backend = BACKENDS[self.backend]
        if backend.devices and device.type not in backend.devices:
            return f"{self.backend} is run on {', '.join(backend.devices)} here, not on {device.type}"
        if self.precision not in backend.precisions:
            return f"{self.backend} has no {self.precision} here, only {', '.join(backend.precisions)}"
        if slow := why_slow(self.precision, device):
            return slow
        if self.backend == "compile" and device.type == "cpu" and not any(
                map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
            return "torch.compile needs a C++ compiler on a CPU: g++ or clang++"
        return None


@dataclass(frozen=True)
class Settings:
    """What all sides of a run have in common.

    Attributes:
        device: Where to run.
        threads: Of each runtime.
        seconds: For each side, over all rounds.
        rounds: Turns of each side.
        full_size: Time logits at the size of the image instead of raw ones.
        calibration: Image, or folder of images, for int8.
    """

    device: torch.device
    threads: int
    seconds: float = 6.
    rounds: int = 12
    full_size: bool = False
    calibration: str = str(STREET)


def is_peer(name: str) -> bool:
    return not name.startswith("bssnet_")


def open_network(name: str) -> BSSNet | Peer:
    """A BSSNet with its weights, or a peer with random ones."""
    return create_peer(name, NUM_CLASSES) if is_peer(name) else as_bssnet(create_model(name, pretrained=True)).eval()


def count(name: str, size: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of a network for one image of this size, for each `Backend.upsample`."""
    plain = open_network(name)
    models = dict.fromkeys(("plain", "deploy", "exported"), plain)
    if isinstance(plain, BSSNet):
        models.update(deploy=deploy(plain), exported=for_runtime(deploy(plain), "openvino", fixed_size=True))
    return {upsample: count_multiply_adds(model.to("meta"), *size) for upsample, model in models.items()}


def street(size: Sequence[int]) -> torch.Tensor:
    """The sample image, normalised, (1, 3, H, W): a real image makes real activations."""
    image = TF.resize(load_image(STREET), list(size), antialias=True)
    return TF.normalize(image, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)[None]


def make_torch(side: Side, size: Sequence[int], settings: Settings) -> Callable[[], torch.Tensor]:
    model = open_network(side.model)
    if BACKENDS[side.backend].upsample == "deploy" and isinstance(model, BSSNet):
        model = deploy(model)
    if settings.device.type == "cpu" and side.backend not in ("eager", "channels_last"):
        keep_freed_memory()  # as docs/deploy.md advises
    as_side: dict[str, Any] = dict(
        device=settings.device, dtype=PRECISIONS[side.precision],
        memory_format=torch.contiguous_format if side.backend.startswith("eager") else torch.channels_last)
    run: Callable[..., Any] = (model if settings.full_size else RawLogits(model)).to(**as_side)
    images = street(size).to(**as_side)
    if side.backend == "compile":
        run = torch.compile(run)
    return lambda: run(images)


def make_torchscript(file: str, side: Side, size: Sequence[int], settings: Settings) -> Callable[[], torch.Tensor]:
    model = torch.jit.freeze(torch.jit.load(file, map_location=settings.device).eval())
    images = street(size).to(settings.device, memory_format=torch.channels_last)
    return lambda: model(images)


def make_onnxruntime(file: str, side: Side, size: Sequence[int], settings: Settings) -> Callable[[], Any]:
    session = onnx_session(file, settings.threads)
    images = {session.get_inputs()[0].name: street(size).numpy()}
    return lambda: session.run(None, images)[0]


def make_openvino(file: str, side: Side, size: Sequence[int], settings: Settings) -> Callable[[], Any]:
    config = {"INFERENCE_NUM_THREADS": settings.threads, "PERFORMANCE_HINT": "LATENCY"}
    if side.precision in HINTS:  # with int8, what isn't int8 is in what OpenVINO prefers
        config["INFERENCE_PRECISION_HINT"] = HINTS[side.precision]
    request = openvino_core().compile_model(file, "CPU", config).create_infer_request()
    images = street(size).numpy()
    return lambda: request.infer([images], share_inputs=True, share_outputs=True)[0]


READERS = {"torchscript": make_torchscript, "onnxruntime": make_onnxruntime, "openvino": make_openvino}


def make_side(side: Side, size: Sequence[int], settings: Settings, folder: Path) -> Callable[[], Callable[[], Any]]:
    """A maker of the side, for `time_by_turns`; what reads a file finds it exported into ``folder``.

    Raises:
        ValueError, RuntimeError: There is no such side, or it can't be exported; the message says why.
    """
    if reason := side.why_not(settings.device):
        raise ValueError(reason)
    kind = BACKENDS[side.backend].format
    if kind is None:
        return partial(make_torch, side, size, settings)
    precision = "float32" if (kind, side.precision) == ("openvino", "bfloat16") else side.precision  # when it is loaded
    file = folder / f"{side.model}-{side.backend}-{precision}{FORMATS[kind].suffix}"
    if not file.exists():
        export_model(as_bssnet(open_network(side.model)), file, kind, size=size, precision=precision,
                     raw=not settings.full_size, calibration=settings.calibration)
    return partial(READERS[side.backend], str(file), side, size, settings)


PEAKS = {precision: ("3x3 convolution, 256 channels, 64x128", 9 * 256 * 256 * 64 * 128) for precision in PRECISIONS}
PEAKS["int8"] = ("matrix product, 2048x2048", 2048 ** 3)


def make_peak(precision: str, device: torch.device) -> Callable[[], torch.Tensor]:
    """What the machine can do, in torch: `PEAKS` says with what and how many multiply-adds a pass has."""
    if precision == "int8":
        a, b = (torch.randint(-128, 128, (2048, 2048), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(a, b)
    as_models: dict[str, Any] = dict(device=device, dtype=PRECISIONS[precision], memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(**as_models)
    x = torch.randn(1, 256, 64, 128).to(**as_models)
    return lambda: conv(x)
