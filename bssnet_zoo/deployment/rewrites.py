"""`deploy`: an inference-only copy of a BSSNet that gives the same logits in less time.

Every rewrite is an identity of algebra, computed in float64: `docs/explanation/rewrites.md` explains each,
`experiments/rewrites.py` measures what it gains.
"""
import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_device_dtype
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from ..layers import LUAFM, UMF, ConvNormAct, NormActConv
from ..models.bssnet import BSSNet, Decoder, SegHead

__all__ = ["deploy", "is_deployed"]


STRIP_BYTES = 16 * 2 ** 20


class StripStem(nn.Sequential):
    """The stem (stride 4), for large images on the CPU in strips of rows whose largest map has ``STRIP_BYTES``.

    At 1024x2048 T's largest map has 64 MiB, and eager torch takes that from the system, page by page, in every pass.
    Compilers, exporters and traces get the plain stem.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
            if x.device.type == "cpu" and not torch.jit.is_tracing():
                return self._forward_in_strips(x)
        return self._forward_plain(x)

    def _forward_plain(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return x

    @torch.jit.unused
    def _forward_in_strips(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        first: Any = self[0]  # a `ConvNormAct`: torch's containers don't tell what they hold
        row_bytes = 2 * n * first.conv.out_channels * (width // 2) * x.element_size()  # for one row of the result
        rows = max(1, STRIP_BYTES // row_bytes)
        if height <= 3 * 4 * rows:
            return self._forward_plain(x)
        strips = [self._forward_plain(x[:, :, :4 * rows])]
        for top in range(4 * rows, height, 4 * rows):  # with the four rows above it, whose result is dropped
            strips.append(self._forward_plain(x[:, :, top - 4:top + 4 * rows])[:, :, 1:])
        return torch.cat(strips, dim=2)


class ScaleShift(nn.Module):
    """BatchNorm with fixed statistics: one multiplication and one addition for each channel."""

    def __init__(self, bn: nn.BatchNorm2d):
        super().__init__()
        assert bn.running_mean is not None and bn.running_var is not None
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        self.scale = nn.Parameter(scale.reshape(1, -1, 1, 1), requires_grad=False)
        self.shift = nn.Parameter((bn.bias - bn.running_mean * scale).reshape(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def transposed_weight(weight: torch.Tensor) -> torch.Tensor:
    """A 4x4 kernel of a transposed convolution for a 3x3 one that reads a nearest x2 map: (O, I, 3, 3) -> (I, O, 4, 4).

    In each direction a fine pixel at an even place sees coarse pixels i-1, i, i and one at an odd place i, i, i+1: taps
    that read the same coarse pixel are added. Tap t of the 4x4 kernel goes from pixel i to 2i - 1 + t.
    """
    taps = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=weight.dtype, device=weight.device)
    return torch.einsum("ay,bx,oiyx->ioab", taps, taps, weight).contiguous()


def transposed_pays(h: int, w: int) -> bool:
    """Whether a 4x4 transposed convolution of an h x w map is faster than a 3x3 one of the resized map.

    On smaller maps eager torch spends its time on the weights, of which the former has 16/9 as many. Compilers and
    exporters arrange weights once and for all, and may not know h and w.
    """
    if not torch.jit.is_scripting():
        if torch.compiler.is_compiling():
            return True
    return h * w >= 256


class UpsampleConvReLU(nn.Module):
    """Nearest resize, 3x3 convolution, ReLU: (N, I, h, w) -> (N, O, height, width).

    To twice the size, each fine pixel sees 2x2 coarse ones: a transposed convolution with stride 2 is the same with
    16/36 of the multiply-adds. To 2h-1 or 2w-1 (a map of odd size, halved and rounded up) it is that map cropped, but
    its last row or column sees zero padding where the larger map goes on. To other sizes, for maps too small for
    it to pay, and in a trace, which is for any size, it does what it says.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.transposed = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, 2, 1).requires_grad_(False)
        self.transposed.weight.data = transposed_weight(conv.weight)
        assert conv.bias is not None and self.transposed.bias is not None
        self.transposed.bias.data = conv.bias.data.clone()

    def plain(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """To any size, as it is written: resize, convolution, ReLU."""
        return F.relu_(self.conv(F.interpolate(x, size=[height, width], mode="nearest")))

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        """To twice the size."""
        return F.relu_(self.transposed(x))

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if torch.jit.is_tracing():
                return self.plain(x, height, width)
        h, w = x.shape[-2:]
        odd_height, odd_width = height == 2 * h - 1 and h > 1, width == 2 * w - 1 and w > 1
        doubled = (height == 2 * h or odd_height) and (width == 2 * w or odd_width)
        if not doubled or not transposed_pays(h, w):
            return self.plain(x, height, width)
        y = self.twice(x)[:, :, :height, :width]
        if odd_height:
            rows = F.pad(F.interpolate(x[:, :, -2:], size=[2, width], mode="nearest"), [0, 0, 0, 1])
            y[:, :, -1:] = F.relu_(F.conv2d(rows, self.conv.weight, self.conv.bias, padding=[0, 1]))
        if odd_width:
            columns = F.pad(F.interpolate(x[..., -2:], size=[height, 2], mode="nearest"), [0, 1])
            y[..., -1:] = F.relu_(F.conv2d(columns, self.conv.weight, self.conv.bias, padding=[1, 0]))
        return y


def channel_max(x: torch.Tensor) -> torch.Tensor:
    """Maximum over the channels of a map without negative values: (N, C, H, W) -> (N, 1, H, W).

    Of such numbers the larger one has the larger bits, read as an integer. Eager torch on the CPU finds the maximum of
    16-bit integers several times faster than that of bfloat16 or float16.
    """
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
        if x.device.type == "cpu" and x.element_size() == 2 and not x.requires_grad:
            return x.view(torch.int16).amax(dim=1, keepdim=True).view(x.dtype)
    return x.amax(dim=1, keepdim=True)


class BlendWeights(nn.Module):
    """Sigmoid of the attention convolutions over sum and maximum over the channels of each map.

    A sum is what a mean is without its division, which the first convolution does, and without the float32 copy that
    torch's mean makes of a bfloat16 map. All maps come out of a ReLU.
    """

    def __init__(self, attention: nn.Sequential, channels: int):
        super().__init__()
        self.attention = attention
        self.channels = channels
        first: Any = attention[0]
        first.conv.weight[:, ::2] /= channels

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        statistics: list[torch.Tensor] = []
        for feature in features:
            statistics.append(feature.sum(dim=1, keepdim=True))
            statistics.append(channel_max(feature))
        return torch.sigmoid(self.attention(torch.cat(statistics, dim=1)))


class DeployedLUAFM(nn.Module):
    """`LUAFM` that blends in one pass; with ``inplace`` into the fine map, which must then be nobody else's."""

    def __init__(self, luafm: LUAFM, inplace: bool):
        super().__init__()
        self.conv_x = luafm.conv_x
        self.conv_y = UpsampleConvReLU(luafm.conv_y.conv)
        self.weights = BlendWeights(luafm.attention, luafm.conv_y.conv.out_channels)
        last: Any = luafm.attention[1]
        last.conv.weight.neg_()  # sigmoid(-z) is 1 - sigmoid(z): lerp wants the weight of its second map
        last.conv.bias.neg_()
        self.inplace = inplace

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.conv_x(x)
        y = self.conv_y(y, x.shape[2], x.shape[3])
        weight = self.weights([x, y])
        return x.lerp_(y, weight) if self.inplace else torch.lerp(x, y, weight)


class DeployedUMF(nn.Module):
    """BSSNet's `UMF` of border, semantic and spatial map. The result is written over the border map."""

    def __init__(self, umf: UMF):
        super().__init__()
        semantic: Any = umf.convs[1]
        self.conv = UpsampleConvReLU(semantic.conv)
        self.weights = BlendWeights(umf.attention, umf.channels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        border, semantic, spatial = features
        semantic = self.conv(semantic, border.shape[2], border.shape[3])
        border_weight, semantic_weight, spatial_weight = self.weights([border, semantic, spatial]).split(1, dim=1)
        return border.mul_(border_weight).addcmul_(semantic, semantic_weight).addcmul_(spatial, spatial_weight)


class UpsampleHead(nn.Module):
    """B's `SegHead` after its first BatchNorm and ReLU, with the nearest x2 resize before it in its convolution."""

    def __init__(self, conv: nn.Conv2d, classifier: nn.Module):
        super().__init__()
        self.conv = UpsampleConvReLU(conv)
        self.classifier = classifier

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.conv.twice(x)
        return x if pre_logits else self.classifier(x)


def fold_norms(model: nn.Module) -> None:
    """BatchNorm after a convolution goes into it; before one, it becomes a scale and a shift."""
    for module in model.modules():
        if isinstance(module, ConvNormAct):
            module.reparameterize()
        elif isinstance(module, NormActConv):
            module.set_submodule("bn", ScaleShift(module.bn))


def deploy_head(head: SegHead, decoder: Decoder) -> nn.Module:
    """Moves the head's first BatchNorm and ReLU to the decoder's end, before B's resize, and folds the rest."""
    norm, act = head.conv.bn, head.conv.act
    conv = fuse_conv_bn_eval(head.conv.conv, head.norm)
    if isinstance(decoder.refine, nn.Sequential):
        decoder.refine = nn.Sequential(decoder.refine[0], norm, act)
        return UpsampleHead(conv, head.classifier)
    decoder.refine = nn.Sequential(norm, act)
    for name, module in (("conv", conv), ("norm", nn.Identity()), ("drop", nn.Identity())):
        head.set_submodule(name, module)
    return head


def is_deployed(model: nn.Module) -> bool:
    """Whether it has no BatchNorm left, as what `deploy` gives."""
    return not any(isinstance(module, (_BatchNorm, FrozenBatchNorm2d)) for module in model.modules())


@torch.no_grad()
def deploy(model: BSSNet) -> BSSNet:
    """An inference-only copy with the same logits in less time: what to run once a model is trained.

    No BatchNorm, dropout or training head is left. The copy is a `BSSNet` in channels_last, on the device and in the
    type of ``model``; its ``forward`` and its trunk features are those of ``model`` up to rounding, and
    ``forward_features`` gives the map that the head's first convolution reads, stride 8 for T and B: B's resize is part
    of that convolution. It can be pickled, scripted, compiled and exported. For bfloat16 or float16, deploy a float32
    model and cast the copy: to fold rounded weights rounds twice.

    Args:
        model: A `BSSNet`, in any mode; it is left as it is.

    Raises:
        ValueError: Not a `BSSNet`, or one that was deployed before.

    Example:
        >>> from bssnet_zoo import create_model
        >>> model = create_model("bssnet_t", pretrained=True).eval()
        >>> images = torch.randn(1, 3, 64, 96)
        >>> with torch.inference_mode():
        ...     torch.allclose(deploy(model)(images), model(images), atol=1e-2)
        True
    """
    if not isinstance(model, BSSNet):
        raise ValueError(f"deploy takes a BSSNet, got {type(model).__name__}: deploy first, then wrap or compile")
    if is_deployed(model):
        raise ValueError("deploy takes a BSSNet with its BatchNorm layers, this one has none: was it deployed before?")
    deployed = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    deployed.set_grad_checkpointing(False)
    if deployed.aux_heads:
        del deployed.border_head, deployed.spatial_head, deployed.fcn_heads
        deployed.aux_heads = False
    fold_norms(deployed)
    deployed.stem = StripStem(*deployed.stem)
    decoder = deployed.decoder
    if decoder is not None:
        for branch in (decoder.border, decoder.spatial):
            branch.set_submodule("luafm", DeployedLUAFM(branch.luafm, inplace=True))
        semantic = decoder.semantic
        semantic.set_submodule("fuse4", DeployedLUAFM(semantic.fuse4, inplace=False))
        semantic.set_submodule("fuse3", DeployedLUAFM(semantic.fuse3, inplace=False))
        decoder.set_submodule("umf", DeployedUMF(decoder.umf))
        assert isinstance(deployed.head, SegHead)
        deployed.head = deploy_head(deployed.head, decoder)
    return deployed.to(**get_device_dtype(model), memory_format=torch.channels_last)
