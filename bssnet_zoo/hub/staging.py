"""What a Hub repository holds: weights, timm's config.json, preprocessing, model card and pictures, in a folder."""
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub.utils import validate_repo_id
from timm.models import get_pretrained_cfg, is_model_pretrained, split_model_name_tag
from timm.models._hub import save_config_for_hf

from ..data.classes import CAMVID, ClassInfo
from ..data.datasets import dataset_classes, split_spec
from ..data.images import ImageLike
from ..files import atomic_path, parse_yaml, sha256
from ..inference.predictor import predict
from ..models import convert_checkpoint, create_model, list_models
from ..models.bssnet import as_bssnet
from ..models.checkpoints import Checkpoint, checkpoint_num_classes, open_checkpoint
from ..models.metadata import metadata_classes, metadata_config
from ..models.weights import ASSETS, CONFIG, HUB_FILENAME, STREET, WEIGHTS, hub_id
from ..training.recipes import Recipe, parse_recipe
from .model_card import Provenance, model_card

__all__ = ["save_configs", "stage"]

CAMVID_LICENSE = ASSETS / "LICENSE-camvid.md"
TRANSFORMERS = dict(model_type="bssnet", architectures=["BSSNetForSemanticSegmentation"])  # timm reads over these
PUBLIC_METADATA = (
    "architecture", "class_names", "palette", "input_size", "mean", "std", "recipe", "iteration", "miou", "split",
    "size", "precision")
DATASET_NAMES = {"camvid": "CamVid", "cityscapes": "Cityscapes", "nightcity": "NightCity"}


def _check_name(name: str, organization: str, checkpoint: Path | None) -> str:
    """The repository of these weights; ValueError if there can't be one."""
    architecture, tag = split_model_name_tag(name)
    if architecture not in list_models() or not tag:
        raise ValueError(f"the name to publish is MODEL.TAG, got '{name}': MODEL is {' or '.join(list_models())}, TAG "
                         "says which weights they are, as in bssnet_t.camvid")
    if checkpoint is None and name not in WEIGHTS:
        raise ValueError(f"'{name}' is none of the zoo's own weights ({', '.join(WEIGHTS)}): give your checkpoint")
    repo_id = hub_id(name, organization)
    validate_repo_id(repo_id)
    return repo_id


def _zoo_provenance(name: str) -> Provenance:
    weights = WEIGHTS[name]
    return Provenance(
        dataset="CamVid", dataset_id="camvid", data="camvid:DIR", training=weights.training, license="other",
        license_name="camvid-research", metrics=weights.metrics, split="test", size=weights.size,
        trained_on=weights.data)


def _own_weights(checkpoint: Checkpoint, data: str | None, license: str | None) -> tuple[ClassInfo, Provenance]:
    metadata, found = checkpoint.metadata, checkpoint_num_classes(checkpoint.tensors)
    named = metadata_classes(metadata, checkpoint.path)
    recipe = parse_recipe(metadata["recipe"], checkpoint.path) if "recipe" in metadata else None
    if named and recipe and data is None:
        data = recipe.data
    if data is None:
        raise ValueError("say what the checkpoint was trained on, for the names and colours of its classes: data is "
                         "folder:DIR (where dataset.yaml has them), camvid:DIR, cityscapes:DIR or nightcity:DIR")
    if license is None:
        raise ValueError("say under which licence you publish the checkpoint: license is apache-2.0 or another one of "
                         "https://huggingface.co/docs/hub/repositories-licenses")
    classes = named or dataset_classes(data)
    if found != len(classes.names):
        raise ValueError(f"{checkpoint.path} has {found or 'no'} classes, {data} has {len(classes.names)}")
    return classes, _own_provenance(metadata, recipe, data, license)


