"""int8 by quantisation after training, calibrated on images."""
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2 import functional as TF

from ..data.images import IMAGE_SUFFIXES, ImageLike, image_files, load_image
from .exported import file_input

__all__ = ["calibration_files", "quantize", "read_image"]

CALIBRATION_IMAGES = 300
FLOAT_LAYERS = r".*attention.*"  # tiny, and in int8 they would cost B half a point of mIoU


def calibration_files(calibration: str | os.PathLike | Sequence[str | os.PathLike] | None) -> list[Path]:
    """Images to calibrate int8 on, at most ``CALIBRATION_IMAGES``, evenly from all that there are."""
    if not calibration:
        raise ValueError("int8 needs a calibration folder: images like those that the model will see, 100 or more")
    paths = [calibration] if isinstance(calibration, (str, os.PathLike)) else calibration
    for path in paths:
        if not Path(path).exists():
            raise ValueError(f"calibration images not found: {path}")
    files = [file for path in map(Path, paths) for file in (image_files(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}: looked for {', '.join(IMAGE_SUFFIXES)}")
    return files[::-(-len(files) // CALIBRATION_IMAGES)]


def quantize(converted: Any, files: Sequence[Path], size: Sequence[int] | None, metadata: dict[str, str]) -> Any:
    """int8 convolutions by post-training quantisation, except ``FLOAT_LAYERS``."""
    import nncf

    nncf.set_log_level(logging.WARNING)
    dataset = nncf.Dataset(
        files, lambda file: {"images": file_input(read_image(file, size, metadata), metadata).numpy()})
    return nncf.quantize(
        converted, dataset, subset_size=len(files), ignored_scope=nncf.IgnoredScope(patterns=[FLOAT_LAYERS]))


def read_image(image: ImageLike, size: Sequence[int] | None, metadata: dict[str, str]) -> torch.Tensor:
    """An image as the model takes it, normalised (1, C, H, W), that had 8 bits before."""
    mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
    rgb = load_image(image)
    rgb = rgb if size is None else TF.resize(rgb, list(size), antialias=True)
    rgb = (255 * rgb).round().clamp(0, 255) / 255
    return TF.normalize(rgb[[channel % 3 for channel in range(len(mean))]], mean, std)[None]
