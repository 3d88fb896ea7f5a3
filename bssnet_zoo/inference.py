"""Image in; label map, class probabilities and overlay out."""
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from .data.classes import CITYSCAPES, RGB, ClassInfo, default_palette
from .files import atomic_path
from .models import BSSNet

__all__ = ["Prediction", "class_info", "predict", "predict_files"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
RESULT_ENDINGS = ("_labels.png", "_overlay.png")
MIN_SIZE = 32

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


def class_info(model: nn.Module, num_classes: int | None = None) -> ClassInfo:
    """Class names and palette of a model, from its pretrained config.

    A model whose class count differs from its config's has no names of its own: 19 classes are then taken to be those
    of Cityscapes, any other number is called ``class_0``, ``class_1``, ...
    """
    num_classes = model.num_classes if num_classes is None else num_classes
    cfg = getattr(model, "pretrained_cfg", {})
    names = tuple(cfg.get("label_names") or ())
    if len(names) == num_classes:
        colours = cfg.get("label_descriptions") or {}
        if all(name in colours for name in names):
            return ClassInfo(names, tuple(tuple(bytes.fromhex(colours[name][1:])) for name in names))
        return ClassInfo(names, default_palette(num_classes))
    if num_classes == len(CITYSCAPES.names):
        return CITYSCAPES
    return ClassInfo(tuple(f"class_{i}" for i in range(num_classes)), default_palette(num_classes))


@dataclass(frozen=True)
class Prediction:
    """A segmented image.

    Attributes:
        labels: Class ids, (H, W) uint8, at the size of the image.
        image: The image, RGB.
        class_names: Name of each class id.
        palette: 8-bit RGB colour of each class id.
        probabilities: Softmax over the classes, (num_classes, H, W) float32, if asked for.
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


def _pil_to_tensor(image: Image.Image) -> torch.Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's convert("RGB") would clip at 255
        return torch.from_numpy(np.array(image, dtype=np.float32) / 65535).clamp(0, 1).expand(3, -1, -1)
    if image.mode == "F":
        return _float_to_tensor(torch.from_numpy(np.array(image)))
    return TF.to_dtype(TF.pil_to_tensor(image.convert("RGB")), torch.float32, scale=True)


def _float_to_tensor(image: torch.Tensor) -> torch.Tensor:
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a float image must have shape (3, H, W) or (1, H, W), got {tuple(image.shape)}")
    low, high = image.min().item(), image.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a float image must lie in [0, 1], got values from {low:g} to {high:g}: divide 8-bit values "
                         "by 255, and don't normalise, predict does")
    return image.float().expand(3, -1, -1)


def load_image(image: ImageLike) -> torch.Tensor:
    """Any image that `predict` takes as RGB, (3, H, W) float32 in [0, 1]: EXIF rotation applied, alpha dropped.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no image, an array or tensor of wrong type, shape or range.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as file:
                return _pil_to_tensor(file)
        except FileNotFoundError:
            raise FileNotFoundError(f"image not found: {image}") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"can't read an image from {image}: {error}") from error
    if isinstance(image, Image.Image):
        return _pil_to_tensor(image)
    if isinstance(image, torch.Tensor) and image.is_floating_point():
        return _float_to_tensor(image.detach().cpu())
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"an image is a path, a PIL image, a uint8 array or a float tensor in [0, 1], not {found}")
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] not in (3, 4)) or image.size == 0:
        raise ValueError(f"a uint8 image must have shape (H, W), (H, W, 3) or (H, W, 4), got {image.shape}")
    return _pil_to_tensor(Image.fromarray(image))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode for a while; each module, frozen ones too, then gets back the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_size(size: int | Sequence[int]) -> list[int]:
    """The size as a list of the shorter side, or of height and width; ValueError if it is neither."""
    size = [size] if isinstance(size, int) else list(size)
    if len(size) not in (1, 2) or any(s < 1 for s in size):
        raise ValueError(f"size must be the shorter side or (height, width) in pixels, got {size}")
    return size


