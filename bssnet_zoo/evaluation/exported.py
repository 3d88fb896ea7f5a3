"""What an export does to the accuracy."""
import os

from ..data.datasets import default_split, open_dataset
from ..data.transforms import EvalTransform
from ..deployment.exported import ExportedModel
from ..models import BSSNet
from ..models.classes import shown_size
from .accuracy import evaluate

__all__ = ["exported_accuracy"]


def exported_accuracy(model: BSSNet, path: str | os.PathLike, data: str, workers: int = 2) -> str:
    """mIoU of a model and of the file made from it, on a data set ``KIND:DIR``, at the file's size, or the one that the
    weights were made for.
    """
    exported = ExportedModel(path, trust=True)
    size = exported.size or shown_size(exported.trained_size)
    dataset = open_dataset(data, default_split(data), EvalTransform(size, tuple(exported.mean), tuple(exported.std)))
    before, after = (100 * evaluate(m, dataset, workers=workers, progress=True).miou for m in (model, exported))
    return f"mIoU before {before:.3f}, after {after:.3f} ({after - before:+.3f}), {len(dataset)} images of {data}"
