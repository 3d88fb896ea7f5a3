"""Networks by name: the zoo's, and encoder-decoders of segmentation_models_pytorch, to be teachers."""
import os
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..models import create_model

__all__ = ["SmpModel", "create_network"]

SMP = "smp:"


class SmpModel(nn.Module):
    """A segmentation_models_pytorch network on a timm encoder, for images of any size, normalised as BSSNet's are.

    Args:
        name: ``smp:ARCHITECTURE/ENCODER``, for example ``smp:unet/tf_efficientnet_lite2``.
        num_classes: Number of classes.
        pretrained: Load timm's ImageNet weights of the encoder (from the Hub).

    Raises:
        ValueError: No such architecture or encoder.
        RuntimeError: segmentation_models_pytorch isn't installed.
    """

    stride = 32

    def __init__(self, name: str, num_classes: int, pretrained: bool = False):
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ImportError:
            raise RuntimeError(f"{name} needs segmentation_models_pytorch: the extra [teacher], as in "
                               "pip install '.[teacher]'") from None
        architecture, _, encoder = name.removeprefix(SMP).partition("/")
        if not timm.is_model(encoder):
            raise ValueError(f"{name} has no encoder that timm knows: write smp:ARCHITECTURE/ENCODER, for example "
                             "smp:unet/tf_efficientnet_lite2")
        try:
            self.network = smp.create_model(
                architecture, f"tu-{encoder}", "imagenet" if pretrained else None, classes=num_classes)
        except KeyError as error:
            raise ValueError(f"{name}: {str(error.args[0]).splitlines()[0]}") from None
        self.num_classes = num_classes
        # from our normalisation to the one that the encoder was trained with
        cfg = timm.get_pretrained_cfg(encoder)
        mean, std, own_mean, own_std = (
            torch.tensor(x).reshape(1, 3, 1, 1)
            for x in (cfg.mean, cfg.std, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.register_buffer("scale", own_std / std, persistent=False)
        self.register_buffer("shift", (own_mean - mean) / std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes, H, W) of images (N, 3, H, W)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        return self.network(torch.addcmul(self.shift, padded, self.scale))[..., :height, :width]

    def load(self, path: str | os.PathLike) -> None:
        """Loads weights of the whole network, or of its encoder alone.

        Encoder weights may have other names, if their tensors have timm's order and shapes up to its last feature;
        classifiers that follow are left out.

        Raises:
            ValueError: They don't fit.
        """
        path = Path(path)
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(
            path, map_location="cpu", weights_only=True)
        weights = weights.get("model_ema", weights)
        if weights.keys() == self.state_dict().keys():
            self.load_state_dict(weights)
            return
        encoder = self.network.encoder
        own, given = ([(k, v) for k, v in state.items() if not k.endswith("num_batches_tracked")]
                      for state in (encoder.state_dict(), weights))
        if len(given) < len(own) or any(a.shape != b.shape for (_, a), (_, b) in zip(own, given, strict=False)):
            raise ValueError(f"{path} fits neither the network nor its encoder ({len(own)} tensors)")
        encoder.load_state_dict(
            {name: value for (name, _), (_, value) in zip(own, given, strict=False)}, strict=False)


def create_network(name: str, num_classes: int, checkpoint: str | os.PathLike | None = None) -> nn.Module:
    """A model of the zoo, or ``smp:ARCHITECTURE/ENCODER``, with weights from a file if there is one.

    Raises:
        ValueError: No such model, weights that don't fit.
    """
    if not name.startswith(SMP):
        return create_model(name, num_classes=num_classes, checkpoint_path=checkpoint)
    model = SmpModel(name, num_classes)
    if checkpoint is not None:
        model.load(checkpoint)
    return model
