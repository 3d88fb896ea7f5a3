"""What BSSNet is trained with: OHEM cross-entropy, boundary loss, and their sum with the reconstruction of the image.

Cross-entropies are of logits resized to the size of the labels, which `resized` does without ever holding them
as a whole. Everything is computed in float32, under autocast too (float64 stays float64).
"""
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.edges import edge_map
from .resized import at_least_float32, resize, resized_nll

__all__ = ["BSSNetLoss", "BSSNetLosses", "BoundaryLoss", "OhemCrossEntropyLoss"]


def negative_log(probability: float) -> float:
    return -math.log(probability) if probability else math.inf


def kth_largest(values: torch.Tensor, index: int) -> torch.Tensor:
    """Element ``index`` (from 0) of ``values`` in descending order, without sorting them."""
    if values.device.type != "cpu":
        return torch_kth_largest(values, index)
    place = values.numel() - 1 - index
    return values.new_tensor(np.partition(values.flatten().numpy(), place)[place])


def torch_kth_largest(values: torch.Tensor, index: int) -> torch.Tensor:
    """What `kth_largest` is, on any device; on a CPU numpy's selection takes a tenth of the time.

    Not by kthvalue, which has one block of a GPU do all the work.
    """
    return values.flatten().topk(index + 1, sorted=False).values.amin()


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
    labels = labels.long()  # of unsigned types torch knows little, and takes 255 for -1
    ignored = labels == ignore_index
    target = labels.masked_fill(ignored, 0)
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


def attached_zero(x: torch.Tensor) -> torch.Tensor:
    """0, with a gradient of 0 for ``x`` whatever is in it: distributed training waits for every gradient."""
    return at_least_float32(x[:0]).sum()


class OhemCrossEntropyLoss(nn.Module):
    """Cross-entropy of the hard pixels: online hard example mining (OHEM).

    With q the true-class probabilities of the batch's n valid pixels in ascending order, the pixels with a probability
    strictly below max(threshold, q[min(min_kept, n - 1)]) are kept; their class-weighted losses are averaged by count.
    Without a valid pixel the loss is 0, still attached to the graph. Each process of a distributed run finds its own
    threshold.

    Example:
        >>> logits, labels = torch.randn(2, 5, 8, 12, requires_grad=True), torch.randint(0, 5, (2, 64, 96))
        >>> OhemCrossEntropyLoss()(logits, labels).backward()

    Args:
        ignore_index: Label of pixels without a class.
        threshold: Probability of the true class from which on a pixel counts as easy.
        min_kept: Number of pixels to keep where fewer are hard: the hardest ones, less those as easy as the next. Of no
            more valid pixels than this, all but the easiest are kept.
        class_weights: One weight for each class; None weighs them equally.

    Raises:
        ValueError: ``threshold`` is no probability, ``min_kept`` or a class weight is negative.
    """

    class_weights: torch.Tensor | None

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

    Example:
        >>> border, labels = torch.randn(2, 1, 8, 12, requires_grad=True), torch.randint(0, 5, (2, 64, 96))
        >>> BoundaryLoss()(border, edge_map(labels)).backward()

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
        num_edge, num_rest = (edges == 1).count_nonzero(), (edges == 0).count_nonzero()
        total = (num_edge + num_rest).clamp(min=1)
        logits, edge = resize(logits, edges.shape[1:]), (edges == 1)[:, None]
        weights = edge * (num_rest / total) + (edges == 0)[:, None] * (num_edge / total)
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.binary_cross_entropy_with_logits(logits, edge.to(logits.dtype), weights.to(logits.dtype))
        return self.weight * loss


