"""Makes the pictures of README, docs and model cards with the bundled weights.

``python experiments/pictures.py camvid:DIR`` (CamVid at 960x720). README shows the test image that is the median by T's
pixel accuracy. For each kind of error, a failure is the test image with the most such pixels. So neither is chosen.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bssnet_zoo import Predictor
from bssnet_zoo.data import CAMVID, SegmentationDataset, open_dataset
from bssnet_zoo.hub.model_card import FAILURES
from bssnet_zoo.models.weights import ASSETS, WEIGHTS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIDE = 320  # height of a cut-out, in pixels of the image
CLASS = {name: i for i, name in enumerate(CAMVID.names)}
COLOURS = np.array([*CAMVID.palette, (0, 0, 0)], np.uint8)  # the last one is unlabelled


def titled(picture: Image.Image, title: str) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + 26), "white")
    canvas.paste(picture, (0, 26))
    ImageDraw.Draw(canvas).text((6, 13), title, fill="black", font=ImageFont.load_default(size=16), anchor="lm")
    return canvas


def side_by_side(pictures: list[Image.Image], vertical: bool = False) -> Image.Image:
    gap = 6
    width, height = zip(*(picture.size for picture in pictures), strict=True)
    steps = height if vertical else width
    size = (max(width), sum(height) + gap * (len(height) - 1)) if vertical else (
        sum(width) + gap * (len(width) - 1), max(height))
    canvas, place = Image.new("RGB", size, "white"), 0
    for picture, step in zip(pictures, steps, strict=True):
        canvas.paste(picture, (0, place) if vertical else (place, 0))
        place += step + gap
    return canvas


def street(dataset: SegmentationDataset, counts: np.ndarray) -> None:
    """The image with T's median pixel accuracy: beside it its label, below T's answer and B's answer."""
    accuracy = counts.trace(axis1=1, axis2=2) / counts.sum((1, 2))
    median = int(accuracy.argsort()[len(accuracy) // 2])
    print(f"README: {dataset.files[median][0].name}, pixel accuracy {100 * accuracy[median]:.1f} %")
    shown = {name: Predictor(name, precision="float32")(dataset.files[median][0]) for name in ("bssnet_t", "bssnet_b")}
    image, label = shown["bssnet_t"].image, dataset[median][1].numpy()
    pictures = {"image": image, "label": Image.fromarray(COLOURS[np.minimum(label, len(CAMVID.names))]),
                **{name: prediction.overlay(legend=False) for name, prediction in shown.items()}}
    half = [titled(picture.resize((480, 360)), title) for title, picture in pictures.items()]
    side_by_side([side_by_side(half[:2]), side_by_side(half[2:])], vertical=True).save(
        IMAGES / "street_t_b.jpg", quality=88, optimize=True)


def confusions(predictor: Predictor, dataset: SegmentationDataset) -> np.ndarray:
    """Pixels of each class (second axis) that were taken for each class (third axis), by image."""
    counts = []
    for i, prediction in enumerate(predictor.stream(image for image, _ in dataset.files)):
        _, label = dataset[i]
        label, n = label.numpy(), len(CAMVID.names)
        valid = label < n
        counts.append(np.bincount(label[valid] * n + prediction.labels[valid], minlength=n * n).reshape(n, n))
    return np.stack(counts)


def cut_out(wrong: np.ndarray) -> tuple[slice, slice]:
    """The window with the most wrong pixels."""
    height, width = SIDE, SIDE * 4 // 3
    total = np.pad(wrong.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return slice(y, y + height), slice(x, x + width)


def failures(name: str, predictor: Predictor, dataset: SegmentationDataset, counts: np.ndarray) -> None:
    """A row for each kind of error: image, label, prediction, where the kind is worst."""
    rows = []
    for title, true, answers in FAILURES:
        columns = [CLASS[a] for a in answers] if answers else [i for i in CLASS.values() if i != CLASS[true]]
        worst = int(counts[:, CLASS[true], columns].sum(1).argmax())
        prediction, label = predictor(dataset.files[worst][0]), dataset[worst][1].numpy()
        window = cut_out((label == CLASS[true]) & np.isin(prediction.labels, columns))
        image = np.asarray(prediction.image)
        shown = (image, COLOURS[np.minimum(label, len(CAMVID.names))], COLOURS[prediction.labels])
        pictures = [Image.fromarray(array[window]) for array in shown]
        texts = (title, "label", "prediction")
        rows.append(side_by_side([titled(p, text) for p, text in zip(pictures, texts, strict=True)]))
        print(f"{name}: {title}: {dataset.files[worst][0].name}")
    side_by_side(rows, vertical=True).save(ASSETS / f"{name}.failures.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="camvid:DIR")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS, metavar="NAME")
    args = parser.parse_args()
    test = open_dataset(args.data, "test")
    for weights in args.weights:
        network = Predictor(weights, precision="float32")
        confused = confusions(network, test)
        if weights == "bssnet_t.camvid":
            street(test, confused)
        failures(weights, network, test, confused)
