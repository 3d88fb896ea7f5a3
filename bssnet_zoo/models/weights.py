"""Where pretrained weights come from: the file bundled in the package, the Hugging Face Hub, or a URL; each is hashed.

timm's `PretrainedCfg` has no field for a hash and timm reads files without looking at their bytes. So
`resolve_pretrained` runs first: it finds the local file, checks it, reads it with the one reader for every naming,
and hands timm the tensors.
"""
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from timm.models import get_pretrained_cfg, resolve_pretrained_cfg
from timm.models._hub import check_cached_file, download_cached_file

from ..files import sha256
from .checkpoints import checkpoint_num_classes, read_checkpoint

__all__ = ["HUB_ORGANIZATION", "WEIGHTS", "Weights", "hub_id", "hub_organization", "resolve_pretrained"]

_logger = logging.getLogger(__name__)

HUB_ORGANIZATION = "bssnet-zoo"
ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Weights:
    """A published weights file: its name in ``assets/``, its sha256 and what was measured with it."""

    filename: str
    sha256: str
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return ASSETS / self.filename


WEIGHTS = {
    "bssnet_t.camvid": Weights(
        "bssnet_t.camvid.safetensors",
        "dab12c024642f03f0eb61f968a688a5516bba9f4cc4f97ee20cd6679ea12c263",
        {"miou": 56.57, "pixel_accuracy": 86.69},
    ),
    "bssnet_b.camvid": Weights(
        "bssnet_b.camvid.safetensors",
        "191c06965fed7def521275a3d6f360a13b16f499be3a078781f7868ef54c720f",
        {"miou": 57.54, "pixel_accuracy": 87.00},
    ),
}


def hub_organization() -> str:
    """The Hub organisation of our weights: ``BSSNET_ZOO_ORG`` if that is set, else `HUB_ORGANIZATION`."""
    return os.environ.get("BSSNET_ZOO_ORG") or HUB_ORGANIZATION


def hub_id(name: str, organization: str = HUB_ORGANIZATION) -> str:
    """The Hub repository of ``<model>.<tag>``."""
    return f"{organization}/{name}"


def check_sha256(path: Path, expected: str) -> None:
    """Raises RuntimeError with both hashes if the file is not the one that was published."""
    found = sha256(path)
    if found != expected:
        raise RuntimeError(f"{path} has sha256 {found}, expected {expected}: the file is damaged or not ours. "
                           "Delete it and install or download it again")


def _pinned_file(name: str, cache_dir: str | os.PathLike | None) -> Path:
    weights = WEIGHTS[name]
    path = weights.path
    if not path.is_file():
        path = Path(hf_hub_download(hub_id(name, hub_organization()), "model.safetensors", cache_dir=cache_dir))
    check_sha256(path, weights.sha256)
    return path


def _url_file(url: str, cache_dir: str | os.PathLike | None) -> Path:
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
        cache_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """The config overlay that gives timm the tensors of the weights that were asked for.

    What the caller names (``file``, ``url``, ``state_dict`` in the overlay, ``hf-hub:`` and ``local-dir:`` names) comes
    first, then the bundled file, then the Hub. The class count of a file that the caller names is read from the file.

    Args:
        variant: Name of the model.
        pretrained_cfg: Tag, or a whole config.
        pretrained_cfg_overlay: Entries that replace those of the config.
        cache_dir: Where downloads are kept.

    Returns:
        The overlay, with ``state_dict`` unless timm's own loading does the rest (``hf-hub:``, ``local-dir:``).

    Raises:
        RuntimeError: A file whose hash is not the pinned one, an unknown tag.
        ValueError: A file that can't be read.
        FileNotFoundError: No such file.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if cfg.source or cfg.state_dict:
        return overlay
    name = f"{variant}.{cfg.tag}"
    registered = get_pretrained_cfg(name) if name in WEIGHTS else None
    if cfg.file:
        path = Path(cfg.file)
    elif registered and (cfg.hf_hub_id, cfg.url) == (registered.hf_hub_id, registered.url):
        path = _pinned_file(name, cache_dir)
    elif cfg.url and not overlay.get("hf_hub_id"):
        path = _url_file(cfg.url, cache_dir)
    else:
        return overlay
    _logger.info("Loading weights of %s from %s", name, path)
    overlay["state_dict"] = read_checkpoint(path)
    num_classes = checkpoint_num_classes(overlay["state_dict"])
    if num_classes not in (None, cfg.num_classes):
        overlay.setdefault("num_classes", num_classes)
        overlay.setdefault("label_names", None)
        overlay.setdefault("label_descriptions", None)
    return overlay
