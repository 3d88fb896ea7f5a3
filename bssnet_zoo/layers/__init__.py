"""Layers of BSSNet that stand on their own: plain modules, for any network.

- `fusion`: UMF and LUAFM, which blend maps by weights for each pixel.
- `pappm`: PAPPM, which pools context at several scales.
- `conv`: convolution with its norm and activation, and residual blocks of them.
"""
from .conv import BasicBlock, Bottleneck, ConvNormAct, NormActConv
from .fusion import LUAFM, UMF
from .pappm import PAPPM

__all__ = ["LUAFM", "PAPPM", "UMF", "BasicBlock", "Bottleneck", "ConvNormAct", "NormActConv"]
