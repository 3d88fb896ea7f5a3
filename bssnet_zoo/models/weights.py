"""Where pretrained weights come from: the file bundled in the package, the Hugging Face Hub, or a URL; each is hashed.

timm's `PretrainedCfg` has no field for a hash and timm reads files without looking at their bytes. So
`resolve_pretrained` runs first: it finds the local file, checks it, reads it with the one reader for every naming,
and hands timm the tensors.
"""
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from timm.models import get_pretrained_cfg, resolve_pretrained_cfg
from timm.models._hub import check_cached_file, download_cached_file, hf_split

from ..files import parse_yaml, sha256
from .checkpoints import Checkpoint, checkpoint_num_classes, open_checkpoint
from .metadata import metadata_config, read_metadata

__all__ = [
    "ASSETS", "CONFIG", "HUB_FILENAME", "HUB_ORGANIZATION", "WEIGHTS", "Weights", "checkpoint_config", "hub_error",
    "hub_file", "hub_id", "hub_organization", "pinned_file", "pinned_sha256", "resolve_pretrained"]

_logger = logging.getLogger(__name__)

HUB_ORGANIZATION = "bssnet-zoo"
HUB_FILENAME = "model.safetensors"
CONFIG = "config.json"
ASSETS = Path(__file__).parent.parent / "assets"
STREET = ASSETS / "street.png"  # a frame of CamVid's test split
SOURCES = ("bundled", "hub")


@dataclass(frozen=True)
class Weights:
    """A published weights file, as ``assets/weights.yaml`` describes it.

    Attributes:
        name: ``<model>.<tag>``.
        sha256: Its hash.
        size: (height, width) of the images that it was made for, and measured with.
        data: What it was trained on.
        training: How it was made.
        limits: What its data lacks, for the model card.
        metrics: What was measured on CamVid test, in %: ``miou``, ``pixel_accuracy``, ``iou`` of each class;
            ``other_streets`` is the mean IoU of six classes on streets of other cities.
    """

    name: str
    sha256: str
    size: tuple[int, int]
    data: str
    training: str
    limits: str
    metrics: dict[str, Any]

    @property
    def path(self) -> Path:
        return ASSETS / f"{self.name}.safetensors"


def _bundled() -> dict[str, Weights]:
    entries = parse_yaml((ASSETS / "weights.yaml").read_text(encoding="utf-8"))
    return {name: Weights(name=name, **{**entry, "size": tuple(entry["size"])}) for name, entry in entries.items()}


WEIGHTS = _bundled()


def hub_organization() -> str:
    """The Hub organisation of our weights: ``BSSNET_ZOO_ORG`` if that is set, else `HUB_ORGANIZATION`."""
    return os.environ.get("BSSNET_ZOO_ORG") or HUB_ORGANIZATION


def hub_id(name: str, organization: str = HUB_ORGANIZATION) -> str:
    """The Hub repository of ``<model>.<tag>``."""
    return f"{organization}/{name}"


def weights_source() -> str:
    """``BSSNET_ZOO_WEIGHTS``: "bundled" (the default: the package's own files, where it has them) or "hub"."""
    source = os.environ.get("BSSNET_ZOO_WEIGHTS") or SOURCES[0]
    if source not in SOURCES:
        raise ValueError(f"the environment variable BSSNET_ZOO_WEIGHTS is '{source}', it may be {' or '.join(SOURCES)}")
    return source


def pinned_sha256(repo_id: str) -> str | None:
    """The sha256 that the weights in a Hub repository of ours must have; None for others, which carry no pin."""
    organizations = HUB_ORGANIZATION, hub_organization()
    pins = {hub_id(name, each).lower(): weights.sha256 for each in organizations for name, weights in WEIGHTS.items()}
    return pins.get(repo_id.lower())  # to the Hub it is the same repository


def hub_error(error: Exception) -> str:
    """In one line, what huggingface_hub ran into: its messages say what to do, and the cause why it had no answer."""
    cause = error.__cause__ if getattr(error, "response", None) is None else None
    return " ".join(f"{error} {f'({cause})' if cause else ''}".split()) or type(error).__name__


def _announced_sha256(path: Path) -> str | None:
    """The sha256 that the Hub gave a large file in its cache, which links to a blob of that name."""
    # one link only: behind the blob may be another one, to a store that several caches share, with other names
    name = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _check_hub_file(path: Path, repo_id: str, expected: str) -> None:
    found = sha256(path)
    if found == expected:
        return
    copies = {path.resolve(), path}
    if path.is_symlink():
        copies.add(path.parent / os.readlink(path))
    for copy in copies:
        copy.unlink(missing_ok=True)
    raise RuntimeError(f"{path.name} of {repo_id} has sha256 {found}, expected {expected}: it is damaged or isn't what "
                       "was published. It was removed from the cache; try again")


def hub_file(
        repo_id: str,
        filename: str = HUB_FILENAME,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
) -> Path:
    """A file of a Hub repository, from the cache or downloaded; weights are hashed each time.

    The sha256 of our own weights is pinned in `WEIGHTS`. Those of others must have the one that the Hub announced when
    they were downloaded, which tells damage but not who wrote them. A file that fails is removed from the cache.

    Args:
        repo_id: ``organization/name``.
        filename: The file in it.
        revision: Branch, tag or commit; the main branch if None.
        cache_dir: Where downloads are kept, instead of the Hub's cache.

    Raises:
        RuntimeError: It can't be had: no network, no such repository, revision or file, a download that broke off, a
            wrong sha256. The message is one line.
    """
    try:
        path = Path(hf_hub_download(repo_id, filename, revision=revision, cache_dir=cache_dir))
    except Exception as error:  # which classes there are depends on the HTTP library under huggingface_hub
        where = f"{repo_id}@{revision}" if revision else repo_id
        raise RuntimeError(f"can't fetch {filename} of {where}: {hub_error(error)}") from error
    pinned = None if filename == CONFIG else pinned_sha256(repo_id)
    if expected := pinned or _announced_sha256(path):
        _check_hub_file(path, repo_id, expected)
    return path