def _own_provenance(metadata: Mapping[str, str], recipe: Recipe | None, data: str, license: str) -> Provenance:
    kind, root = split_spec(data)
    dataset = DATASET_NAMES.get(kind or "") or " ".join(root.resolve().name.split())
    start = f"{recipe.model}.{recipe.init}" if recipe else ""
    started = ""
    if is_model_pretrained(start):
        terms = ", which is for research that is not commercial" if start in WEIGHTS else ""
        started = f", starting from {start}{terms}"
    elif recipe and recipe.init:
        started = ", starting from other weights"  # a path of the publisher's machine is nobody's business
    seen = recipe is not None and "split" in metadata and recipe.trains_on(recipe.data, metadata["split"])
    try:
        miou = 100 * float(metadata.get("miou", "nan"))
    except ValueError:
        miou = math.nan  # of a tool that isn't ours
    metrics = {"miou": round(miou, 2)} if 0 <= miou <= 100 and not seen else {}
    return Provenance(
        dataset=dataset, dataset_id="-".join(dataset.lower().split()), data=f"{kind}:DIR",
        training=f"on {dataset}{started}, by the publisher of this repository", license=license, metrics=metrics,
        split=metadata.get("split"), size=tuple(map(int, re.findall(r"\d+", metadata.get("size", "")))) or None,
        precision=metadata.get("precision", "float32"))


