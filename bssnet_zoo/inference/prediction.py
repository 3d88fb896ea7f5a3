"""A segmented image: its labels, and pictures of them."""
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.classes import RGB

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """A segmented image.

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
        return np.bincount(self.labels.ravel(), minlength=len(self.class_names))

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
