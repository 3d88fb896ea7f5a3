"""Predictions as files, in the values and names of the data set."""
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.datasets import SegmentationDataset
from ..files import atomic_path

__all__ = ["PredictionWriter"]


class PredictionWriter:
    """Writes label maps as palette PNGs whose pixel values are those of the data set's label files.

    For Cityscapes these are the label ids, and the names, ``CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png``, are those that
    its test server and its scripts look for. Files are named like the images, sub-folders are kept.

    Args:
        dataset: Where the predicted images come from.
        folder: The folder to write to.

    Raises:
        ValueError: Files of the data set would be overwritten.
    """

    def __init__(self, dataset: SegmentationDataset, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.images = [image for image, _ in dataset.files]
        self.root = Path(os.path.commonpath([image.parent for image in self.images]))
        self.values = np.zeros(256, dtype=np.uint8)
        self.palette = np.zeros((256, 3), dtype=np.uint8)
        for value, class_id in sorted(dataset.id_map.items(), reverse=True):  # of several values the smallest stays
            if class_id < len(dataset.classes.names):
                self.values[class_id] = value
                self.palette[value] = dataset.classes.palette[class_id]

        mine = {path.resolve() for pair in dataset.files for path in pair}
        if any(self.path(i).resolve() in mine for i in range(len(self.images))):
            raise ValueError(f"{folder} holds files of the data set, which would be overwritten: choose another folder")

    def path(self, index: int) -> Path:
        """The file of the image with that index in the data set."""
        return (self.folder / self.images[index].relative_to(self.root)).with_suffix(".png")

    def write(self, index: int, prediction: torch.Tensor) -> None:
        """Writes the label map (H, W) of the image with that index in the data set."""
        picture = Image.fromarray(self.values[prediction.cpu().numpy()])
        picture.putpalette(self.palette.tobytes())
        with atomic_path(self.path(index)) as temporary:
            picture.save(temporary)
