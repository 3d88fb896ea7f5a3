"""Devices and precisions by the names that the command line takes."""
import torch

__all__ = ["PRECISIONS", "parse_device"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_device(name: str | None = None) -> torch.device:
    """The device of that name; None for the best there is.

    Raises:
        ValueError: A device that is unknown or not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if (device.index or 0) >= _device_count(device.type):
        there = [kind for kind in ("cpu", "cuda", "mps", "xpu") if _device_count(kind)]
        raise ValueError(f"device '{name}' is unknown or not there; there is {', '.join(there)}")
    return device


def _device_count(kind: str) -> int:
    return torch.get_device_module(kind).device_count() if hasattr(torch, kind) else 0
