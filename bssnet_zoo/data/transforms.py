"""Augmentation for training and preparation for evaluation."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .classes import IGNORE_INDEX
from .images import resize_image

__all__ = [
    "EvalTransform", "TrainTransform", "class_mix", "photometric_distortion", "random_crop_window"]

Size = tuple[int, int]
Floats = tuple[float, ...]


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of the paper's recipes.

    Random resize, random crop, horizontal flip with probability 0.5, photometric distortion, normalisation; then
    padding on the right and at the bottom where the crop is larger than the resized image (image 0, label ignored).

    Args:
        scale_range: Limits of the ratio by which ``base_size`` is scaled, drawn uniformly.
        base_size: Height and width of the images at ratio 1. Images of another aspect ratio keep it and fit inside.
        crop_size: Height and width of the result.
        mean: Of the normalisation, for channels in 0..1.
        std: Of the normalisation, for channels in 0..1.
        gamma: With probability 0.5 channels in 0..1 are raised to exp(g) with g drawn from -gamma..gamma, as if the
            light were another; 0 leaves it out. Not in the paper.

    Raises:
        ValueError: A size is less than 1, the scale range isn't ascending and positive, or ``gamma`` is negative.

    Example:
        >>> transform = TrainTransform(scale_range=(0.5, 2), base_size=(360, 480), crop_size=(352, 480))
        >>> image, label = torch.zeros(3, 720, 960, dtype=torch.uint8), torch.zeros(720, 960, dtype=torch.uint8)
        >>> image, label = transform(image, label)
        >>> image.shape, label.shape
        (torch.Size([3, 352, 480]), torch.Size([352, 480]))
    """

    scale_range: tuple[float, float]
    base_size: Size
    crop_size: Size
    mean: Floats = IMAGENET_DEFAULT_MEAN
    std: Floats = IMAGENET_DEFAULT_STD
    gamma: float = 0.

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}, 0 or more is needed")
        if min(*self.base_size, *self.crop_size) < 1:
            raise ValueError(f"base_size is {self.base_size}, crop_size {self.crop_size}; sides must be 1 or more")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range is {self.scale_range}; two ascending positive numbers are needed")

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Augment one sample.

        Args:
            image: uint8 (3, H, W).
            label: Class ids of any integer type (H, W); or several such maps (K, H, W), all cut alike, of which the
                first decides the crop.
            rng: Where the random numbers come from; by default a generator seeded by PyTorch's own.

        Returns:
            The normalised float32 image (3, *crop_size) and the int64 label (*crop_size) or (K, *crop_size).
        """
        rng = torch_seeded() if rng is None else rng
        image, label = self._resize(image, label, rng)
        top, left, height, width = random_crop_window(label if label.ndim == 2 else label[0], self.crop_size, rng)
        image = F.crop(image, top, left, height, width)
        label = F.crop(label, top, left, height, width)
        if rng.random() < 0.5:
            image, label = F.horizontal_flip(image), F.horizontal_flip(label)
        # planar: the photometric steps work on whole channels
        image = photometric_distortion(image.contiguous().float(), rng)
        # gamma draws no random number unless it is used: the recipes of the paper stay what they were
        if self.gamma and rng.random() < 0.5:
            image = F.adjust_gamma(
                image.div_(255).clamp_(0, 1), math.exp(rng.uniform(-self.gamma, self.gamma))).mul_(255)
        image = _normalize(image, self.mean, self.std)
        padding = (0, self.crop_size[1] - width, 0, self.crop_size[0] - height)
        return pad(image, padding), pad(label.long(), padding, value=IGNORE_INDEX)

    def _resize(self, image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        height, width = label.shape[-2:]
        factor = rng.uniform(*self.scale_range) * min(self.base_size[0] / height, self.base_size[1] / width)
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        # resizing all and cropping afterwards costs less than a millisecond: torchvision's uint8 kernel is vectorised
        maps = label if label.ndim == 3 else label[None]
        label = F.resize(maps, size, interpolation=InterpolationMode.NEAREST_EXACT).reshape(*label.shape[:-2], *size)
        return F.resize(image, size, antialias=True), label


@dataclass(frozen=True)
class EvalTransform:
    """Normalise an image, after a resize to ``size`` (height, width; or the shorter side) if there is one.

    The label keeps its own size, where the metrics are computed: resize the logits to it.

    Example:
        >>> transform = EvalTransform(size=(360,))  # the shorter side
        >>> image, label = torch.zeros(3, 720, 960, dtype=torch.uint8), torch.zeros(720, 960, dtype=torch.uint8)
        >>> image, label = transform(image, label)
        >>> image.shape, label.shape
        (torch.Size([3, 360, 480]), torch.Size([720, 960]))
    """

    size: Sequence[int] | None = None
    mean: Floats = IMAGENET_DEFAULT_MEAN
    std: Floats = IMAGENET_DEFAULT_STD

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """uint8 (3, H, W) and integers (h, w) -> float32 (3, H, W) or (3, *size), int64 (h, w); ``rng`` isn't used."""
        return _normalize(resize_image(image, self.size).contiguous().float(), self.mean, self.std), label.long()


