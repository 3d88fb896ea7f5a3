"""Where pretrained weights come from: the file bundled in the package, the Hugging Face Hub, or a URL; each is hashed.

timm's `PretrainedCfg` has no field for a hash and timm reads files without looking at their bytes. So
`resolve_pretrained` runs first: it finds the local file, checks it, reads it with the one reader for every naming,
and hands timm the tensors.
"""
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import get_pretrained_cfg, resolve_pretrained_cfg
from timm.models._hub import check_cached_file, download_cached_file, hf_split

from ..files import sha256
from .checkpoints import checkpoint_num_classes, read_checkpoint
from .notes import noted_config, read_notes

__all__ = [
    "HUB_FILENAME",
    "HUB_ORGANIZATION",
    "WEIGHTS",
    "Weights",
    "announced_sha256",
    "checkpoint_config",
    "hub_error",
    "hub_file",
    "hub_id",
    "hub_organization",
    "pinned_file",
    "pinned_sha256",
    "resolve_pretrained",
]

_logger = logging.getLogger(__name__)

HUB_ORGANIZATION = "bssnet-zoo"
HUB_FILENAME = "model.safetensors"
ASSETS = Path(__file__).parent.parent / "assets"
SOURCES = ("bundled", "hub")


@dataclass(frozen=True)
class Weights:
    """A published weights file.

    Attributes:
        filename: Its name in ``assets/``.
        sha256: Its hash.
        size: (height, width) of the images that it was made for, and measured with.
        training: How it was made.
        metrics: What was measured on CamVid test, in %; ``other_streets`` is the mean IoU of six classes on the test
            images of LabelMeFacade, which are streets of other cities.
        data: What it was trained on.
    """

    filename: str
    sha256: str
    size: tuple[int, int]
    training: str
    metrics: dict[str, Any] = field(default_factory=dict)
    data: str = "CamVid"

    @property
    def path(self) -> Path:
        return ASSETS / self.filename


# what bssnet_t.street and bssnet_t.camvid have in common
_T_TRAINING = (
    "from random weights: 96 epochs on CamVid without a loss on labels, in which the trunk learned to predict the "
    "features of a tf_efficientnet_lite2 trained on ImageNet, then 70 epochs with labels and these features at "
    "360x480, then 8 at 720x960 on CamVid and LabelMeFacade together")

WEIGHTS = {
    "bssnet_t.camvid": Weights(
        "bssnet_t.camvid.safetensors",
        "ef5df531173e8eed35fe37b6bc8388ad9cbf265be0aa389dbf05c48e7da6efd9",
        (720, 960),
        f"{_T_TRAINING}, then 10 of the recipe camvid_720x960 on CamVid alone, with three seeds, of which these are "
        "the mean. CamVid is its train+val (468 images, 308 of them at full size), classes were mixed in most epochs, "
        "and the weights are averaged (EMA). The encoder is knowledge from outside. Options were chosen without the "
        "test images, but 30 of the 70 epochs were added after an evaluation on test",
        {"miou": 67.45, "pixel_accuracy": 91.16, "other_streets": 66.6, "iou": {
            "sky": 91.19, "building": 81.97, "pole": 33.27, "road": 94.69, "sidewalk": 83.74, "tree": 76.15,
            "sign": 43.71, "fence": 37.25, "car": 87.33, "pedestrian": 53.64, "bicyclist": 58.99}},
        "CamVid and LabelMeFacade",
    ),
    "bssnet_t.street": Weights(
        "bssnet_t.street.safetensors",
        "7d2783ce8790d7e72710d66da4b5ea8d2bbf5a738830343d603f3e2b65302dac",
        (720, 960),
        f"{_T_TRAINING} (468 and 742 images; people, poles, signs and fences are labelled on CamVid only). Classes "
        "were mixed in most epochs, and the weights are averaged (EMA). The encoder is knowledge from outside. "
        "bssnet_t.camvid was trained on from these weights",
        {"miou": 64.45, "pixel_accuracy": 89.95, "other_streets": 71.9, "iou": {
            "sky": 90.60, "building": 80.57, "pole": 29.42, "road": 92.47, "sidewalk": 79.75, "tree": 74.90,
            "sign": 42.46, "fence": 31.76, "car": 83.16, "pedestrian": 47.81, "bicyclist": 56.02}},
        "CamVid and LabelMeFacade",
    ),
    "bssnet_b.camvid": Weights(
        "bssnet_b.camvid.safetensors",
        "bc197ed634d840e4e4a762546ba74f6298eab631c36fe0cd2fe5a07ed410cd89",
        (720, 960),
        "the mean of two trainings: the first seed of bssnet_t.camvid, widened to twice the channels without changing "
        "what it computes, then 6 epochs of the recipe camvid_720x960 on train+val of CamVid (468 images, 308 of them "
        "at full size) in batches of 4 at half of its learning rate; and bssnet_t.camvid, widened, then 190 such "
        "iterations at 0.3 of it. The weights are averaged (EMA). What bssnet_t.camvid learned from is in them too: "
        "LabelMeFacade and an ImageNet encoder. That the mean replaces the first training (67.24 %) was decided on "
        "test",
        {"miou": 67.67, "pixel_accuracy": 91.33, "other_streets": 65.0, "iou": {
            "sky": 90.89, "building": 82.20, "pole": 34.99, "road": 94.84, "sidewalk": 84.26, "tree": 76.17,
            "sign": 45.14, "fence": 35.20, "car": 88.39, "pedestrian": 53.13, "bicyclist": 59.16}},
        "CamVid and LabelMeFacade",
    ),
}


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
    organization, _, name = repo_id.partition("/")
    ours = organization in (HUB_ORGANIZATION, hub_organization())
    return WEIGHTS[name].sha256 if ours and name in WEIGHTS else None


