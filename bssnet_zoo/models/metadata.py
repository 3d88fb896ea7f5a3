"""What a checkpoint says of itself, in the metadata of its ``.safetensors`` file.

`bssnet-zoo train` writes it: ``architecture``, ``class_names``, ``palette``, ``input_size``, ``mean``, ``std`` (JSON),
``recipe`` (YAML), and what was measured: ``iteration``, ``miou``, ``split``, ``size``, ``precision``.
"""
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open

from ..data.classes import ClassInfo, hex_colour

__all__ = ["class_metadata", "metadata_classes", "metadata_config", "read_metadata"]

NONSENSE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; nothing for other files, and for those that can't be read."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):  # whoever reads the weights says so
        return {}


def class_metadata(classes: ClassInfo) -> dict[str, str]:
    """Names and colours of the classes as metadata."""
    return {"class_names": json.dumps(classes.names), "palette": json.dumps(classes.hex_palette)}


def metadata_classes(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> ClassInfo | None:
    """Names and colours of the classes, if the metadata has them.

    Raises:
        ValueError: It is none of ours.
    """
    if "class_names" not in metadata:
        return None
    try:
        names, colours = (json.loads(metadata[key]) for key in ("class_names", "palette"))
        if not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
            raise ValueError(f"class names must be different texts, not {str(names)[:80]}")
        return ClassInfo(tuple(names), tuple(map(hex_colour, colours)))
    except NONSENSE as error:
        raise ValueError(f"{path}: what it says of its classes makes no sense ({error})") from error


def metadata_config(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata as entries of timm's pretrained config.

    Without names the classes have none: those of the model's own config belong to other weights.

    Raises:
        ValueError: It is none of ours.
    """
    classes = metadata_classes(metadata, path)
    config: dict[str, Any] = dict(tag=None, label_names=None, label_descriptions=None)
    if classes is None:
        return config
    config.update(num_classes=len(classes.names), **classes.config)
    try:
        if "input_size" in metadata:
            height, width = map(int, json.loads(metadata["input_size"]))
            config["input_size"] = (3, height, width)
        config |= {key: tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std") if key in metadata}
        numbers = [*config.get("input_size", ()), *config.get("std", ())]
        if not all(0 < number < math.inf for number in numbers) or not all(map(math.isfinite, config.get("mean", ()))):
            raise ValueError("sizes and std must be above 0")
    except NONSENSE as error:
        raise ValueError(f"{path}: what it says of its images makes no sense ({error})") from error
    return config
