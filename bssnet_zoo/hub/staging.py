"""What a Hub repository holds: weights, timm's config.json, preprocessing, model card and pictures, in a folder."""
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.utils import validate_repo_id
from timm.models import get_pretrained_cfg, is_model_pretrained, split_model_name_tag
from timm.models._hub import save_config_for_hf

from ..data.classes import CAMVID, ClassInfo
from ..data.datasets import dataset_classes
from ..data.images import ImageLike
from ..files import atomic_path, sha256
from ..inference.predictor import predict
from ..models import BSSNet, convert_checkpoint, create_model, list_models, read_checkpoint
from ..models.bssnet import as_bssnet
from ..models.checkpoints import checkpoint_num_classes, is_plain_sum
from ..models.notes import noted_classes, noted_config, read_notes
from ..models.weights import ASSETS, HUB_FILENAME, WEIGHTS, hub_id
from ..training.recipes import Recipe, parse_recipe
from .model_card import Provenance, model_card

__all__ = ["save_configs", "stage"]

STREET = ASSETS / "street.png"
CAMVID_LICENSE = ASSETS / "LICENSE-camvid.md"
TRANSFORMERS = dict(model_type="bssnet", architectures=["BSSNetForSemanticSegmentation"])  # timm reads over these
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


def _own_weights(checkpoint: Path, data: str | None, license: str | None) -> tuple[ClassInfo, Provenance]:
    notes, found = read_notes(checkpoint), checkpoint_num_classes(read_checkpoint(checkpoint))
    noted = noted_classes(notes, checkpoint)
    recipe = parse_recipe(notes["recipe"], checkpoint) if "recipe" in notes else None
    if noted and recipe and data is None:
        data = recipe.data
    if data is None:
        raise ValueError("say what the checkpoint was trained on, for the names and colours of its classes: data is "
                         "folder:DIR (where dataset.yaml has them), camvid:DIR, cityscapes:DIR or nightcity:DIR")
    if license is None:
        raise ValueError("say under which licence you publish the checkpoint: license is apache-2.0 or another one of "
                         "https://huggingface.co/docs/hub/repositories-licenses")
    classes = noted or dataset_classes(data)
    if found != len(classes.names):
        raise ValueError(f"{checkpoint} has {found or 'no'} classes, {data} has {len(classes.names)}")
    return classes, _own_provenance(notes, recipe, data, license)


def _own_provenance(notes: Mapping[str, str], recipe: Recipe | None, data: str, license: str) -> Provenance:
    kind, _, root = data.partition(":")
    dataset = DATASET_NAMES.get(kind) or Path(root).expanduser().resolve().name
    size = [int(digits) for digits in re.findall(r"\d+", notes.get("size", ""))]
    start = f"{recipe.model}.{recipe.init}" if recipe else ""
    started = ""
    if is_model_pretrained(start):
        terms = ", which is for research that is not commercial" if start in WEIGHTS else ""
        started = f", starting from {start}{terms}"
    elif recipe and recipe.init:
        started = ", starting from other weights"  # a path of the publisher's machine is nobody's business
    seen = recipe is not None and "split" in notes and recipe.trains_on(recipe.data, notes["split"])
    return Provenance(
        dataset=dataset, dataset_id="-".join(dataset.lower().split()), data=f"{kind}:DIR",
        training=f"on {dataset}{started}, by the publisher of this repository", license=license,
        metrics={"miou": round(100 * float(notes["miou"]), 2)} if "miou" in notes and not seen else {},
        split=notes.get("split"), size=(size[0], size[1]) if size else None,
        precision=notes.get("precision", "float32"))


def _stage_zoo_weights(name: str, checkpoint: Path | None, target: Path) -> None:
    source, expected = checkpoint or WEIGHTS[name].path, WEIGHTS[name].sha256
    if not source.is_file():
        raise FileNotFoundError(f"weights not found: {source}")
    found = sha256(source)
    if found != expected:
        raise ValueError(f"{name} is pinned to sha256 {expected}, {source} has {found}: publish it under another tag")
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _save_config(
        name: str,
        classes: ClassInfo,
        size: Sequence[int] | None,
        license: str,
        path: Path,
        model_args: dict[str, Any],
) -> dict[str, Any]:
    """Writes timm's config.json with names and colours of the classes. Returns the pretrained config."""
    architecture, tag = split_model_name_tag(name)
    cfg = get_pretrained_cfg(name if name in WEIGHTS else architecture)
    overlay = dict(
        tag=tag, num_classes=len(classes.names), license=license,
        label_names=None, label_descriptions=None)  # once in the file, at the top, where others look for them
    if size is not None:
        overlay["input_size"] = (3, *size)
    if name not in WEIGHTS:
        overlay["description"] = None
    model = as_bssnet(create_model(
        architecture, num_classes=len(classes.names), pretrained_cfg=cfg,
        pretrained_cfg_overlay=overlay, device="meta", **model_args))
    with atomic_path(path) as temporary:
        save_config_for_hf(
            model, str(temporary), model_config={**classes.config, **TRANSFORMERS}, model_args=model_args)
    return model.pretrained_cfg


