"""BSSNet in Hugging Face transformers: importing this registers it with the Auto classes (extra ``[transformers]``).

The network and its weights are those of this package. `BSSNetForSemanticSegmentation` holds one of our models, and its
folders have timm's ``config.json``, so that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads them too.
"""
import inspect
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from PIL import Image
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
from .losses.bssnet_loss import split_labels
from .models import WEIGHTS, BSSNetOutput, create_model, list_models
from .models.bssnet import as_bssnet, init_weights
from .models.checkpoints import EARLIER_NAMES, TRAINING_HEADS
from .models.weights import HUB_FILENAME, pinned_file

try:
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForSemanticSegmentation,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
    from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithNoAttention, SemanticSegmenterOutput
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    from transformers.utils import ModelOutput
    try:
        from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    except ImportError:  # before transformers 5
        from transformers.utils.backbone_utils import BackboneConfigMixin, BackboneMixin
except ImportError as error:
    raise ImportError(f"bssnet_zoo.transformers needs transformers ({error}): the extra [transformers], as in "
                      "pip install '.[transformers]'") from None

__all__ = [
    "BSSNetBackbone", "BSSNetConfig", "BSSNetForSemanticSegmentation", "BSSNetImageProcessor", "BSSNetModel", "bundled"]

STAGES = 5
FIXED_STEPS = dict(  # of transformers' image processors, what there is no choice of
    do_convert_rgb=True, do_reduce_labels=False, do_center_crop=False, crop_size=None, do_pad=False, pad_size=None,
    size_divisor=None, resample=Image.Resampling.BILINEAR, rescale_factor=1 / 255, data_format="channels_first")


