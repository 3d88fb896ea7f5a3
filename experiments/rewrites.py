"""What each rewrite of `bssnet_zoo.deploy` gains: the deployed network without it, over the deployed network.

    python experiments/rewrites.py [--models bssnet_t bssnet_b] [--size 360x480 720x960 1024x2048]
                                  [--precision float32 bfloat16] [--threads 2] [--seconds 1] [--rounds 6]
                                  [--no-keep-freed-memory]

Timed as `bssnet-zoo bench` does: by turns, each side in a process of its own, up to raw logits. A cell is the median
over the rounds of how much longer it takes, the 10th and 90th percentile, and how much more memory it has at its peak.
The row "none" compares the deployed network with its copy: what it is away from 1 is noise. The last rows are rewrites
that are not kept, timed alone. The deployed networks keep freed memory, as docs/deploy.md advises, unless told not to;
the two rows of the network as created don't.
"""
import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import bssnet_zoo
from bssnet_zoo.benchmark.backends import street
from bssnet_zoo.benchmark.rounds import spread, time_by_turns
from bssnet_zoo.cli.options import height_and_width
from bssnet_zoo.deployment.rewrites import (
    BlendWeights,
    DeployedLUAFM,
    DeployedUMF,
    StripStem,
    UpsampleConvReLU,
    UpsampleHead,
    channel_max,
)
from bssnet_zoo.device import PRECISIONS, keep_freed_memory
from bssnet_zoo.layers import BasicBlock, Bottleneck, ConvNormAct
from bssnet_zoo.layers.fusion import channel_mean


class PlainUpsampleConv(UpsampleConvReLU):
    forward = UpsampleConvReLU.plain


class PlainHead(UpsampleHead):
    def forward(self, x, pre_logits=False):
        return self.classifier(self.conv.plain(x, 2 * x.shape[2], 2 * x.shape[3]))


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
        statistics = [statistic(x) for x in features for statistic in (channel_mean, channel_max)]
        return torch.sigmoid(self.attention(torch.cat(statistics, dim=1)))


class PlainMaxWeights(BlendWeights):
    def forward(self, features):
        statistics = [statistic(x, dim=1, keepdim=True) for x in features for statistic in (torch.sum, torch.amax)]
        return torch.sigmoid(self.attention(torch.cat(statistics, dim=1)))


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
    "blends in one pass, in place": {DeployedLUAFM: PlainLUAFM, DeployedUMF: PlainUMF},
    "sums instead of means": take_means,
    "maxima of 16-bit maps as integers": {BlendWeights: PlainMaxWeights},
    "residual sums in place": {BasicBlock: PlainBasicBlock, Bottleneck: PlainBottleneck},
    "stem in strips": {StripStem: PlainStem},
}


def undo(model: nn.Module, rewrite: str) -> None:
    change = UNDONE[rewrite]
    if callable(change):
        change(model)
        return
    for module in model.modules():
        module.__class__ = change.get(type(module), type(module))


