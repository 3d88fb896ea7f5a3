"""Other real-time networks that pip installs, with random weights: to compare speed with, not accuracy."""
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.segmentation import LRASPP

__all__ = ["Peer", "create_peer"]

SMP = "smp:"


class Peer(nn.Module):
    """A network of torchvision or segmentation_models_pytorch with the methods of a `BSSNet`.

    ``forward_features`` gives raw logits at the network's own stride: its resize to full size is in ``forward`` alone.
    """

    in_chans = 3

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network: Any = network  # of a library without types

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.network, "backbone"):  # not of torchvision: create_peer took the resize out
            return self.network(x)
        features = self.network.backbone(x)
        return self.network.classifier(features if isinstance(self.network, LRASPP) else features["out"])

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.forward_features(x), size=x.shape[-2:], mode="bilinear")


def create_smp(name: str, num_classes: int) -> Any:
    """``smp:ARCHITECTURE/ENCODER``: a network of segmentation_models_pytorch on an encoder of timm."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise RuntimeError(f"{name} needs segmentation_models_pytorch: the extra [bench], as in "
                           "pip install '.[bench]'") from None
    architecture, _, encoder = name.removeprefix(SMP).partition("/")
    if not timm.is_model(encoder):
        raise ValueError(f"{name} has no encoder that timm knows: write smp:ARCHITECTURE/ENCODER, for example "
                         "smp:unet/mobilenetv2_100")
    try:
        return smp.create_model(architecture, f"tu-{encoder}", None, classes=num_classes)
    except KeyError as error:
        raise ValueError(f"{name}: {str(error.args[0]).splitlines()[0]}") from None


def create_peer(name: str, num_classes: int) -> Peer:
    """A peer by name, with random weights, in eval mode.

    Args:
        name: A segmentation model of torchvision, as ``lraspp_mobilenet_v3_large``, or architecture and timm encoder of
            segmentation_models_pytorch, as ``smp:unet/mobilenetv2_100``.
        num_classes: Number of classes.

    Raises:
        ValueError: No such network.
        RuntimeError: segmentation_models_pytorch isn't installed.
    """
    if name.startswith(SMP):
        network = create_smp(name, num_classes)
        network.segmentation_head[1] = nn.Identity()
        return Peer(network).eval()
    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in names:
        raise ValueError(f"unknown peer '{name}': torchvision has {', '.join(names)}; those of "
                         "segmentation_models_pytorch are named as in smp:unet/mobilenetv2_100")
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    network.aux_classifier = None
    return Peer(network).eval()
