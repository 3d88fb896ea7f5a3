"""What each rewrite of `bssnet_zoo.deploy` gains: the deployed network without it, over the deployed network.

    python benchmarks/rewrites.py [--models bssnet_t bssnet_b] [--sizes 360x480 720x960 1024x2048] [--threads 2]

The two sides of a cell take turns in one process, up to the raw logits; a cell is the ratio of their medians and, after
it, the quartiles of the ratios of single passes. The row "none" compares the deployed network with its copy: what it is
away from 1 is noise. The last rows are rewrites that are not kept, timed alone.
"""
import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import bssnet_zoo
from bssnet_zoo.layers import BasicBlock, Bottleneck, ConvNormAct
from bssnet_zoo.layers.fusion import channel_statistics
from bssnet_zoo.models.deploy import (
    BlendWeights,
    DeployedLUAFM,
    DeployedUMF,
    StripStem,
    UpsampleConvReLU,
    UpsampleHead,
    interleave,
)


class PlainUpsampleConv(UpsampleConvReLU):
    def forward(self, x, height, width):
        return F.relu_(self.conv(F.interpolate(x, size=[height, width], mode="nearest")))


class PlainHead(UpsampleHead):
    def forward(self, x, pre_logits=False):
        x = F.relu_(self.conv.conv(F.interpolate(x, scale_factor=2., mode="nearest")))
        return F.conv2d(x, self.classifier.weight[:, :, None, None], self.classifier.bias)


class InterleaveFirst(UpsampleHead):
    def forward(self, x, pre_logits=False):
        x = interleave(self.conv.phases(x))
        return F.conv2d(x, self.classifier.weight[:, :, None, None], self.classifier.bias)


class PlainLUAFM(DeployedLUAFM):
    def forward(self, x, y):
        y = self.conv_y(y, x.shape[2], x.shape[3])
        a = 1 - self.weights([x, y])
        return a * x + (1 - a) * y


class PlainUMF(DeployedUMF):
    def forward(self, features):
        border, semantic, spatial = features
        semantic = self.conv(semantic, border.shape[2], border.shape[3])
        weights = self.weights([border, semantic, spatial])
        return weights[:, :1] * border + weights[:, 1:2] * semantic + weights[:, 2:] * spatial


class MeanWeights(BlendWeights):
    def forward(self, features):
        return torch.sigmoid(self.attention(channel_statistics(features)))


class PlainStem(StripStem):
    forward = StripStem._forward_plain


class PlainBasicBlock(BasicBlock):
    def forward(self, x):
        return self.act(self.conv2(self.conv1(x)) + self.downsample(x))


class PlainBottleneck(Bottleneck):
    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x))) + self.downsample(x)


def add_norms(model: nn.Module) -> None:
    """A BatchNorm that changes nothing after each convolution that had one."""
    for module in model.modules():
        if isinstance(module, ConvNormAct):
            act = module._modules.pop("act", None)
            module.bn = nn.BatchNorm2d(module.conv.out_channels, eps=0.).eval().to(module.conv.weight.dtype)
            if act is not None:
                module.act = act


def take_means(model: nn.Module) -> None:
    """Means, which torch divides, where the first convolution of the attention divides sums."""
    for module in model.modules():
        if isinstance(module, (DeployedLUAFM, DeployedUMF)):
            channels = (module.conv if isinstance(module, DeployedUMF) else module.conv_y).conv.out_channels
            module.weights.attention[0].conv.weight[:, ::2] *= channels
            module.weights.__class__ = MeanWeights


UNDONE = {
    "none": {},
    "BatchNorm folded": add_norms,
    "x2 resize in its convolution": {UpsampleConvReLU: PlainUpsampleConv, UpsampleHead: PlainHead},
    "classifier before interleaving (B)": {UpsampleHead: InterleaveFirst},
    "blends in one pass, in place": {DeployedLUAFM: PlainLUAFM, DeployedUMF: PlainUMF},
    "sums instead of means": take_means,
    "residual sums in place": {BasicBlock: PlainBasicBlock, Bottleneck: PlainBottleneck},
    "stem in strips": {StripStem: PlainStem},
}


def without(model: nn.Module, rewrite: str) -> nn.Module:
    model = copy.deepcopy(model)
    change = UNDONE[rewrite]
    if callable(change):
        change(model)
        return model
    for module in model.modules():
        module.__class__ = change.get(type(module), type(module))
    return model