def _run(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Logits, a BSSNet's at their own stride, and the size of what the network saw, padded to what it takes."""
    height, width = images.shape[-2:]
    padding = (0, max(0, MIN_SIZE - width), 0, max(0, MIN_SIZE - height))
    if any(padding):
        images = F.pad(images, padding, mode="replicate")
    logits = model.forward_head(model.forward_features(images)) if isinstance(model, BSSNet) else model(images)
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"the model gives a {type(logits).__name__}, not logits: create it without features_only")
    if logits.shape[1] > 256:
        raise ValueError(f"label maps hold 256 classes at most, the model has {logits.shape[1]}")
    return logits.float(), tuple(images.shape[-2:])


def resize_rows(logits: torch.Tensor, rows: torch.Tensor, width: int) -> torch.Tensor:
    """Logits (N, C, h, w) at any rows, bilinear: (N, C, len(rows), width).

    Args:
        logits: What to resize.
        rows: Positions between 0 and h - 1, float64, on the CPU (some devices have no float64).
        width: The width to resize to, corners aligned.
    """
    above = rows.floor().long().clamp(max=logits.shape[2] - 1)
    below = (above + 1).clamp(max=logits.shape[2] - 1)
    weight = (rows - above).to(logits.dtype)[:, None].to(logits.device)
    strip = torch.lerp(logits[:, :, above.to(logits.device)], logits[:, :, below.to(logits.device)], weight)
    if width == logits.shape[3]:
        return strip
    return F.interpolate(strip, size=(len(rows), width), mode="bilinear", align_corners=True)


def resize_logits(
        logits: torch.Tensor,
        padded: Sequence[int],
        seen: Sequence[int],
        size: Sequence[int],
        strip: int = 32,
) -> Iterable[torch.Tensor]:
    """Logits (1, C, h, w) resized to what the network saw and then to the image, in strips (1, C, strip, W) of rows.

    Both resizes are bilinear with aligned corners, as published. Strips need no map of all classes at full size.

    Args:
        logits: Raw logits.
        padded: Height and width of what the network saw.
        seen: The part of it, from the top left, that is image.
        size: Height and width of the image.
        strip: Rows of a strip.
    """
    def steps(rows: torch.Tensor, source: int, target: int) -> torch.Tensor:
        return rows * ((source - 1) / max(target - 1, 1))

    for top in range(0, size[0], strip):
        rows = steps(torch.arange(top, min(top + strip, size[0]), dtype=torch.float64), seen[0], size[0])
        first, last = int(rows[0]), min(int(rows[-1]) + 1, seen[0] - 1)
        seen_rows = torch.arange(first, last + 1, dtype=torch.float64)
        part = resize_rows(logits, steps(seen_rows, logits.shape[2], padded[0]), padded[1])
        yield resize_rows(part[..., :seen[1]], rows - first, size[1])


@torch.inference_mode()
def predict(
        model: nn.Module,
        image: ImageLike,
        size: int | Sequence[int] | None = None,
        probabilities: bool = False,
) -> Prediction:
    """Segments one image.

    Args:
        model: A model that gives logits (N, num_classes, H, W) at input size. It runs in eval mode on the device it is
            on, with the mean and std of its pretrained config, and is left in the mode it was in.
        image: A path, a PIL image of any mode, a uint8 array (H, W), (H, W, 3) or (H, W, 4), or a float tensor
            (3, H, W) or (1, H, W) in [0, 1] (a uint8 tensor of that shape works too).
        size: What the network sees, as in torchvision: the length of the shorter side, or (height, width). None
            leaves the image as it is. The result has the size of the image in any case.
        probabilities: Give the softmax over the classes too.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, wrong type, shape, range or size; a model without classes or not for RGB.
    """
    if getattr(model, "num_classes", None) == 0:
        raise ValueError("the model has num_classes=0 and gives features, not logits: create it with 1 or more classes")
    if getattr(model, "in_chans", 3) != 3:
        raise ValueError(f"predict reads RGB images, the model takes {model.in_chans} channels: normalise the images "
                         "yourself and call the model")
    rgb = load_image(image)
    cfg = getattr(model, "pretrained_cfg", {})
    parameter = next(model.parameters(), torch.empty(0))
    images = rgb if size is None else TF.resize(rgb, check_size(size), antialias=True).clamp(0, 1)
    images = TF.normalize(images, cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD))[None]
    images = images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
    with evaluating(model):
        logits, padded = _run(model, images)
    strips = resize_logits(logits, padded, images.shape[-2:], rgb.shape[-2:])
    if probabilities:
        strips = [torch.cat(list(strips), dim=2)]
    labels = torch.cat([strip[0].argmax(0).byte() for strip in strips])
    classes = class_info(model, logits.shape[1])
    return Prediction(
        labels=labels.cpu().numpy(),
        image=TF.to_pil_image(rgb),
        class_names=classes.names,
        palette=classes.palette,
        probabilities=strips[0][0].softmax(0).cpu().numpy() if probabilities else None,
    )


