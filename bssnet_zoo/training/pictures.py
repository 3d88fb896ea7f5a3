"""Pictures of a training run: its curves and what the model sees."""
import csv
import os
from pathlib import Path

from PIL import Image
from torch import nn

from ..data.datasets import SegmentationDataset
from ..files import atomic_path
from ..inference.prediction import Prediction
from ..inference.predictor import Size, predict

__all__ = ["save_curve", "save_strip"]


def _columns(path: Path, *names: str) -> list[list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[name]) for row in rows] for name in names]


def save_curve(folder: str | os.PathLike) -> None:
    """Draws ``curve.png`` of a run folder from its ``log.csv`` and ``val.csv``: loss and mIoU by iteration.

    Raises:
        RuntimeError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("curve.png needs matplotlib: the extra [train], as in pip install '.[train]'") from None
    folder = Path(folder)
    figure = Figure(figsize=(9, 5), layout="constrained")
    loss_axes = figure.add_subplot(xlabel="iteration", ylabel="loss")
    iterations, losses = _columns(folder / "log.csv", "iteration", "loss")
    smooth, average = [], 0.
    for i, loss in enumerate(losses, start=1):
        average += max(0.05, 1 / i) * (loss - average)
        smooth.append(average)
    loss_axes.plot(iterations, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    loss_axes.plot(iterations, smooth, color="tab:blue", label="loss")
    loss_axes.set_yscale("log")
    miou_axes = loss_axes.twinx()
    miou_axes.set_ylabel("mIoU (%)")
    iterations, mious = _columns(folder / "val.csv", "iteration", "miou")
    miou_axes.plot(iterations, [100 * miou for miou in mious], color="tab:orange", marker="o", label="mIoU")
    miou_axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2)
    with atomic_path(folder / "curve.png") as temporary:
        figure.savefig(temporary, dpi=120)


def save_strip(
        model: nn.Module,
        dataset: SegmentationDataset,
        path: str | os.PathLike,
        size: Size = None,
        num_images: int = 4,
        width: int = 480,
) -> None:
    """Writes a picture with a row for each of a few images, evenly spread: image, label overlay, prediction overlay.

    Args:
        model: As for `predict`.
        dataset: Where the images and labels come from.
        path: The picture.
        size: What the network sees, as for `predict`.
        num_images: Rows.
        width: Of each of the three pictures in a row, in pixels.
    """
    rows = []
    num_images = min(num_images, len(dataset))
    for number in range(num_images):
        index = number * len(dataset) // num_images
        prediction = predict(model, dataset.files[index][0], size)
        classes = dataset.classes
        pictures = [prediction.image]
        for labels in (dataset.load(index)[1].numpy(), prediction.labels):
            pictures.append(Prediction(labels, prediction.image, classes.names, classes.palette).overlay(legend=False))
        height = round(width * prediction.image.height / prediction.image.width)
        rows.append([picture.resize((width, height)) for picture in pictures])
    strip = Image.new("RGB", (3 * width, sum(row[0].height for row in rows)))
    top = 0
    for row in rows:
        for column, picture in enumerate(row):
            strip.paste(picture, (column * width, top))
        top += row[0].height
    with atomic_path(path) as temporary:
        strip.save(temporary)