def run(model: nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: model.forward_head(model.forward_features(images))


def merged(width: int, height: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[Callable, Callable]]:
    """Border's and spatial's convolutions as they are and as one: rewrites that were tried."""
    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    x, x3 = tensor(1, 2 * width, height // 8, columns // 8), tensor(1, 4 * width, height // 16, columns // 16)
    both = tensor(1, 4 * width, height // 8, columns // 8)
    conv, conv_both = tensor(2 * width, 2 * width, 3, 3), tensor(4 * width, 2 * width, 3, 3)
    compress, compress_both = tensor(2 * width, 4 * width, 1, 1), tensor(4 * width, 4 * width, 1, 1)
    last, last_both = tensor(4 * width, 2 * width, 3, 3), tensor(8 * width, 2 * width, 3, 3)
    halves = [half.contiguous(memory_format=torch.channels_last) for half in both.chunk(2, 1)]
    return {
        "not kept: first convolutions merged": (
            lambda: [F.conv2d(x, conv, padding=1) for _ in range(2)], lambda: F.conv2d(x, conv_both, padding=1)),
        "not kept: compressions merged": (
            lambda: [F.conv2d(x3, compress) for _ in range(2)], lambda: F.conv2d(x3, compress_both)),
        "not kept: last convolutions grouped": (
            lambda: [F.conv2d(half, last, padding=1) for half in halves],
            lambda: F.conv2d(both, last_both, padding=1, groups=2)),
    }


def ratio(slow: Callable, fast: Callable, seconds: float) -> str:
    """Median and quartiles of how much longer ``slow`` takes than ``fast``, by turns slow, fast, fast, slow."""
    times = {slow: [], fast: []}
    slow(), fast()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[slow]) < 8:
        for call in (slow, fast, fast, slow):
            begin = time.perf_counter()
            call()
            times[call].append(time.perf_counter() - begin)
    low, _, high = statistics.quantiles((s / f for s, f in zip(times[slow], times[fast], strict=True)), n=4)
    return f"{statistics.median(times[slow]) / statistics.median(times[fast]):.2f} ({low:.2f}-{high:.2f})"


@torch.inference_mode()
def column(name: str, height: int, width: int, dtype: torch.dtype, seconds: float) -> dict[str, str]:
    model = bssnet_zoo.create_model(name, pretrained=True).eval()
    images = torch.randn(1, 3, height, width)
    fast_images = images.to(dtype, memory_format=torch.channels_last)
    deployed = bssnet_zoo.deploy(model).to(dtype)
    fast = run(deployed, fast_images)
    sides = {
        "all, from float32 NCHW": run(model, images),
        "all, from channels_last": run(copy.deepcopy(model).to(dtype, memory_format=torch.channels_last), fast_images),
        **{rewrite: run(without(deployed, rewrite), fast_images) for rewrite in UNDONE},
    }
    reference = fast()
    for rewrite in UNDONE:
        difference = (sides[rewrite]() - reference).abs().max() / reference.abs().max()
        if difference > (1e-4 if dtype == torch.float32 else 0.1):
            raise RuntimeError(f"{rewrite} changes the logits of {name} by {difference:.1e} of the largest")
    cells = {rewrite: ratio(side, fast, seconds) for rewrite, side in sides.items()}
    for rewrite, (apart, together) in merged(model.feature_info[0]["num_chs"], height, width, dtype).items():
        cells[rewrite] = ratio(apart, together, seconds)
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"])
    parser.add_argument("--sizes", nargs="+", default=["360x480", "720x960", "1024x2048"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15., help="for each cell (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        for size in args.sizes:
            height, width = map(int, size.split("x"))
            cells = {dtype: column(name, height, width, dtype, args.seconds)
                     for dtype in (torch.float32, torch.bfloat16)}
            print(f"\n{name} {size}, {args.threads} threads, torch {torch.__version__}\n")
            print("| rewrite | float32 | bfloat16 |\n|---|---|---|")
            for rewrite in cells[torch.float32]:
                print(f"| {rewrite} | {cells[torch.float32][rewrite]} | {cells[torch.bfloat16][rewrite]} |", flush=True)


if __name__ == "__main__":
    main()
