"""Data sets: folders of images and class masks in, tensors to train and evaluate on out.

- `classes`: names and colours. `images`: reading an image of any kind.
- `datasets`: a folder as a PyTorch data set. `sampler`: the order of its samples. `transforms`: augmentation.
- `edges`: where classes meet.
- `check`, `report`: what is wrong with a data set, and what is in it.
"""
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
