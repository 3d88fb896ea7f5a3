"""Images of any kind as RGB tensors, and the image files of a folder."""
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2 import functional as TF

from ..files import visible_files

__all__ = ["IMAGE_SUFFIXES", "ImageLike", "image_files", "load_image", "read_image"]

ORIENTATION = 0x0112  # the tag of EXIF, and what its values ask for
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90}
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


def read_image(image: ImageLike) -> torch.Tensor:
    """Any image that a `Predictor` takes as RGB (3, H, W): EXIF rotation applied, alpha dropped.

    Returns:
        uint8 if the image has 8 bits or fewer a channel, else float32 in [0, 1].

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no image, an array or tensor of wrong type, shape or range.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as file:
                return _from_pil(file)
        except FileNotFoundError:
            raise FileNotFoundError(f"image not found: {image}") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"can't read an image from {image}: {error}") from error
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


def _from_pil(image: Image.Image) -> torch.Tensor:
    turn = TURNS.get(image.getexif().get(ORIENTATION))  # exif_transpose would write EXIF anew, and fail where it's odd
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's convert("RGB") would clip at 255
        return torch.from_numpy(np.array(image, dtype=np.float32) / 65535).clamp(0, 1).expand(3, -1, -1)
    if image.mode == "F":
        return _from_floats(torch.from_numpy(np.array(image)))
    return TF.pil_to_tensor(image.convert("RGB"))


def _from_floats(image: torch.Tensor) -> torch.Tensor:
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"a float image must have shape (3, H, W) or (1, H, W), got {tuple(image.shape)}")
    low, high = image.min().item(), image.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a float image must lie in [0, 1], got values from {low:g} to {high:g}: divide 8-bit values "
                         "by 255, and don't normalise, predict does")
    return image.float().expand(3, -1, -1)


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted; hidden ones are left out."""
    return visible_files(folder, IMAGE_SUFFIXES)