class BSSNetConfig(BackboneConfigMixin, PretrainedConfig):
    """What timm's ``config.json`` says, and what transformers adds to it.

    Args:
        architecture: ``bssnet_t`` or ``bssnet_b``.
        pretrained_cfg: timm's pretrained config, without the classes; None for the architecture's own.
        model_args: Further arguments of the model, as ``dict(aux_heads=True)``: training then takes the paper's losses.
        num_classes: What timm calls ``num_labels``.
        label_names: Names of the classes, where ``id2label`` doesn't say otherwise.
        label_descriptions: Their colours, "#rrggbb", by name.
        out_features: What `BSSNetBackbone` gives: ``stem``, ``stage1`` to ``stage5``; the last one, if None.
        out_indices: The same as numbers from 0.
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
            out_features: list[str] | None = None,
            out_indices: Sequence[int] | None = None,
            **kwargs: Any,
    ):
        own = get_pretrained_cfg(architecture)
        if own is None:
            raise ValueError(f"unknown architecture '{architecture}': there are {', '.join(list_models())}")
        if pretrained_cfg is None:
            pretrained_cfg = own.to_dict(remove_source=True, remove_null=True)
        self.architecture = architecture
        self.pretrained_cfg = json.loads(json.dumps({  # lists, as they come back from a file
            key: value for key, value in pretrained_cfg.items()
            if key not in ("num_classes", "label_names", "label_descriptions")}))
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
        self.num_hidden_layers = STAGES
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, STAGES + 1))]
        kwargs.pop("stage_names", None)
        kwargs.pop("num_hidden_layers", None)
        self.out_features = out_features
        if out_indices is not None:
            self.out_indices = out_indices
            if out_features not in (None, self.out_features):
                raise ValueError(f"out_features {out_features} aren't the stages of out_indices {list(out_indices)}")
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


class BSSNetPreTrainedModel(PreTrainedModel):
    """A `bssnet_zoo.BSSNet`, which is ``bssnet``, and what all models of transformers can do."""

    config_class = BSSNetConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    has_attentions = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["BasicBlock", "Bottleneck", "Decoder"]

    def __init__(self, config: BSSNetConfig):
        super().__init__(config)
        cfg = {"architecture": config.architecture, **config.weights(), **config.classes()}
        bssnet = as_bssnet(create_model(
            config.architecture, num_classes=config.num_labels, pretrained_cfg=cfg, **config.model_args))
        # two modules with the same children: weights then have the names that they have in all our files
        self._modules.update(bssnet._modules)
        bssnet._modules = self._modules
        self.__dict__["bssnet"] = bssnet

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "BSSNetPreTrainedModel":
        return super().from_pretrained(*args, **{"key_mapping": EARLIER_NAMES, **kwargs})

    def train(self, mode: bool = True) -> "BSSNetPreTrainedModel":
        self.bssnet.training = mode  # for it is no child itself
        return super().train(mode)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.gradient_checkpointing = enable  # what is_gradient_checkpointing looks at
        self.bssnet.set_grad_checkpointing(enable)

    def _replicate_for_data_parallel(self) -> "BSSNetPreTrainedModel":
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

    def _hidden_states(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the stem gives, and each stage."""
        return tuple(self.bssnet._forward_trunk(pixel_values, stem=True))

    def _wants_hidden_states(self, output_hidden_states: bool | None, output_attentions: bool | None) -> bool:
        if output_attentions:
            raise ValueError("BSSNet has no attentions to output")
        return self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple[Any, ...]:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class BSSNetModel(BSSNetPreTrainedModel):
    """BSSNet without its heads: ``last_hidden_state`` is the fused map of the three branches."""

    _keys_to_ignore_on_load_unexpected = [rf"^{head}" for head in ("head.", *TRAINING_HEADS)]

    def __init__(self, config: BSSNetConfig):
        super().__init__(config)
        for name in [name for name in self._modules if name not in ("stem", "stages", "decoder")]:
            setattr(self, name, nn.Identity())
        self.post_init()

    def forward(
            self,
            pixel_values: torch.Tensor,
            output_hidden_states: bool | None = None,
            output_attentions: bool | None = None,
            return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        wanted = self._wants_hidden_states(output_hidden_states, output_attentions)
        hidden_states = self._hidden_states(pixel_values)
        fused, _, _ = self.bssnet._forward_decoder(list(hidden_states[1:]))
        return self._returned(BaseModelOutputWithNoAttention(
            last_hidden_state=fused, hidden_states=hidden_states if wanted else None), return_dict)


class BSSNetBackbone(BackboneMixin, BSSNetPreTrainedModel):
    """The trunk, for detectors and depth networks: ``feature_maps`` of the stages in ``config.out_features``."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [
        rf"^{module}" for module in (r"stages\.", r"decoder\.", "head.", *TRAINING_HEADS)]

    def __init__(self, config: BSSNetConfig):
        super().__init__(config)
        if hasattr(self, "_init_backbone"):  # before transformers 5
            self._init_backbone(config)
        channels = [info["num_chs"] for info in self.bssnet.feature_info]
        self.num_features = [channels[0], *channels]
        last = max(map(config.stage_names.index, self.out_features))
        self.bssnet.prune_intermediate_layers([max(0, last - 1)])
        self.post_init()

    def forward(
            self,
            pixel_values: torch.Tensor,
            output_hidden_states: bool | None = None,
            output_attentions: bool | None = None,
            return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        wanted = self._wants_hidden_states(output_hidden_states, output_attentions)
        hidden_states = self._hidden_states(pixel_values)
        by_name = dict(zip(self.stage_names, hidden_states, strict=False))  # up to the last wanted one
        return self._returned(BackboneOutput(
            feature_maps=tuple(by_name[name] for name in self.out_features),
            hidden_states=hidden_states if wanted else None), return_dict)


class BSSNetForSemanticSegmentation(BSSNetPreTrainedModel):
    """BSSNet, whole: pixel values (N, 3, H, W) in, logits (N, num_labels, H, W) out.

    With ``labels`` (N, H, W) there is a loss: cross-entropy where they aren't 255; in training with
    ``model_args=dict(aux_heads=True)`` the paper's six, and logits then have the stride of the network.
    ``hidden_states`` are those of the stem and the five stages.

    Raises:
        ValueError: One class, in the constructor; ``output_attentions``, in ``forward``.
    """

    _keys_to_ignore_on_load_unexpected = [rf"^{head}" for head in TRAINING_HEADS]

    def __init__(self, config: BSSNetConfig):
        if config.num_labels < 2:
            raise ValueError(f"num_labels is {config.num_labels}: the loss and the label maps compare classes, so give "
                             "two, the background and yours")
        super().__init__(config)
        self.post_init()

    def forward(
            self,
            pixel_values: torch.Tensor,
            labels: torch.Tensor | None = None,
            output_hidden_states: bool | None = None,
            output_attentions: bool | None = None,
            return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        hidden_states = None
        if self._wants_hidden_states(output_hidden_states, output_attentions):
            hidden_states = self._hidden_states(pixel_values)
            output = self._from_levels(list(hidden_states[1:]), pixel_values.shape[-2:])
        else:
            output = self.bssnet(pixel_values)
        logits, loss = output.seg if isinstance(output, BSSNetOutput) else output, None
        if labels is not None and isinstance(output, BSSNetOutput):
            loss = BSSNetLoss()(output, pixel_values, labels).total
        elif labels is not None:
            target, ignored = split_labels(labels, logits, IGNORE_INDEX)
            losses = F.cross_entropy(logits, target, reduction="none").masked_fill(ignored, 0)
            loss = losses.sum() / (~ignored).sum().clamp(min=1)  # 0 of a batch without labels, not nan
        output = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return self._returned(output, return_dict)

    def _from_levels(self, levels: list[torch.Tensor], size: torch.Size) -> torch.Tensor | BSSNetOutput:
        if self.bssnet.aux_heads and self.training:
            return self.bssnet._forward_train(levels)
        logits = self.bssnet.forward_head(self.bssnet._forward_decoder(levels)[0])
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


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
            do_resize: bool | None = None,
            do_rescale: bool | None = None,
            do_normalize: bool | None = None,
            image_mean: Sequence[float] | None = None,
            image_std: Sequence[float] | None = None,
            input_data_format: str | None = None,
            device: torch.device | str | None = None,
            **fixed: Any,
    ) -> BatchFeature:
        """Reads, resizes and normalises images; resizes label maps with them.

        Options that aren't given are the processor's own.

        Args:
            images: One or a list of what a `Predictor` takes.
            segmentation_maps: Their label maps, of the same sizes: class ids, 255 for none; images of mode L or P, or
                arrays of integers (H, W).
            return_tensors: "pt", "np", ...
            size: As for the processor.
            do_resize: False for the images' own size.
            do_rescale: False if they are floating point numbers in 0..1 already.
            do_normalize: False for values in 0..1.
            image_mean: Of the normalisation.
            image_std: Of the normalisation.
            input_data_format: "channels_first" or "channels_last", of arrays and tensors; by default the way that their
                library has: tensors (3, H, W), arrays (H, W, 3).
            device: Where to compute ``pixel_values``.
            **fixed: Other options of transformers' image processors, with the value that they have here, `FIXED_STEPS`.

        Returns:
            ``pixel_values`` (N, 3, h, w), and ``labels`` (N, h, w), int64.

        Raises:
            ValueError: Not an image; a size that is none; images that come out at several sizes; label maps that aren't
                those of the images; a step that isn't possible.
        """
        def chosen(name: str, given: Any, default: Any) -> Any:
            return getattr(self, name, default) if given is None else given

        for name in {**FIXED_STEPS, **fixed}:
            value, only = chosen(name, fixed.get(name), None), FIXED_STEPS.get(name)
            if value is not None and value != only:
                raise ValueError(f"{name}={value} is not possible here" + (
                    ": give label maps in which 255 is no class" if name == "do_reduce_labels" else
                    f": it is {only}" if name in FIXED_STEPS else ""))
        sides = _sides(chosen("size", size, None)) if chosen("do_resize", do_resize, True) else None
        mean, std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (
            chosen("image_mean", image_mean, None), chosen("image_std", image_std, None)))
        read = [read_image(_in_own_format(image, input_data_format)) for image in _listed(images)]
        if not chosen("do_rescale", do_rescale, True) and not all(image.is_floating_point() for image in read):
            raise ValueError("do_rescale=False is not possible for images of 8 bits: give floating point ones in 0..1")
        pixels = []
        for image in read:
            rgb = image.to(device)
            rgb = TF.resize(rgb, sides, antialias=True) if sides else rgb
            pixels.append(normalise(rgb, 1 / std, -mean / std) if chosen("do_normalize", do_normalize, True)
                          else TF.to_dtype(rgb, torch.float32, scale=True))
        data = {"pixel_values": _stacked(pixels)}
        if segmentation_maps is not None:
            maps = _listed(segmentation_maps, 3)
            if len(maps) != len(read):
                raise ValueError(f"{len(maps)} label maps for {len(read)} images: give one of shape (H, W) for each")
            maps = [_labels(labels) for labels in maps]
            found, expected = ([tuple(map_.shape[-2:]) for map_ in batch] for batch in (maps, read))
            if found != expected:
                raise ValueError(f"label maps have the sizes of their images, {expected}, got {found}")
            data["labels"] = _stacked([TF.resize(
                ids[None], sides, interpolation=InterpolationMode.NEAREST_EXACT)[0] if sides else ids for ids in maps])
        return BatchFeature(data, tensor_type=return_tensors)

    def __call__(self, images: ImageLike | Sequence[ImageLike], *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def post_process_semantic_segmentation(
            self,
            outputs: SemanticSegmenterOutput,
            target_sizes: Sequence[tuple[int, int]] | None = None,
            return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """Label maps (H, W), int64, at the sizes of the images, or of the logits.

        With ``return_segmentation_scores`` a list of ``segmentation``, which is that map, and ``segmentation_scores``,
        the logits (num_labels, H, W) at its size.

        Raises:
            ValueError: Not a size for each image.
        """
        logits = outputs.logits
        seen = logits.shape[-2:]
        sizes = [seen] * len(logits) if target_sizes is None else target_sizes
        if len(sizes) != len(logits):
            raise ValueError(f"target_sizes has {len(sizes)} sizes for {len(logits)} images: give one for each")
        results: list[Any] = []
        for i, size in enumerate(sizes):
            if size is None or len(size) != 2 or min(size) < 1:
                raise ValueError(f"a size in target_sizes is (height, width), got {size}")
            strips = resize_logits(logits[i:i + 1], seen, seen, tuple(map(int, size)))
            if return_segmentation_scores:
                scores = torch.cat([strip[0] for strip in strips], dim=1)
                results.append(BatchFeature({"segmentation": scores.max(0).indices, "segmentation_scores": scores}))
            else:
                results.append(torch.cat([strip[0].max(0).indices for strip in strips]))
        return results


def _listed(images: Any, ndim_of_batch: int = 4) -> list[Any]:
    is_batch = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == ndim_of_batch
    return list(images) if is_batch else [images]


def _in_own_format(image: Any, data_format: str | None) -> Any:
    if isinstance(image, torch.Tensor) and data_format == "channels_last":
        return image.movedim(-1, 0)
    if isinstance(image, np.ndarray) and data_format == "channels_first":
        return np.moveaxis(image, 0, -1)
    return image


def _sides(size: Any) -> list[int] | None:
    if size is None:
        return None
    with suppress(TypeError, ValueError):  # a number, say
        sides = {key: side for key, side in dict(size).items() if side is not None}
        for keys in (("shortest_edge",), ("height", "width")):
            if set(keys) == set(sides):
                return [int(sides[key]) for key in keys]
    raise ValueError(f"size is dict(shortest_edge=...) or dict(height=..., width=...), got {size}")


def _labels(labels: Any) -> torch.Tensor:
    """Class ids (H, W), int64.

    Raises:
        ValueError: They aren't.
    """
    if isinstance(labels, Image.Image):
        labels = TF.pil_to_tensor(labels)
        labels = labels[0] if len(labels) == 1 else labels
    ids = torch.as_tensor(labels)
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"a label map has one class id for each pixel, integers of shape (H, W), got {ids.dtype} of "
                         f"shape {tuple(ids.shape)}: turn colours into ids first, and don't scale ids by ToTensor")
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
AutoModel.register(BSSNetConfig, BSSNetModel, exist_ok=True)
AutoBackbone.register(BSSNetConfig, BSSNetBackbone, exist_ok=True)
AutoModelForSemanticSegmentation.register(BSSNetConfig, BSSNetForSemanticSegmentation, exist_ok=True)
if "image_processor_classes" in inspect.signature(AutoImageProcessor.register).parameters:  # from transformers 5 on
    backends = dict.fromkeys(("pil", "torchvision"), BSSNetImageProcessor)
    AutoImageProcessor.register(BSSNetConfig, image_processor_classes=backends, exist_ok=True)
else:
    AutoImageProcessor.register(BSSNetConfig, slow_image_processor_class=BSSNetImageProcessor, exist_ok=True)
# the pipeline logs an error of models that are registered, but not in this table
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["bssnet"] = BSSNetForSemanticSegmentation.__name__
