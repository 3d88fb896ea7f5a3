"""What each backend and precision of `Predictor` costs in accuracy: pixels with the class of the plain model, and mIoU.
With ``--batch-sizes``, what batches gain instead: images/s of the network and of `Predictor.batch`, reading included.

    python experiments/predictor.py camvid:data/camvid [--models bssnet_t bssnet_b] [--size 360x480] [--step 1]
    python experiments/predictor.py camvid:data/camvid --models bssnet_t --batch-sizes 1 4 8
"""
import argparse
import statistics
import time
from collections.abc import Sequence

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


def compare_batches(name: str, data: str, size: tuple[int, ...] | None, sizes: Sequence[int], rounds: int = 5) -> None:
    files = [file for file, _ in open_dataset(data, "test").files[:2 * max(sizes)]]
    model = bssnet_zoo.create_model(name, pretrained=True)
    for backend, precision in SIDES[1:]:
        predictor = bssnet_zoo.Predictor(model, backend=backend, precision=precision, size=size)
        images = torch.cat([predictor.prepare(file).images for file in files])
        speeds: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds + 1):  # the first one warms up
            for batch in sizes:
                start = time.perf_counter()
                with torch.inference_mode():
                    for part in images.split(batch):
                        predictor.runner.run(part)
                middle = time.perf_counter()
                predictor.batch(files, batch_size=batch)
                speeds.setdefault(("network", batch), []).append(len(files) / (middle - start))
                speeds.setdefault(("batch", batch), []).append(len(files) / (time.perf_counter() - middle))
        keys = [(what, batch) for what in ("network", "batch") for batch in sizes]
        cells = [f"{statistics.median(speeds[key][1:]):.1f}" for key in keys]
        print(f"| {name} | {backend} | {precision} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="[KIND:]DIR")
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"])
    parser.add_argument("--size", type=image_size, help="what the network sees (default: what the weights want)")
    parser.add_argument("--step", type=int, default=1, help="take every so many-th image (default: all)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="compare these instead")
    args = parser.parse_args()
    if args.batch_sizes:
        if min(args.batch_sizes) < 1:
            parser.error(f"--batch-sizes must be 1 or more, got {min(args.batch_sizes)}")
        cells = [f"{what}, {batch}" for what in ("network", "all") for batch in args.batch_sizes]
        print(f"| model | backend | precision | {' | '.join(cells)} |\n|{'---|' * (3 + len(cells))}")
        for name in args.models:
            compare_batches(name, args.data, args.size, args.batch_sizes)
        return
    print("| model | backend | precision | same class, % of pixels | mIoU % | images/s |\n|---|---|---|---|---|---|")
    for name in args.models:
        compare(name, args.data, args.size, args.step)


if __name__ == "__main__":
    main()
