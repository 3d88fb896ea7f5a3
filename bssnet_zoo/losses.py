"""What BSSNet is trained with: OHEM cross-entropy, boundary loss, and their sum with the reconstruction of the image.

Cross-entropies are of logits resized to the size of the labels, yet the resized logits never exist as a whole: they
are made, used and forgotten a few rows at a time, once forward and once backward. Everything is computed in float32,
under autocast too (float64 stays float64).
"""
import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .data.edges import edge_map

__all__ = ["BSSNetLoss", "BSSNetLosses", "BoundaryLoss", "OhemCrossEntropyLoss", "PlainLoss"]

# Resized logits made at a time, in numbers: what stays in the caches of a CPU; an accelerator wants fewer launches.
CPU_STRIP = 2 ** 19
ACCELERATOR_STRIP = 2 ** 25


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resize(x: torch.Tensor, size: Sequence[int], align_corners: bool = True) -> torch.Tensor:
    """(N, C, h, w) resized to ``size`` (H, W), bilinear."""
    x = at_least_float32(x)
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def interpolation_matrix(size: int, new_size: int, align_corners: bool, dtype: torch.dtype) -> torch.Tensor:
    """Linear interpolation of ``size`` values to ``new_size``, as a (new_size, size) matrix."""
    identity = torch.eye(size, dtype=dtype)[None]
    return F.interpolate(identity, size=new_size, mode="linear", align_corners=align_corners)[0].T.contiguous()


class RowStrip(NamedTuple):
    """Some rows of the resized map, the rows of the small map that they come from, and the matrix between them."""

    rows: slice
    source: slice
    weights: torch.Tensor


