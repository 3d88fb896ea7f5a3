"""Data sets, class names and palettes."""
from .check import check_dataset
from .classes import CAMVID, CITYSCAPES, ClassInfo, default_palette
from .datasets import SegmentationDataset, open_dataset
from .edges import edge_map
from .report import DataReport, report
from .sampler import TrainSampler
from .transforms import EvalTransform, TrainTransform

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "ClassInfo",
    "DataReport",
    "EvalTransform",
    "SegmentationDataset",
    "TrainSampler",
    "TrainTransform",
    "check_dataset",
    "default_palette",
    "edge_map",
    "open_dataset",
    "report",
]
