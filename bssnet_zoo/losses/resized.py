"""Cross-entropy of resized logits that never exist as a whole: they are made, used and forgotten a few rows at a time.

A resize is two matrix products: the one along the width is made at once, at the map's own height, the one along the
height in strips. Everything is computed in float32, under autocast too (float64 stays float64).
"""
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = ["at_least_float32", "interpolation_matrix", "matrix_strips", "resize", "resized_nll"]

# Resized logits made at a time, in numbers: what stays in the caches of a CPU; an accelerator wants fewer launches.
CPU_STRIP = 2 ** 19
ACCELERATOR_STRIP = 2 ** 25


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resize(x: torch.Tensor, size: Sequence[int], align_corners: bool = True) -> torch.Tensor:
    """(N, C, h, w) resized to ``size`` (H, W) as a whole, bilinear."""
    x = at_least_float32(x)
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def interpolation_matrix(size: int, new_size: int, align_corners: bool, dtype: torch.dtype) -> torch.Tensor:
    """Linear interpolation of ``size`` values to ``new_size``, as a (new_size, size) matrix."""
    identity = torch.eye(size, dtype=dtype)[None]
    return F.interpolate(identity, size=new_size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def matrix_strips(matrix: torch.Tensor, step: int) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """``step`` rows of an interpolation matrix at a time: the rows, the columns that they use, the part with both."""
    for start in range(0, len(matrix), step):
        rows = slice(start, min(start + step, len(matrix)))
        used = matrix[rows].any(0).nonzero().flatten().tolist()
        source = slice(used[0], used[-1] + 1)
        yield rows, source, matrix[rows, source]


def row_strips(
        x: torch.Tensor,
        size: Sequence[int],
        align_corners: bool,
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Some rows of the resized map, the rows of the small map that they come from, and the matrix between them."""
    elements = CPU_STRIP if x.device.type == "cpu" else ACCELERATOR_STRIP
    step = max(1, elements // (x.shape[0] * x.shape[1] * size[1]))
    matrix = interpolation_matrix(x.shape[2], size[0], align_corners, x.dtype)
    for rows, source, weights in matrix_strips(matrix, step):
        yield rows, source, weights.to(x.device)


class ResizedNLL(torch.autograd.Function):
    """Negative log-likelihood (N, H, W) of each pixel of bilinearly resized logits (N, C, h, w)."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, align_corners: bool) -> torch.Tensor:
        ctx.save_for_backward(logits, target)
        ctx.align_corners = align_corners
        nll = logits.new_empty(target.shape)
        with torch.autocast(logits.device.type, enabled=False):
            wide = logits @ _columns(logits, target, align_corners).T
            for rows, source, weights in row_strips(logits, target.shape[-2:], align_corners):
                nll[:, rows] = F.log_softmax(weights @ wide[:, :, source], dim=1).gather(
                    1, target[:, None, rows]).squeeze(1).neg_()
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, target = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            columns = _columns(logits, target, ctx.align_corners)
            wide = logits @ columns.T
            grad_wide = torch.zeros_like(wide)
            for rows, source, weights in row_strips(logits, target.shape[-2:], ctx.align_corners):
                strip_grad = grad[:, None, rows]
                strip = torch.softmax(weights @ wide[:, :, source], dim=1).mul_(strip_grad)
                strip.scatter_add_(1, target[:, None, rows], -strip_grad)
                grad_wide[:, :, source] += weights.T @ strip
            return grad_wide @ columns, None, None


def _columns(logits: torch.Tensor, target: torch.Tensor, align_corners: bool) -> torch.Tensor:
    return interpolation_matrix(logits.shape[3], target.shape[2], align_corners, logits.dtype).to(logits.device)


def resized_nll(logits: torch.Tensor, target: torch.Tensor, align_corners: bool = True) -> torch.Tensor:
    """Cross-entropy of each pixel, unweighted.

    Args:
        logits: (N, C, h, w), resized to the size of ``target``, bilinear.
        target: Class ids (N, H, W), int64, none of them outside the classes.
        align_corners: Of the resize.

    Returns:
        (N, H, W).
    """
    return ResizedNLL.apply(at_least_float32(logits).contiguous(), target, align_corners)
