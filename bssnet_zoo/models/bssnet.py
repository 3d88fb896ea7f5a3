"""BSSNet: a three-branch real-time network for semantic segmentation of road scenes.

Paper: `BSSNet: A Real-Time Semantic Segmentation Network for Road Scenes Inspired From AutoEncoder` (Shi et al., IEEE
TCSVT 34(5), 2024), https://doi.org/10.1109/TCSVT.2023.3325360. The trunk and PAPPM come from PIDNet (Xu et al., CVPR
2023).
"""
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.classes import CAMVID
from ..layers import LUAFM, PAPPM, UMF, BasicBlock, Bottleneck, ConvNormAct, NormActConv
from .checkpoints import EARLIER_NAMES, checkpoint_filter_fn
from .weights import WEIGHTS, hub_id, resolve_pretrained

__all__ = ["BSSNet", "BSSNetOutput"]

MIN_SIZE = 32  # height and width of an image, at least
# under torch.compile, what is computed again in backward updates BatchNorm's statistics once more in torch 2.6 and 2.7,
# not in 2.13 and 2.14
COMPILER_KEEPS_BUFFERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


class BSSNetOutput(NamedTuple):
    """What the network returns in training with ``aux_heads=True``, for ``BSSNetLoss``: raw maps at their own stride.

    ``seg`` (N, num_classes, H/8, W/8; H/4, W/4 for B), ``border`` (N, 1, H/8, W/8) logits of "this is a class border",
    ``spatial`` (N, in_chans, H/8, W/8) the reconstructed normalised image, ``aux`` logits of the two FCN heads at
    strides 16 and 32.

    Example:
        >>> model = BSSNet(num_classes=5, aux_heads=True).train()
        >>> output = model(torch.randn(2, 3, 64, 64))
        >>> output.seg.shape, output.border.shape, output.spatial.shape
        (torch.Size([2, 5, 8, 8]), torch.Size([2, 1, 8, 8]), torch.Size([2, 3, 8, 8]))
    """

    seg: torch.Tensor
    border: torch.Tensor
    spatial: torch.Tensor
    aux: tuple[torch.Tensor, torch.Tensor]


