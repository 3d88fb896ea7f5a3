"""What a checkpoint says of itself, in the metadata of its ``.safetensors`` file.

`bssnet-zoo train` writes it: ``architecture``, ``class_names``, ``palette``, ``input_size``, ``mean``, ``std`` (JSON),
``recipe`` (YAML), and what was measured: ``iteration``, ``miou``, ``split``, ``size``, ``precision``.
"""
import json
import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open

from ..data.classes import ClassInfo, hex_colour

__all__ = ["note_classes", "noted_classes", "noted_config", "read_notes"]


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; nothing for other files, and for those that can't be read."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):  # whoever reads the weights says so
        return {}


def note_classes(classes: ClassInfo) -> dict[str, str]:
    """Names and colours as notes."""
    return {"class_names": json.dumps(classes.names), "palette": json.dumps(classes.hex_palette)}


def noted_classes(notes: Mapping[str, str], path: str | os.PathLike[str]) -> ClassInfo | None:
    """Names and colours of the classes, if the notes have them.

    Raises:
        ValueError: Notes that nobody of ours wrote.
    """
    if "class_names" not in notes:
        return None
    try:
        names, colours = (json.loads(notes[key]) for key in ("class_names", "palette"))
        return ClassInfo(tuple(map(str, names)), tuple(map(hex_colour, colours)))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: what it says of its classes makes no sense ({error})") from error


def noted_config(notes: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the notes say, as entries of timm's pretrained config.

    Without notes the classes have no names: whatever the model's own config says is of other weights.

    Raises:
        ValueError: Notes that nobody of ours wrote.
    """
    classes = noted_classes(notes, path)
    config: dict[str, Any] = dict(tag=None, label_names=None, label_descriptions=None)
    if classes is None:
        return config
    config.update(num_classes=len(classes.names), **classes.config)
    try:
        height, width = json.loads(notes["input_size"])
        config.update(
            input_size=(3, int(height), int(width)),
            **{key: tuple(float(x) for x in json.loads(notes[key])) for key in ("mean", "std") if key in notes})
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: what it says of its images makes no sense ({error})") from error
    return config
