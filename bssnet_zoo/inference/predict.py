"""Image in; label map, class probabilities and overlay out."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.transforms.v2 import functional as TF

from ..data.images import ImageLike, load_image
from ..models import BSSNet
from ..models.bssnet import MIN_SIZE
from ..models.classes import class_info
from .prediction import Prediction
from .resize import resize_logits

__all__ = ["check_size", "evaluating", "predict"]


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