class DetailBranch(nn.Module):
    """Border or spatial branch at stride 8. Returns the fused map, where its training head taps, and its output."""

    def __init__(self, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNormAct(2 * dim, 2 * dim, 3, **dd)
        self.compress = ConvNormAct(4 * dim, 2 * dim, 1, **dd)
        self.luafm = LUAFM(2 * dim, 2 * dim, **dd)
        self.conv2 = ConvNormAct(2 * dim, 4 * dim, 3, **dd)

    def forward(self, x: torch.Tensor, x3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tap = self.luafm(self.conv1(x), self.compress(x3))
        return tap, self.conv2(tap)


class SemanticBranch(nn.Module):
    """Context of the coarsest map, blended back to stride 16."""

    def __init__(self, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.pappm = PAPPM(16 * dim, 8 * dim, 96, **dd)
        self.fuse4 = LUAFM(8 * dim, 8 * dim, **dd)
        self.fuse3 = LUAFM(4 * dim, 8 * dim, **dd)

    def forward(self, x3: torch.Tensor, x4: torch.Tensor, x5: torch.Tensor) -> torch.Tensor:
        return self.fuse3(x3, self.fuse4(x4, self.pappm(x5)))


class Decoder(nn.Module):
    """The three branches and their fusion: returns the fused map and the two maps that the training heads tap."""

    def __init__(
            self,
            dim: int,
            upsample: bool,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.border = DetailBranch(dim, **dd)
        self.spatial = DetailBranch(dim, **dd)
        self.semantic = SemanticBranch(dim, **dd)
        self.umf = UMF(4 * dim, num_features=3, resized=(1,), **dd)
        self.refine: nn.Module = nn.Identity()
        if upsample:
            self.refine = nn.Sequential(ConvNormAct(4 * dim, 4 * dim, 3, **dd), nn.Upsample(scale_factor=2.))

    def forward(
            self,
            x: torch.Tensor,
            x3: torch.Tensor,
            x4: torch.Tensor,
            x5: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        border_tap, border = self.border(x, x3)
        spatial_tap, spatial = self.spatial(x, x3)
        semantic = self.semantic(x3, x4, x5)
        fused = self.umf([border, semantic, spatial])
        return self.refine(fused), border_tap, spatial_tap


class SegHead(nn.Module):
    """BatchNorm, ReLU, 3x3 conv, BatchNorm, ReLU, channel dropout, 1x1 conv: segmentation, border and spatial head."""

    def __init__(
            self,
            in_channels: int,
            mid_channels: int,
            num_classes: int,
            drop_rate: float = 0.,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = NormActConv(in_channels, mid_channels, 3, **dd)
        self.norm = nn.BatchNorm2d(mid_channels, **dd)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout2d(drop_rate)
        self.classifier = create_classifier(mid_channels, num_classes, **dd)

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.drop(self.act(self.norm(self.conv(x))))
        return x if pre_logits else self.classifier(x)


class FCNHead(nn.Module):
    """3x3 conv, channel dropout, 1x1 conv: the auxiliary head of the trunk."""

    def __init__(
            self,
            in_channels: int,
            mid_channels: int,
            num_classes: int,
            drop_rate: float = 0.,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = ConvNormAct(in_channels, mid_channels, 3, **dd)
        self.drop = nn.Dropout2d(drop_rate)
        self.classifier = create_classifier(mid_channels, num_classes, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.drop(self.conv(x)))


def create_classifier(
        in_channels: int,
        num_classes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    return nn.Conv2d(in_channels, num_classes, 1, device=device, dtype=dtype)


def init_weights(module: nn.Module, needs_reset: bool = False) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and isinstance(module, _BatchNorm):
        module.reset_parameters()


def check_num_classes(num_classes: int) -> None:
    if num_classes < 0:
        raise ValueError(f"num_classes must be 0 (no classifier) or more, got {num_classes}")


# torch.fx cannot branch on shapes while it traces: this check stays a single call in its graph
@torch.fx.wrap
def check_images(images: torch.Tensor, in_chans: int, min_size: int = MIN_SIZE) -> None:
    if images.ndim != 4 or images.shape[1] != in_chans:
        raise ValueError(f"expected images of shape [N, {in_chans}, H, W], got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected floating point images, normalised by the model's mean and std, got {images.dtype}: "
                         "convert them first, or call bssnet_zoo.predict, which takes uint8")
    if images.shape[2] < min_size or images.shape[3] < min_size:
        raise ValueError(
            f"expected a height and width of {min_size} or more, got {list(images.shape[2:])}: pad the images")


@contextmanager
def keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Leaves the BatchNorm statistics of ``module`` as they were: recomputing a forward pass must not count twice."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    buffers = [b for norm in norms for b in norm.buffers()]
    saved = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for b, value in zip(buffers, saved, strict=True):
            b.copy_(value)


class BSSNet(nn.Module):
    """BSSNet for T (``dim=32``) and B (``dim=64, upsample=True``).

    ``forward`` takes normalised images (N, in_chans, H, W), H and W 32 or more, and returns logits (N, num_classes, H,
    W); with ``num_classes=0`` the 128-channel map before the classifier, at its own stride (8 for T, 4 for B); in
    training with ``aux_heads=True`` a `BSSNetOutput`.

    Args:
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Channels of the images. The spatial head reconstructs as many.
        dim: Base width C: the trunk has C, 2C, 4C, 8C, 16C channels.
        upsample: Convolve and upsample the fused map, which halves the output stride to 4.
        drop_rate: Channel dropout before the classifiers of the segmentation and FCN heads.
        aux_heads: Create the training heads (border, spatial, two FCN heads) and return their maps in training.
        device: Where to create the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: A negative ``num_classes``, ``in_chans`` below 1, ``aux_heads`` without classes; in ``forward``,
            images of wrong rank, channels, size or type, or a training batch of 1.

    Example:
        >>> model = BSSNet(num_classes=5).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    __constants__ = ["aux_heads"]  # so that TorchScript leaves out what is for training
    if TYPE_CHECKING:  # TorchScript reads annotations
        feature_info: list[dict[str, Any]]
        pretrained_cfg: dict[str, Any]  # timm sets it

    def __init__(
            self,
            num_classes: int = 19,
            in_chans: int = 3,
            dim: int = 32,
            upsample: bool = False,
            drop_rate: float = 0.1,
            aux_heads: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        check_num_classes(num_classes)
        if in_chans < 1:
            raise ValueError(f"in_chans must be 1 or more, got {in_chans}")
        if aux_heads and num_classes == 0:
            raise ValueError("aux_heads=True trains classifiers and needs num_classes of 1 or more, got 0")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.aux_heads = aux_heads
        self.grad_checkpointing = False
        self.num_features = 4 * dim
        self.head_hidden_size = 128
        self.feature_info = [
            dict(num_chs=dim * 2 ** i, reduction=2 ** (i + 2), module=f"stages.{i}") for i in range(5)]

        self.stem = nn.Sequential(ConvNormAct(in_chans, dim, 3, 2, **dd), ConvNormAct(dim, dim, 3, 2, **dd))
        self.stages = nn.Sequential(
            nn.Sequential(BasicBlock(dim, dim, **dd), BasicBlock(dim, dim, **dd)),
            nn.Sequential(BasicBlock(dim, 2 * dim, 2, **dd), BasicBlock(2 * dim, 2 * dim, **dd)),
            nn.Sequential(
                BasicBlock(2 * dim, 4 * dim, 2, **dd),
                BasicBlock(4 * dim, 4 * dim, **dd),
                BasicBlock(4 * dim, 4 * dim, **dd)),
            nn.Sequential(
                BasicBlock(4 * dim, 8 * dim, 2, **dd),
                BasicBlock(8 * dim, 8 * dim, **dd),
                BasicBlock(8 * dim, 8 * dim, **dd)),
            nn.Sequential(Bottleneck(8 * dim, 8 * dim, 2, **dd), Bottleneck(16 * dim, 8 * dim, **dd)),
        )
        self.decoder: Decoder | None = Decoder(dim, upsample, **dd)
        self.head: nn.Module = SegHead(4 * dim, self.head_hidden_size, num_classes, drop_rate, **dd)
        if aux_heads:
            self.border_head = SegHead(2 * dim, dim, 1, **dd)
            self.spatial_head = SegHead(2 * dim, 2 * dim, in_chans, **dd)
            self.fcn_heads = nn.ModuleList(
                FCNHead(channels, 2 * dim, num_classes, drop_rate, **dd) for channels in (4 * dim, 8 * dim))
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialises all weights, as after ``to_empty``; ``needs_reset`` also those of BatchNorm."""
        self.apply(partial(init_weights, needs_reset=needs_reset))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        for pattern, name in EARLIER_NAMES.items():
            for old in [key for key in state_dict if re.match(pattern, key.removeprefix(prefix))]:
                state_dict[prefix + re.sub(pattern, name, old.removeprefix(prefix))] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^stem\.",
            stages=r"^stages\.(\d+)\." if coarse else r"^stages\.(\d+)\.(\d+)\.",
            decoder=r"^decoder\.",
            head=r"^(?:head|border_head|spatial_head|fcn_heads)\.",
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: activations inside stages and branches are computed again in backward.

        Under torch.compile from torch 2.13 on; before, a compiled model ignores it.
        """
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head if self.decoder is None else self.head.get_submodule("classifier")

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers, freshly initialised, in the segmentation head and the FCN heads; 0 removes them.

        Args:
            num_classes: Number of classes; with 0, ``forward`` returns the 128-channel map before the classifier.
            global_pool: For timm's signature: there is no pooling.
        """
        check_num_classes(num_classes)
        if self.decoder is None:
            if num_classes > 0:
                raise ValueError("a model pruned to its trunk features has no head to put a classifier in")
            return
        if not isinstance(self.head, SegHead) or not isinstance(self.head.conv, NormActConv):
            raise ValueError("a deployed model keeps its classifier: reset that of the model it was made from")
        self.num_classes = num_classes
        fcn_heads = (module for module in self.modules() if isinstance(module, FCNHead))
        heads: list[SegHead | FCNHead] = [self.head, *fcn_heads]
        for head in heads:
            channels = head.conv.conv.out_channels
            head.classifier = create_classifier(channels, num_classes, **get_device_dtype(self)).train(head.training)
            init_weights(head.classifier)

    @torch.jit.unused
    def _checkpoint(self, module: nn.Module, *x: torch.Tensor) -> Any:
        if torch.compiler.is_compiling():  # the compiler takes no context of ours
            return checkpoint(module, *x, use_reentrant=False) if COMPILER_KEEPS_BUFFERS else module(*x)
        return checkpoint(
            module, *x, use_reentrant=False, context_fn=lambda: (nullcontext(), keep_running_statistics(module)))

    def _forward_trunk(self, x: torch.Tensor, num_stages: int = 5, stem: bool = False) -> list[torch.Tensor]:
        """What each stage gives, after what the stem gives if ``stem``."""
        check_images(x, self.in_chans)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._checkpoint(self.stem, x)
        else:
            x = self.stem(x)
        features: list[torch.Tensor] = []
        if stem:
            features.append(x)
        for i, stage in enumerate(self.stages):
            if i < num_stages:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = self._checkpoint(stage, x)
                else:
                    x = stage(x)
                features.append(x)
        return features

    def _forward_decoder(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert self.decoder is not None  # as the callers know
        _, x, x3, x4, x5 = features
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._checkpoint(self.decoder, x, x3, x4, x5)
        else:
            return self.decoder(x, x3, x4, x5)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = "NCHW",
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Trunk features at strides 4, 8, 16, 32 and 64, with C, 2C, 4C, 8C and 16C channels.

        Args:
            x: Images (N, in_chans, H, W).
            indices: The last n levels if an int, all if None, else these levels (negative ones from the end).
            norm: For timm's signature: there is no final norm.
            stop_early: Run no further than the last wanted level. The first result is then that level, not the fused
                map.
            output_fmt: "NCHW" is what there is.
            intermediates_only: Return the list of levels alone, and run no more than they need.

        Returns:
            The levels, after what ``forward_features`` gives unless ``intermediates_only``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        stop_early = stop_early or intermediates_only or self.decoder is None
        features = self._forward_trunk(x, max_index + 1 if stop_early else len(self.stages))
        intermediates = [features[i] for i in take_indices]
        if intermediates_only:
            return intermediates
        return features[-1] if stop_early else self._forward_decoder(features)[0], intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Drops what the wanted trunk levels don't need: later stages, the decoder and every head.

        ``forward_features`` and ``forward`` then give the last level that is left. With ``prune_head=False`` the model
        stays as it is, since its decoder reads all stages.

        Args:
            indices: The last n levels if an int, else these levels.
            prune_norm: For timm's signature: there is no final norm.
            prune_head: Drop the decoder and every head.

        Returns:
            The levels, counted from the first.

        Raises:
            ValueError: ``prune_head=False`` without the last level.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        if not prune_head:
            if max_index < len(self.stages) - 1:
                raise ValueError(f"prune_head=False keeps the decoder, which needs level {len(self.stages) - 1}: "
                                 f"take it in, or prune the head; got {indices}")
            return take_indices
        self.stages = self.stages[:max_index + 1]
        self.decoder = None
        self.head = nn.Identity()
        if self.aux_heads:
            del self.border_head, self.spatial_head, self.fcn_heads
            self.aux_heads = False
        self.num_classes = 0
        self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The fused map of the three branches: (N, in_chans, H, W) -> (N, 4C, H/8, W/8), for B (N, 4C, H/4, W/4)."""
        features = self._forward_trunk(x)
        if self.decoder is None:
            return features[-1]
        return self._forward_decoder(features)[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Raw logits of a fused map at its own stride; with ``pre_logits`` the 128-channel map before them."""
        if self.decoder is None:
            return x
        return self.head(x, pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor | BSSNetOutput:
        if self.num_classes == 0:
            return self.forward_head(self.forward_features(x))
        if self.aux_heads and self.training:
            return self._forward_train(self._forward_trunk(x))
        logits = self.forward_head(self.forward_features(x))  # features are free before the large map is made
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=True)

    def _forward_train(self, features: list[torch.Tensor]) -> BSSNetOutput:
        fused, border, spatial = self._forward_decoder(features)
        return BSSNetOutput(
            seg=self.head(fused),
            border=self.border_head(border),
            spatial=self.spatial_head(spatial),
            aux=(self.fcn_heads[0](features[2]), self.fcn_heads[1](features[3])),
        )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 19, "input_size": (3, 1024, 2048), "min_input_size": (3, MIN_SIZE, MIN_SIZE), "pool_size": None,
        "crop_pct": 1.0, "interpolation": "bilinear", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head.classifier",
        "paper_name": "BSSNet: A Real-Time Semantic Segmentation Network for Road Scenes Inspired From AutoEncoder",
        "paper_ids": "doi:10.1109/TCSVT.2023.3325360",
        **kwargs,
    }


def _camvid_cfg(name: str) -> dict[str, Any]:
    return _cfg(
        hf_hub_id=hub_id(name), num_classes=len(CAMVID.names), input_size=(3, *WEIGHTS[name].size), license="other",
        **CAMVID.config,
        description=f"{WEIGHTS[name].data}, 11 classes. Weights for research, like the data.",
    )


def _pidnet_cfg(filename: str) -> dict[str, Any]:
    return _cfg(
        url=f"https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/pidnet/{filename}",
        description="ImageNet weights of PIDNet's trunk, to start training from: everything else is initialised.",
        origin_url="https://github.com/XuJiacong/PIDNet",
    )


default_cfgs = generate_default_cfgs({
    **{name: _camvid_cfg(name) for name in WEIGHTS},
    "bssnet_t.pidnet_in1k": _pidnet_cfg("pidnet-s_imagenet1k_20230306-715e6273.pth"),
    "bssnet_b.pidnet_in1k": _pidnet_cfg("pidnet-m_imagenet1k_20230306-39893c52.pth"),
})


def as_bssnet(model: nn.Module) -> BSSNet:
    """The same model, which has to be a `BSSNet`: timm's names say nothing about the class.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(model, BSSNet):
        raise ValueError(f"a BSSNet is needed here, not {type(model).__name__}")
    return model


def _create_bssnet(
        variant: str,
        pretrained: bool,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
) -> BSSNet:
    if isinstance(pretrained, str):
        raise ValueError(f"pretrained is True or False, got '{pretrained}': choose weights by pretrained=True and "
                         f"pretrained_cfg='{pretrained}', or by the name, '{variant}.{pretrained}'")
    if "output_stride" in kwargs:
        raise ValueError(f"{variant} has fixed strides of 4 to 64 and takes no output_stride: as an encoder of "
                         "segmentation_models_pytorch, take an architecture without one, such as Unet or FPN")
    if pretrained:
        pretrained_cfg_overlay = resolve_pretrained(
            variant, pretrained_cfg, pretrained_cfg_overlay, kwargs.get("cache_dir"))
    model = build_model_with_cfg(
        BSSNet, variant, pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter", flatten_sequential=True),
        **kwargs,
    )
    for module in model.modules():  # the wrapper of features_only has a config too
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)  # it describes weights, it doesn't hold them
    return model


@register_model
def bssnet_t(pretrained: bool = False, **kwargs: Any) -> BSSNet:
    """BSSNet-T: 8.4 M parameters, base width 32, output stride 8.

    Args:
        pretrained: Load weights: those of the tag ``camvid``, or of the one in ``pretrained_cfg``.
        **kwargs: ``pretrained_cfg`` ("camvid", "street", "pidnet_in1k"), ``num_classes``, ``in_chans``,
            ``features_only`` and what else `bssnet_zoo.create_model` takes; arguments of `BSSNet`.

    Example:
        >>> bssnet_t(num_classes=5).num_classes
        5
    """
    return _create_bssnet("bssnet_t", pretrained, **dict(dict(dim=32), **kwargs))


@register_model
def bssnet_b(pretrained: bool = False, **kwargs: Any) -> BSSNet:
    """BSSNet-B: 32.1 M parameters, base width 64, output stride 4.

    Args:
        pretrained: Load weights: those of the tag ``camvid``, or of the one in ``pretrained_cfg``.
        **kwargs: ``pretrained_cfg`` ("camvid", "pidnet_in1k") and what else `bssnet_t` takes.

    Example:
        >>> bssnet_b(num_classes=5, device="meta").num_features
        256
    """
    return _create_bssnet("bssnet_b", pretrained, **dict(dict(dim=64, upsample=True), **kwargs))
