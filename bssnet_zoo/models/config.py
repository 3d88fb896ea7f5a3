"""What a model says of itself: what its classes are called and coloured, its own name, its image size."""
import re
from collections.abc import Sequence

from torch import nn

from ..data.classes import ClassInfo, default_palette, hex_colour

__all__ = [
    "class_info", "match_classes", "model_name", "named_classes", "shown_size", "trained_size", "unnamed_classes"]


def class_info(model: nn.Module) -> ClassInfo:
    """Class names and palette of a model, from its pretrained config.

    A model whose class count differs from its config's has no names of its own: they are ``class_0``, ``class_1``, ...

    Example:
        >>> from bssnet_zoo import create_model
        >>> class_info(create_model("bssnet_t", pretrained=True)).names[:3]
        ('sky', 'building', 'pole')
    """
    return named_classes(model) or unnamed_classes(int(getattr(model, "num_classes", 0)))


def named_classes(model: nn.Module) -> ClassInfo | None:
    """Class names and palette of a model; None if it doesn't say what its classes are."""
    cfg = getattr(model, "pretrained_cfg", {})
    names = tuple(cfg.get("label_names") or ())
    if not names or len(names) != getattr(model, "num_classes", 0):
        return None
    colours = cfg.get("label_descriptions") or {}
    if all(name in colours for name in names):
        return ClassInfo(names, tuple(hex_colour(colours[name]) for name in names))
    return ClassInfo(names, default_palette(len(names)))


def unnamed_classes(num_classes: int) -> ClassInfo:
    """Names and colours of classes of which only the number is known."""
    return ClassInfo(tuple(f"class_{i}" for i in range(num_classes)), default_palette(num_classes))


def match_classes(model: Sequence[str], data: Sequence[str]) -> list[int] | None:
    """How to order a model's scores for a data set whose classes stand in another order.

    Names are compared without case, and with spaces for ``_`` and ``-``.

    Args:
        model: Class names of the model, in its order.
        data: Class names of the data set, in its order.

    Returns:
        The model's id for each class of the data set, for ``logits[:, order]``; None if the order is the same.

    Raises:
        ValueError: They name other classes.

    Example:
        >>> match_classes(["road", "sky", "traffic light"], ["sky", "Traffic_Light", "road"])
        [1, 2, 0]
    """
    if list(model) == list(data):
        return None
    ours, theirs = ({" ".join(re.split(r"[\s_-]+", name.strip().casefold())): name for name in names}
                    for names in (model, data))
    if (len(ours), len(theirs)) != (len(model), len(data)) or ours.keys() != theirs.keys():
        there, here = (", ".join(a[key] for key in list(a) if key not in b) or "no other names"
                       for a, b in ((ours, theirs), (theirs, ours)))
        raise ValueError(f"the model's {len(model)} classes are not the data set's {len(data)}: only the model has "
                         f"{there}; only the data set has {here}")
    order = [list(ours).index(key) for key in theirs]
    return None if order == sorted(order) else order


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
