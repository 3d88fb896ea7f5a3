"""Logits of any size, resized to an image a few rows at a time."""
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch

from ..losses.resized import interpolation_matrix, matrix_strips

__all__ = ["largest_class", "resize_logits"]


@lru_cache(maxsize=16)
def resizes(source: int, padded: int, seen: int, target: int) -> torch.Tensor:
    """The matrix (target, source) of a side that is resized to ``padded``, cut to ``seen``, resized to ``target``.

    float64, on the CPU (some devices have no float64).
    """
    matrix = interpolation_matrix(source, padded, align_corners=True, dtype=torch.float64)[:seen]
    if seen == target:
        return matrix
    return interpolation_matrix(seen, target, align_corners=True, dtype=torch.float64) @ matrix


def resize_logits(
        logits: torch.Tensor,
        padded: Sequence[int],
        seen: Sequence[int],
        size: Sequence[int],
        strip: int = 32,
) -> Iterator[torch.Tensor]:
    """Logits (1, C, h, w) resized to what the network saw and then to the image, in strips (1, C, strip, W) of rows.

    Both resizes are bilinear with aligned corners, as published; here they are one. Strips need no map of all classes
    at full size.

    Args:
        logits: Raw logits.
        padded: Height and width of what the network saw.
        seen: The part of it, from the top left, that is image.
        size: Height and width of the image.
        strip: Rows of a strip.
    """
    down, across = (
        resizes(logits.shape[2 + i], padded[i], seen[i], size[i]).to(logits.dtype) for i in range(2))
    across = across.T.to(logits.device)
    for _, used, part in matrix_strips(down, strip):
        yield part.to(logits.device) @ (logits[:, :, used] @ across)


def largest_class(strip: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit at each pixel of logits (C, H, W), which are overwritten: (H, W) uint8.

    On a CPU the class stands in the lowest bits of its logit for that, because a maximum without its index takes a
    third of the time. Logits that are equal but for these bits, the last 4 of 24 for 11 classes, count as equal.
    """
    if strip.device.type != "cpu" or strip.dtype != torch.float32:
        return strip.max(0).indices.byte()
    classes = len(strip)
    mask = (1 << (classes - 1).bit_length()) - 1
    bits = strip.contiguous().view(torch.int32)
    bits.bitwise_and_(~mask).bitwise_or_(torch.arange(classes, dtype=torch.int32)[:, None, None])
    return (bits.view(torch.float32).amax(0).view(torch.int32) & mask).byte()
