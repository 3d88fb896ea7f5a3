"""Losses of resized maps that never exist as a whole: they are made, used and forgotten a few rows at a time.

A resize is two matrix products: the one along the width is made at once, at the map's own height, the one along the
height in strips. Everything is computed in float32, under autocast too (float64 stays float64).
"""
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = ["HardNLL", "ResizedBCE", "ResizedKL", "ResizedL1", "at_least_float32", "planar", "resize",
           "resized_nll"]

# Resized logits made at a time, in numbers: what stays in the caches of a CPU; an accelerator wants fewer launches.
CPU_STRIP = 2 ** 19
ACCELERATOR_STRIP = 2 ** 25


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def planar(x: torch.Tensor) -> torch.Tensor:
    """A map as the functions below take it: at least float32, contiguous."""
    return at_least_float32(x).contiguous()


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


def resize_in_strips(
        x: torch.Tensor,
        size: Sequence[int],
        align_corners: bool,
        use: Callable[[slice, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Resizes (N, C, h, w) to ``size`` (H, W) and gives each strip of rows to ``use``.

    Args:
        x: The map.
        size: Height and width.
        align_corners: Of the resize.
        use: Called with the rows (of H) and the strip (N, C, rows, W), which is its own to overwrite. Returns the
            gradient with respect to the strip.

    Returns:
        The gradient with respect to ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        columns = interpolation_matrix(x.shape[3], size[1], align_corners, x.dtype).to(x.device)
        wide = x @ columns.T
        grad_wide = torch.zeros_like(wide)
        for rows, source, weights in row_strips(x, size, align_corners):
            grad_wide[:, :, source] += weights.T @ use(rows, weights @ wide[:, :, source])
        return grad_wide @ columns


class GradientOnTheWay(torch.autograd.Function):
    """A loss whose forward makes the gradient with respect to its first argument and saves it, and nothing else."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad * ctx.saved_tensors[0], *[None] * (len(ctx.needs_input_grad) - 1)


class ResizedNLL(torch.autograd.Function):
    """Negative log-likelihood (N, H, W) of each pixel of bilinearly resized logits (N, C, h, w)."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, align_corners: bool) -> torch.Tensor:
        ctx.save_for_backward(logits, target)
        ctx.align_corners = align_corners
        nll = logits.new_empty(target.shape)
        height, width = target.shape[-2:]
        with torch.autocast(logits.device.type, enabled=False):
            columns = interpolation_matrix(logits.shape[3], width, align_corners, logits.dtype).to(logits.device)
            wide = logits @ columns.T
            for rows, source, weights in row_strips(logits, (height, width), align_corners):
                nll[:, rows] = F.log_softmax(weights @ wide[:, :, source], dim=1).gather(
                    1, target[:, None, rows]).squeeze(1).neg_()
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, target = ctx.saved_tensors

        def use(rows: slice, strip: torch.Tensor) -> torch.Tensor:
            strip_grad = grad[:, None, rows]
            prob = torch.softmax(strip, dim=1)
            return prob.mul_(strip_grad).scatter_add_(1, target[:, None, rows], -strip_grad)

        return resize_in_strips(logits, target.shape[-2:], ctx.align_corners, use), None, None


class HardNLL(GradientOnTheWay):
    """Sum of the negative log-likelihoods of the hard pixels of resized logits, and their number, from one softmax.

    Hard are those with a negative log-likelihood above ``threshold``, of the pixels that are not ignored.
    """

    @staticmethod
    def forward(
            ctx: Any,
            logits: torch.Tensor,
            target: torch.Tensor,
            ignored: torch.Tensor,
            threshold: float,
            align_corners: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = logits.new_zeros(()), torch.zeros((), dtype=torch.int64, device=logits.device)

        def use(rows: slice, strip: torch.Tensor) -> torch.Tensor:
            index = target[:, None, rows]
            prob = torch.softmax(strip, dim=1)
            # the smallest normal number instead of 0: such a pixel is as hard as can be told
            nll = prob.gather(1, index).clamp_(min=torch.finfo(prob.dtype).tiny).log_().neg_()
            hard = ((nll > threshold) & ~ignored[:, None, rows]).to(nll.dtype)
            total.add_(torch.dot(nll.flatten(), hard.flatten()))
            count.add_(hard.count_nonzero())
            return prob.mul_(hard).scatter_add_(1, index, hard.neg_())

        ctx.save_for_backward(resize_in_strips(logits, target.shape[-2:], align_corners, use))
        ctx.mark_non_differentiable(count)
        return total, count


class ResizedL1(GradientOnTheWay):
    """Mean absolute difference of images (N, C, H, W) from a bilinearly resized map (N, C, h, w), align_corners."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(())

        def use(rows: slice, strip: torch.Tensor) -> torch.Tensor:
            difference = strip.sub_(images[:, :, rows])
            total.add_(difference.abs().sum())
            return difference.sign_()

        ctx.save_for_backward(resize_in_strips(x, images.shape[-2:], True, use) / images.numel())
        return total / images.numel()


class ResizedKL(GradientOnTheWay):
    """Sum of the KL divergences from a teacher's class distributions, times the square of the temperature.

    Of bilinearly resized logits (N, C, h, w), align_corners, from ``teacher`` logits (N, C, H, W), over the pixels of
    ``counted`` (N, H, W), bool.
    """

    @staticmethod
    def forward(
            ctx: Any,
            logits: torch.Tensor,
            teacher: torch.Tensor,
            counted: torch.Tensor,
            temperature: float,
    ) -> torch.Tensor:
        total = logits.new_zeros(())

        def use(rows: slice, strip: torch.Tensor) -> torch.Tensor:
            log_prob = F.log_softmax(strip.div_(temperature), dim=1)
            log_target = F.log_softmax(teacher[:, :, rows].to(strip.dtype) / temperature, dim=1)
            target = log_target.exp().mul_(counted[:, None, rows])
            total.add_(torch.dot(target.flatten(), log_target.sub_(log_prob).flatten()))
            return log_prob.exp_().mul_(counted[:, None, rows]).sub_(target).mul_(temperature)

        ctx.save_for_backward(resize_in_strips(logits, counted.shape[-2:], True, use))
        return total * temperature ** 2


class ResizedBCE(GradientOnTheWay):
    """Mean over pixels of binary cross-entropy with bilinearly resized logits (N, 1, h, w), align_corners.

    Pixels of ``edges`` (N, H, W) with 1 weigh ``edge_weight``, those with 0 ``rest_weight``, others nothing.
    """

    @staticmethod
    def forward(
            ctx: Any,
            logits: torch.Tensor,
            edges: torch.Tensor,
            edge_weight: torch.Tensor,
            rest_weight: torch.Tensor,
    ) -> torch.Tensor:
        total = logits.new_zeros(())

        def use(rows: slice, strip: torch.Tensor) -> torch.Tensor:
            edge = edges[:, None, rows]
            weights = ((edge == 0) * rest_weight - (edge == 1) * edge_weight).to(strip.dtype)
            wrong = strip.mul_(weights.sign())
            # log(1 + exp(wrong)); PyTorch's log1p takes ten times as long as log, which is as good here
            losses = wrong.abs().neg_().exp_().add_(1).log_().add_(wrong.relu())
            total.add_(torch.dot(losses.flatten(), weights.abs().flatten()))
            return wrong.sigmoid_().mul_(weights)

        ctx.save_for_backward(resize_in_strips(logits, edges.shape[-2:], True, use) / edges.numel())
        return total / edges.numel()


def resized_nll(logits: torch.Tensor, target: torch.Tensor, align_corners: bool = True) -> torch.Tensor:
    """Cross-entropy of each pixel, unweighted.

    Args:
        logits: (N, C, h, w), resized to the size of ``target``, bilinear.
        target: Class ids (N, H, W), int64, none of them outside the classes.
        align_corners: Of the resize.

    Returns:
        (N, H, W).
    """
    return ResizedNLL.apply(planar(logits), target, align_corners)