def _save_preprocessor(cfg: dict[str, Any], path: Path) -> None:
    """Writes what happens to an image before the network, in the words of transformers' image processors."""
    facts = dict(
        do_convert_rgb=True, do_resize=True, size={"shortest_edge": min(cfg["input_size"][1:])}, resample=2,
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=cfg["mean"], image_std=cfg["std"],
        image_processor_type="BSSNetImageProcessor")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def save_configs(
        name: str,
        classes: ClassInfo,
        size: Sequence[int] | None,
        license: str,
        folder: Path,
        **model_args: Any,
) -> None:
    """Writes the ``config.json`` of timm and transformers, and ``preprocessor_config.json``.

    Args:
        name: ``model.tag``.
        classes: Names and colours.
        size: (height, width) that the network should see; None for the model's.
        license: An identifier of the Hub.
        folder: Where to.
        **model_args: Further arguments of the model, that JSON can hold.
    """
    cfg = _save_config(name, classes, size, license, folder / "config.json", model_args)
    _save_preprocessor(cfg, folder / "preprocessor_config.json")


def _save_pictures(model: BSSNet, image: ImageLike, folder: Path) -> None:
    prediction = predict(model, image, size=min(model.pretrained_cfg["input_size"][1:]))
    for name, picture in (("sample.png", prediction.image), ("overlay.png", prediction.overlay())):
        with atomic_path(folder / name) as temporary:
            picture.save(temporary)


def _is_staged(folder: Path) -> bool:
    """Whether an earlier `stage` wrote there; transformers leaves the same files, and its version."""
    config = folder / "config.json"
    return (folder / "preprocessor_config.json").exists() and not (
        config.exists() and "transformers_version" in config.read_text(encoding="utf-8"))


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
        folder: The folder to write to.
        checkpoint: Your weights, which need ``data`` and ``license`` too; None for the zoo's own.
        data: What the checkpoint was trained on, as for ``bssnet-zoo train``: gives names and colours of the classes.
        license: Licence of the checkpoint, an identifier of the Hub.
        size: (height, width) that the network should see; if None, of the checkpoint's validation or the model's.
        image: The sample image; a street if None.

    Returns:
        Names of the files.

    Raises:
        ValueError: A name that can't be published, a checkpoint without data or licence or with other classes, what
            `convert_checkpoint` refuses.
        FileNotFoundError: No such checkpoint or image.

    Example:
        >>> stage("bssnet_t.camvid", "YOU", "staged")[:3]
        ['LICENSE.md', 'README.md', 'config.json']
    """
    model_args: dict[str, Any] = {}
    folder, checkpoint = Path(folder), None if checkpoint is None else Path(checkpoint)
    repo_id = _check_name(name, organization, checkpoint)
    if checkpoint is not None and checkpoint.resolve() == (folder / HUB_FILENAME).resolve():
        raise ValueError(f"{checkpoint} would be overwritten: choose another folder")
    if not _is_staged(folder):
        for file in ("README.md", "config.json", HUB_FILENAME):
            if (folder / file).exists():
                raise ValueError(f"{folder / file} is there and was not staged: choose an empty folder")
    if name in WEIGHTS:
        if data or license or size:
            raise ValueError(f"{name} is the zoo's own: data, license and size are for another tag with a checkpoint")
        classes, provenance = CAMVID, _zoo_provenance(name)
        _stage_zoo_weights(name, checkpoint, folder / HUB_FILENAME)
    else:
        assert checkpoint is not None  # `_check_name` refuses that
        classes, provenance = _own_weights(checkpoint, data, license)
        convert_checkpoint(checkpoint, folder / HUB_FILENAME)
        if is_plain_sum(read_checkpoint(checkpoint)):
            model_args["weighted"] = False
    if image is None:
        provenance = replace(provenance, sample_source="It is a frame of CamVid's test split, for research only.")
    size = size or provenance.size
    if size is None and checkpoint is not None:  # validated at the images' own size: what it was trained for
        size = noted_config(read_notes(checkpoint), checkpoint).get("input_size", ())[1:] or None
    save_configs(name, classes, size, provenance.license, folder, **model_args)
    model = as_bssnet(timm.create_model(f"local-dir:{folder}", pretrained=True)).eval()
    _save_pictures(model, STREET if image is None else image, folder)
    with atomic_path(folder / "README.md") as temporary:
        model_card(model, repo_id, folder / HUB_FILENAME, provenance).save(temporary)
    copies = {"LICENSE.md": CAMVID_LICENSE, "failures.jpg": ASSETS / f"{name}.failures.jpg"} if name in WEIGHTS else {}
    for file, source in copies.items():
        with atomic_path(folder / file) as temporary:
            shutil.copyfile(source, temporary)
    made = ["README.md", "config.json", HUB_FILENAME, "overlay.png", "preprocessor_config.json", "sample.png"]
    return sorted([*copies, *made])
