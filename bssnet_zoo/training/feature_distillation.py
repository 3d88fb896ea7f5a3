"""Feature distillation: a trunk that learns to tell what a pretrained encoder sees."""
import os
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..models import BSSNet
from ..models.checkpoints import read_state_dict
from .recipes import Recipe

__all__ = [
    "FeatureStudent", "FeatureTeacher", "TaughtOutput", "create_feature_teacher", "create_projections", "feature_loss"]


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


class FeatureTeacher(nn.Module):
    """A frozen encoder of timm, such as one trained on ImageNet, and what it sees in images normalised as ours are.

    Args:
        name: timm's name of it, for example ``tf_efficientnet_lite2``.
        weights: A file with its weights, by timm's names or in timm's order; timm's own (from the Hub) if None.

    Raises:
        ValueError: No such encoder, or weights that don't fit.
        FileNotFoundError: No such file.
    """

    def __init__(self, name: str, weights: str | os.PathLike | None = None):
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"'{name}' is no encoder that timm knows: give one such as tf_efficientnet_lite2")
        self.encoder = timm.create_model(name, pretrained=weights is None, features_only=True)
        if weights is not None:
            own = self.encoder.state_dict()
            self.encoder.load_state_dict({**own, **encoder_weights(own, read_state_dict(weights), weights)})
        self.renormalize = Renormalize(name)
        info: Any = self.encoder.feature_info
        self.channels: dict[int, int] = dict(zip(info.reduction(), info.channels(), strict=True))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        """Images (N, 3, H, W) -> by their stride, float32 features, each channel with mean 0 and variance 1."""
        features = self.encoder(self.renormalize(images))
        return {stride: F.batch_norm(x.float(), None, None, training=True)
                for stride, x in zip(self.channels, features, strict=True)}


class TaughtOutput(NamedTuple):
    """Output of the model, and by their stride its predictions of the teacher's features."""

    output: NamedTuple
    features: dict[int, torch.Tensor]


class FeatureStudent(nn.Module):
    """A BSSNet together with `create_projections`, which predict a teacher's features from its trunk's.

    The model's stages hand their outputs to this module from then on.
    """

    def __init__(self, model: BSSNet, projections: nn.ModuleDict):
        super().__init__()
        self.model = model
        self.projections = projections
        self._features: dict[int, torch.Tensor] = {}
        for info in model.feature_info:
            if str(info["reduction"]) in projections:
                model.get_submodule(info["module"]).register_forward_hook(partial(self._keep, info["reduction"]))

    def _keep(self, stride: int, stage: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._features[stride] = output

    def forward(self, images: torch.Tensor) -> TaughtOutput:
        output = self.model(images)
        predicted = {int(stride): projection(self._features.pop(int(stride)))
                     for stride, projection in self.projections.items()}
        return TaughtOutput(output, predicted)


def create_projections(model: BSSNet, teacher: FeatureTeacher) -> nn.ModuleDict:
    """By stride, 8 and more, 1x1 convolutions from the channels of a model's trunk to those of a teacher.

    Raises:
        ValueError: The two have no such stride in common.
    """
    levels = {info["reduction"]: info["num_chs"] for info in model.feature_info if info["reduction"] >= 8}
    strides = levels.keys() & teacher.channels.keys()
    if not strides:
        raise ValueError(f"the feature teacher has features at strides {list(teacher.channels)}, one of "
                         f"{list(levels)} is needed")
    return nn.ModuleDict({str(stride): nn.Conv2d(levels[stride], teacher.channels[stride], 1)
                          for stride in sorted(strides)})


def feature_loss(predicted: dict[int, torch.Tensor], features: dict[int, torch.Tensor]) -> torch.Tensor:
    """Smooth L1 distance of predicted features (N, C, h, w) from the teacher's, summed over the strides.

    After FitNets (Romero et al., ICLR 2015): here at several depths, and beside the loss on labels.

    Raises:
        ValueError: The teacher's have another shape: its encoder pads otherwise.
    """
    for stride, prediction in predicted.items():
        if prediction.shape != features[stride].shape:
            raise ValueError(f"the teacher's features at stride {stride} are {tuple(features[stride].shape)}, the "
                             f"student's {tuple(prediction.shape)}: take a crop_size in multiples of 32")
    losses = [F.smooth_l1_loss(x.float(), features[stride]) for stride, x in predicted.items()]
    return sum(losses[1:], start=losses[0])


def create_feature_teacher(recipe: Recipe) -> FeatureTeacher | None:
    """The feature teacher that a recipe names; None if it names none.

    Raises:
        ValueError: Weights without a name, or what `FeatureTeacher` refuses.
    """
    if recipe.feature_teacher is None:
        if recipe.feature_checkpoint is not None:
            raise ValueError("feature_checkpoint needs feature_teacher, the name of its encoder: --feature-teacher "
                             "tf_efficientnet_lite2")
        return None
    return FeatureTeacher(recipe.feature_teacher, recipe.feature_checkpoint)
