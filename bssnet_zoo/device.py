"""Devices and precisions by the names that the command line takes, and the memory of a CPU."""
import ctypes
import os
import platform

import torch

__all__ = ["PRECISIONS", "has_bfloat16", "has_vnni", "keep_freed_memory", "parse_device", "why_slow"]

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


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, which make it about twice as fast as float32."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def has_vnni() -> bool:
    """Whether the CPU has AVX-512's instructions for sums of 8-bit products; others overflow or are slow in int8."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def why_slow(precision: str, device: torch.device) -> str | None:
    """Why a precision is slower than float32 on a device, in torch, if it is known to be.

    Of CPUs other than x86's nothing is known.

    Example:
        >>> why_slow("float16", torch.device("cpu"))
        'float16 is for GPUs: a CPU computes it slower than float32'
    """
    if device.type == "cuda" and precision == "bfloat16":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                return "this GPU has no bfloat16 and computes it slower than float32: take float16"
    if device.type != "cpu":
        return None
    if precision == "float16":
        return "float16 is for GPUs: a CPU computes it slower than float32"
    if precision == "bfloat16" and platform.machine().lower() in ("x86_64", "amd64") and not has_bfloat16():
        return "this CPU has no instructions for bfloat16 and computes it many times slower than float32: take float32"
    return None


def _device_count(kind: str) -> int:
    return torch.get_device_module(kind).device_count() if hasattr(torch, kind) else 0


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed tensors for the next ones, for as long as the process lives.

    It gives large blocks back to the kernel otherwise, which clears every page of the next ones: a tenth of the time of
    a training iteration. Other C libraries are left alone.

    Example:
        >>> keep_freed_memory()
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)