def make_whole(name: str, size: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Callable[[], torch.Tensor]:
    """The network as created."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = bssnet_zoo.create_model(name, pretrained=True).eval().to(dtype, memory_format=layout)
    images = street(size).to(dtype, memory_format=layout)
    return lambda: model.forward_head(model.forward_features(images))


@torch.no_grad()
def make_deployed(name: str, size: Sequence[int], dtype: torch.dtype, keep: bool, rewrite: str) -> Callable:
    """The deployed network without one of its rewrites, which must leave the logits as they are."""
    if keep:
        keep_freed_memory()
    model = bssnet_zoo.deploy(bssnet_zoo.create_model(name, pretrained=True).eval()).to(dtype)
    images = street(size).to(dtype, memory_format=torch.channels_last)

    def run() -> torch.Tensor:
        return model.forward_head(model.forward_features(images))

    reference = run()
    undo(model, rewrite)
    difference = (run() - reference).abs().max() / reference.abs().max()
    if difference > (1e-4 if dtype == torch.float32 else 0.1):
        raise RuntimeError(f"{rewrite} changes the logits of {name} by {difference:.1e} of the largest")
    return run


def make_merged(name: str, size: Sequence[int], dtype: torch.dtype, what: str, merged: bool) -> Callable:
    """Two convolutions of the border and the spatial branch as they are or as one: rewrites that were tried."""
    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    channels = {"bssnet_t": 64, "bssnet_b": 128}[name]
    height, width = size[0] // 8, size[1] // 8
    if what == "last convolutions grouped":
        maps = tensor(1, 2 * channels, height, width)
        if merged:
            weight = tensor(4 * channels, channels, 3, 3)
            return lambda: F.conv2d(maps, weight, padding=1, groups=2)
        halves = [half.contiguous(memory_format=torch.channels_last) for half in maps.chunk(2, 1)]
        weights = [tensor(2 * channels, channels, 3, 3) for _ in halves]
        return lambda: [F.conv2d(half, w, padding=1) for half, w in zip(halves, weights, strict=True)][0]
    if what == "first convolutions merged":
        x, shape, padding = tensor(1, channels, height, width), (channels, channels, 3, 3), 1
    else:
        x, shape, padding = tensor(1, 2 * channels, height // 2, width // 2), (channels, 2 * channels, 1, 1), 0
    count, shape = (1, (2 * shape[0], *shape[1:])) if merged else (2, shape)
    weights = [tensor(*shape) for _ in range(count)]
    return lambda: [F.conv2d(x, weight, padding=padding) for weight in weights][0]


MERGED = ("first convolutions merged", "compressions merged", "last convolutions grouped")


def column(name: str, size: Sequence[int], dtype: torch.dtype, args: argparse.Namespace) -> dict[str, str]:
    """The cells of one network at one size in one precision, by row."""
    deployed = partial(make_deployed, name, size, dtype, args.keep_freed_memory)
    sides = {
        "all, from float32 NCHW": partial(make_whole, name, size, torch.float32, False),
        "all, from channels_last": partial(make_whole, name, size, dtype, True),
        "deployed": partial(deployed, "none"),
        **{rewrite: partial(deployed, rewrite) for rewrite in UNDONE},
        **{f"{what} {merged}": partial(make_merged, name, size, dtype, what, merged)
           for what in MERGED for merged in (False, True)},
    }
    timings = time_by_turns(sides, torch.device("cpu"), args.threads, args.seconds, args.rounds, warmup=1)

    def ratio(slow: str, fast: str) -> str:
        for side in (slow, fast):
            if timings[side].error:
                raise RuntimeError(f"{side}: {timings[side].error}")
        rounds = zip(timings[slow].seconds, timings[fast].seconds, strict=True)
        cell = spread([s / f for s, f in rounds]).format(digits=2)
        if timings[fast].memory is None:  # not on Linux
            return cell
        return f"{cell} {(timings[slow].memory - timings[fast].memory) / 2 ** 20:+.0f} MiB"

    cells = {row: ratio(row, "deployed") for row in [*list(sides)[:2], *UNDONE]}
    return cells | {f"not kept: {what}": ratio(f"{what} False", f"{what} True") for what in MERGED}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"])
    parser.add_argument("--size", nargs="+", type=height_and_width, default=[(360, 480), (720, 960), (1024, 2048)])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1., help="for each row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--keep-freed-memory", action=argparse.BooleanOptionalAction, default=True,
                        help="in the deployed networks (default: yes)")
    args = parser.parse_args()
    if min(args.threads, args.rounds, args.seconds) <= 0:
        parser.error("--threads, --rounds and --seconds must be above 0")
    for name in args.models:
        for size in args.size:
            cells = [column(name, size, PRECISIONS[precision], args) for precision in args.precision]
            print(f"\n{name} {size[0]}x{size[1]}, {args.threads} threads, torch {torch.__version__}\n")
            print(f"| rewrite | {' | '.join(args.precision)} |\n|{'---|' * (len(cells) + 1)}")
            for row in cells[0]:
                print(f"| {row} | {' | '.join(cell[row] for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
