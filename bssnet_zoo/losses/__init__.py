"""What BSSNet is trained with.

- `bssnet_loss`: the losses, as the paper has them.
- `resized`: how they are computed at the size of the labels without a map of that size.
"""
from .bssnet_loss import BoundaryLoss, BSSNetLoss, BSSNetLosses, OhemCrossEntropyLoss

__all__ = ["BSSNetLoss", "BSSNetLosses", "BoundaryLoss", "OhemCrossEntropyLoss"]
