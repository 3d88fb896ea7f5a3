"""Layers of BSSNet that stand on their own: plain modules, for any network."""
from .conv import BasicBlock, Bottleneck, ConvNormAct, NormActConv
from .fusion import LUAFM, UMF
from .pappm import PAPPM

__all__ = ["LUAFM", "PAPPM", "UMF", "BasicBlock", "Bottleneck", "ConvNormAct", "NormActConv"]
