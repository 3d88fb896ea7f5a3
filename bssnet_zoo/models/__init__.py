"""The network, and how it gets its weights.

- `bssnet`: the whole network, from blocks to entry points.
- `factory`: `create_model` and `list_models`.
- `weights`: where pretrained weights come from.
- `checkpoints`: files of any known naming; `widen` makes a B of a T.
- `metadata`: what a checkpoint says of itself.
- `config`: what a model says of itself, its classes and image size. `summary`: parameters and multiply-adds.
"""
from .bssnet import BSSNet, BSSNetOutput, bssnet_b, bssnet_t
from .checkpoints import convert_checkpoint, load_checkpoint, read_checkpoint
from .factory import create_model, list_models, open_model
from .weights import WEIGHTS

__all__ = [
    "WEIGHTS",
    "BSSNet",
    "BSSNetOutput",
    "bssnet_b",
    "bssnet_t",
    "convert_checkpoint",
    "create_model",
    "list_models",
    "load_checkpoint",
    "open_model",
    "read_checkpoint",
]
