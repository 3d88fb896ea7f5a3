"""How large a model is: parameters and multiply-adds."""
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .bssnet import as_bssnet
from .factory import list_models
from .weights import WEIGHTS

__all__ = ["count_multiply_adds", "count_parameters", "model_table"]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model: Any, height: int, width: int) -> int:
    """Multiply-adds of the convolutions for one image up to the raw logits: half of what FlopCounterMode counts.

    Args:
        model: A model with ``in_chans``, ``forward_features`` and ``forward_head``. On the ``meta`` device it costs
            nothing.
        height: Image height in pixels.
        width: Image width in pixels.
    """
    parameter = next(model.parameters())
    images = torch.empty(1, model.in_chans, height, width, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_head(model.forward_features(images))
    return counter.get_total_flops() // 2


def model_table(height: int = 1024, width: int = 2048) -> str:
    """A table of all models and weights: classes, parameters, multiply-adds, measured mIoU, file size."""
    rows = [("model.tag", "classes", "parameters", f"GMAC {height}x{width}", "input", "mIoU %", "file MB")]
    for name in list_models(pretrained=True):
        model = as_bssnet(timm.create_model(name, device="meta")).eval()
        weights = WEIGHTS.get(name)
        miou = f"{weights.metrics['miou']:.2f} (CamVid test)" if weights else "-"
        size = f"{weights.path.stat().st_size / 1e6:.1f}" if weights and weights.path.is_file() else "-"
        rows.append((
            name, str(model.num_classes), f"{count_parameters(model) / 1e6:.2f} M",
            f"{count_multiply_adds(model, height, width) / 1e9:.2f}",
            "x".join(map(str, model.pretrained_cfg["input_size"][1:])), miou, size))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
