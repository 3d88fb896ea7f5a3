"""What BSSNet is trained with.

- `bssnet`: the losses, as the paper has them.
- `resized`: how they are computed at the size of the labels without a map of that size.
"""
from .bssnet import BoundaryLoss, BSSNetLoss, BSSNetLosses, OhemCrossEntropyLoss, PlainLoss

__all__ = ["BSSNetLoss", "BSSNetLosses", "BoundaryLoss", "OhemCrossEntropyLoss", "PlainLoss"]
