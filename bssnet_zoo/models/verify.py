"""Hashes the weights files on this machine again."""
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import scan_cache_dir
from huggingface_hub.utils import CacheNotFound
from timm.models import get_pretrained_cfg
from timm.models._hub import get_cache_dir

from ..files import sha256
from .factory import list_models
from .weights import HUB_FILENAME, WEIGHTS, announced_sha256, pinned_sha256

__all__ = ["FileCheck", "verify_weights"]


@dataclass(frozen=True)
class FileCheck:
    """A weights file on this machine and its hash.

    Attributes:
        name: ``<model>.<tag>``, of a Hub repository with its organisation.
        path: The file.
        found: Its sha256; empty if a file of the package is missing.
        expected: The sha256 it should have, or its beginning.
    """

    name: str
    path: Path
    found: str
    expected: str

    @property
    def ok(self) -> bool:
        return self.found.startswith(self.expected)

    def __str__(self) -> str:
        if not self.found:
            return f"MISSING  {self.name}  {self.path}: install the package again"
        if self.ok:
            return f"ok       {self.name}  {self.path}"
        return f"DAMAGED  {self.name}  {self.path}: sha256 {self.found}, expected {self.expected}. Delete it"


def _bundled_files() -> Iterator[tuple[str, Path, str]]:
    for name, weights in WEIGHTS.items():
        if weights.path.is_file():
            yield name, weights.path, weights.sha256


def _url_files(cache_dir: str | Path | None) -> Iterator[tuple[str, Path, str]]:
    for name in list_models(pretrained=True):
        cfg = get_pretrained_cfg(name)
        filename = os.path.basename(cfg.url) if cfg and isinstance(cfg.url, str) else ""
        path = Path(cache_dir or get_cache_dir(), filename)
        if filename and path.is_file():
            yield name, path, filename.rpartition("-")[2].partition(".")[0]  # these names end in a hash prefix


def _hub_files(cache_dir: str | Path | None) -> Iterator[tuple[str, Path, str]]:
    try:
        repos = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        if not set(_short_names(repo.repo_id)) & set(list_models()):
            continue
        files = {file.blob_path: file for revision in repo.revisions for file in revision.files}
        for file in files.values():
            expected = pinned_sha256(repo.repo_id) or announced_sha256(file.file_path)
            if file.file_name == HUB_FILENAME and expected:
                yield repo.repo_id, file.file_path, expected


def _short_names(name: str) -> list[str]:
    """What a user may call a file: ``organization/model.tag``, ``model.tag``, ``model``."""
    tagged = name.rpartition("/")[2]
    return [name, tagged, tagged.partition(".")[0]]


def verify_weights(names: Iterable[str] = (), cache_dir: str | Path | None = None) -> list[FileCheck]:
    """Hashes the weights files of our models on this machine: those in the package, downloads of ours and of others.

    Args:
        names: ``<model>``, ``<model>.<tag>`` or ``<organization>/<model>.<tag>``; all that are here if empty.
        cache_dir: Where downloads are kept, instead of the Hub's and torch's caches.

    Raises:
        ValueError: A name that no file here belongs to.
    """
    names = list(names)
    files = [*_bundled_files(), *_url_files(cache_dir), *_hub_files(cache_dir)]
    for name in names:
        if not any(name in _short_names(full) for full, _, _ in files):
            there = ", ".join(dict.fromkeys(full for full, _, _ in files)) or "nothing"
            raise ValueError(f"no file of '{name}' is bundled or cached here: there is {there}")
    missing = [] if names else [
        FileCheck(name, weights.path, "", weights.sha256) for name, weights in WEIGHTS.items()
        if not weights.path.is_file()]
    return missing + [
        FileCheck(full, path, sha256(path), expected) for full, path, expected in files
        if not names or set(_short_names(full)) & set(names)]
