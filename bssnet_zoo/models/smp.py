"""Networks by name: the zoo's, and those to be teachers: encoders of timm, and encoder-decoders on them."""
import os
import re
from collections.abc import Mapping

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from .checkpoints import read_state_dict
from .factory import open_model

__all__ = ["Renormalize", "SmpModel", "create_network", "encoder_weights"]

SMP = "smp:"
IMAGENET = "imagenet"
ENCODER_PREFIX = re.compile(r"^(network\.)?(encoder\.)?(model\.)?")


class Renormalize(nn.Module):
    """From our normalisation of images (N, 3, H, W) to the one that an encoder of timm was trained with."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, encoder: str):
        super().__init__()
        cfg = timm.get_pretrained_cfg(encoder)
        if cfg is None:
            raise ValueError(f"timm doesn't say how '{encoder}' was trained")
        mean, std, own_mean, own_std = (
            torch.tensor(x).reshape(1, 3, 1, 1)
            for x in (cfg.mean, cfg.std, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.register_buffer("scale", own_std / std, persistent=False)
        self.register_buffer("shift", (own_mean - mean) / std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, images, self.scale)


def encoder_weights(
        own: Mapping[str, torch.Tensor],
        given: Mapping[str, torch.Tensor],
        path: str | os.PathLike,
) -> dict[str, torch.Tensor]:
    """Weights of an encoder, of whatever names, under those that it has here.

    They are found by timm's names. If they have none of these, they must have timm's order and shapes up to the
    encoder's last feature; classifiers that follow are left out.

    Args:
        own: The encoder's tensors, in its order.
        given: Those of the file.
        path: The file, for the error message.

    Raises:
        ValueError: Some are missing, or of another shape.
    """
    own, given = ({name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
                  for weights in (own, given))
    given = {ENCODER_PREFIX.sub("", name): tensor for name, tensor in given.items()}
    sources = {name: ENCODER_PREFIX.sub("", name) for name in own}
    if len(own) <= len(given) and not given.keys() & set(sources.values()):
        sources = dict(zip(own, given, strict=False))
    missing = [name for name, source in sources.items()
               if source not in given or own[name].shape != given[source].shape]
    if missing:
        raise ValueError(f"{path} fits neither the network nor its encoder: {len(missing)} of the encoder's "
                         f"{len(own)} tensors are not in it, or of another shape")
    return {name: given[source] for name, source in sources.items()}


class SmpModel(nn.Module):
    """A segmentation_models_pytorch network on a timm encoder, for images of any size, normalised as BSSNet's are.

    Args:
        name: ``smp:ARCHITECTURE/ENCODER``, for example ``smp:unet/tf_efficientnet_lite2``.
        num_classes: Number of classes.
        weights: A file for `load`, or "imagenet", which is timm's weights of the encoder (from the Hub).

    Raises:
        ValueError: No such architecture or encoder, weights that aren't there or don't fit.
        RuntimeError: segmentation_models_pytorch isn't installed.
    """

    stride = 32

    def __init__(self, name: str, num_classes: int, weights: str | os.PathLike | None = None):
        super().__init__()
        if weights not in (None, IMAGENET) and not os.path.isfile(weights):
            raise ValueError(f"no weights '{weights}' for {name}: give imagenet, none, or a file")
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
                architecture, f"tu-{encoder}", IMAGENET if weights == IMAGENET else None, classes=num_classes)
        except KeyError as error:
            raise ValueError(f"{name}: {str(error.args[0]).splitlines()[0]}") from None
        self.num_classes = num_classes
        self.renormalize = Renormalize(encoder)
        if weights not in (None, IMAGENET):
            self.load(weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes, H, W) of images (N, 3, H, W)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        return self.network(self.renormalize(padded))[..., :height, :width]

    def load(self, path: str | os.PathLike) -> None:
        """Loads weights of the whole network, or of its encoder alone, as `encoder_weights` finds them.

        Raises:
            FileNotFoundError: No such file.
            ValueError: It can't be read, or doesn't fit.
        """
        weights, own = read_state_dict(path), self.state_dict()
        if any(name.startswith("network.") and not name.startswith("network.encoder.") for name in weights):
            counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
            weights = {**counters, **weights}  # which frozen BatchNorm has none of
        else:
            encoder = {name: tensor for name, tensor in own.items() if name.startswith("network.encoder.")}
            weights = {**own, **encoder_weights(encoder, weights, path)}
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path} doesn't fit: {str(error).splitlines()[1].strip()}") from None


def create_network(
        name: str | None,
        num_classes: int,
        checkpoint: str | os.PathLike | None = None,
) -> nn.Module:
    """A trained network: a model of the zoo, or ``smp:ARCHITECTURE/ENCODER``.

    Args:
        name: Its name; None for what the checkpoint fits, or bssnet_t.
        num_classes: Number of classes of the checkpoint.
        checkpoint: File with its weights; the pretrained ones, with the classes that they have, if None.

    Raises:
        ValueError: No such model, weights that don't fit, or none at all.
        FileNotFoundError: No such checkpoint.
    """
    if name is None or not name.startswith(SMP):
        return open_model(name, checkpoint, num_classes if checkpoint else None)
    if checkpoint is None:
        raise ValueError(f"{name} has no pretrained weights: give a checkpoint of it, by --checkpoint or, of a "
                         "teacher, --teacher-checkpoint")
    return SmpModel(name, num_classes, checkpoint)
