"""Whether `bssnet_zoo.deploy` changes the answers: largest difference of the logits, same classes, mIoU of both.

    python experiments/exactness.py camvid:data/camvid [--models bssnet_t bssnet_b] [--sizes 360x480 384x512] [--step 1]
"""
import argparse

import torch
import torch.nn.functional as F
from tqdm import tqdm

import bssnet_zoo
from bssnet_zoo.data.datasets import open_dataset
from bssnet_zoo.data.transforms import EvalTransform


@torch.inference_mode()
def compare(name: str, data: str, size: tuple[int, int], step: int) -> str:
    model = bssnet_zoo.create_model(name, pretrained=True).eval().to(memory_format=torch.channels_last)
    deployed = bssnet_zoo.deploy(model)
    dataset = open_dataset(data, "test", EvalTransform(size))
    classes = len(dataset.classes.names)
    matrices = [bssnet_zoo.ConfusionMatrix(classes, dataset.ignore_index) for _ in range(2)]
    difference, same, pixels = 0., 0, 0
    indices = range(0, len(dataset), step)
    for index in tqdm(indices, leave=False):
        images, labels = (t[None] for t in dataset[index])
        logits = [m(images) for m in (model, deployed)]
        difference = max(difference, ((logits[1] - logits[0]).abs().max() / logits[0].abs().max()).item())
        same += (logits[0].argmax(1) == logits[1].argmax(1)).sum().item()
        pixels += logits[0][0, 0].numel()
        for matrix, scores in zip(matrices, logits, strict=True):
            scores = F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=True)
            matrix.update(scores.argmax(1), labels)
    return (f"| {name} | {size[0]}x{size[1]} | {len(indices)} | {difference:.1e} | {100 * same / pixels:.4f} | "
            f"{100 * matrices[0].miou:.3f} | {100 * matrices[1].miou:.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="[KIND:]DIR")
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"])
    parser.add_argument("--sizes", nargs="+", default=["360x480", "384x512"])
    parser.add_argument("--step", type=int, default=1, help="take every so many-th image (default: all)")
    args = parser.parse_args()
    print("| model | input | images | largest difference / largest logit | same class, % of pixels | mIoU % | "
          "mIoU % deployed |\n|---|---|---|---|---|---|---|")
    for name in args.models:
        for size in args.sizes:
            print(compare(name, args.data, tuple(map(int, size.split("x"))), args.step), flush=True)


if __name__ == "__main__":
    main()
