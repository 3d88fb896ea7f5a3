"""What each backend and precision of `Predictor` costs in accuracy: pixels with the class of the plain model, and mIoU.

    python benchmarks/predictor.py camvid:data/camvid [--models bssnet_t bssnet_b] [--size 360x480] [--step 1]
"""
import argparse
import time

import torch
from tqdm import tqdm

import bssnet_zoo
from bssnet_zoo.cli.options import image_size
from bssnet_zoo.data.datasets import open_dataset

SIDES = (
    ("eager", None), ("deploy", "float32"), ("deploy", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"))


def compare(name: str, data: str, size: tuple[int, ...] | None, step: int) -> None:
    dataset = open_dataset(data, "test")
    indices = range(0, len(dataset), step)
    files, labels = [dataset.files[i][0] for i in indices], [dataset[i][1][None] for i in indices]
    model, expected = bssnet_zoo.create_model(name, pretrained=True), []
    for backend, precision in SIDES:
        predictor = bssnet_zoo.Predictor(model, backend=backend, precision=precision, size=size)
        matrix = bssnet_zoo.ConfusionMatrix(len(dataset.classes.names), dataset.ignore_index)
        predictor(files[0])
        start = time.perf_counter()
        found = [torch.from_numpy(prediction.labels) for prediction in tqdm(predictor.stream(files), leave=False)]
        speed = len(files) / (time.perf_counter() - start)
        expected = expected or found
        same = sum((a == b).sum().item() for a, b in zip(found, expected, strict=True)) / sum(x.numel() for x in found)
        for prediction, truth in zip(found, labels, strict=True):
            matrix.update(prediction[None].long(), truth)
        print(f"| {name} | {backend} | {predictor.runner.precision} | {100 * same:.4f} | {100 * matrix.miou:.3f} | "
              f"{speed:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="[KIND:]DIR")
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"])
    parser.add_argument("--size", type=image_size, help="what the network sees (default: what the weights want)")
    parser.add_argument("--step", type=int, default=1, help="take every so many-th image (default: all)")
    args = parser.parse_args()
    print("| model | backend | precision | same class, % of pixels | mIoU % | images/s |\n|---|---|---|---|---|---|")
    for name in args.models:
        compare(name, args.data, args.size, args.step)


if __name__ == "__main__":
    main()
