"""What the classes of a model are called and coloured."""
from torch import nn

from ..data.classes import CITYSCAPES, ClassInfo, default_palette, hex_colour

__all__ = ["class_info", "unnamed_classes"]


def class_info(model: nn.Module, num_classes: int | None = None) -> ClassInfo:
    """Class names and palette of a model, from its pretrained config.

    A model whose class count differs from its config's has no names of its own: 19 classes are then taken to be those
    of Cityscapes, any other number is called ``class_0``, ``class_1``, ...

    Example:
        >>> from bssnet_zoo import create_model
        >>> class_info(create_model("bssnet_t", pretrained=True)).names[:3]
        ('sky', 'building', 'pole')
    """
    if num_classes is None:
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
