"""What an exported file computes, as a torch module: a deployed model with what comes before and after it."""
import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..losses.resized import interpolation_matrix, matrix_strips
from ..models import BSSNet
from .rewrites import BlendWeights, UpsampleConvReLU

__all__ = ["ExportedGraph", "for_runtime"]

STRIP_ROWS = 64

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ExportedUpsample(nn.Module):
    """`UpsampleConvReLU` for a file: resize and convolution, or ``doubled`` where the size is exactly twice the map's.

    What `UpsampleConvReLU` does at odd sizes becomes operators that runtimes are slow at.
    """

    def __init__(self, upsample: UpsampleConvReLU, doubled: nn.Module | None):
        super().__init__()
        self.upsample = upsample
        self.doubled = doubled

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if self.doubled is not None and (height, width) == (2 * x.shape[2], 2 * x.shape[3]):
            return self.doubled(x)
        return self.upsample.plain(x, height, width)

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self(x, 2 * x.shape[2], 2 * x.shape[3])


class ShuffledUpsample(nn.Module):
    """The transposed convolution of `UpsampleConvReLU` and its ReLU, for ONNX Runtime, which has none in int8.

    A 2x2 convolution whose output p sees the coarse pixels p - 1 and p makes the fine pixels 2p - 1 and 2p, in each
    direction. They are put in place with the channels last, as ONNX Runtime has int8 maps.
    """

    def __init__(self, transposed: nn.ConvTranspose2d):
        super().__init__()
        inputs, outputs = transposed.in_channels, transposed.out_channels
        # the transposed kernel's tap 2 - 2k + s goes from coarse pixel p - 1 + k to fine pixel 2p - 1 + s
        weight = transposed.weight.reshape(inputs, outputs, 2, 2, 2, 2).flip(2, 4)  # i, o, ky, sy, kx, sx
        self.conv = nn.Conv2d(inputs, 4 * outputs, 2, padding=1).requires_grad_(False)
        assert self.conv.bias is not None and transposed.bias is not None
        self.conv.weight.data = weight.permute(3, 5, 1, 0, 2, 4).reshape(4 * outputs, inputs, 2, 2).contiguous()
        self.conv.bias.data = transposed.bias.data.repeat(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        n, height, width, channels = y.shape
        y = y.reshape(n, height, width, 2, 2, channels // 4).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(n, 2 * height, 2 * width, channels // 4)
        return y[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


class ExportedBlendWeights(nn.Module):
    """`BlendWeights` for ONNX Runtime, whose sums and maxima over channels take 2 to 9 times as long as they need.

    In float they are made by a convolution with ones and by halves, in int8 with the channels last, as the maps are.
    """

    attention_ones: torch.Tensor

    def __init__(self, weights: BlendWeights, channels_last: bool):
        super().__init__()
        self.attention = weights.attention
        self.channels_last = channels_last
        first: Any = weights.attention[0]
        self.register_buffer("attention_ones", first.conv.weight.new_ones(1, weights.channels, 1, 1), persistent=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        statistics = torch.cat([statistic for feature in features for statistic in (
            self._channels_last(feature) if self.channels_last else self._channels_first(feature))], dim=1)
        return torch.sigmoid(self.attention(statistics))

    def _channels_last(self, feature: torch.Tensor) -> list[torch.Tensor]:
        pixels = feature.permute(0, 2, 3, 1).flatten(1, 2)  # flat, or ONNX Runtime finds the channels first again
        return [statistic.unflatten(1, feature.shape[2:]).unsqueeze(1) for statistic in (
            pixels.sum(dim=2), pixels.amax(dim=2))]

    def _channels_first(self, feature: torch.Tensor) -> list[torch.Tensor]:
        total = F.conv2d(feature, self.attention_ones)
        while feature.shape[1] % 2 == 0:
            first, second = feature.chunk(2, dim=1)
            feature = torch.maximum(first, second)
        return [total, feature if feature.shape[1] == 1 else feature.amax(dim=1, keepdim=True)]


def for_runtime(module: ModuleT, runtime: str, fixed_size: bool = False) -> ModuleT:
    """Puts what a runtime is fast at into a deployed model.

    Args:
        module: The model, or what holds it.
        runtime: openvino, onnxruntime, onnxruntime-int8 or torch.
        fixed_size: It sees images of one size: for any size, a map may be doubled or not.
    """
    for name, child in module.named_children():
        if isinstance(child, UpsampleConvReLU):
            doubled: nn.Module | None = None
            if fixed_size and runtime == "openvino":
                doubled = nn.Sequential(child.transposed, nn.ReLU())
            elif fixed_size and runtime == "onnxruntime-int8":
                doubled = ShuffledUpsample(child.transposed)
            setattr(module, name, ExportedUpsample(child, doubled))
        elif isinstance(child, BlendWeights) and runtime.startswith("onnxruntime"):
            setattr(module, name, ExportedBlendWeights(child, channels_last=runtime == "onnxruntime-int8"))
        else:
            for_runtime(child, runtime, fixed_size)
    return module


def row_strips(rows: int, height: int) -> list[tuple[int, int, torch.Tensor]]:
    """A bilinear resize of rows, corners aligned, as products: first and last row of each and a matrix that makes
    ``STRIP_ROWS`` rows from them.
    """
    matrix = interpolation_matrix(rows, height, align_corners=True, dtype=torch.float32)
    return [(used.start, used.stop, part.contiguous()) for _, used, part in matrix_strips(matrix, STRIP_ROWS)]


class ExportedGraph(nn.Module):
    """What the file computes: a deployed model with what comes before and after it.

    Labels of images of a known size are computed in strips of rows, as `predict` does: no logits of full size are held,
    and it is several times faster than ArgMax of them.

    Args:
        model: A deployed `BSSNet`.
        size: Height and width of the images, None for any.
        labels: End in class ids, uint8 (N, H, W), instead of float32 logits (N, num_classes, H, W).
        normalize: Take RGB images as a decoder gives them, uint8 (N, H, W, 3), instead of normalised float32 ones
            (N, in_chans, H, W).
        raw: End at the model's own stride, without the resize to the images' size.
    """

    mean: torch.Tensor
    std: torch.Tensor
    strips: list[tuple[int, int, torch.Tensor]]

    def __init__(self, model: BSSNet, size: Sequence[int] | None, labels: bool, normalize: bool, raw: bool):
        super().__init__()
        self.model: Any = model  # TorchScript takes no cast of what the stem, a Sequential, holds
        self.labels, self.normalize, self.raw = labels, normalize, raw
        cfg = getattr(model, "pretrained_cfg", {})
        for key, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(key, torch.tensor(cfg.get(key) or default), persistent=False)
        if len(self.mean) != model.in_chans:
            raise ValueError(f"the pretrained config has mean and std of {len(self.mean)} channels, the model takes "
                             f"{model.in_chans}: create it with pretrained_cfg_overlay=dict(mean=..., std=...)")
        self.strips = []
        if size and labels and not raw:
            images = torch.empty(1, model.in_chans, *size, device="meta")
            meta = copy.deepcopy(model).to("meta")
            self.strips = row_strips(meta.forward_head(meta.forward_features(images)).shape[2], size[0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2], images.shape[-1]
        if self.normalize:
            height, width = images.shape[1], images.shape[2]
            images = ((images.float() - 255 * self.mean) / (255 * self.std)).permute(0, 3, 1, 2)
        images = images.to(self.model.stem[0].conv.weight.dtype)
        logits = self.model.forward_head(self.model.forward_features(images)).float()
        if len(self.strips) > 0:
            return self._labels_in_strips(logits, width)
        if not self.raw:
            logits = F.interpolate(logits, size=[height, width], mode="bilinear", align_corners=True)
        return logits.argmax(1).to(torch.uint8) if self.labels else logits

    def _labels_in_strips(self, logits: torch.Tensor, width: int) -> torch.Tensor:
        labels: list[torch.Tensor] = []
        for first, last, matrix in self.strips:
            strip = F.interpolate(
                logits[:, :, first:last], size=[last - first, width], mode="bilinear", align_corners=True)
            labels.append(torch.matmul(matrix, strip).argmax(1).to(torch.uint8))
        return torch.cat(labels, dim=1)
