"""Data sets, class names and palettes."""
from .classes import CAMVID, CITYSCAPES, ClassInfo, default_palette
from .edges import edge_map

__all__ = ["CAMVID", "CITYSCAPES", "ClassInfo", "default_palette", "edge_map"]
