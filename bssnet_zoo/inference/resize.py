"""Logits of any size, resized to an image a few rows at a time."""
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch

__all__ = ["finite_logits", "largest_class", "resize_logits"]

LOWEST = -1e30  # stands for -inf, of which a resize makes NaN
COLUMNS = 1024


def finite_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits without -inf, which is a legal score, that of a class which can't be: a very low number takes its place.

    Raises:
        ValueError: Some are NaN or +inf.
    """
    if logits.sum().isfinite():  # one pass, as a rule
        return logits
    if (logits.isnan() | logits.isposinf()).any():
        raise ValueError("the network gives NaN or infinite logits: its weights are broken, or its precision is too "
                         "low for them (float32 has the largest range)")
    return logits.clamp(min=LOWEST)


def linear(size: int, new_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear interpolation of ``size`` values to ``new_size``, aligned corners: the lower neighbours of the new values,
    and the weights of the upper ones."""
    position = torch.arange(new_size, dtype=torch.float64) * ((size - 1) / max(new_size - 1, 1))
    lower = position.long().clamp(max=max(size - 2, 0))
    return lower, position - lower


@lru_cache(maxsize=16)
def resizes(source: int, padded: int, seen: int, target: int, step: int) -> list[tuple[slice, torch.Tensor]]:
    """A side that is resized to ``padded``, cut to ``seen``, resized to ``target``: for each ``step`` values of the
    result the values of the source that they come from, and the matrix between them.

    float64, on the CPU (some devices have no float64). A matrix for all would grow with the square of the side.
    """
    (inner, inner_weight), (outer, outer_weight) = linear(source, padded), linear(seen, target)
    strips = []
    for start in range(0, target, step):
        low, weight = outer[start:start + step], outer_weight[start:start + step]
        taps = []
        for at, share in ((low, 1 - weight), ((low + 1).clamp(max=seen - 1), weight)):
            upper = (inner[at] + 1).clamp(max=source - 1)
            taps += [(inner[at], share * (1 - inner_weight[at])), (upper, share * inner_weight[at])]
        first, last = int(inner[low[0]]), int(max(places[-1] for places, _ in taps))
        matrix = torch.zeros(len(low), last + 1 - first, dtype=torch.float64)
        for places, shares in taps:
            matrix.scatter_add_(1, (places - first)[:, None], shares[:, None])
        strips.append((slice(first, last + 1), matrix))
    return strips


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

    Raises:
        ValueError: Logits that are NaN or +inf.
    """
    logits = finite_logits(logits)
    down, across = (
        resizes(logits.shape[2 + i], padded[i], seen[i], size[i], step) for i, step in enumerate((strip, COLUMNS)))
    for rows, matrix in down:
        wide = [logits[:, :, rows, columns] @ part.T.to(logits) for columns, part in across]
        yield matrix.to(logits) @ torch.cat(wide, dim=3)


def largest_class(strip: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit at each pixel of finite logits (C, H, W), which are overwritten: (H, W) uint8.

    On a CPU the class stands in the lowest bits of its logit for that, because a maximum without its index takes a
    third of the time. Logits that are equal but for these bits, the last 4 of 24 for 11 classes, count as equal; of
    those that aren't negative the first one is taken, as torch does.
    """
    if strip.device.type != "cpu" or strip.dtype != torch.float32:
        return strip.max(0).indices.byte()
    classes = len(strip)
    mask = (1 << (classes - 1).bit_length()) - 1
    bits = strip.contiguous().view(torch.int32)
    bits.bitwise_or_(mask).bitwise_xor_(torch.arange(classes, dtype=torch.int32)[:, None, None])
    return (~bits.view(torch.float32).amax(0).view(torch.int32) & mask).byte()
