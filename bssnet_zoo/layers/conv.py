"""Convolution blocks and residual blocks, in the two orders that BSSNet uses.

Their children are plain ``nn.Conv2d``, ``nn.BatchNorm2d`` and ``nn.ReLU``, so that torch's own tools (SyncBatchNorm
conversion, BatchNorm folding, quantisation) see them as they are.
"""
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["BasicBlock", "Bottleneck", "ConvNormAct", "NormActConv"]


class ConvNormAct(nn.Sequential):
    """Conv2d without bias and 'same' padding, BatchNorm and, if ``act``, ReLU: (N, in, H, W) -> (N, out, H/s, W/s).

    Example:
        >>> ConvNormAct(3, 8, 3, stride=2)(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: int = 3,
            stride: int = 1,
            act: bool = True,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False, **dd)
        self.bn = nn.BatchNorm2d(out_channels, **dd)
        if act:
            self.act = nn.ReLU(inplace=True)

    def reparameterize(self) -> None:
        """Folds BatchNorm into the convolution: ``timm.utils.reparameterize_model`` calls it, in any mode."""
        if hasattr(self, "bn"):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.bn.eval()).train(self.training)
            del self.bn


class NormActConv(nn.Sequential):
    """The pre-activation order: BatchNorm, ReLU, Conv2d without bias: (N, in, H, W) -> (N, out, H, W).

    Example:
        >>> NormActConv(3, 8, 3)(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: int = 3,
            groups: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels, **dd)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False, **dd)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity, then ReLU: (N, in, H, W) -> (N, out, H/stride, W/stride).

    Example:
        >>> BasicBlock(8, 16, 2)(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
            self,
            in_channels: int,
            out_channels: int,
            stride: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, 3, stride, **dd)
        self.conv2 = ConvNormAct(out_channels, out_channels, 3, act=False, **dd)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = ConvNormAct(in_channels, out_channels, 1, stride, act=False, **dd)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        y += self.downsample(x)  # in place: a new map of this size costs more than the sum
        return self.act(y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions to twice the middle width, plus the identity, without a ReLU after the sum:
    (N, in, H, W) -> (N, 2 * mid, H/stride, W/stride).

    Example:
        >>> Bottleneck(8, 16, 2)(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(
            self,
            in_channels: int,
            mid_channels: int,
            stride: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        out_channels = 2 * mid_channels
        self.conv1 = ConvNormAct(in_channels, mid_channels, 1, **dd)
        self.conv2 = ConvNormAct(mid_channels, mid_channels, 3, stride, **dd)
        self.conv3 = ConvNormAct(mid_channels, out_channels, 1, act=False, **dd)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = ConvNormAct(in_channels, out_channels, 1, stride, act=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        y += self.downsample(x)
        return y
