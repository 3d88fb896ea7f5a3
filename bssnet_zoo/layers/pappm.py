"""PAPPM: the parallel aggregation pyramid pooling module of PIDNet."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .conv import NormActConv

__all__ = ["PAPPM"]


# torch.fx cannot branch on shapes while it traces: this check stays a single call in its graph
@torch.fx.wrap
def check_pappm_batch(x: torch.Tensor) -> None:
    if x.shape[0] == 1:
        raise ValueError(
            "PAPPM can't train on a batch of 1: its globally pooled map is one pixel, of which BatchNorm can't take a "
            "variance. Use a batch of 2 or more, or put PAPPM's BatchNorm layers in eval mode (frozen statistics)")


class PAPPM(nn.Module):
    """Parallel aggregation pyramid pooling: context of the whole image at the coarsest map.

    Source: PIDNet (Xu et al., CVPR 2023), as BSSNet uses it.

    Example:
        >>> PAPPM(512, 256).eval()(torch.randn(1, 512, 8, 16)).shape
        torch.Size([1, 256, 8, 16])

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        mid_channels: Channels of each of the five scales.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: In ``forward``, a batch of 1 while BatchNorm trains.
    """

    def __init__(
            self,
            in_channels: int,
            out_channels: int,
            mid_channels: int = 96,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        pools = [nn.AvgPool2d(k, s, p) for k, s, p in ((5, 2, 2), (9, 4, 4), (17, 8, 8))] + [nn.AdaptiveAvgPool2d(1)]
        self.scale0 = NormActConv(in_channels, mid_channels, 1, **dd)
        self.scales = nn.ModuleList(
            nn.Sequential(pool, NormActConv(in_channels, mid_channels, 1, **dd)) for pool in pools)
        self.process = NormActConv(4 * mid_channels, 4 * mid_channels, 3, groups=4, **dd)
        self.compression = NormActConv(5 * mid_channels, out_channels, 1, **dd)
        self.shortcut = NormActConv(in_channels, out_channels, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds context: (N, in_channels, H, W) -> (N, out_channels, H, W)."""
        if not torch.jit.is_scripting() and self._normalises_by_batch():
            check_pappm_batch(x)
        x0 = self.scale0(x)
        pooled: list[torch.Tensor] = []
        for scale in self.scales:
            context = F.interpolate(scale(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
            pooled.append(context + x0)
        context = self.process(torch.cat(pooled, dim=1))
        return self.compression(torch.cat([x0, context], dim=1)) + self.shortcut(x)

    @torch.jit.ignore
    def _normalises_by_batch(self) -> bool:
        scale: Any = self.scales[-1]  # torch's containers don't tell what they hold
        bn = scale[1].bn
        return isinstance(bn, nn.BatchNorm2d) and bn.training
