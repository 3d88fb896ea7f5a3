"""Images of any kind as RGB tensors, grey files as the numbers in them, and the image files of a folder."""
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torchvision.transforms.v2 import functional as TF

from ..files import visible_files

__all__ = [
    "IMAGE_SUFFIXES", "UNREADABLE", "ImageLike", "image_files", "image_size", "load_image", "read_image", "read_values",
    "resize_image"]

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow says of a bad file
TURNS: dict[object, Image.Transpose] = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90}
STRETCHED = {"L;2": 85, "L;4": 17}  # factors by which Pillow makes 8 bits of 2 and 4
ROUNDING = 0.5 / 255  # by which floats may leave [0, 1]: less than 8 bits can tell
ENLARGED_PIXELS = 2 ** 26

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


def read_image(image: ImageLike) -> torch.Tensor:
    """Any image that a `Predictor` takes as RGB (3, H, W): EXIF orientation applied, alpha dropped.

    Returns:
        uint8 if the image has 8 bits or fewer a channel, else float32 in [0, 1].

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no image, an array or tensor of wrong type, shape or range.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_file(image)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, torch.Tensor) and image.is_floating_point():
        return _from_floats(image.detach().cpu())
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating):
        floats = torch.from_numpy(image.astype(np.float32))
        is_last = image.ndim == 3 and image.shape[2] in (1, 3, 4)
        return _from_floats(floats[..., :3].permute(2, 0, 1) if is_last else floats)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = getattr(image, "dtype", type(image).__name__)
        hint = ": for several images there is Predictor.batch" if isinstance(image, (list, tuple)) else ""
        raise ValueError(
            f"an image is a path, a PIL image, a uint8 array or a float tensor in [0, 1], not {found}{hint}")
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] not in (3, 4)) or image.size == 0:
        raise ValueError(f"a uint8 image must have shape (H, W), (H, W, 3) or (H, W, 4), got {image.shape}")
    if image.ndim == 3:  # a frame of a video, as a rule: one copy instead of Pillow's four
        return torch.from_numpy(image[..., :3].copy()).permute(2, 0, 1)
    return _from_pil(Image.fromarray(image))


def load_image(image: ImageLike) -> torch.Tensor:
    """What `read_image` gives, as float32 in [0, 1] in any case."""
    return TF.to_dtype(read_image(image), torch.float32, scale=True)


def read_values(path: str | os.PathLike) -> np.ndarray:
    """The numbers in a grey or palette file, such as a label map, as they are stored: (H, W), uint8 or wider.

    They are turned as `read_image` turns an image, and never scaled.

    Raises:
        ValueError: The file has colours.
        OSError, SyntaxError, Image.DecompressionBombError: It can't be read.
    """
    with _open(path) as file:
        raw = _raw_mode(file)
        if file.mode not in ("1", "L", "P") and not file.mode.startswith("I"):
            raise ValueError(f"{path}: a label of mode {file.mode}, not grey or palette: 'Bring your data' in the "
                             "documentation makes class numbers of colours")
        values = np.asarray(_upright(file))
    return values.astype(np.uint8) if values.dtype == bool else values // STRETCHED.get(raw, 1)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of what `read_image` and `read_values` give for a file, which isn't decoded for that.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: It can't be read.
    """
    with _open(path) as file:
        size = file.size
        if isinstance(file, TiffImageFile):  # Pillow's own size is that of the turned image, since some version
            size = file.tag_v2[ExifTags.Base.ImageWidth], file.tag_v2[ExifTags.Base.ImageLength]
        return size if file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else size[::-1]


def resize_image(rgb: torch.Tensor, size: Sequence[int] | None) -> torch.Tensor:
    """An image (3, H, W) as a network is to see it.

    Args:
        rgb: The image.
        size: The length of its shorter side, or height and width; None leaves it as it is.

    Raises:
        ValueError: The image is so long that it would be enlarged beyond 67 million pixels.
    """
    if size is None:
        return rgb
    height, width = rgb.shape[-2:]
    shorter = min(height, width)
    target = list(size) if len(size) == 2 else [int(size[0] * side / shorter) for side in (height, width)]
    if target[0] * target[1] > max(height * width, ENLARGED_PIXELS):
        raise ValueError(f"an image of {height}x{width} would be enlarged to {target[0]}x{target[1]}: give a smaller "
                         "size, height and width, or 'full'")
    return TF.resize(rgb, target, antialias=True)


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted; hidden ones are left out."""
    return visible_files(folder, IMAGE_SUFFIXES)


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Image.Image]:
    with open(path, "rb") as file:  # by its name Pillow may map it to memory, and distorts turned TIFFs in that case
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise UnidentifiedImageError("it is no image of a known kind") from None
        yield image


def _read_file(path: str | os.PathLike) -> torch.Tensor:
    try:
        with _open(path) as file:
            if getattr(file, "is_animated", False) and file.format != "MPO":  # whose others are previews
                _say_first_only(os.fspath(path))
            return _from_pil(file)
    except FileNotFoundError:
        hint = ": download it first" if "://" in os.fspath(path) else ""
        raise FileNotFoundError(f"image not found: {path}{hint}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"can't read an image from {path}: {str(error).rstrip('.')}; if you trust it, raise "
                         "PIL.Image.MAX_IMAGE_PIXELS (bssnet-zoo predict: --max-pixels)") from error
    except UNREADABLE as error:
        raise ValueError(f"can't read an image from {path}: {error}") from error


@functools.cache
def _say_first_only(path: str) -> None:
    _logger.warning("%s has several frames or pages: only the first is read", path)


def _raw_mode(image: Image.Image) -> str:
    """How the file of an image stores its pixels, in Pillow's words, such as ``L;4``; nothing once it is decoded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # turns a TIFF, and takes its tag away
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)  # exif_transpose fails where EXIF is odd


def _from_pil(image: Image.Image) -> torch.Tensor:
    raw, format, image = _raw_mode(image), image.format, _upright(image)
    if image.mode.startswith("I"):
        bits = 12 if raw == "I;12" else 16 if image.mode != "I" or format in ("PNG", "PPM") else None
        return _from_integers(np.array(image, dtype=np.int64), bits)
    if image.mode == "F":
        return _from_floats(torch.from_numpy(np.array(image)))
    return TF.pil_to_tensor(image.convert("RGB"))


def _from_integers(grey: np.ndarray, bits: int | None) -> torch.Tensor:
    """Grey values (H, W) as RGB. Of 32 bits, which say nothing of white, those that are used count: 8 or 16."""
    low, high = grey.min(), grey.max()
    bits = bits or (8 if high < 256 else 16)
    if low < 0 or high >= 2 ** bits:
        raise ValueError(f"integers from {low} to {high} don't say what is white: scale them to 0 to 255 or 65535")
    values = torch.from_numpy(grey)
    return (values.byte() if bits == 8 else values.float() / (2 ** bits - 1)).expand(3, -1, -1)


def _from_floats(image: torch.Tensor) -> torch.Tensor:
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"a float image must have shape (3, H, W) or (1, H, W), got {tuple(image.shape)}")
    low, high = image.min().item(), image.max().item()
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise ValueError(f"a float image must lie in [0, 1], got values from {low:g} to {high:g}: divide 8-bit values "
                         "by 255, and don't normalise, predict does")
    return image.float().clamp(0, 1).expand(3, -1, -1)
