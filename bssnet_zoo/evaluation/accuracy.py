"""Evaluation: mIoU, pixel accuracy and boundary F1 of a model on a data set, whole-image or with test-time tricks."""
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.datasets import SegmentationDataset, default_split, open_dataset
from ..data.transforms import EvalTransform
from ..deployment.exported import ExportedModel
from ..device import PRECISIONS
from ..distributed import Process, leave_signals_to_parent, loading
from ..inference.resize import finite_logits
from ..inference.runner import evaluating
from ..metrics import BoundaryF1, ConfusionMatrix
from ..models.bssnet import MIN_SIZE, BSSNet
from ..models.config import match_classes, named_classes, shown_size
from .predictions import PredictionWriter

__all__ = ["Evaluation", "evaluate", "exported_accuracy", "multi_scale_probabilities", "sliding_window_logits"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a model on a data set; all of it fractions, NaN for a class that is in neither labels nor prediction.

    Attributes:
        class_names: Names of the classes.
        iou: IoU of each class.
        miou: Mean of ``iou`` without the NaNs.
        pixel_accuracy: Share of the labelled pixels that are right.
        boundary_f1: F1 of the class boundaries, with a tolerance of 2 pixels.
        num_images: Images in the data set.
        images_per_second: Speed, with loading and metrics.

    Example:
        >>> found = Evaluation(("road", "car"), (0.9, 0.5), 0.7, 0.88, 0.4, num_images=100, images_per_second=2.5)
        >>> print(str(found).splitlines()[2])
        mIoU              70.000
    """

    class_names: tuple[str, ...]
    iou: tuple[float, ...]
    miou: float
    pixel_accuracy: float
    boundary_f1: float
    num_images: int
    images_per_second: float

    def __str__(self) -> str:
        width = max(16, *(len(name) for name in self.class_names))
        lines = [f"{name:<{width}} {100 * iou:7.3f}" for name, iou in zip(self.class_names, self.iou, strict=True)]
        lines += [f"{'mIoU':<{width}} {100 * self.miou:7.3f}",
                  f"{'pixel accuracy':<{width}} {100 * self.pixel_accuracy:7.3f}",
                  f"{'boundary F1':<{width}} {100 * self.boundary_f1:7.3f}",
                  f"{self.num_images} images, {self.images_per_second:.2f} images/s"]
        return "\n".join(lines)


def _resize(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Scores (N, C, h, w) as float32 at another size. ValueError if they are NaN or +inf."""
    scores = finite_logits(scores.float())
    if scores.shape[-2:] == tuple(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=True)


def _padded_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits at the size of images, which are padded, as a `Predictor` does it, where the model takes no smaller ones.
    """
    height, width = images.shape[-2:]
    smallest = getattr(model, "min_size", MIN_SIZE)
    padding = (0, max(0, smallest - width), 0, max(0, smallest - height))
    if not any(padding):
        return model(images)
    images = F.pad(images, padding, mode="replicate")
    return _resize(model(images), images.shape[-2:])[..., :height, :width]


def _window_starts(size: int, window: int) -> list[int]:
    """Evenly spread starts of windows that cover ``size``, no more than two thirds of a window apart."""
    if size <= window:
        return [0]
    count = math.ceil((size - window) / (window * 2 / 3)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def sliding_window_logits(model: nn.Module, images: torch.Tensor, window: Sequence[int] | None = None) -> torch.Tensor:
    """Logits (N, num_classes, H, W) as the mean over windows that overlap by a third or more.

    Args:
        model: Gives logits at input size.
        images: Normalised images (N, C, H, W).
        window: (height, width); squares of the images' shorter side if None.
    """
    height, width = images.shape[-2:]
    window = window or (min(height, width),) * 2
    window = min(window[0], height), min(window[1], width)
    total = images.new_zeros(())
    for top in _window_starts(height, window[0]):
        for left in _window_starts(width, window[1]):
            # an exported file may end at the network's own stride
            logits = _resize(_padded_logits(model, images[..., top:top + window[0], left:left + window[1]]), window)
            right, bottom = width - left - window[1], height - top - window[0]
            ones = torch.ones_like(logits[:, :1])
            total = total + F.pad(torch.cat([logits, ones], dim=1), (left, right, top, bottom))
    return total[:, :-1] / total[:, -1:]


def multi_scale_probabilities(
        predict_logits: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        scales: Sequence[float] = (1.,),
        flip: bool = False,
) -> torch.Tensor:
    """Class probabilities (N, num_classes, H, W) as the mean over scales, and over the mirrored images.

    Args:
        predict_logits: From images to logits of the same size.
        images: Normalised images (N, C, H, W).
        scales: Factors of the size.
        flip: Predict mirrored images too.
    """
    size = images.shape[-2:]
    total = images.new_zeros(())
    for scale in scales:
        scaled = images
        if scale != 1:
            scaled_size = [max(MIN_SIZE, round(s * scale)) for s in size]
            scaled = F.interpolate(images, size=scaled_size, mode="bilinear", align_corners=False, antialias=scale < 1)
        for mirrored in (False, True)[:1 + flip]:
            logits = _resize(predict_logits(scaled.flip(-1) if mirrored else scaled), size)
            total = total + (logits.flip(-1) if mirrored else logits).softmax(1)
    return total / (len(scales) * (1 + flip))


def _class_order(model: nn.Module, classes: ClassInfo) -> list[int] | None:
    """The model's id for each class of a data set; None where both have the same order, or the model has no names.

    Raises:
        ValueError: They have another number of classes.
    """
    num_classes = len(classes.names)
    if getattr(model, "num_classes", num_classes) != num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, the data set {num_classes}: give a checkpoint "
                         "trained on these classes")
    known = getattr(model, "classes", None)  # of an exported file
    known = known if isinstance(known, ClassInfo) else named_classes(model)
    if known is None:
        return None
    try:
        order = match_classes(known.names, classes.names)
    except ValueError as error:
        _logger.warning("%s. They are compared by their numbers", error)
        return None
    if order is not None:
        _logger.warning("The model's classes stand in another order than the data set's: they are matched by name")
    return order


@torch.inference_mode()
def evaluate(
        model: nn.Module,
        dataset: SegmentationDataset,
        *,
        scales: Sequence[float] = (1.,),
        flip: bool = False,
        sliding_window: Sequence[int] | bool = False,
        precision: str = "float32",
        workers: int = 2,
        save_dir: str | os.PathLike | None = None,
        process: Process | None = None,
        progress: bool = False,
) -> Evaluation:
    """Evaluates a model, image by image, at the labels' size, on the device it is on.

    Args:
        model: Gives logits (N, num_classes, H, W) at input size in eval mode; left in the mode it was in. Classes that
            its config names otherwise than the data set are matched by name, or a warning says that they can't be.
        dataset: Of `open_dataset`, with an `EvalTransform`: normalised images (3, h, w) and labels (H, W).
        scales: Factors of the image size over which probabilities are averaged.
        flip: Average over the mirrored image too.
        sliding_window: (height, width) of windows that are predicted one by one and averaged where they overlap; True
            for squares of the image's shorter side; False for the whole image at once.
        precision: float32, or bfloat16 or float16 for mixed precision.
        workers: Processes that load images.
        save_dir: Folder for the predictions as PNG.
        process: Among several processes, this one: each evaluates its share, all get the whole result.
        progress: Show a progress bar, on a terminal.

    Raises:
        ValueError: A model with another number of classes, scores that are NaN or +inf, a scale that is not above 0,
            too small a window.
        RuntimeError: An image that can't be read.

    Example:
        >>> from bssnet_zoo import create_model
        >>> from bssnet_zoo.data import EvalTransform, open_dataset
        >>> model = create_model("bssnet_t", num_classes=3).eval()
        >>> result = evaluate(model, open_dataset("folder:data/mine", "val", EvalTransform()), workers=0)
        >>> 0 <= result.miou <= 1
        True
    """
    if min(scales) <= 0:
        raise ValueError(f"scales must be more than 0, got {min(scales):g}")
    if not isinstance(sliding_window, bool) and min(sliding_window) < MIN_SIZE:
        raise ValueError(f"sliding_window must be {MIN_SIZE} or more high and wide, got {tuple(sliding_window)}")
    order = _class_order(model, dataset.classes)
    device = next(model.parameters(), torch.empty(0)).device
    process = process or Process(device)
    indices = range(process.rank, len(dataset), process.world_size)
    loader = DataLoader(
        Subset(dataset, indices), batch_size=1, num_workers=workers, worker_init_fn=leave_signals_to_parent)
    num_classes = len(dataset.classes.names)
    confusion = ConfusionMatrix(num_classes, device=device)
    boundary = BoundaryF1(num_classes, device=device)
    writer = PredictionWriter(dataset, save_dir) if save_dir is not None else None

    def scores(images: torch.Tensor) -> torch.Tensor:
        if not sliding_window:
            return _padded_logits(model, images)
        return sliding_window_logits(model, images, None if sliding_window is True else sliding_window)

    start = time.perf_counter()
    silent = not (progress and process.primary and sys.stderr.isatty())
    autocast = torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")
    with evaluating(model), loading(loader) as batches:
        shown = tqdm(batches, total=len(indices), unit="image", leave=False, disable=silent)
        for index, (images, labels) in zip(indices, shown, strict=True):
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            try:
                with autocast:
                    found = (scores(images) if tuple(scales) == (1.,) and not flip
                             else multi_scale_probabilities(scores, images, scales, flip))
                found = _resize(found if order is None else found[:, order], labels.shape[-2:])
            except ValueError as error:
                raise ValueError(f"{dataset.files[index][0]}: {error}") from error
            prediction = found.argmax(1)
            for metric in (confusion, boundary):
                metric.update(prediction, labels)
            if writer is not None:
                writer.write(index, prediction[0])
    if process.world_size > 1:
        confusion.reduce()
        boundary.reduce()
    return Evaluation(
        class_names=dataset.classes.names,
        iou=tuple(confusion.iou.tolist()),
        miou=confusion.miou,
        pixel_accuracy=confusion.pixel_accuracy,
        boundary_f1=boundary.value,
        num_images=len(dataset),
        images_per_second=len(dataset) / (time.perf_counter() - start),
    )


def exported_accuracy(model: BSSNet, path: str | os.PathLike, data: str, workers: int = 2) -> str:
    """mIoU of a model and of the file made from it, on a data set ``KIND:DIR``, at the file's size, or the one that the
    weights were made for.
    """
    exported = ExportedModel(path, trust=True)
    size = exported.size or shown_size(exported.trained_size)
    dataset = open_dataset(data, default_split(data), EvalTransform(size, tuple(exported.mean), tuple(exported.std)))
    before, after = (100 * evaluate(m, dataset, workers=workers, progress=True).miou for m in (model, exported))
    return f"mIoU before {before:.3f}, after {after:.3f} ({after - before:+.3f}), {len(dataset)} images of {data}"
