"""Where classes meet: the edge map that the border branch learns, on the device of the labels."""
from collections.abc import Iterable
from functools import reduce

import torch
import torch.nn.functional as F

__all__ = ["edge_map"]


def differs_from_neighbour(
        labels: torch.Tensor,
        offsets: Iterable[tuple[int, int]],
        ignore_index: int = 255,
) -> torch.Tensor:
    """Pixels of another class than one of their neighbours. A pair with an ignored or an outside pixel doesn't count.

    Args:
        labels: Class ids (N, H, W), of a signed integer type.
        offsets: The neighbours, (down, right) of the pixel, each -1, 0 or 1.
        ignore_index: Label of pixels without a class.

    Returns:
        (N, H, W) bool.
    """
    height, width = labels.shape[-2:]
    padded = F.pad(labels, (1, 1, 1, 1), value=ignore_index)
    differs = torch.zeros_like(labels, dtype=torch.bool)
    for down, right in offsets:
        neighbour = padded[:, 1 + down:1 + down + height, 1 + right:1 + right + width]
        differs |= (neighbour != labels) & (neighbour != ignore_index)
    return differs & (labels != ignore_index)


def edge_map(labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Edges between classes, 4 to 5 pixels wide, which train BSSNet's border branch (the paper's figure says Canny).

    A pixel whose up, right, down-right or down-left neighbour is of another class is an edge, unless one of the two is
    ignored. Edges are then dilated with a 4x4 square, 2 pixels to one side and 1 to the other.

    Args:
        labels: Class ids (N, H, W), any integer type.
        ignore_index: Label of pixels without a class.

    Returns:
        (N, H, W) uint8 on the device of ``labels``: 1 on edges, 0 elsewhere.

    Raises:
        ValueError: ``labels`` is not (N, H, W) or not of an integer type.

    Example:
        >>> labels = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]] * 8])
        >>> edge_map(labels)[0, 4].tolist()
        [0, 0, 1, 1, 1, 1, 1, 0]
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(f"edge_map takes integer labels (N, H, W), got {labels.dtype} {tuple(labels.shape)}")
    edges = differs_from_neighbour(labels.int(), ((-1, 0), (0, 1), (1, 1), (1, -1)), ignore_index)
    for dim, padding in ((1, (0, 0, 2, 1)), (2, (2, 1))):
        padded = F.pad(edges, padding)
        edges = reduce(torch.logical_or, [padded.narrow(dim, i, edges.shape[dim]) for i in range(4)])
    return edges.to(torch.uint8)
