"""Logits of any size, resized to an image a few rows at a time."""
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

__all__ = ["resize_logits"]


def resize_rows(logits: torch.Tensor, rows: torch.Tensor, width: int) -> torch.Tensor:
    """Logits (N, C, h, w) at any rows, bilinear: (N, C, len(rows), width).

    Args:
        logits: What to resize.
        rows: Positions between 0 and h - 1, float64, on the CPU (some devices have no float64).
        width: The width to resize to, corners aligned.
    """
    above = rows.floor().long().clamp(max=logits.shape[2] - 1)
    below = (above + 1).clamp(max=logits.shape[2] - 1)
    weight = (rows - above).to(logits.dtype)[:, None].to(logits.device)
    strip = torch.lerp(logits[:, :, above.to(logits.device)], logits[:, :, below.to(logits.device)], weight)
    if width == logits.shape[3]:
        return strip
    return F.interpolate(strip, size=(len(rows), width), mode="bilinear", align_corners=True)


def resize_logits(
        logits: torch.Tensor,
        padded: Sequence[int],
        seen: Sequence[int],
        size: Sequence[int],
        strip: int = 32,
) -> Iterator[torch.Tensor]:
    """Logits (1, C, h, w) resized to what the network saw and then to the image, in strips (1, C, strip, W) of rows.

    Both resizes are bilinear with aligned corners, as published. Strips need no map of all classes at full size.

    Args:
        logits: Raw logits.
        padded: Height and width of what the network saw.
        seen: The part of it, from the top left, that is image.
        size: Height and width of the image.
        strip: Rows of a strip.
    """
    def steps(rows: torch.Tensor, source: int, target: int) -> torch.Tensor:
        return rows * ((source - 1) / max(target - 1, 1))

    for top in range(0, size[0], strip):
        rows = steps(torch.arange(top, min(top + strip, size[0]), dtype=torch.float64), seen[0], size[0])
        first, last = int(rows[0]), min(int(rows[-1]) + 1, seen[0] - 1)
        seen_rows = torch.arange(first, last + 1, dtype=torch.float64)
        part = resize_rows(logits, steps(seen_rows, logits.shape[2], padded[0]), padded[1])[..., :seen[1]]
        same = tuple(seen) == tuple(size)
        yield part[:, :, :len(rows)] if same else resize_rows(part, rows - first, size[1])
