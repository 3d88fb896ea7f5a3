"""The models, their weights and checkpoints."""
from .bssnet import BSSNet, BSSNetOutput, bssnet_b, bssnet_t
from .checkpoints import convert_checkpoint, load_checkpoint, read_checkpoint
from .deploy import deploy
from .factory import create_model, create_trained_model, list_models
from .weights import WEIGHTS

__all__ = [
    "WEIGHTS",
    "BSSNet",
    "BSSNetOutput",
    "bssnet_b",
    "bssnet_t",
    "convert_checkpoint",
    "create_model",
    "create_trained_model",
    "deploy",
    "list_models",
    "load_checkpoint",
    "read_checkpoint",
]