def torch_seeded() -> np.random.Generator:
    """A generator seeded by PyTorch's own, which is another one in each process of a loader and each epoch."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def _normalize(image: Tensor, mean: Floats, std: Floats) -> Tensor:
    """Normalise, in place, channels in 0..255 by mean and deviation for 0..1."""
    return F.normalize(image, [255 * x for x in mean], [255 * x for x in std], inplace=True)


def random_crop_window(
        label: Tensor,
        size: Size,
        rng: np.random.Generator,
        max_share: float = 0.75,
        tries: int = 10,
) -> tuple[int, int, int, int]:
    """Draw a window in which no class has more than ``max_share`` of the pixels that aren't ignored.

    Args:
        label: Class ids (H, W).
        size: Height and width of the window, cut to those of the label.
        rng: Where the random numbers come from.
        max_share: Largest allowed share of a class.
        tries: How many windows are drawn; the last one is taken whatever is in it.

    Returns:
        Top, left, height, width.
    """
    height, width = min(size[0], label.shape[0]), min(size[1], label.shape[1])
    for _ in range(tries):
        top = int(rng.integers(label.shape[0] - height + 1))
        left = int(rng.integers(label.shape[1] - width + 1))
        counts = torch.bincount(label[top:top + height, left:left + width].flatten(), minlength=IGNORE_INDEX + 1)
        counts[IGNORE_INDEX] = 0
        if 0 < counts.max() <= max_share * counts.sum():
            break
    return top, left, height, width


def class_mix(
        image: Tensor,
        label: Tensor,
        other_image: Tensor,
        other_label: Tensor,
        rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Paste what belongs to half of the classes of another sample, drawn at random, over a sample of the same size.

    ClassMix (Olsson et al., WACV 2021), here between labelled samples.

    Args:
        image: (3, H, W), as `TrainTransform` gives it. It isn't changed.
        label: Class ids (H, W), or (2, H, W) with those of a teacher.
        other_image: (3, H, W) of the other sample.
        other_label: Class ids of it, in as many maps. Where it is ignored, its class is the teacher's; what is ignored
            in all maps isn't pasted.
        rng: Where the random numbers come from.

    Returns:
        The mixed image and label.
    """
    known = other_label
    if known.ndim == 3:
        known = torch.where(known[0] == IGNORE_INDEX, known[1], known[0])
    classes = known.unique()
    classes = classes[classes != IGNORE_INDEX].numpy()
    drawn = rng.permutation(classes)[:(len(classes) + 1) // 2]
    pasted = torch.isin(known, torch.from_numpy(drawn))
    return torch.where(pasted, other_image, image), torch.where(pasted, other_label, label)


def photometric_distortion(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Distort colours as in SSD (Liu et al., 2016): brightness +-32, contrast and saturation 0.5-1.5, hue +-36 degrees.

    Each with probability 0.5 and in this order, except that contrast comes last in half of the cases. Contrast scales
    the channels; saturation and hue are those of HSV, in floats without rounding.

    Args:
        image: float32 (3, H, W) in 0..255; it is overwritten.
        rng: Where the random numbers come from.
    """
    if rng.random() < 0.5:
        image = image.add_(rng.uniform(-32, 32)).clamp_(0, 255)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = image.mul_(contrast).clamp_(0, 255)
    if rng.random() < 0.5:
        image = _scale_saturation(image, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        image = _shift_hue(image, rng.uniform(-36, 36))
    if not contrast_first:
        image = image.mul_(contrast).clamp_(0, 255)
    return image


def _scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Scale the saturation of HSV. It moves the channels away from or towards their maximum, but not below 0."""
    value = image.amax(0)
    chroma = value - image.amin(0)
    factors = (value / chroma.clamp(min=1e-6)).clamp_(max=factor)
    return torch.addcmul(value, image.sub_(value), factors, out=image)


def _shift_hue(image: Tensor, degrees: float) -> Tensor:
    """Turn the hue of HSV by at most 60 degrees.

    In units of 60 degrees, a channel is maximal within 1 of its own hue, minimal from 2 on, linear in between.
    """
    red, green, blue = image
    value = image.amax(0)
    chroma = value - image.amin(0)
    inverse = 1 / chroma.clamp(min=1e-6)
    hue = torch.where(
        red == value, (green - blue) * inverse,
        torch.where(green == value, (blue - red) * inverse + 2, (red - green) * inverse + 4))
    for channel, own_hue in zip(image, (0, 2, 4), strict=True):
        # the distance round the circle of two hues at most 6 apart is 3 - ||a - b| - 3|
        weight = (hue + (degrees / 60 - own_hue)).abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, weight, value=-1, out=channel)
    return image