@dataclass
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        classes: Names and palette of the classes.
        counts: Pixels of each class in all images, (num_classes,).
        written: Label images and overlays written, in pairs.
        failed: Unreadable files and why.
        seconds: Time for all files, reading and writing included.
    """

    classes: ClassInfo
    counts: np.ndarray
    written: list[tuple[Path, Path]] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    seconds: float = 0.

    def __str__(self) -> str:
        lines = []
        if self.written:
            order = np.argsort(-self.counts, kind="stable")
            lines = [f"{self.classes.names[i]:<20}{self.counts[i] / self.counts.sum():>7.1%}" for i in order]
            lines.append(f"{len(self.written)} images in {self.seconds:.2f} s, {len(self.written) / self.seconds:.2f} "
                         "images/s with reading and writing")
            lines.append(f"last written: {self.written[-1][0]} and {self.written[-1][1]}")
        return "\n".join(lines + [f"failed: {reason}" for reason in self.failed.values()])


def find_images(paths: Iterable[str | os.PathLike], out: Path) -> list[tuple[Path, Path]]:
    """Image files and the names, relative and without suffix, for their results: folders are searched to the bottom.

    Args:
        paths: Files and folders.
        out: The folder of the results, which are left out if they are there from before.

    Raises:
        ValueError: A folder without images.
    """
    found, taken = [], set()
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
                           and not (p.name.endswith(RESULT_ENDINGS) and out.resolve() in p.resolve().parents))
            if not files:
                raise ValueError(f"no images in {path}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        for file in files:
            base = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("")
            name, n = base, 1
            while name in taken:
                n += 1
                name = base.with_name(f"{base.name}-{n}")
            taken.add(name)
            found.append((file, name))
    return found


def check_writable(folder: Path) -> None:
    """Makes the folder, and raises ValueError if files can't be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"can't write to the output folder {folder}: {error.strerror}") from error


def predict_files(
        model: nn.Module,
        paths: Iterable[str | os.PathLike],
        out: str | os.PathLike,
        size: int | Sequence[int] | None = None,
) -> PredictionSummary:
    """Segments image files and writes, for each, ``NAME_labels.png`` and ``NAME_overlay.png``.

    An unreadable file doesn't stop the rest: it is in the summary.

    Args:
        model: As for `predict`.
        paths: Image files and folders, which are searched to the bottom.
        out: The folder to write to; below a folder of images, sub-folders are kept.
        size: As for `predict`.

    Raises:
        ValueError: A folder without images, an output folder that can't be written to.
    """
    out = Path(out)
    if size is not None:
        check_size(size)
    files = find_images(paths, out)
    check_writable(out)
    classes = class_info(model)
    summary = PredictionSummary(classes, np.zeros(len(classes.names), dtype=np.int64))
    start = time.perf_counter()
    for file, name in tqdm(files, unit="image", disable=len(files) < 2, leave=False):
        try:
            prediction = predict(model, load_image(file), size)
        except (OSError, ValueError) as error:
            summary.failed[file] = str(error)
            continue
        targets = [(out / name).with_name(name.name + ending) for ending in RESULT_ENDINGS]
        for target, picture in zip(targets, (prediction.label_image(), prediction.overlay()), strict=True):
            with atomic_path(target) as temporary:
                picture.save(temporary)
        summary.written.append(tuple(targets))
        summary.counts += prediction.counts()
    summary.seconds = time.perf_counter() - start
    return summary
