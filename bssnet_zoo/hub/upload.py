"""Publishing: a staged repository goes to the Hugging Face Hub, beside the weights that are there."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
        files: Names of the files.
        done: They were uploaded.

    Example:
        >>> print(Publication("me/bssnet_t.mine", "https://huggingface.co/me/bssnet_t.mine", "main", ["README.md"]))
        would publish https://huggingface.co/me/bssnet_t.mine (branch main)
          README.md
    """

    repo_id: str
    url: str
    revision: str
    files: list[str]
    done: bool = False

    def __str__(self) -> str:
        lines = [f"{'published' if self.done else 'would publish'} {self.url} (branch {self.revision})"]
        lines += [f"  {file}" for file in self.files]
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


def _remote(api: HfApi, repo_id: str, revision: str) -> tuple[bool | None, str | None]:
    """Whether a repository is private and the sha256 of its weights, None for what isn't there."""
    private = None
    try:
        private = api.model_info(repo_id).private
        files = api.model_info(repo_id, revision=revision, files_metadata=True).siblings or ()
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return private, None
    return private, next((file.lfs["sha256"] for file in files if file.rfilename == HUB_FILENAME and file.lfs), None)


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
        dry_run: Stage, and upload nothing: needs no network.
        **options: ``checkpoint``, ``data``, ``license``, ``size`` and ``image`` of `stage`.

    Raises:
        ValueError: What `stage` refuses; other weights in the repository; a public one that should be private.
        FileNotFoundError: No such checkpoint or image.
        RuntimeError: No token, no permission, no network: one line.

    Example:
        >>> publication = publish("bssnet_t.camvid", "YOU", dry_run=True)
        >>> publication.files[:3], publication.done
        (['LICENSE.md', 'README.md', 'config.json'], False)
    """
    if not dry_run and get_token() is None:
        raise RuntimeError("no Hugging Face token: log in with 'hf auth login' or set HF_TOKEN")
    repo_id, branch, api = hub_id(name, organization), revision or "main", HfApi(library_name="bssnet_zoo")
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as name_of_folder:
        folder = Path(name_of_folder)
        files = stage(name, organization, folder, **options)
        if not dry_run:
            with _one_line_errors(repo_id):
                is_private, there = _remote(api, repo_id, branch)
            if private and is_private is False:
                raise ValueError(
                    f"{repo_id} is there and public: change that in its settings, private is for new repositories")
            if there and there != (here := sha256(folder / HUB_FILENAME)):
                raise ValueError(f"{repo_id} has another {HUB_FILENAME} (sha256 {there}, here {here}), which stays: "
                                 "publish under another tag, or to a branch of its own")
            with _one_line_errors(repo_id):
                if is_private is None:
                    api.create_repo(repo_id, private=private)
                if branch != "main":
                    api.create_branch(repo_id, branch=branch, exist_ok=True)
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, revision=branch, allow_patterns=files,
                    commit_message=f"Publish {name}")
    return Publication(repo_id, f"{api.endpoint}/{repo_id}", branch, files, done=not dry_run)