def pinned_file(name: str, cache_dir: str | Path | None = None) -> Path:
    """The file of one of our own weights, hashed: bundled, or from the Hub."""
    weights = WEIGHTS[name]
    if weights_source() == "hub" or not weights.path.is_file():
        return hub_file(hub_id(name, hub_organization()), cache_dir=cache_dir)
    found = sha256(weights.path)
    if found != weights.sha256:
        raise RuntimeError(f"{weights.path} has sha256 {found}, expected {weights.sha256}: the file is damaged or not "
                           "ours. Install the package again, or set BSSNET_ZOO_WEIGHTS=hub")
    return weights.path


def _url_file(url: str | tuple[str, str], cache_dir: str | Path | None) -> Path:
    try:
        path = Path(download_cached_file(url, check_hash=True, progress=True, cache_dir=cache_dir))
    except OSError as error:
        raise RuntimeError(f"can't download {url}: {error}. Fetch the file where there is a network and pass it as "
                           "checkpoint_path") from error
    if not check_cached_file(url, check_hash=True, cache_dir=cache_dir):
        raise RuntimeError(f"{path} has sha256 {sha256(path)}, which does not begin with the hash in its name: "
                           "delete it and try again")
    return path


def resolve_pretrained(
        variant: str,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
) -> dict[str, Any]:
    """The config overlay that gives timm the tensors of the weights that were asked for.

    What the caller names (``file``, ``url``, ``hf_hub_id``, ``state_dict`` in the overlay, ``hf-hub:`` and
    ``local-dir:`` names) comes first, then the bundled file, then the Hub; ``BSSNET_ZOO_WEIGHTS=hub`` passes over the
    bundled file. The class count of a file that the caller names is read from the file.

    Args:
        variant: Name of the model.
        pretrained_cfg: Tag, or a whole config.
        pretrained_cfg_overlay: Entries that replace those of the config.
        cache_dir: Where downloads are kept.

    Returns:
        The overlay, with ``state_dict`` unless timm's own loading does the rest (``local-dir:``).

    Raises:
        RuntimeError: A file whose hash is not the pinned one, an unknown tag, what `hub_file` can't fetch.
        ValueError: A file that can't be read.
        FileNotFoundError: No such file.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if overlay.get("state_dict"):
        return {**overlay, "source": None}
    if cfg.source == "local-dir" or cfg.state_dict and not cfg.source:
        return overlay
    name = f"{variant}.{cfg.tag}"
    registered = get_pretrained_cfg(name) if name in WEIGHTS else None
    # what a config.json on the Hub says of other sources would get round the pinned hash
    file, url = (overlay.get("file"), overlay.get("url")) if cfg.source == "hf-hub" else (cfg.file, cfg.url)
    if file:
        path = Path(file)
    elif registered and not cfg.source and (cfg.hf_hub_id, cfg.url) == (registered.hf_hub_id, registered.url):
        path = pinned_file(name, cache_dir)
    elif url and not overlay.get("hf_hub_id"):
        path = _url_file(url, cache_dir)
    elif cfg.hf_hub_id:
        repo_id, revision = hf_split(cfg.hf_hub_id)
        filename = overlay.get("hf_hub_filename") if cfg.source else cfg.hf_hub_filename
        path = hub_file(repo_id, filename or HUB_FILENAME, revision, cache_dir)
    else:
        return overlay
    _logger.info("Loading weights of %s from %s", name, path)
    checkpoint = open_checkpoint(path)
    num_classes = checkpoint_num_classes(checkpoint.tensors)
    if file and num_classes is not None:
        overlay = {**checkpoint_config(checkpoint, num_classes), **overlay}
    if num_classes not in (None, cfg.num_classes):
        overlay = {"num_classes": num_classes, "label_names": None, "label_descriptions": None, **overlay}
    return {**overlay, "source": None, "state_dict": checkpoint.tensors}  # what timm would fetch is not checked


def checkpoint_config(checkpoint: str | os.PathLike[str] | Checkpoint, num_classes: int) -> dict[str, Any]:
    """What a checkpoint says of itself, as entries of the pretrained config; nothing of one of our own weights.

    Args:
        checkpoint: The file, or what was read from it.
        num_classes: Number of classes of the model; 0 for any.

    Raises:
        ValueError: It names another number of classes than it has, or makes no sense.
    """
    path, metadata = (checkpoint.path, checkpoint.metadata) if isinstance(checkpoint, Checkpoint) else (
        checkpoint, read_metadata(checkpoint))
    if "class_names" not in metadata and sha256(path) in {weights.sha256 for weights in WEIGHTS.values()}:
        return {}
    config = metadata_config(metadata, path)
    if num_classes == 0:  # features: no classes to name
        config.pop("num_classes", None)
    elif config.get("num_classes", num_classes) != num_classes:
        raise ValueError(f"{path} names {config['num_classes']} classes, the model has {num_classes}")
    return config
