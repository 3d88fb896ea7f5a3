"""A segmented image: its labels, pictures of them, and what other tools take."""
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.classes import RGB
from .polygons import Region, coco_segmentation, polygon_area, regions

if TYPE_CHECKING:
    from supervision import Detections

__all__ = ["Prediction"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A segmented image. It is equal to itself only: compare the arrays.

    Attributes:
        labels: Class ids, (H, W) uint8, at the size of the image.
        image: The image, RGB.
        class_names: Name of each class id.
        palette: 8-bit RGB colour of each class id.
        probabilities: Softmax over the classes, (num_classes, H, W) float32, if asked for.

    Example:
        >>> prediction = Prediction(np.zeros((2, 3), np.uint8), Image.new("RGB", (3, 2)), ("road",), ((128, 64, 128),))
        >>> prediction.counts()
        array([6])
    """

    labels: np.ndarray
    image: Image.Image
    class_names: tuple[str, ...]
    palette: tuple[RGB, ...]
    probabilities: np.ndarray | None = None

    def counts(self) -> np.ndarray:
        """Pixels of each class, (num_classes,) int64."""
        if self.labels.dtype == np.uint8:  # Pillow counts bytes five times as fast
            return np.array(Image.fromarray(self.labels).histogram()[:len(self.class_names)])
        return np.bincount(self.labels.ravel(), minlength=len(self.class_names))

    def mask(self, name: str) -> np.ndarray:
        """The pixels of a class, (H, W) bool.

        Raises:
            ValueError: No class of that name.
        """
        if name not in self.class_names:
            raise ValueError(f"there is no class '{name}': the classes are {', '.join(self.class_names)}")
        return self.labels == self.class_names.index(name)

    def polygons(self, min_area: float = 0) -> dict[str, list[Region]]:
        """The regions of each class that is in the image.

        A region is a list of polygons (N, 2), x and y in pixels: its outline, then those of its holes, as shapely and
        GeoJSON have it. Corners are corners of pixels, so that areas are numbers of pixels.

        Args:
            min_area: In pixels: smaller regions are left out, smaller holes are filled.

        Raises:
            RuntimeError: OpenCV is missing.
        """
        found = {self.class_names[i]: regions(self.labels == i, min_area) for i in np.unique(self.labels)}
        return {name: those for name, those in found.items() if those}

    def to_dict(self, polygons: bool = True, min_area: float = 0) -> dict[str, Any]:
        """What was found, in the words of COCO: plain numbers, strings, lists and dicts.

        Args:
            polygons: Add ``annotations``, one for each region, which takes OpenCV.
            min_area: As for `polygons`.

        Returns:
            ``width`` and ``height``; ``shares``, of all pixels, by class name; ``categories``, whose ids are those of
            ``labels``; ``annotations`` with ``category_id``, ``segmentation`` (one polygon; a cut leads to each hole),
            ``area``, ``bbox`` (x, y, width, height) and ``iscrowd``.

        Raises:
            RuntimeError: OpenCV is missing.
        """
        height, width = self.labels.shape
        shares = self.counts() / self.labels.size
        found: dict[str, Any] = dict(
            width=width, height=height,
            shares={name: round(float(share), 6) for name, share in zip(self.class_names, shares, strict=True)},
            categories=[dict(id=i, name=name) for i, name in enumerate(self.class_names)])
        if polygons:
            found["annotations"] = [
                _annotation(self.class_names.index(name), region)
                for name, those in self.polygons(min_area).items() for region in those]
        return found

    def to_json(self, polygons: bool = True, min_area: float = 0, **facts: Any) -> str:
        """`to_dict` as a line of JSON.

        Args:
            polygons: As for `to_dict`.
            min_area: As for `to_dict`.
            **facts: What comes first in the line, such as ``file_name``, and the ``time`` of a frame.
        """
        return json.dumps({**facts, **self.to_dict(polygons, min_area)})

    def to_supervision(self) -> "Detections":
        """`supervision.Detections` for its annotators: a mask for each class present, ``class_name`` in its data.

        Raises:
            RuntimeError: supervision is missing.
        """
        try:
            import supervision
        except ImportError as error:
            raise RuntimeError(f"to_supervision needs supervision ({error}): the extra [supervision], as in pip "
                               "install '.[supervision]'") from None
        present = np.unique(self.labels)
        masks = present[:, None, None] == self.labels
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32), mask=masks, class_id=present.astype(int),
            data={"class_name": np.array([self.class_names[i] for i in present])})

    def label_image(self) -> Image.Image:
        """The labels as a palette image: its pixel values are the class ids."""
        image = Image.fromarray(self.labels)
        image.putpalette([channel for colour in self.palette for channel in colour])
        return image

    def overlay(self, alpha: float = 0.55, legend: bool = True) -> Image.Image:
        """The image with the class colours over it and, below, a legend of the classes that are in it.

        Args:
            alpha: Weight of the colours, 0 to 1.
            legend: Add the legend, which makes the picture higher than the image.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
        picture = Image.blend(self.image, self.label_image().convert("RGB"), alpha)
        return self._with_legend(picture) if legend else picture

    def _with_legend(self, picture: Image.Image) -> Image.Image:
        counts = self.counts()
        present = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
        line = max(16, picture.width // 30)
        font = ImageFont.load_default(size=0.7 * line)
        entries = [f"{self.class_names[i]} {counts[i] / counts.sum():.1%}" for i in present]
        column = int(max(font.getlength(entry) for entry in entries)) + 2 * line
        columns = max(1, picture.width // column)
        rows = -(-len(entries) // columns)
        canvas = Image.new("RGB", (max(picture.width, column), picture.height + rows * line + line // 2), "white")
        canvas.paste(picture)
        draw = ImageDraw.Draw(canvas)
        for k, (i, entry) in enumerate(zip(present, entries, strict=True)):
            x, y = k % columns * column + line // 2, picture.height + k // columns * line + line // 4
            box = (x, y + line // 8, x + line * 3 // 4, y + line * 7 // 8)
            draw.rectangle(box, fill=self.palette[i], outline="black")
            draw.text((x + line, y + line // 2), entry, fill="black", font=font, anchor="lm")
        return canvas


def _annotation(category_id: int, region: Region) -> dict[str, Any]:
    outline, *holes = region
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return dict(
        category_id=category_id, segmentation=coco_segmentation(region),
        area=polygon_area(outline) - sum(map(polygon_area, holes)), bbox=[left, top, right - left, bottom - top],
        iscrowd=0)