def row_strips(logits: torch.Tensor, size: Sequence[int], align_corners: bool) -> list[RowStrip]:
    """Cuts the vertical half of a bilinear resize into strips."""
    elements = CPU_STRIP if logits.device.type == "cpu" else ACCELERATOR_STRIP
    step = max(1, elements // (logits.shape[0] * logits.shape[1] * size[1]))
    matrix = interpolation_matrix(logits.shape[2], size[0], align_corners, logits.dtype)
    strips = []
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        used = matrix[rows].any(0).nonzero().flatten().tolist()
        source = slice(used[0], used[-1] + 1)
        strips.append(RowStrip(rows, source, matrix[rows, source].to(logits.device)))
    return strips


class ResizedNLL(torch.autograd.Function):
    """Negative log-likelihood (N, H, W) of each pixel of bilinearly resized logits (N, C, h, w)."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, target: torch.Tensor, align_corners: bool) -> torch.Tensor:
        size = target.shape[-2:]
        columns = interpolation_matrix(logits.shape[3], size[1], align_corners, logits.dtype).to(logits.device)
        ctx.strips = row_strips(logits, size, align_corners)
        ctx.save_for_backward(logits, target, columns)
        nll = logits.new_empty(target.shape)
        with torch.autocast(logits.device.type, enabled=False):
            wide = logits @ columns.T
            for rows, source, weights in ctx.strips:
                log_prob = F.log_softmax(weights @ wide[:, :, source], dim=1)
                nll[:, rows] = log_prob.gather(1, target[:, None, rows]).squeeze(1).neg_()
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, target, columns = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            wide = logits @ columns.T
            grad_wide = torch.zeros_like(wide)
            for rows, source, weights in ctx.strips:
                strip_grad = grad[:, None, rows]
                prob = torch.softmax(weights @ wide[:, :, source], dim=1)
                grad_logits = prob.mul_(strip_grad).scatter_add_(1, target[:, None, rows], -strip_grad)
                grad_wide[:, :, source] += weights.T @ grad_logits
            return grad_wide @ columns, None, None


class HardNLL(torch.autograd.Function):
    """Sum of the negative log-likelihoods of the hard pixels of resized logits, and their number, in one go.

    Hard are those whose true class has a probability below ``threshold``, of the pixels that are not ignored. The
    gradient is made on the way, from the same softmax.
    """

    @staticmethod
    def forward(
            ctx,
            logits: torch.Tensor,
            target: torch.Tensor,
            ignored: torch.Tensor,
            threshold: float,
            align_corners: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = logits.new_zeros(()), torch.zeros((), dtype=torch.int64, device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            columns = interpolation_matrix(
                logits.shape[3], target.shape[2], align_corners, logits.dtype).to(logits.device)
            wide = logits @ columns.T
            grad_wide = torch.zeros_like(wide)
            for rows, source, weights in row_strips(logits, target.shape[-2:], align_corners):
                index = target[:, None, rows]
                log_prob = F.log_softmax(weights @ wide[:, :, source], dim=1)
                nll = log_prob.gather(1, index).neg_()
                hard = ((nll > negative_log(threshold)) & ~ignored[:, None, rows]).to(nll.dtype)
                total += torch.vdot(nll.flatten(), hard.flatten())
                count += hard.count_nonzero()
                grad_logits = log_prob.exp_().mul_(hard).scatter_add_(1, index, hard.neg_())
                grad_wide[:, :, source] += weights.T @ grad_logits
            ctx.save_for_backward(grad_wide @ columns)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None, None


class ResizedL1(torch.autograd.Function):
    """Mean absolute difference of images (N, C, H, W) from a bilinearly resized map (N, C, h, w), align_corners."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(())
        with torch.autocast(x.device.type, enabled=False):
            columns = interpolation_matrix(x.shape[3], images.shape[3], True, x.dtype).to(x.device)
            wide = x @ columns.T
            grad_wide = torch.zeros_like(wide)
            for rows, source, weights in row_strips(x, images.shape[-2:], align_corners=True):
                difference = (weights @ wide[:, :, source]).sub_(images[:, :, rows])
                total += torch.linalg.vector_norm(difference, 1)
                grad_wide[:, :, source] += weights.T @ difference.sign_()
            ctx.save_for_backward(grad_wide @ columns / images.numel())
        return total / images.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.saved_tensors[0], None


class WeightedBCE(torch.autograd.Function):
    """Mean over pixels of weighted binary cross-entropy with logits: PyTorch's in a third of its time on a CPU.

    PyTorch's log1p takes ten times as long as log, which is as good here: the other terms have the size of 1.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        losses = logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0)).sub_(logits * target)
        ctx.save_for_backward(logits.sigmoid().sub_(target).mul_(weights).div_(logits.numel()))
        return losses.mul_(weights).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad * ctx.saved_tensors[0], None, None


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


def negative_log(probability: float) -> float:
    return -math.log(probability) if probability else math.inf


def kth_largest(values: torch.Tensor, index: int) -> torch.Tensor:
    """Element ``index`` (from 0) of ``values`` in descending order, without sorting them."""
    if values.device.type == "cpu":  # numpy's selection takes a tenth of the time of torch's
        place = values.numel() - 1 - index
        return values.new_tensor(np.partition(values.flatten().numpy(), place)[place])
    return values.flatten().topk(index + 1).values[-1]


def hard_pixels(nll: torch.Tensor, ignored: torch.Tensor, threshold: float, min_kept: int) -> torch.Tensor:
    """The pixels that OHEM keeps (Shrivastava et al., CVPR 2016, as segmentation code does it).

    With q the true-class probabilities of the valid pixels in ascending order, n of them: those strictly below
    max(threshold, q[min(min_kept, n - 1)]).

    Args:
        nll: Negative log-likelihoods (N, H, W): they say what probabilities would, in the opposite order.
        ignored: Pixels without a class (N, H, W), bool.
        threshold: A probability.
        min_kept: Number of pixels.

    Returns:
        (N, H, W) bool.
    """
    nll = nll.detach().masked_fill(ignored, -torch.inf)
    hard = nll > negative_log(threshold)
    num_hard, num_ignored = torch.stack([hard.count_nonzero(), ignored.count_nonzero()]).tolist()
    index = min(min_kept, nll.numel() - num_ignored - 1)
    if num_hard > index:
        return hard
    return nll > kth_largest(nll, index)


def check_integer_labels(labels: torch.Tensor, batch_size: int) -> None:
    """Raises ValueError for labels that are not integers of shape (N, H, W)."""
    if labels.ndim != 3 or labels.shape[0] != batch_size:
        raise ValueError(
            f"labels must be (N, H, W) with N = {batch_size} as the logits have, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be class ids of an integer type, got {labels.dtype}: use labels.long()")


def split_labels(
        labels: torch.Tensor,
        logits: torch.Tensor,
        ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks labels against logits and splits them.

    Returns:
        Class ids (N, H, W), int64, with 0 for ignored pixels, and the ignored pixels (N, H, W), bool.

    Raises:
        ValueError: Shapes or types that don't fit, fewer than 2 classes, a label outside the classes.
    """
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point (N, C, H, W), got {logits.dtype} {tuple(logits.shape)}")
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise ValueError(f"cross-entropy needs logits of 2 or more classes, got {num_classes}: a softmax over one "
                         "class is always 1. For one class, train it and the background as num_classes=2")
    check_integer_labels(labels, logits.shape[0])
    ignored = labels == ignore_index
    target = labels.masked_fill(ignored, 0).long()
    if target.numel() == 0:
        raise ValueError(f"labels have no pixels: {tuple(labels.shape)}")
    smallest, largest = torch.stack(target.aminmax()).tolist()
    if smallest < 0 or largest >= num_classes:
        raise ValueError(f"label {smallest if smallest < 0 else largest} is neither a class, 0-{num_classes - 1}, nor "
                         f"ignore_index, {ignore_index}: map it to one of them or change num_classes")
    return target, ignored


def class_weight_tensor(class_weights: Sequence[float] | torch.Tensor | None) -> torch.Tensor | None:
    """Class weights as a float32 vector.

    Raises:
        ValueError: Not a vector of finite numbers of 0 or more.
    """
    if class_weights is None:
        return None
    weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().clone()
    if weights.ndim != 1 or not bool(((weights >= 0) & weights.isfinite()).all()):
        raise ValueError(f"class_weights must be one finite number of 0 or more per class, got {class_weights}")
    return weights


def check_ohem(threshold: float, min_kept: int) -> None:
    """Raises ValueError for OHEM settings that make no sense."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability, 0 to 1, got {threshold}")
    if min_kept < 0:
        raise ValueError(f"min_kept is a number of pixels, 0 or more, got {min_kept}")


def pixel_weights(target: torch.Tensor, class_weights: torch.Tensor | None, num_classes: int) -> torch.Tensor | float:
    """The class weight of each pixel (N, H, W), or 1."""
    if class_weights is None:
        return 1.
    if len(class_weights) != num_classes:
        raise ValueError(f"{len(class_weights)} class_weights for {num_classes} classes: give one for each")
    weights = class_weights.to(target.device)
    return weights.index_select(0, target.flatten()).view(target.shape)


def mean_over(kept: torch.Tensor, losses: torch.Tensor, weights: torch.Tensor | float) -> torch.Tensor:
    """Mean of weighted losses over the kept pixels, by their count; without any 0, still attached to the graph."""
    return (losses * (weights * kept)).sum() / kept.count_nonzero().clamp(min=1)


class OhemCrossEntropyLoss(nn.Module):
    """Cross-entropy of the hard pixels: online hard example mining (OHEM).

    With q the true-class probabilities of the batch's n valid pixels in ascending order, the pixels with a probability
    strictly below max(threshold, q[min(min_kept, n - 1)]) are kept; their class-weighted losses are averaged by count.
    Without a valid pixel the loss is 0, still attached to the graph. Each process of a distributed run finds its own
    threshold.

    Example::

        criterion = OhemCrossEntropyLoss()
        criterion(model(images), labels).backward()

    Args:
        ignore_index: Label of pixels without a class.
        threshold: Probability of the true class from which on a pixel counts as easy.
        min_kept: Number of pixels to keep at least, easy or not.
        class_weights: One weight for each class; None weighs them equally.

    Raises:
        ValueError: ``threshold`` is no probability, ``min_kept`` or a class weight is negative.
    """

    def __init__(
            self,
            ignore_index: int = 255,
            threshold: float = 0.9,
            min_kept: int = 131072,
            class_weights: Sequence[float] | torch.Tensor | None = None,
    ):
        super().__init__()
        check_ohem(threshold, min_kept)
        self.ignore_index = ignore_index
        self.threshold = threshold
        self.min_kept = min_kept
        self.register_buffer("class_weights", class_weight_tensor(class_weights), persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            logits: (N, C, h, w), any float type; resized to the size of the labels (bilinear, align_corners=True).
            labels: Class ids (N, H, W), any integer type.

        Raises:
            ValueError: Fewer than 2 classes, labels outside the classes, wrong shapes or number of class weights.
        """
        target, ignored = split_labels(labels, logits, self.ignore_index)
        weights = pixel_weights(target, self.class_weights, logits.shape[1])
        nll = resized_nll(logits, target)
        return mean_over(hard_pixels(nll, ignored, self.threshold, self.min_kept), nll, weights)


class BoundaryLoss(nn.Module):
    """Binary cross-entropy of a border map, in which edges and the rest weigh the same.

    Each pixel is weighted by the share of the other kind in the batch; the mean is over all pixels. Without edges, or
    with nothing but edges, the loss is 0.

    Example::

        criterion = BoundaryLoss()
        criterion(border_logits, edge_map(labels)).backward()

    Args:
        weight: Factor of the loss.
    """

    def __init__(self, weight: float = 20.):
        super().__init__()
        self.weight = weight

    def forward(self, logits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            logits: (N, 1, h, w), any float type; resized to the size of the edges (bilinear, align_corners=True).
            edges: (N, H, W), 1 on edges and 0 elsewhere; pixels of another value are neither, and count only as
                pixels to average over.

        Raises:
            ValueError: Shapes that don't fit.
        """
        if logits.ndim != 4 or logits.shape[1] != 1 or edges.ndim != 3 or edges.shape[0] != logits.shape[0]:
            raise ValueError("the boundary loss takes logits (N, 1, h, w) and edges (N, H, W), got "
                             f"{tuple(logits.shape)} and {tuple(edges.shape)}")
        logits = resize(logits, edges.shape[-2:]).squeeze(1)
        is_edge, is_rest = edges == 1, edges == 0
        num_edge, num_rest = is_edge.count_nonzero(), is_rest.count_nonzero()
        total = (num_edge + num_rest).clamp(min=1)
        weights = is_edge * (num_rest / total) + is_rest * (num_edge / total)
        return self.weight * WeightedBCE.apply(logits, is_edge.to(logits.dtype), weights)


class BSSNetLosses(NamedTuple):
    """The six losses of BSSNet, each a scalar with its weight applied.

    ``seg`` OHEM cross-entropy; ``seg_border`` the same where the network sees a border; ``border`` boundary loss;
    ``spatial`` L1 of the reconstructed image; ``aux3`` and ``aux4`` cross-entropy of the FCN heads at strides 16, 32.
    """

    seg: torch.Tensor
    seg_border: torch.Tensor
    border: torch.Tensor
    spatial: torch.Tensor
    aux3: torch.Tensor
    aux4: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Their sum: what to call ``backward()`` on."""
        return sum(self)


class BSSNetLoss(nn.Module):
    """The training loss of BSSNet: a sum of six (Shi et al., IEEE TCSVT 34(5), 2024, as its code computes them).

    Example::

        model = bssnet_zoo.create_model("bssnet_t", aux_heads=True).train()
        losses = BSSNetLoss()(model(images), images, labels)
        losses.total.backward()

    Args:
        class_weights: One weight for each class, for ``seg`` and ``seg_border``; None weighs them equally.
        ignore_index: Label of pixels without a class.
        min_kept: Pixels of a batch that ``seg`` and ``seg_border`` keep at least.
        aux_min_kept: Pixels of an image that ``aux3`` and ``aux4`` keep at least.
        loss_weights: Factors of the six, in the order of `BSSNetLosses`.

    Raises:
        ValueError: A negative number or class weight, another number of loss weights.
    """

    threshold = 0.9
    aux_threshold = 0.7
    border_threshold = 0.8

    def __init__(
            self,
            class_weights: Sequence[float] | torch.Tensor | None = None,
            ignore_index: int = 255,
            min_kept: int = 131072,
            aux_min_kept: int = 10000,
            loss_weights: Sequence[float] = (1., 1., 1., 1., 1., 1.),
    ):
        super().__init__()
        check_ohem(self.threshold, min_kept)
        check_ohem(self.aux_threshold, aux_min_kept)
        if len(loss_weights) != len(BSSNetLosses._fields) or min(loss_weights) < 0:
            raise ValueError(f"loss_weights must be 0 or more for each of {', '.join(BSSNetLosses._fields)}, got "
                             f"{tuple(loss_weights)}")
        self.loss_weights = BSSNetLosses(*loss_weights)
        self.ignore_index = ignore_index
        self.min_kept = min_kept
        self.aux_min_kept = aux_min_kept
        self.boundary = BoundaryLoss()
        self.register_buffer("class_weights", class_weight_tensor(class_weights), persistent=False)

    def forward(self, output: NamedTuple, images: torch.Tensor, labels: torch.Tensor) -> BSSNetLosses:
        """The six losses.

        Padding, which is recognised by image 0 and label ignored, is neither edge nor rest for ``border``. Other
        ignored pixels are rest.

        Args:
            output: The ``BSSNetOutput`` of a model with ``aux_heads=True`` in training.
            images: The normalised images that the model saw, (N, in_chans, H, W).
            labels: Class ids (N, H, W), any integer type.

        Raises:
            ValueError: Another output, fewer than 2 classes, labels outside the classes, wrong shapes or number of
                class weights.
        """
        if not hasattr(output, "border"):
            raise ValueError(f"BSSNetLoss takes a BSSNetOutput, got {type(output).__name__}: create the model with "
                             "aux_heads=True and call model.train(), or use OhemCrossEntropyLoss on plain logits")
        target, ignored = split_labels(labels, output.seg, self.ignore_index)
        expected = (*output.spatial.shape[:2], *labels.shape[1:])
        if images.shape != expected:
            raise ValueError(f"images must be (N, in_chans, H, W) = {expected} with these labels and this output, got "
                             f"{tuple(images.shape)}")
        border = resize(output.border, labels.shape[1:])
        seg, seg_border = self._seg_losses(output.seg, border.detach(), target, ignored)
        padding = reduce(torch.logical_and, [channel == 0 for channel in images.unbind(1)], ignored)
        edges = edge_map(labels, self.ignore_index).masked_fill_(padding, 255)
        losses = BSSNetLosses(
            seg=seg,
            seg_border=seg_border,
            border=self.boundary(border, edges),
            spatial=ResizedL1.apply(at_least_float32(output.spatial).contiguous(), images),
            aux3=self._aux_loss(output.aux[0], target, ignored),
            aux4=self._aux_loss(output.aux[1], target, ignored),
        )
        return BSSNetLosses(*(loss * weight for loss, weight in zip(losses, self.loss_weights, strict=True)))

    def _seg_losses(
            self,
            logits: torch.Tensor,
            border: torch.Tensor,
            target: torch.Tensor,
            ignored: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = pixel_weights(target, self.class_weights, logits.shape[1])
        nll = resized_nll(logits, target)
        no_border = border.squeeze(1).sigmoid() <= self.border_threshold
        kept = hard_pixels(nll, ignored, self.threshold, self.min_kept)
        kept_border = hard_pixels(nll, ignored | no_border, self.threshold, self.min_kept)
        return mean_over(kept, nll, weights), mean_over(kept_border, nll, weights)

    def _aux_loss(self, logits: torch.Tensor, target: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        pixels, valid = target.numel(), target.numel() - int(ignored.count_nonzero())
        total, num_hard = HardNLL.apply(
            at_least_float32(logits).contiguous(), target, ignored, self.aux_threshold, False)
        if num_hard > min(self.aux_min_kept * len(target), valid - 1):
            return total / pixels
        nll = resized_nll(logits, target, align_corners=False)
        kept = hard_pixels(nll, ignored, self.aux_threshold, self.aux_min_kept * len(target))
        return (nll * kept).mean()


class PlainLoss(OhemCrossEntropyLoss):
    """`OhemCrossEntropyLoss` of a network with nothing but logits, called and answering as `BSSNetLoss`."""

    def __init__(self, class_weights: Sequence[float] | torch.Tensor | None = None, ignore_index: int = 255):
        super().__init__(ignore_index, class_weights=class_weights)

    def forward(self, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> BSSNetLosses:
        """The loss as ``seg``; the other five are 0."""
        seg = super().forward(logits, labels)
        return BSSNetLosses(seg, *[torch.zeros_like(seg)] * 5)
