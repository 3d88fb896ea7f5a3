"""BSSNet as a timm-style model zoo: real-time semantic segmentation of road scenes."""
from .deployment.rewrites import deploy
from .inference.prediction import Prediction
from .inference.predictor import Predictor, predict, sample_image
from .inference.video import write_overlay
from .layers import LUAFM, PAPPM, UMF
from .losses import BoundaryLoss, BSSNetLoss, OhemCrossEntropyLoss
from .metrics import BoundaryF1, ConfusionMatrix
from .models import BSSNet, BSSNetOutput, convert_checkpoint, create_model, list_models, load_checkpoint
from .models.config import class_info
from .version import __version__

__all__ = [
    "LUAFM",
    "PAPPM",
    "UMF",
    "BSSNet",
    "BSSNetLoss",
    "BSSNetOutput",
    "BoundaryF1",
    "BoundaryLoss",
    "ConfusionMatrix",
    "OhemCrossEntropyLoss",
    "Prediction",
    "Predictor",
    "__version__",
    "class_info",
    "convert_checkpoint",
    "create_model",
    "deploy",
    "list_models",
    "load_checkpoint",
    "predict",
    "sample_image",
    "write_overlay",
]