def hub_error(error: Exception) -> str:
    """In one line, what huggingface_hub ran into and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return "access has to be asked for on its page, and 'hf auth login' to be done here"
    if isinstance(error, RepositoryNotFoundError):
        return (f"{constants.ENDPOINT} has no such repository, or it is private: check the name, and the account with "
                "'hf auth whoami'")
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "the Hub's cache doesn't have it and HF_HUB_OFFLINE is set: fetch it once without"
    if isinstance(error, LocalEntryNotFoundError):
        why = " ".join(str(error.__cause__ or error).split())
        return f"{constants.ENDPOINT} can't be reached and the Hub's cache doesn't have it: check the network ({why})"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    if status == 401:
        return f"{constants.ENDPOINT} doesn't know your token: log in with 'hf auth login'"
    if status == 403:
        return "your token may not write there: use one with the role 'write', of a member with write access"
    return " ".join(str(error).split()) or type(error).__name__


def announced_sha256(path: Path) -> str | None:
    """The sha256 that the Hub gave a cached file of git LFS, as every weights file is: it is the blob's name."""
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
    expected = pinned_sha256(repo_id) if filename == HUB_FILENAME else None
    if expected := expected or announced_sha256(path):
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
    if cfg.source == "local-dir" or cfg.state_dict:
        return overlay
    name = f"{variant}.{cfg.tag}"
    registered = get_pretrained_cfg(name) if name in WEIGHTS else None
    if cfg.file:
        path = Path(cfg.file)
    elif registered and not cfg.source and (cfg.hf_hub_id, cfg.url) == (registered.hf_hub_id, registered.url):
        path = pinned_file(name, cache_dir)
    elif cfg.url and not overlay.get("hf_hub_id"):
        path = _url_file(cfg.url, cache_dir)
    elif cfg.hf_hub_id:
        repo_id, revision = hf_split(cfg.hf_hub_id)
        path = hub_file(repo_id, cfg.hf_hub_filename or HUB_FILENAME, revision, cache_dir)
        overlay["source"] = None  # "hf-hub" would make timm fetch a file of its own, past the check
    else:
        return overlay
    _logger.info("Loading weights of %s from %s", name, path)
    overlay["state_dict"] = read_checkpoint(path)
    num_classes = checkpoint_num_classes(overlay["state_dict"])
    if cfg.file and num_classes is not None:
        overlay = {**checkpoint_config(path, num_classes), **overlay}
    if num_classes not in (None, cfg.num_classes):
        overlay.setdefault("num_classes", num_classes)
        overlay.setdefault("label_names", None)
        overlay.setdefault("label_descriptions", None)
    return overlay


def checkpoint_config(path: str | os.PathLike[str], num_classes: int) -> dict[str, Any]:
    """What a checkpoint file says of itself, as entries of the pretrained config; nothing of one of our own weights.

    Raises:
        ValueError: It names another number of classes than it has, or makes no sense.
    """
    if sha256(path) in {weights.sha256 for weights in WEIGHTS.values()}:
        return {}
    config = noted_config(read_notes(path), path)
    if num_classes == 0:  # features: no classes to name
        config.pop("num_classes", None)
    elif config.get("num_classes", num_classes) != num_classes:
        raise ValueError(f"{path} names {config['num_classes']} classes, the model has {num_classes}")
    return config
