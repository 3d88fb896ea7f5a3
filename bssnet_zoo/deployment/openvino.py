"""A model in OpenVINO on the CPU, without a file in between."""
import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models import BSSNet
from .exported import HINTS, default_threads, openvino_core, require
from .graph import for_runtime
from .rewrites import deploy, is_deployed

__all__ = ["OpenVINOModel"]

ANY_SIZE = (-1, -1)
EXAMPLE_SIZE = (192, 256)  # to trace a graph for any size: on a smaller one maps are a pixel, and a resize nothing


class RawLogits(nn.Module):
    """A network without its resize to full size."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(self.model.forward_features(images))


class OpenVINOModel:
    """A `BSSNet` that runs in OpenVINO: normalised images (N, C, H, W) in, raw logits (N, num_classes, h, w) out.

    The first size that it sees gets a graph of its own, which is the faster one where maps are exactly doubled; all
    other sizes share a graph for any size. Making one takes half a second. It runs in `default_threads`.

    Args:
        model: A `BSSNet`, deployed or not; it is left as it is.
        precision: What is computed in, float32 or bfloat16.

    Raises:
        RuntimeError: OpenVINO isn't installed.
    """

    def __init__(self, model: BSSNet, precision: str = "float32"):
        require(["openvino"], "backend 'openvino'")
        model = model if is_deployed(model) else deploy(model)
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.precision = precision
        self._threads = default_threads()
        self._lock = threading.Lock()
        self._networks: dict[tuple[int, int], Callable[[np.ndarray], np.ndarray]] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        with self._lock:  # a request computes one thing at a time, into memory of its own
            size = (height, width) if not self._networks or (height, width) in self._networks else ANY_SIZE
            if size not in self._networks:
                self._networks[size] = self._compile(size)
            return torch.from_numpy(self._networks[size](images.numpy()))

    @torch.no_grad()
    def _compile(self, size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        fixed = size != ANY_SIZE
        graph = RawLogits(for_runtime(copy.deepcopy(self.model), "openvino", fixed))
        example = torch.zeros(1, self.model.in_chans, *(size if fixed else EXAMPLE_SIZE))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing fixes what depends on the shape, which is meant here
            traced = torch.jit.freeze(torch.jit.trace(graph.eval(), example, check_trace=False))
        # the frontend by itself: openvino.convert_model takes a second more for what the CPU's compiler does again
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # which has to live until the end of convert
        converted = frontend.convert(frontend.load(decoder))
        converted.reshape(openvino.PartialShape([-1, self.model.in_chans, *size]))
        compiled = openvino_core().compile_model(converted, "CPU", {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision], "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads})
        request = compiled.create_infer_request()
        # the result's memory is the request's own: the next one writes over it
        return lambda images: request.infer([images], share_inputs=True, share_outputs=True)[0].copy()
