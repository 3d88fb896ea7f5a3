"""`create_model` and `list_models`: timm's, with errors that say what to do and checkpoints of any naming."""
import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs, parse_model_name, split_model_name_tag
from timm.models._hub import hf_split
from torch import nn

from .bssnet import as_bssnet
from .checkpoints import (
    Checkpoint,
    checkpoint_architecture,
    checkpoint_num_classes,
    load_checkpoint,
    open_checkpoint,
)
from .weights import CONFIG, checkpoint_config, hub_file

__all__ = ["create_model", "list_models", "open_model"]


def list_models(pretrained: bool = False) -> list[str]:
    """Names of the models of this package; with ``pretrained``, one ``model.tag`` for each set of weights.

    Example:
        >>> list_models()
        ['bssnet_b', 'bssnet_t']
    """
    names = timm.list_models(module="bssnet")
    if not pretrained:
        return names
    return [name for model in names for name in get_arch_pretrained_cfgs(model)]


def check_model_name(model_name: str, pretrained_cfg: Any = None) -> None:
    """Raises ValueError for a model or tag that does not exist, with the close names or the tags there are."""
    source, name = parse_model_name(model_name)
    if source:
        return
    name, tag = split_model_name_tag(name)
    if name not in list_models():
        close = get_close_matches(name, list_models(), n=3, cutoff=0.5) or list_models()
        raise ValueError(f"unknown model '{name}'. Did you mean {' or '.join(close)}? "
                         "bssnet_zoo.list_models() has them all; other models are at timm.create_model")
    tag = pretrained_cfg if isinstance(pretrained_cfg, str) else tag
    tags = [split_model_name_tag(full)[1] for full in get_arch_pretrained_cfgs(name)]
    if tag and tag not in tags:
        raise ValueError(f"unknown tag '{tag}' of {name}: its weights are {', '.join(tags)}")


def create_model(
        model_name: str | None,
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        checkpoint_path: str | os.PathLike | Checkpoint | None = None,
        **kwargs: Any,
) -> nn.Module:
    """Creates a model: what ``timm.create_model`` gives, with clearer errors and more checkpoints.

    Args:
        model_name: ``bssnet_t`` or ``bssnet_b``, with a tag (``bssnet_t.camvid``) or without, ``hf-hub:org/name`` or
            ``local-dir:path``; None for the one that the checkpoint fits.
        pretrained: Load the weights of the tag (default ``camvid``, which is bundled).
        pretrained_cfg: A tag or a whole pretrained config, as in timm.
        checkpoint_path: A checkpoint to load instead: ours, a published BSSNet, or a PIDNet trunk. It tells the class
            count, unless you do; a file of ``bssnet-zoo train`` also the classes, the normalisation and the size.
        **kwargs: As in timm: ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``, ``drop_rate``,
            ``pretrained_cfg_overlay``, ``cache_dir``, ``device``, ``dtype``; and ``aux_heads``.

    Raises:
        ValueError: Unknown model or tag, a checkpoint that does not fit, a wrong argument of the model.
        FileNotFoundError: No such checkpoint.
        RuntimeError: Weights whose sha256 is not the published one, or that can't be fetched from the Hub.

    Example:
        >>> model = create_model("bssnet_t", pretrained=True, num_classes=5)
        >>> model.num_classes
        5
    """
    checkpoint = None if checkpoint_path is None else open_checkpoint(checkpoint_path)
    if model_name is None:
        if checkpoint is None:
            raise ValueError(f"name a model ({', '.join(list_models())}) or give a checkpoint")
        model_name = checkpoint_architecture(checkpoint.tensors)
    check_model_name(model_name, pretrained_cfg)
    source, model_id = parse_model_name(model_name)
    if source == "hf-hub":  # timm fetches it too, but says less clearly why it can't
        repo_id, revision = hf_split(model_id)
        check_timm_config(hub_file(repo_id, CONFIG, revision, kwargs.get("cache_dir")), model_name)
    elif source == "local-dir" and Path(model_id, CONFIG).is_file():
        check_timm_config(Path(model_id, CONFIG), model_name)
    if checkpoint is None:
        return timm.create_model(model_name, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    if kwargs.get("features_only"):  # there is no whole model to load into afterwards
        overlay = {**(kwargs.pop("pretrained_cfg_overlay", None) or {}), "file": str(checkpoint.path)}
        return timm.create_model(model_name, True, pretrained_cfg, pretrained_cfg_overlay=overlay, **kwargs)
    if kwargs.get("num_classes") is None:
        kwargs["num_classes"] = checkpoint_num_classes(checkpoint.tensors)
    model = as_bssnet(timm.create_model(model_name, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs))
    load_checkpoint(model, checkpoint)
    model.pretrained_cfg.update(checkpoint_config(checkpoint, model.num_classes))
    return model


def check_timm_config(path: str | os.PathLike[str], model_name: str) -> None:
    """Raises ValueError for a ``config.json`` that timm can't read; its own errors don't name it."""
    try:
        is_timm = "architecture" in json.loads(Path(path).read_text(encoding="utf-8"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.json of {model_name} is no JSON object: {error}") from None
    if not is_timm:
        raise ValueError(f"config.json of {model_name} names no 'architecture': it is no model of timm or this package")


def open_model(
        model: str | os.PathLike[str] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        num_classes: int | None = None,
) -> nn.Module:
    """A model that can predict: with the weights of a checkpoint, else with its pretrained ones.

    Args:
        model: A name, as for `create_model`, or a checkpoint file; None for what the checkpoint fits, or bssnet_t.
        checkpoint_path: A checkpoint of that model.
        num_classes: Number of classes that the checkpoint must have.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: Weights without a classifier, and what `create_model` refuses.

    Example:
        >>> open_model("bssnet_t.camvid").num_classes
        11
    """
    if isinstance(model, os.PathLike) or model and os.path.isfile(model):
        model, checkpoint_path = None, model
    if checkpoint_path is None:
        model = model or "bssnet_t"
        name, tag = split_model_name_tag(model)
        if tag and ":" not in model and name not in list_models():
            raise FileNotFoundError(
                f"checkpoint not found: {model}, and no model has that name: there are {', '.join(list_models())}")
        if tag == "pidnet_in1k":
            raise ValueError(f"{model} has no trained classifier: it is a trunk to start training from")
        return create_model(model, pretrained=True)
    checkpoint = open_checkpoint(checkpoint_path)
    if checkpoint_num_classes(checkpoint.tensors) is None:
        raise ValueError(f"{checkpoint_path} has no trained classifier: it is a trunk to start training from")
    return create_model(model, checkpoint_path=checkpoint, num_classes=num_classes)
