"""How good a label map is: IoU and accuracy from a confusion matrix, and F1 of the class borders.

Both count on the device of the predictions, picture by picture, and keep no more than the counts.
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F

from .data.edges import differs_from_neighbour
from .distributed import is_initialized

__all__ = ["BoundaryF1", "ConfusionMatrix"]


def check_label_maps(prediction: torch.Tensor, labels: torch.Tensor, num_classes: int, valid: torch.Tensor) -> None:
    """Raises ValueError where a valid pixel of either map is outside the classes."""
    for name, ids in (("prediction", prediction), ("label", labels)):
        outside = ids[valid & ((ids < 0) | (ids >= num_classes))]
        if len(outside):
            raise ValueError(f"{name} {outside[0].item()} is outside the {num_classes} classes, 0-{num_classes - 1}, "
                             f"and its pixel is not ignored ({len(outside)} such pixels)")


class LabelMapMetric:
    """Counts summed over pairs of label maps, and over the processes of a distributed run.

    Args:
        num_classes: Number of classes.
        shape: Of the counts.
        ignore_index: Label of pixels that don't count.
        device: Where the counts are kept. None is the CPU; with NCCL it has to be the GPU.
    """

    def __init__(self, num_classes: int, shape: tuple[int, ...], ignore_index: int, device: torch.device | str | None):
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            prediction: Class ids (N, H, W), any integer type. What stands at ignored pixels doesn't matter.
            labels: Class ids or ``ignore_index``, (N, H, W), any integer type.

        Raises:
            ValueError: Shapes that differ, maps that aren't integers, ids outside the classes.
        """
        if prediction.shape != labels.shape or labels.ndim != 3:
            raise ValueError("prediction and labels must both be (N, H, W), got "
                             f"{tuple(prediction.shape)} and {tuple(labels.shape)}")
        if prediction.is_floating_point() or labels.is_floating_point():
            raise ValueError(f"prediction and labels must be class ids of an integer type, got {prediction.dtype} and "
                             f"{labels.dtype}: take logits.argmax(1)")
        prediction, labels = prediction.long(), labels.to(prediction.device).long()
        valid = labels != self.ignore_index
        check_label_maps(prediction, labels, self.num_classes, valid)
        self.counts += self._count(prediction, labels, valid).to(self.counts.device)

    def _count(self, prediction: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def reduce(self) -> None:
        """Sums the counts of all processes into each of them: call it once, after the last update.

        Without a distributed run nothing happens.
        """
        if is_initialized():
            dist.all_reduce(self.counts)


class ConfusionMatrix(LabelMapMetric):
    """Confusion matrix over a data set: IoU of each class, their mean, pixel accuracy.

    ``counts`` is the matrix itself, (num_classes, num_classes) int64: a row for each label, a column for each
    prediction.

    Example:
        >>> matrix = ConfusionMatrix(num_classes=2)
        >>> prediction, labels = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]])
        >>> matrix.update(prediction, labels)  # for each batch: logits.argmax(1) and its labels
        >>> matrix.miou
        0.5

    Args:
        num_classes: Number of classes.
        ignore_index: Label of pixels that don't count.
        device: Where the matrix is kept. None is the CPU; with NCCL it has to be the GPU.

    Raises:
        ValueError: ``num_classes`` is less than 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str | None = None):
        super().__init__(num_classes, (num_classes, num_classes), ignore_index, device)

    def _count(self, prediction: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        pairs = (labels * self.num_classes + prediction)[valid]
        return torch.bincount(pairs, minlength=self.num_classes ** 2).view(self.num_classes, self.num_classes)

    @property
    def iou(self) -> torch.Tensor:
        """Intersection over union of each class (num_classes,) float64, 0-1; NaN where the union is empty."""
        counts = self.counts.cpu().double()  # some devices have no float64
        intersection = counts.diagonal()
        return intersection / (counts.sum(0) + counts.sum(1) - intersection)

    @property
    def miou(self) -> float:
        """Mean IoU of the classes whose union isn't empty, 0-1; NaN if there are none."""
        return self.iou.nanmean().item()

    @property
    def pixel_accuracy(self) -> float:
        """Share of the valid pixels that have their label predicted, 0-1; NaN if there are none."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()


class BoundaryF1(LabelMapMetric):
    """F1 of the class borders over a data set, with a tolerance.

    After Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013, but with precision
    and recall of each class accumulated over the data set before F1 is taken; the mean over classes comes last.

    A pixel is on the border of its class if one of its 4 neighbours is of another one; pairs with an ignored pixel
    make no border, and predictions at ignored pixels don't count. A border pixel of the prediction is right if a border
    pixel of the same class lies within ``tolerance`` pixels in the label, by Euclidean distance (a disk, as in the
    DAVIS benchmark); the right share is the precision. Recall is the same with the roles exchanged.

    Args:
        num_classes: Number of classes.
        tolerance: Distance in pixels, at the size of the labels.
        ignore_index: Label of pixels that don't count.
        device: Where the counts are kept. None is the CPU; with NCCL it has to be the GPU.

    Raises:
        ValueError: ``num_classes`` is less than 1 or ``tolerance`` less than 0.

    Example:
        >>> labels, prediction = torch.zeros(2, 1, 8, 8, dtype=torch.long)
        >>> labels[:, 4:] = 1
        >>> prediction[:, 3:] = 1  # one row off: within the tolerance
        >>> metric = BoundaryF1(num_classes=2)
        >>> metric.update(prediction, labels)
        >>> metric.value
        1.0
    """

    def __init__(
            self,
            num_classes: int,
            tolerance: int = 2,
            ignore_index: int = 255,
            device: torch.device | str | None = None,
    ):
        if tolerance < 0:
            raise ValueError(f"tolerance is a distance in pixels, 0 or more, got {tolerance}")
        super().__init__(num_classes, (4, num_classes), ignore_index, device)
        self.tolerance = tolerance

    def _border(self, labels: torch.Tensor) -> torch.Tensor:
        """The class of each border pixel and -1 elsewhere, (N, H, W) int16."""
        on_border = differs_from_neighbour(labels, ((-1, 0), (1, 0), (0, -1), (0, 1)), self.ignore_index)
        return torch.where(on_border, labels, -1).to(torch.int16)

    def _near(self, border: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Border pixels with one of the same class in the other map within the tolerance, (N, H, W) bool."""
        height, width = border.shape[-2:]
        radius = self.tolerance
        padded = F.pad(other, (radius,) * 4, value=-1)
        near = torch.zeros_like(border, dtype=torch.bool)
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                if down ** 2 + right ** 2 <= radius ** 2:
                    top, left = radius + down, radius + right
                    near |= border == padded[:, top:top + height, left:left + width]
        return near & (border >= 0)

    def _count(self, prediction: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        predicted = self._border(prediction.masked_fill(~valid, self.ignore_index))
        expected = self._border(labels)
        counts = []
        for border, other in ((predicted, expected), (expected, predicted)):
            for pixels in (border[self._near(border, other)], border[border >= 0]):
                counts.append(torch.bincount(pixels, minlength=self.num_classes))
        return torch.stack(counts)

    @property
    def f1(self) -> torch.Tensor:
        """F1 of each class (num_classes,) float64, 0-1; NaN where neither map has a border of the class."""
        right, predicted, found, expected = self.counts.cpu().double()
        precision, recall = right / predicted.clamp(min=1), found / expected.clamp(min=1)
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        return f1.masked_fill(predicted + expected == 0, torch.nan)

    @property
    def value(self) -> float:
        """Mean F1 of the classes that have borders, 0-1; NaN if there are none."""
        return self.f1.nanmean().item()
