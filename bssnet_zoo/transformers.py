"""BSSNet in Hugging Face transformers: importing this registers it with the Auto classes (extra ``[transformers]``).

The network and its weights are those of this package. `BSSNetForSemanticSegmentation` holds one of our models, and its
folders have timm's ``config.json``, so that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads them too.
"""
import inspect
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from timm.models import get_pretrained_cfg
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from .data.classes import CAMVID, IGNORE_INDEX
from .data.images import ImageLike, read_image
from .hub.staging import save_configs
from .inference.predictor import normalise
from .inference.resize import resize_logits
from .losses import BSSNetLoss
from .models import WEIGHTS, BSSNetOutput, create_model, list_models
from .models.bssnet import as_bssnet, init_weights
from .models.checkpoints import TRAINING_HEADS
from .models.weights import HUB_FILENAME, pinned_file

try:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForSemanticSegmentation,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
    from transformers.modeling_outputs import SemanticSegmenterOutput
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
except ImportError as error:
    raise ImportError(f"bssnet_zoo.transformers needs transformers ({error}): the extra [transformers], as in "
                      "pip install '.[transformers]'") from None

__all__ = ["BSSNetConfig", "BSSNetForSemanticSegmentation", "BSSNetImageProcessor", "bundled"]


class BSSNetConfig(PretrainedConfig):
    """What timm's ``config.json`` says, and what transformers adds to it.

    Args:
        architecture: ``bssnet_t`` or ``bssnet_b``.
        pretrained_cfg: timm's pretrained config, without the classes; None for the architecture's own.
        model_args: Further arguments of the model, as ``dict(aux_heads=True)``: training then takes the paper's losses.
        num_classes: What timm calls ``num_labels``.
        label_names: Names of the classes, where ``id2label`` doesn't say otherwise.
        label_descriptions: Their colours, "#rrggbb", by name.
        **kwargs: As for every config of transformers: ``num_labels``, ``id2label``, ``label2id``, ...
    """

    model_type = "bssnet"

    def __init__(
            self,
            architecture: str = "bssnet_t",
            pretrained_cfg: dict[str, Any] | None = None,
            model_args: dict[str, Any] | None = None,
            num_classes: int | None = None,
            label_names: Sequence[str] | None = None,
            label_descriptions: dict[str, str] | None = None,
            **kwargs: Any,
    ):
        own = get_pretrained_cfg(architecture)
        if own is None:
            raise ValueError(f"unknown architecture '{architecture}': there are {', '.join(list_models())}")
        if pretrained_cfg is None:
            pretrained_cfg = own.to_dict(remove_source=True, remove_null=True)
        self.architecture = architecture
        self.pretrained_cfg = {key: value for key, value in pretrained_cfg.items() if key not in (
            "num_classes", "label_names", "label_descriptions")}
        self.model_args = {key: value for key, value in (model_args or {}).items() if key != "num_classes"}
        self.label_descriptions = label_descriptions or {}
        if "id2label" not in kwargs and "num_labels" not in kwargs:
            if label_names is not None:
                kwargs["id2label"] = dict(enumerate(label_names))
                kwargs["label2id"] = {name: i for i, name in enumerate(label_names)}
            else:
                kwargs["num_labels"] = num_classes or own.num_classes
        if "dtype" not in kwargs:  # weights are float16 in the files, for size alone
            kwargs.setdefault("torch_dtype", "float32")
        super().__init__(**kwargs)

    def classes(self) -> dict[str, Any]:
        """The classes in timm's words.

        Raises:
            ValueError: ``id2label`` has gaps.
        """
        labels = {int(i): name for i, name in self.id2label.items()}  # texts, if they come from JSON
        if sorted(labels) != list(range(len(labels))):
            raise ValueError(f"id2label numbers the classes from 0, without gaps; it has {sorted(labels)}")
        names = [labels[i] for i in range(len(labels))]
        colours = {name: self.label_descriptions[name] for name in names if name in self.label_descriptions}
        return dict(num_classes=self.num_labels, label_names=names, label_descriptions=colours)

    def weights(self) -> dict[str, Any]:
        """The pretrained config; with other classes than the zoo's weights have, they are not those weights."""
        others = f"{self.architecture}.{self.pretrained_cfg.get('tag')}" in WEIGHTS and (
            self.classes()["label_names"] != list(CAMVID.names))
        return {key: value for key, value in self.pretrained_cfg.items()
                if not (others and key in ("tag", "description"))}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.classes(), "pretrained_cfg": self.weights()}


