"""UMF and LUAFM: fuse feature maps with per-pixel weights computed from their channel statistics."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .conv import ConvNormAct

__all__ = ["LUAFM", "UMF"]


@torch.fx.wrap  # it branches on the type
def channel_mean(feature: torch.Tensor) -> torch.Tensor:
    """Mean over the channels: (N, C, H, W) -> (N, 1, H, W)."""
    if feature.dtype == torch.float16:  # a sum over many channels overflows it
        return feature.mean(dim=1, keepdim=True)
    # not mean(): its gradient takes the memory of the whole map, and loses channels_last
    return feature.sum(dim=1, keepdim=True) / feature.shape[1]


def channel_statistics(features: list[torch.Tensor]) -> torch.Tensor:
    """Mean and maximum over the channels of each map: K maps of (N, C, H, W) -> (N, 2K, H, W), mean before max."""
    statistics: list[torch.Tensor] = []
    for feature in features:
        statistics.append(channel_mean(feature))
        statistics.append(feature.amax(dim=1, keepdim=True))
    return torch.cat(statistics, dim=1)


# torch.fx cannot branch on shapes while it traces: these checks stay single calls in its graph
@torch.fx.wrap
def check_umf_inputs(features: list[torch.Tensor], channels: int, num_features: int, resized: list[int]) -> None:
    if len(features) != num_features:
        raise ValueError(f"UMF was built for num_features={num_features} feature maps, got {len(features)}")
    for i, feature in enumerate(features):
        if feature.ndim != 4 or feature.shape[1] != channels:
            raise ValueError(f"UMF expects maps of shape [N, {channels}, H, W], features[{i}] is "
                             f"{list(feature.shape)}: project it to {channels} channels first")
        if i not in resized and feature.shape[-2:] != features[0].shape[-2:]:
            raise ValueError(
                f"UMF: features[{i}] is {list(feature.shape[-2:])}, features[0] is {list(features[0].shape[-2:])}: "
                f"resize it, or build UMF with {i} in resized (now {resized})")


class UMF(nn.Module):
    """Unified multi-feature fusion: a sum of feature maps, each with its own weight at every pixel.

    Mean and maximum over the channels of every map pass two 3x3 convolutions and a sigmoid, which gives one weight per
    map and pixel. The weights are independent: they do not add up to 1. Source: BSSNet (Shi et al., IEEE TCSVT 2024),
    section III; with ``num_features=3, resized=(1,)`` it has the published parameters and numbers.

    Example:
        >>> fuse = UMF(channels=64, num_features=3, resized=(1, 2))
        >>> maps = [torch.randn(2, 64, 48, 64), torch.randn(2, 64, 24, 32), torch.randn(2, 64, 12, 16)]
        >>> fuse(maps).shape
        torch.Size([2, 64, 48, 64])

    Args:
        channels: Channels of every map.
        num_features: Number of maps, 2 or more.
        resized: Indices of the maps that are resized (nearest) to the size of ``features[0]`` and then smoothed by a
            3x3 convolution of their own. The other maps must have that size already. Index 0 sets the size and
            can't be resized.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: Fewer than two maps, an index in ``resized`` that is not a map; in ``forward``, a wrong number of
            maps, wrong channels, or a map of another size that is not in ``resized``.
    """

    def __init__(
            self,
            channels: int,
            num_features: int = 3,
            resized: Sequence[int] = (1,),
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        if num_features < 2:
            raise ValueError(f"UMF fuses two or more feature maps, got num_features={num_features}")
        if not all(0 < i < num_features for i in resized):
            raise ValueError(f"resized names maps from 1 to {num_features - 1} (map 0 sets the size), "
                             f"got {tuple(resized)}")
        self.channels = channels
        self.num_features = num_features
        self.resized = sorted(set(resized))
        self.convs = nn.ModuleList([
            ConvNormAct(channels, channels, 3, **dd) if i in self.resized else nn.Identity()
            for i in range(num_features)
        ])
        self.attention = nn.Sequential(
            ConvNormAct(2 * num_features, 2 * num_features, 3, **dd),
            ConvNormAct(2 * num_features, num_features, 3, act=False, **dd),
        )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Fuses ``num_features`` maps of (N, channels, H_i, W_i) into one (N, channels, H_0, W_0)."""
        check_umf_inputs(features, self.channels, self.num_features, self.resized)
        aligned: list[torch.Tensor] = []
        for i, conv in enumerate(self.convs):
            feature = features[i]
            if i in self.resized:
                feature = F.interpolate(feature, size=features[0].shape[-2:], mode="nearest")
            aligned.append(conv(feature))
        weights = torch.sigmoid(self.attention(channel_statistics(aligned)))
        fused = weights[:, :1] * aligned[0]
        for i in range(1, self.num_features):
            fused = fused + weights[:, i:i + 1] * aligned[i]
        return fused


class LUAFM(nn.Module):
    """Light unified attention fusion: blends a coarse map into a fine one, with one weight per pixel.

    The coarse map y is resized (nearest) to the size of the fine map x and convolved; channel statistics of both give
    a weight a in (0, 1); the result is ``a * x + (1 - a) * y``. Source: BSSNet (Shi et al., IEEE TCSVT 2024),
    section III, after PP-LiteSeg's UAFM.

    Example:
        >>> fuse = LUAFM(128, 256)
        >>> fuse(torch.randn(2, 128, 48, 64), torch.randn(2, 256, 24, 32)).shape
        torch.Size([2, 128, 48, 64])

    Args:
        x_channels: Channels of the fine map.
        y_channels: Channels of the coarse map. The result has ``min(x_channels, y_channels)``.
        device: Where to create the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
            self,
            x_channels: int,
            y_channels: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv_x = ConvNormAct(x_channels, y_channels, 3, **dd) if x_channels > y_channels else nn.Identity()
        self.conv_y = ConvNormAct(y_channels, min(x_channels, y_channels), 3, **dd)
        self.attention = nn.Sequential(ConvNormAct(4, 2, 3, **dd), ConvNormAct(2, 1, 3, act=False, **dd))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Blends y, (N, y_channels, h, w), into x, (N, x_channels, H, W): (N, min(x_channels, y_channels), H, W)."""
        y = self.conv_y(F.interpolate(y, size=x.shape[-2:], mode="nearest"))
        x = self.conv_x(x)
        a = torch.sigmoid(self.attention(channel_statistics([x, y])))
        return a * x + (1 - a) * y
