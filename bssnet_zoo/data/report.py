"""What is in a data set: numbers and a contact sheet."""
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from ..files import atomic_path, check_writable
from .check import check_dataset, data_warnings
from .classes import ClassInfo
from .datasets import SegmentationDataset, open_dataset

__all__ = ["DataReport", "contact_sheet", "enet_weights", "report"]

CELL = (180, 240)  # height and width of a picture on the contact sheet


@dataclass(frozen=True)
class DataReport:
    """The contents of a split; ``print`` it.

    Args:
        spec: The data set, as given to ``open_dataset``.
        split: The split.
        classes: Names and colours of the classes.
        image_sizes: (height, width) -> number of images.
        pixels: Number of pixels per class.
        ignored: Number of ignored pixels.
        images_with_class: Number of images per class that have it.
        class_weights: See ``enet_weights``.
        contact_sheet: The picture that was written, if any.
        warnings: What is allowed and hardly meant, a line each.

    Example:
        >>> report("folder:data/mine", "train").classes.names
        ('sky', 'road', 'car')
    """

    spec: str
    split: str
    classes: ClassInfo
    image_sizes: dict[tuple[int, int], int]
    pixels: tuple[int, ...]
    ignored: int
    images_with_class: tuple[int, ...]
    class_weights: tuple[float, ...]
    contact_sheet: Path | None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width} ({number})" for (height, width), number in self.image_sizes.items())
        labelled = max(1, sum(self.pixels))
        names = max(len("class"), *map(len, self.classes.names))
        rows = [f"{'class':{names}}   pixels   images   weight"] + [
            f"{name:{names}} {pixels / labelled:7.2%} {images:8d} {weight:8.4f}"
            for name, pixels, images, weight in zip(
                self.classes.names, self.pixels, self.images_with_class, self.class_weights, strict=True)]
        return "\n".join([
            f"{self.spec}, {self.split}: {sum(self.image_sizes.values())} images",
            f"sizes (height x width): {sizes}",
            f"ignored pixels: {self.ignored / (labelled + self.ignored):.2%}; shares below are of the others",
            *rows,
            "weight: 1 / ln(1.02 + share) (ENet), scaled to a mean of 1",
            *([f"contact sheet: {self.contact_sheet}"] if self.contact_sheet else []),
            *(f"warning: {line}" for line in self.warnings),
        ])


def report(spec: str, split: str, out: str | os.PathLike | None = None, full: bool = False) -> DataReport:
    """Check a split, count its pixels per class and write a contact sheet.

    Args:
        spec: As for ``open_dataset``.
        split: As for ``open_dataset``.
        out: Where to write the contact sheet (PNG); none is written without it.
        full: Decode every image, not just its header.

    Raises:
        ValueError: As ``open_dataset`` and ``check_dataset``.

    Example:
        >>> report("folder:data/mine", "train").image_sizes
        {(64, 96): 4}
    """
    dataset = open_dataset(spec, split)
    if out is not None:
        check_writable(out)
    scans = check_dataset(dataset, full)
    num_classes = len(dataset.classes.names)
    per_image = np.stack([_class_counts(dataset, scan.counts) for scan in scans])
    pixels = per_image.sum(0)
    if out is not None:
        with atomic_path(out) as path:
            contact_sheet(dataset).save(path, format="PNG")
    return DataReport(
        spec=spec,
        split=split,
        classes=dataset.classes,
        image_sizes=dict(Counter(scan.image_size for scan in scans).most_common()),
        pixels=tuple(pixels[:num_classes].tolist()),
        ignored=int(pixels[dataset.ignore_index]),
        images_with_class=tuple((per_image[:, :num_classes] > 0).sum(0).tolist()),
        class_weights=enet_weights(pixels[:num_classes]),
        contact_sheet=None if out is None else Path(out),
        warnings=tuple(data_warnings(dataset, scans, split)),
    )


def _class_counts(dataset: SegmentationDataset, value_counts: np.ndarray) -> np.ndarray:
    """Pixels per raw value -> pixels per class id (256)."""
    return np.bincount(dataset.id_table, value_counts, minlength=256).astype(np.int64)


def enet_weights(pixels: np.ndarray) -> tuple[float, ...]:
    """Class weights 1 / ln(1.02 + share of the class) (ENet, Paszke et al., 2016), scaled to a mean of 1 so that the
    size of the loss, and with it the learning rate, stays. A class without pixels gets the largest weight."""
    weights = 1 / np.log(1.02 + pixels / max(1, pixels.sum()))
    return tuple((weights / weights.mean()).round(4).tolist())


def contact_sheet(dataset: SegmentationDataset, rows: int = 6, columns: int = 3) -> Image.Image:
    """Images spread evenly over the data set, each with its mask laid over it at its right; a legend below.

    Ignored pixels stay as they are in the image.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, rows * columns).round().astype(int)).tolist()
    height, width = CELL
    legend = _legend(dataset.classes, columns * (2 * width + 8))
    rows = -(-len(indices) // columns)
    sheet = Image.new("RGB", (legend.width, rows * (height + 16) + legend.height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, index in enumerate(indices):
        left, top = i % columns * (2 * width + 8), i // columns * (height + 16)
        for picture in _pictures(*dataset.load(index), dataset.classes):
            sheet.paste(picture, (left, top))
            left += width
        draw.text((left - 2 * width, top + height + 1), f"{index}: {dataset.files[index][0].name}", fill="black")
    sheet.paste(legend, (0, sheet.height - legend.height))
    return sheet


def _pictures(image: Tensor, label: Tensor, classes: ClassInfo) -> tuple[Image.Image, Image.Image]:
    """The image and the image under its mask, shrunk to ``CELL``."""
    masks = label == torch.arange(len(classes.names))[:, None, None]
    covered = draw_segmentation_masks(image, masks, alpha=0.7, colors=list(classes.palette))
    size = [max(1, round(side * min(CELL[0] / image.shape[1], CELL[1] / image.shape[2]))) for side in image.shape[1:]]
    return tuple(F.to_pil_image(F.resize(picture, size, antialias=True)) for picture in (image, covered))


def _legend(classes: ClassInfo, width: int, cell: int = 150) -> Image.Image:
    columns = width // cell
    legend = Image.new("RGB", (width, -(-len(classes.names) // columns) * 20 + 4), "white")
    draw = ImageDraw.Draw(legend)
    for i, (name, colour) in enumerate(zip(classes.names, classes.palette, strict=True)):
        left, top = i % columns * cell + 4, i // columns * 20 + 4
        draw.rectangle((left, top, left + 14, top + 14), fill=colour, outline="black")
        draw.text((left + 20, top + 1), f"{i} {name}", fill="black")
    return legend
