"""Other real-time networks that pip installs, with random weights: to compare speed with, not accuracy."""
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.segmentation import LRASPP

__all__ = ["Peer", "create_peer"]


class Peer(nn.Module):
    """A network of torchvision or segmentation_models_pytorch with the methods of a `BSSNet`.

    ``forward_features`` gives raw logits at the network's own stride: its resize to full size is in ``forward`` alone.
    """

    in_chans = 3

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.network, "backbone"):  # not of torchvision: create_peer took the resize out
            return self.network(x)
        features = self.network.backbone(x)
        return self.network.classifier(features if isinstance(self.network, LRASPP) else features["out"])

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.forward_features(x), size=x.shape[-2:], mode="bilinear")


def create_peer(name: str, num_classes: int) -> Peer:
    """A peer by name, with random weights, in eval mode.

    Args:
        name: A segmentation model of torchvision, as ``lraspp_mobilenet_v3_large``, or architecture and encoder of
            segmentation_models_pytorch, as ``smp:unet/mobilenet_v2``.
        num_classes: Number of classes.

    Raises:
        ValueError: No such network.
        RuntimeError: segmentation_models_pytorch isn't installed.
    """
    library, _, model = name.rpartition(":")
    if not library:
        names = torchvision.models.list_models(module=torchvision.models.segmentation)
        if model not in names:
            raise ValueError(f"unknown peer '{name}': torchvision has {', '.join(names)}; networks of "
                             "segmentation_models_pytorch are named as in smp:unet/mobilenet_v2")
        network = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=num_classes)
        network.aux_classifier = None
        return Peer(network).eval()
    architecture, _, encoder = model.partition("/")
    if library != "smp" or not encoder:
        raise ValueError(f"unknown peer '{name}': write smp:ARCHITECTURE/ENCODER, as in smp:unet/mobilenet_v2, or the "
                         "name of a torchvision model")
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise RuntimeError(f"{name} needs segmentation_models_pytorch: the extra [bench], as in pip install "
                           "'.[bench]'") from None
    try:
        network = smp.create_model(architecture, encoder, encoder_weights=None, classes=num_classes)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"segmentation_models_pytorch can't make '{name}': {error.args[0]}") from error
    network.segmentation_head[1] = nn.Identity()
    return Peer(network).eval()
