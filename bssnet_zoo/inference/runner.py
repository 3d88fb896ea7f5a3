"""What runs a network: an exported file, OpenVINO, or torch."""
import copy
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..data.classes import ClassInfo
from ..deployment.exported import ExportedModel, is_exported
from ..deployment.openvino import OpenVINOModel
from ..deployment.rewrites import deploy, is_deployed
from ..device import PRECISIONS, has_bfloat16, parse_device
from ..models import BSSNet, open_model
from ..models.bssnet import MIN_SIZE
from ..models.config import class_info, shown_size, trained_size

__all__ = ["BACKENDS", "Runner", "create_runner", "evaluating"]

LOCKS = WeakKeyDictionary[nn.Module, threading.Lock]()  # of models that run as they are
BACKENDS = ("auto", "openvino", "deploy", "eager")

Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Runner:
    """A network that is ready to run, and what has to be known of it.

    Attributes:
        run: From normalised float32 images (N, 3, H, W) to logits (N, num_classes, h, w) of any size, or, of a file
            that ends in labels, class ids, uint8 (N, H, W).
        classes: Names and colours; None if the model doesn't say how many there are.
        mean: Of the normalisation, for channels in 0..1.
        std: Of the normalisation.
        backend: What runs it.
        precision: What it computes in.
        device: Where.
        size: What its weights were made for: [shorter side], or [height, width] of a file that takes nothing else; None
            if it doesn't say.
        fixed: It takes images of that size only.
        one_by_one: It takes one image at a time.
        min_size: Height and width that it takes at least.
    """

    run: Run
    classes: ClassInfo | None
    mean: Sequence[float]
    std: Sequence[float]
    backend: str
    precision: str
    device: torch.device
    size: list[int] | None
    fixed: bool = False
    one_by_one: bool = False
    min_size: int = MIN_SIZE


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode for a while; each module, frozen ones too, then gets back the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def create_runner(
        model: nn.Module | str | os.PathLike[str],
        device: str | torch.device | None = None,
        precision: str | None = None,
        backend: str = "auto",
        trust: bool = False,
) -> Runner:
    """What runs a model, a file or a name. Arguments and errors are those of `Predictor`."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend '{backend}': there are {', '.join(BACKENDS)}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be {', '.join(PRECISIONS)}, got '{precision}'")
    if isinstance(model, nn.Module):
        return _model_runner(model, device, precision, backend)
    if is_exported(model):
        return _file_runner(Path(model), device, precision, backend, trust)
    device = parse_device(None if device is None else str(device))
    return _model_runner(open_model(model).to(device), None, precision, backend)


def _fastest_precision(device: torch.device) -> str:
    return "bfloat16" if device.type == "cpu" and has_bfloat16() else "float32"


def _file_runner(
        path: Path,
        device: str | torch.device | None,
        precision: str | None,
        backend: str,
        trust: bool,
) -> Runner:
    if backend != "auto":
        raise ValueError(f"{path} is run by the library that it is for: leave out backend '{backend}'")
    device = parse_device("cpu" if device is None else str(device))
    if device.type != "cpu":
        raise ValueError(f"exported files are run on the CPU here, not on {device}")
    exported = ExportedModel(path, precision=precision or _fastest_precision(device), trust=trust)
    if exported.runtime == "openvino":
        precision = precision or _fastest_precision(device)
    elif precision is not None:
        exported.check_precision(precision)
    if len(exported.mean) != 3:
        raise ValueError(f"images are read as RGB, {path} takes {len(exported.mean)} channels")
    return Runner(
        run=exported.answer,
        classes=exported.classes,
        mean=exported.mean,
        std=exported.std,
        backend=exported.runtime,
        precision=precision or exported.metadata["precision"],
        device=device,
        size=exported.size or shown_size(exported.trained_size),
        fixed=exported.size is not None,
        one_by_one=exported.size is not None or exported.runtime == "exported-program",
        min_size=exported.min_size,
    )


def _model_runner(
        model: nn.Module,
        device: str | torch.device | None,
        precision: str | None,
        backend: str,
) -> Runner:
    if getattr(model, "num_classes", None) == 0:
        raise ValueError("the model has num_classes=0 and gives features, not logits: create it with 2 or more classes")
    if getattr(model, "num_classes", None) == 1:
        raise ValueError("the model has one class, of which an image would be full: give it two, the background and "
                         "yours")
    if getattr(model, "in_chans", 3) != 3:
        raise ValueError(f"images are read as RGB, the model takes {model.in_chans} channels: normalise the images "
                         "yourself and call the model")
    parameter = next(model.parameters(), torch.empty(0))
    own = next((name for name, dtype in PRECISIONS.items() if dtype == parameter.dtype), "float32")
    device = parameter.device if device is None else parse_device(str(device))
    if device.type == parameter.device.type and device.index is None:  # "cuda" is where a model on cuda:0 is
        device = parameter.device
    deployable = _deployable(model)
    wanted = precision or (_fastest_precision(device) if own == "float32" else own)
    backend = _choose(backend, model, deployable is not None, device, wanted)
    if backend == "eager" or deployable is None:
        if precision not in (None, own) or device != parameter.device:
            raise ValueError(f"backend 'eager' runs the model as it is, {own} on {parameter.device}: cast or move it "
                             "yourself, or take another backend")
        precision, run = own, _eager(model, parameter)
    else:
        precision = wanted
        run = OpenVINOModel(deployable, precision) if backend == "openvino" else _deployed(
            deployable, device, precision)
    cfg = getattr(model, "pretrained_cfg", {})
    return Runner(
        run=run,
        classes=class_info(model) if hasattr(model, "num_classes") else None,
        mean=cfg.get("mean", IMAGENET_DEFAULT_MEAN),
        std=cfg.get("std", IMAGENET_DEFAULT_STD),
        backend=backend,
        precision=precision,
        device=device,
        size=shown_size(trained_size(model)),
    )


def _deployable(model: nn.Module) -> BSSNet | None:
    """The model, if `deploy` takes it or made it."""
    if not isinstance(model, BSSNet) or model.decoder is None:
        return None
    return model


def _choose(backend: str, model: nn.Module, deployable: bool, device: torch.device, precision: str) -> str:
    """The backend that runs a model, where it is "auto"; ValueError if it can't be that one."""
    if backend == "auto":
        if not deployable:
            return "eager"
        can_openvino = device.type == "cpu" and precision != "float16" and importlib.util.find_spec("openvino")
        return "openvino" if can_openvino else "deploy"
    if backend != "eager" and not deployable:
        raise ValueError(f"backend '{backend}' takes a BSSNet that fuses by UMF, got {type(model).__name__}: take "
                         "'eager'")
    if backend == "openvino" and (device.type != "cpu" or precision == "float16"):
        raise ValueError("backend 'openvino' is for the CPU, in float32 or bfloat16: take 'deploy'")
    return backend


def _raw_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = model.forward_head(model.forward_features(images)) if isinstance(model, BSSNet) else model(images)
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"the model gives a {type(logits).__name__}, not logits: create it without features_only")
    if logits.shape[1] > 256:
        raise ValueError(f"label maps hold 256 classes at most, the model has {logits.shape[1]}")
    return logits.float()


def _eager(model: nn.Module, parameter: torch.Tensor) -> Run:
    lock = LOCKS.setdefault(model, threading.Lock())

    def run(images: torch.Tensor) -> torch.Tensor:
        with lock, evaluating(model):  # the mode is the model's, and so of all threads
            return _raw_logits(
                model, images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last))
    return run


def _deployed(model: BSSNet, device: torch.device, precision: str) -> Run:
    as_asked: dict[str, Any] = dict(device=device, dtype=PRECISIONS[precision], memory_format=torch.channels_last)
    deployed = (copy.deepcopy(model).eval() if is_deployed(model) else deploy(model)).to(**as_asked)
    return lambda images: _raw_logits(deployed, images.to(**as_asked))

