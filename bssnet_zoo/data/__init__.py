"""Data sets, class names and palettes."""
from .classes import CAMVID, CITYSCAPES, ClassInfo, default_palette

__all__ = ["CAMVID", "CITYSCAPES", "ClassInfo", "default_palette"]