class BSSNetForSemanticSegmentation(PreTrainedModel):
    """A `bssnet_zoo.BSSNet`, which is ``bssnet``: pixel values (N, 3, H, W) in, logits (N, num_labels, H, W) out.

    With ``labels`` (N, H, W) there is a loss: cross-entropy where they aren't 255; in training with
    ``model_args=dict(aux_heads=True)`` the paper's six, and logits then have the stride of the network.
    """

    config_class = BSSNetConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [rf"^{head}" for head in TRAINING_HEADS]

    def __init__(self, config: BSSNetConfig):
        super().__init__(config)
        cfg = {"architecture": config.architecture, **config.weights(), **config.classes()}
        bssnet = as_bssnet(create_model(
            config.architecture, num_classes=config.num_labels, pretrained_cfg=cfg, **config.model_args))
        # two modules with the same children: weights then have the names that they have in all our files
        self._modules.update(bssnet._modules)
        bssnet._modules = self._modules
        self.__dict__["bssnet"] = bssnet
        self.post_init()

    def train(self, mode: bool = True) -> "BSSNetForSemanticSegmentation":
        self.bssnet.training = mode  # for it is no child itself
        return super().train(mode)

    def _replicate_for_data_parallel(self) -> "BSSNetForSemanticSegmentation":
        """As `Trainer` does for several GPUs in one process: the copy holds a copy of ``bssnet``."""
        replica: Any = super()._replicate_for_data_parallel()
        bssnet: Any = self.bssnet._replicate_for_data_parallel()
        bssnet._modules = replica._modules  # in which torch puts the copies of the children
        replica.__dict__["bssnet"] = bssnet
        return replica

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init_weights(module)
        else:
            super()._init_weights(module)

    def forward(
            self,
            pixel_values: torch.Tensor,
            labels: torch.Tensor | None = None,
            return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple[torch.Tensor, ...]:
        output, loss = self.bssnet(pixel_values), None
        logits = output.seg if isinstance(output, BSSNetOutput) else output
        if labels is not None and isinstance(output, BSSNetOutput):
            loss = BSSNetLoss()(output, pixel_values, labels).total
        elif labels is not None:
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        result = SemanticSegmenterOutput(loss=loss, logits=logits)
        return result.to_tuple() if return_dict is False else result


class BSSNetImageProcessor(BaseImageProcessor):
    """Makes of images what the network sees, and of logits label maps, as `bssnet_zoo.Predictor` does.

    Args:
        size: What the network sees: ``dict(shortest_edge=360)``, ``dict(height=360, width=480)``, or None for the
            images' own.
        image_mean: Of the normalisation.
        image_std: Of the normalisation.
        **kwargs: Facts of ``preprocessor_config.json`` that are kept as they are.
    """

    model_input_names = ["pixel_values"]
    do_reduce_labels = False

    def __init__(
            self,
            size: dict[str, int] | None = None,
            image_mean: Sequence[float] = (0.485, 0.456, 0.406),
            image_std: Sequence[float] = (0.229, 0.224, 0.225),
            **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)

    def preprocess(
            self,
            images: ImageLike | Sequence[ImageLike],
            segmentation_maps: ImageLike | Sequence[ImageLike] | None = None,
            return_tensors: str | None = None,
            size: dict[str, int] | None = None,
    ) -> BatchFeature:
        """Reads, resizes and normalises images; resizes label maps with them.

        Args:
            images: One or a list of what a `Predictor` takes.
            segmentation_maps: Their label maps: class ids, 255 for none; images of mode L or P, or arrays (H, W).
            return_tensors: "pt", "np", ...
            size: In the place of the processor's own.

        Returns:
            ``pixel_values`` (N, 3, h, w), and ``labels`` (N, h, w), int64.

        Raises:
            ValueError: Not an image; a size that is none; images that come out at several sizes; a step that is
                switched off, as other processors allow.
        """
        for step, instead in (("do_resize", "size=None"), ("do_rescale", "images in 0..1"),
                              ("do_normalize", "image_mean=[0, 0, 0] and image_std=[1, 1, 1]")):
            if getattr(self, step, True) is False:
                raise ValueError(f"{step}=False is not possible here: give {instead}")
        sides = _sides(self.size if size is None else size)
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (self.image_mean, self.image_std))
        pixels = []
        for image in _listed(images):
            rgb = read_image(image)
            pixels.append(normalise(TF.resize(rgb, sides, antialias=True) if sides else rgb, 1 / std, -mean / std))
        data = {"pixel_values": _stacked(pixels)}
        if segmentation_maps is not None:
            if self.do_reduce_labels:
                raise ValueError("do_reduce_labels is not possible here: give label maps in which 255 is no class")
            data["labels"] = _stacked([_labels(labels, sides) for labels in _listed(segmentation_maps, 3)])
        return BatchFeature(data, tensor_type=return_tensors)

    def __call__(self, images: ImageLike | Sequence[ImageLike], *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def post_process_semantic_segmentation(
            self,
            outputs: SemanticSegmenterOutput,
            target_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[torch.Tensor]:
        """Label maps (H, W), int64, at the sizes of the images, or of the logits."""
        logits = outputs.logits
        seen = logits.shape[-2:]
        sizes = [seen] * len(logits) if target_sizes is None else target_sizes
        return [
            torch.cat([strip[0].max(0).indices for strip in resize_logits(logits[i:i + 1], seen, seen, tuple(size))])
            for i, size in enumerate(sizes)]


def _listed(images: Any, ndim_of_batch: int = 4) -> list[Any]:
    is_batch = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == ndim_of_batch
    return list(images) if is_batch else [images]


def _sides(size: Any) -> list[int] | None:
    if size is None:
        return None
    with suppress(TypeError, ValueError):  # a number, say
        sides = {key: side for key, side in dict(size).items() if side is not None}
        for keys in (("shortest_edge",), ("height", "width")):
            if set(keys) == set(sides):
                return [int(sides[key]) for key in keys]
    raise ValueError(f"size is dict(shortest_edge=...) or dict(height=..., width=...), got {size}")


def _labels(labels: Any, sides: list[int] | None) -> torch.Tensor:
    ids = labels if isinstance(labels, torch.Tensor) else TF.pil_to_tensor(labels)[0] if hasattr(
        labels, "getbands") else torch.as_tensor(labels)
    if sides:
        ids = TF.resize(ids[None], sides, interpolation=InterpolationMode.NEAREST_EXACT)[0]
    return ids.long()


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    sizes = {"x".join(map(str, tensor.shape[-2:])) for tensor in tensors}
    if len(sizes) > 1:
        raise ValueError(f"images of one batch have one size, got {', '.join(sorted(sizes))}: give "
                         "size=dict(height=..., width=...), or one image at a time")
    return torch.stack(tensors)


def bundled(name: str = "bssnet_t.camvid") -> str:
    """A folder, in the Hub's cache, of the zoo's own weights as transformers takes them; the weights are linked to.

    Args:
        name: A model, or model.tag.

    Raises:
        ValueError: No such weights.
        RuntimeError: What `create_model` raises of damaged files.

    Example::

        model = AutoModelForSemanticSegmentation.from_pretrained(bundled("bssnet_t"))
    """
    full = name if "." in name else f"{name}.camvid"
    if full not in WEIGHTS:
        raise ValueError(f"there are no weights '{name}' in the zoo: it has {', '.join(WEIGHTS)}")
    folder = Path(constants.HF_HOME) / "bssnet_zoo" / full
    save_configs(full, CAMVID, None, "other", folder)
    weights, link = pinned_file(full).absolute(), folder / f".{secrets.token_hex(4)}"
    try:
        link.symlink_to(weights)
    except OSError:  # Windows doesn't let everybody
        shutil.copyfile(weights, link)
    link.replace(folder / HUB_FILENAME)
    return os.fspath(folder)


AutoConfig.register("bssnet", BSSNetConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(BSSNetConfig, BSSNetForSemanticSegmentation, exist_ok=True)
if "image_processor_classes" in inspect.signature(AutoImageProcessor.register).parameters:  # from transformers 5 on
    backends = dict.fromkeys(("pil", "torchvision"), BSSNetImageProcessor)
    AutoImageProcessor.register(BSSNetConfig, image_processor_classes=backends, exist_ok=True)
else:
    AutoImageProcessor.register(BSSNetConfig, slow_image_processor_class=BSSNetImageProcessor, exist_ok=True)
# the pipeline logs an error of models that are registered, but not in this table
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["bssnet"] = BSSNetForSemanticSegmentation.__name__
