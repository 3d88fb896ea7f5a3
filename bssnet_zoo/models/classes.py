"""What a model says of itself: what its classes are called and coloured, its own name, its image size."""
from collections.abc import Sequence

from torch import nn

from ..data.classes import CITYSCAPES, ClassInfo, default_palette, hex_colour

__all__ = ["class_info", "model_name", "shown_size", "trained_size", "unnamed_classes"]


def class_info(model: nn.Module) -> ClassInfo:
    """Class names and palette of a model, from its pretrained config.

    A model whose class count differs from its config's has no names of its own: 19 classes are then taken to be those
    of Cityscapes, any other number is called ``class_0``, ``class_1``, ...

    Example:
        >>> from bssnet_zoo import create_model
        >>> class_info(create_model("bssnet_t", pretrained=True)).names[:3]
        ('sky', 'building', 'pole')
    """
    num_classes = int(getattr(model, "num_classes", 0))
    cfg = getattr(model, "pretrained_cfg", {})
    names = tuple(cfg.get("label_names") or ())
    if len(names) == num_classes:
        colours = cfg.get("label_descriptions") or {}
        if all(name in colours for name in names):
            return ClassInfo(names, tuple(hex_colour(colours[name]) for name in names))
        return ClassInfo(names, default_palette(num_classes))
    return unnamed_classes(num_classes)


def unnamed_classes(num_classes: int) -> ClassInfo:
    """Names and colours of classes of which only the number is known; 19 are taken to be those of Cityscapes."""
    if num_classes == len(CITYSCAPES.names):
        return CITYSCAPES
    return ClassInfo(tuple(f"class_{i}" for i in range(num_classes)), default_palette(num_classes))


def model_name(model: nn.Module) -> str:
    """``bssnet_t.camvid``, or the architecture alone."""
    cfg = getattr(model, "pretrained_cfg", {})
    return ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag")))) or "bssnet"


def trained_size(model: nn.Module) -> list[int]:
    """Height and width that the weights of a model were made for; empty if it doesn't say."""
    cfg = getattr(model, "pretrained_cfg", {})
    return list(cfg.get("test_input_size") or cfg.get("input_size") or ())[1:]


def shown_size(size: Sequence[int] | None) -> list[int] | None:
    """What images are resized to for weights that were made for a height and width: the shorter side; None for none."""
    return [min(size)] if size else None