def _public(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of ours, without the folders of the machine that trained."""
    public = {key: metadata[key] for key in PUBLIC_METADATA if key in metadata}
    if "recipe" in public:
        recipe = {key: [*map(_file_name, value)] if isinstance(value, list) else _file_name(value)
                  for key, value in parse_yaml(public["recipe"]).items()}
        public["recipe"] = yaml.safe_dump(recipe, sort_keys=False)
    return public


def _file_name(value: Any) -> Any:
    """``folder:mine`` of ``folder:/home/me/mine``; names of the Hub and of encoders have slashes too, and stay."""
    if not isinstance(value, str) or value.startswith(("hf-hub:", "smp:")):
        return value
    return re.sub(r"^([a-z]+:)?.*[/\\](?=.)", r"\1", value.rstrip("/\\"))


def _copy_zoo_weights(name: str, checkpoint: Path | None, target: Path) -> None:
    source, expected = checkpoint or WEIGHTS[name].path, WEIGHTS[name].sha256
    if not source.is_file():
        raise FileNotFoundError(f"weights not found: {source}")
    found = sha256(source)
    if found != expected:
        raise ValueError(f"{name} is pinned to sha256 {expected}, {source} has {found}: publish it under another tag")
    _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def save_configs(
        name: str,
        classes: ClassInfo,
        size: Sequence[int] | None,
        license: str,
        folder: Path,
) -> None:
    """Writes the ``config.json`` of timm and transformers, and ``preprocessor_config.json``.

    Args:
        name: ``model.tag``.
        classes: Names and colours.
        size: (height, width) that the network should see; None for the model's.
        license: An identifier of the Hub.
        folder: Where to.
    """
    architecture, tag = split_model_name_tag(name)
    overlay: dict[str, Any] = dict(
        tag=tag, num_classes=len(classes.names), license=license,
        label_names=None, label_descriptions=None)  # once in the file, at the top, where others look for them
    if size is not None:
        overlay["input_size"] = (3, *size)
    if name not in WEIGHTS:
        overlay["description"] = None
    model = as_bssnet(create_model(
        architecture, num_classes=len(classes.names), device="meta", pretrained_cfg_overlay=overlay,
        pretrained_cfg=get_pretrained_cfg(name if name in WEIGHTS else architecture)))
    with atomic_path(folder / CONFIG) as temporary:
        save_config_for_hf(model, str(temporary), model_config={**classes.config, **TRANSFORMERS})
    cfg = model.pretrained_cfg
    preprocessing = dict(  # in the words of transformers' image processors
        do_convert_rgb=True, do_resize=True, size={"shortest_edge": min(cfg["input_size"][1:])}, resample=2,
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=cfg["mean"], image_std=cfg["std"],
        image_processor_type="BSSNetImageProcessor")
    with atomic_path(folder / "preprocessor_config.json") as temporary:
        temporary.write_text(json.dumps(preprocessing, indent=2) + "\n")


def stage(
        name: str,
        organization: str,
        folder: str | os.PathLike,
        checkpoint: str | os.PathLike | None = None,
        data: str | None = None,
        license: str | None = None,
        size: Sequence[int] | None = None,
        image: ImageLike | None = None,
) -> list[str]:
    """Writes a Hub repository to a folder: weights, timm's config, preprocessing, model card and pictures.

    The pictures and the figures of the card are made with the model as it loads from that folder.

    Args:
        name: ``model.tag``, the name to publish under.
        organization: Organisation or user of the Hub.
        folder: The folder to write to, new or empty.
        checkpoint: Your weights, which need ``data`` and ``license`` too; None for the zoo's own.
        data: What the checkpoint was trained on, as for ``bssnet-zoo train``: gives names and colours of the classes.
        license: Licence of the checkpoint, an identifier of the Hub.
        size: (height, width) that the network should see; if None, of the checkpoint's validation or the model's.
        image: The sample image; a street if None.

    Returns:
        Names of the files.

    Raises:
        ValueError: A name that can't be published, a checkpoint without data or licence or with other classes, a
            folder with files in it, what `convert_checkpoint` refuses.
        FileNotFoundError: No such checkpoint or image.

    Example:
        >>> stage("bssnet_t.camvid", "YOU", "staged")[:3]
        ['LICENSE.md', 'README.md', 'config.json']
    """
    folder, path = Path(folder), None if checkpoint is None else Path(checkpoint)
    repo_id = _check_name(name, organization, path)
    if folder.exists() and not folder.is_dir() or folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there and not empty: choose another folder, or remove it")
    if name in WEIGHTS and (data or license or size):
        raise ValueError(f"{name} is the zoo's own: data, license and size are for another tag with a checkpoint")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staged-", dir=folder.parent) as staged:
        work = Path(staged)
        if name in WEIGHTS:
            classes, provenance = CAMVID, _zoo_provenance(name)
            _copy_zoo_weights(name, path, work / HUB_FILENAME)
            _copy(CAMVID_LICENSE, work / "LICENSE.md")
            _copy(ASSETS / f"{name}.failures.jpg", work / "failures.jpg")
            size = provenance.size
        else:
            assert path is not None  # `_check_name` refuses that
            own = open_checkpoint(path)
            classes, provenance = _own_weights(own, data, license)
            convert_checkpoint(own._replace(metadata=_public(own.metadata)), work / HUB_FILENAME)
            measured = provenance.size if provenance.size and len(provenance.size) == 2 else None
            # validated at the images' own size: what it was trained for
            size = size or measured or metadata_config(own.metadata, path).get("input_size", ())[1:] or None
            if not provenance.metrics:
                provenance = replace(provenance, size=None if size is None else tuple(size))
        save_configs(name, classes, size, provenance.license, work)
        model = as_bssnet(timm.create_model(f"local-dir:{work}", pretrained=True)).eval()
        if image is None:
            image = STREET
            provenance = replace(provenance, sample_source="It is a frame of CamVid's test split, for research only.")
        prediction = predict(model, image, size=min(model.pretrained_cfg["input_size"][1:]))
        for file, picture in (("sample.png", prediction.image), ("overlay.png", prediction.overlay())):
            with atomic_path(work / file) as temporary:
                picture.save(temporary)
        with atomic_path(work / "README.md") as temporary:
            model_card(model, repo_id, work / HUB_FILENAME, provenance).save(temporary)
        folder.mkdir(exist_ok=True)
        files = sorted(os.listdir(work))
        for file in files:
            shutil.move(work / file, folder / file)
    return files