class BSSNetLosses(NamedTuple):
    """The six losses of BSSNet, each a scalar with its weight applied.

    ``seg`` OHEM cross-entropy; ``seg_border`` the same where the network sees a border; ``border`` boundary loss;
    ``spatial`` L1 of the reconstructed image; ``aux3`` and ``aux4`` cross-entropy of the FCN heads at strides 16, 32.

    Example:
        >>> BSSNetLosses(*torch.ones(6)).total
        tensor(6.)
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
        return sum(self[1:], start=self.seg)


class BSSNetLoss(nn.Module):
    """The training loss of BSSNet: a sum of six (Shi et al., IEEE TCSVT 34(5), 2024, as its code computes them).

    Example:
        >>> from bssnet_zoo import create_model
        >>> model = create_model("bssnet_t", num_classes=5, aux_heads=True).train()
        >>> images, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
        >>> losses = BSSNetLoss()(model(images), images, labels)
        >>> losses.total.backward()

    Args:
        class_weights: One weight for each class, for ``seg`` and ``seg_border``; None weighs them equally.
        ignore_index: Label of pixels without a class.
        min_kept: As in `OhemCrossEntropyLoss`, of a batch, for ``seg`` and ``seg_border``.
        aux_min_kept: The same for ``aux3`` and ``aux4``, times the number of images.
        loss_weights: Factors of the six, in the order of `BSSNetLosses`. What has 0 isn't computed.

    Raises:
        ValueError: A negative number or class weight, loss weights that aren't six or all 0.
    """

    threshold = 0.9
    aux_threshold = 0.7
    border_threshold = 0.8
    class_weights: torch.Tensor | None

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
        if (len(loss_weights) != len(BSSNetLosses._fields) or not any(loss_weights)
                or not all(0 <= weight < math.inf for weight in loss_weights)):
            raise ValueError(f"loss_weights must be 0 or more for each of {', '.join(BSSNetLosses._fields)}, finite "
                             f"and not all 0, got {tuple(loss_weights)}")
        self.loss_weights = tuple(loss_weights)
        self.ignore_index = ignore_index
        self.min_kept = min_kept
        self.aux_min_kept = aux_min_kept
        self.boundary = BoundaryLoss()
        self.register_buffer("class_weights", class_weight_tensor(class_weights), persistent=False)

    def forward(self, output: Any, images: torch.Tensor, labels: torch.Tensor) -> BSSNetLosses:
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
        seg_weight, seg_border_weight, border_weight, spatial_weight, *aux_weights = self.loss_weights
        maps = (output.seg, output.seg, output.border, output.spatial, *output.aux)
        zeros = [attached_zero(x) for x in maps]
        losses = zeros.copy()
        if seg_weight or seg_border_weight:
            losses[:2] = self._seg_losses(output.seg, output.border.detach(), target, ignored)
        if border_weight:
            padding = reduce(torch.logical_and, [channel == 0 for channel in images.unbind(1)], ignored)
            edges = edge_map(labels, self.ignore_index).masked_fill_(padding, 255)
            losses[2] = self.boundary(output.border, edges)
        if spatial_weight:
            losses[3] = F.l1_loss(resize(output.spatial, images.shape[2:]), at_least_float32(images))
        for i, (logits, weight) in enumerate(zip(output.aux, aux_weights, strict=True)):
            if weight:
                losses[4 + i] = self._aux_loss(logits, target, ignored)
        return BSSNetLosses(*(loss * weight if weight else zero
                              for loss, weight, zero in zip(losses, self.loss_weights, zeros, strict=True)))

    def _seg_losses(
            self,
            logits: torch.Tensor,
            border: torch.Tensor,
            target: torch.Tensor,
            ignored: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = pixel_weights(target, self.class_weights, logits.shape[1])
        nll = resized_nll(logits, target)
        no_border = resize(border, target.shape[1:]).squeeze(1) <= math.log(
            self.border_threshold / (1 - self.border_threshold))
        kept = hard_pixels(nll, ignored, self.threshold, self.min_kept)
        kept_border = hard_pixels(nll, ignored | no_border, self.threshold, self.min_kept)
        return mean_over(kept, nll, weights), mean_over(kept_border, nll, weights)

    def _aux_loss(self, logits: torch.Tensor, target: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        nll = resized_nll(logits, target, align_corners=False)
        return (nll * hard_pixels(nll, ignored, self.aux_threshold, self.aux_min_kept * len(target))).mean()
