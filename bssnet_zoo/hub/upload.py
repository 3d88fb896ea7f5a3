"""Publishing: see what a staged repository would change on the Hugging Face Hub, and upload it."""
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

from ..files import sha256
from ..models.weights import HUB_FILENAME, hub_error, hub_id
from .staging import stage

__all__ = ["Publication", "publish"]


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Attributes:
        repo_id: The repository.
        url: Its page.
        revision: The branch.
        is_new: There was no such repository.
        is_private: It is private.
        changes: "add", "change" or "same" for each file; "staged" if nothing could be compared.
        done: The files were uploaded.
        not_compared: Why the Hub gave no answer, in a dry run: `is_new` and `is_private` are then guesses.

    Example:
        >>> page = "https://huggingface.co/me/bssnet_t.mine"
        >>> found = Publication("me/bssnet_t.mine", page, "main", False, False, {"model.safetensors": "same"})
        >>> found.changes["model.safetensors"], found.done
        ('same', False)
    """

    repo_id: str
    url: str
    revision: str
    is_new: bool
    is_private: bool
    changes: dict[str, str]
    done: bool = False
    not_compared: str | None = None

    def __str__(self) -> str:
        kind = f"{'new ' if self.is_new else ''}{'private' if self.is_private else 'public'} repository, "
        where = f"{'' if self.not_compared else kind}branch {self.revision}"
        lines = [f"{'published' if self.done else 'would publish'} {self.url} ({where})"]
        lines += [f"  {change:<7} {file}" for file, change in self.changes.items()]
        if self.not_compared:
            lines.append(f"nothing could be compared with the Hub, which gave no answer: {self.not_compared}")
        if self.done:
            revision = "" if self.revision == "main" else f"@{self.revision}"
            lines.append(f'load it: timm.create_model("hf-hub:{self.repo_id}{revision}", pretrained=True)')
        return "\n".join(lines)


@contextmanager
def _one_line_errors(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # which classes there are depends on the HTTP library under huggingface_hub
        raise RuntimeError(f"can't publish {repo_id}: {hub_error(error)}") from error


def _gave_no_answer(error: Exception) -> bool:
    """No network, or HF_HUB_OFFLINE: by name, as classes of requests or of httpx may be under huggingface_hub."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return not names.isdisjoint({"ConnectionError", "NetworkError", "ProxyError", "Timeout", "TimeoutException"})


def _remote_files(api: HfApi, repo_id: str, revision: str | None) -> dict[str, str | None]:
    """For each file in the repository its sha256 if git LFS keeps it, else its git hash."""
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}
    return {file.rfilename: file.lfs["sha256"] if file.lfs else file.blob_id for file in info.siblings or ()}


def _is_private(api: HfApi, repo_id: str) -> bool | None:
    """None if there is no such repository."""
    try:
        return api.model_info(repo_id).private
    except RepositoryNotFoundError:
        return None


def _change(path: Path, remote: str | None) -> str:
    if remote is None:
        return "add"
    content = path.read_bytes()
    hashes = hashlib.sha256(content), hashlib.sha1(b"blob %d\0" % len(content) + content)
    return "same" if remote in [h.hexdigest() for h in hashes] else "change"


def _plan(
        api: HfApi,
        repo_id: str,
        folder: Path,
        files: list[str],
        private: bool,
        revision: str | None,
        dry_run: bool,
) -> Publication:
    url, branch = f"{api.endpoint}/{repo_id}", revision or "main"
    with _one_line_errors(repo_id):
        try:
            is_private = _is_private(api, repo_id)
            remote = _remote_files(api, repo_id, revision)
        except Exception as error:
            if not dry_run or not _gave_no_answer(error):
                raise
            return Publication(
                repo_id, url, branch, True, private, dict.fromkeys(files, "staged"), not_compared=hub_error(error))
    changes = {file: _change(folder / file, remote.get(file)) for file in files}
    if changes[HUB_FILENAME] == "change":
        raise ValueError(
            f"{repo_id} has another {HUB_FILENAME} (sha256 {remote[HUB_FILENAME]}, here "
            f"{sha256(folder / HUB_FILENAME)}), which stays: publish under another tag, or to a branch of its own")
    if private and is_private is False:
        raise ValueError(f"{repo_id} is there and public: change that in its settings, private is for new repositories")
    return Publication(
        repo_id, url, branch, is_private is None, private if is_private is None else is_private, changes)


def _upload(api: HfApi, folder: Path, publication: Publication) -> None:
    repo_id, revision = publication.repo_id, publication.revision
    with _one_line_errors(repo_id):
        if publication.is_new:
            api.create_repo(repo_id, private=publication.is_private)
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, allow_patterns=list(publication.changes),
            commit_message=f"Publish {repo_id.partition('/')[2]}")


def publish(
        name: str,
        organization: str,
        out: str | os.PathLike | None = None,
        private: bool = False,
        revision: str | None = None,
        dry_run: bool = False,
        **options: Any,
) -> Publication:
    """Stages a Hub repository and uploads it, with the token of ``hf auth login`` or ``HF_TOKEN``.

    Weights that are there already stay: other ones go to another tag, or to another branch.

    Args:
        name: ``model.tag``, the name to publish under.
        organization: Organisation or user of the Hub.
        out: Folder to stage in, which stays; a temporary one if None.
        private: Make the repository private, if it is new.
        revision: Branch to upload to, made if it isn't there; main if None.
        dry_run: Stage, look what would change, upload nothing. Without a network, stage.
        **options: ``checkpoint``, ``data``, ``license``, ``size`` and ``image`` of `stage`.

    Raises:
        ValueError: What `stage` refuses; other weights in the repository; a public one that should be private.
        FileNotFoundError: No such checkpoint or image.
        RuntimeError: No token, no permission, no network: one line.

    Example:
        >>> publication = publish("bssnet_t.camvid", "YOU", dry_run=True)
        >>> print(publication)  # doctest: +ELLIPSIS
        would publish https://huggingface.co/YOU/bssnet_t.camvid (branch main)
        ...
    """
    if not dry_run and get_token() is None:
        raise RuntimeError("no Hugging Face token: log in with 'hf auth login' or set HF_TOKEN")
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as folder:
        folder = Path(folder)
        files = stage(name, organization, folder, **options)
        api = HfApi(library_name="bssnet_zoo")
        publication = _plan(api, hub_id(name, organization), folder, files, private, revision, dry_run)
        if dry_run:
            return publication
        _upload(api, folder, publication)
        return replace(publication, done=True)
