"""The folder of a training run, and the model that it trained."""
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from filelock import FileLock, Timeout

from ..data.datasets import dataset_classes
from ..models import BSSNet, open_model
from ..models.bssnet import as_bssnet
from ..models.metadata import read_metadata
from .recipes import Recipe, load_recipe, parse_recipe

__all__ = ["find_checkpoint", "open_run_folder", "run_recipe", "saved_recipe", "trained_model"]

# paths may change too: the state knows what was in the files, see `TrainState.load`
MAY_CHANGE = ("workers", "cache", "device", "compile", "checkpoint_every", "validate_every", "data", "more_data",
              "teacher_labels", "feature_checkpoint")


def find_checkpoint(folder: Path, recipe: Recipe, resume: bool) -> Path:
    """The checkpoint that a run in a folder writes and goes on from, if it is there already.

    Args:
        folder: The run folder.
        recipe: The recipe.
        resume: Go on with the run that is there.

    Raises:
        ValueError: There is a run and ``resume`` isn't set; there is none and it is; another recipe.
    """
    checkpoint = folder / "last.pth"
    if not resume and checkpoint.exists():
        raise ValueError(f"{folder} has a run already: go on with --resume {folder}, or choose another --output")
    if not checkpoint.exists() and (folder / "best.safetensors").exists():
        raise ValueError(f"{folder} has best.safetensors of a run but no last.pth to go on from: choose another "
                         "--output")
    if resume:
        _check_same(folder, recipe)
    return checkpoint


@contextmanager
def open_run_folder(folder: Path, primary: bool = True) -> Iterator[None]:
    """Makes the folder. As long as it is open, no other process can train in it.

    Args:
        folder: The run folder.
        primary: This is the process that writes.

    Raises:
        ValueError: Another process trains there.
    """
    if not primary:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for name in ("recipe", "last", "best", "validation", "curve"):
            for leftover in folder.glob(f".{name}-????????.*"):  # what a killed run was writing
                leftover.unlink()
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises ValueError if another process has the folder; the message says which."""
    holder, lock = folder / ".holder", FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        raise ValueError(f"{folder} is in use by {who}: wait for it to end, or choose another --output") from None
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def saved_recipe(folder: Path) -> Recipe:
    """The recipe of the run in a folder; ValueError if there is none."""
    if not (folder / "recipe.yaml").exists():
        raise ValueError(f"{folder} has no run to resume: there is no recipe.yaml in it")
    return load_recipe(folder / "recipe.yaml")


def run_recipe(checkpoint: str | None) -> Recipe | None:
    """The recipe of the run that a checkpoint comes from, by its own note or the folder it is in; None if unknown."""
    if not checkpoint:
        return None
    if noted := read_metadata(checkpoint).get("recipe"):
        return parse_recipe(noted, checkpoint)
    path = Path(checkpoint).parent / "recipe.yaml"
    return parse_recipe(path.read_text(encoding="utf-8"), path) if path.exists() else None


def trained_model(name: str | None = None, checkpoint: str | None = None, data: str | None = None) -> BSSNet:
    """The model to export: a pretrained one, or that of a checkpoint with the names and colours of its classes.

    Args:
        name: Model or model.tag; None for that of the checkpoint's run, else bssnet_t.
        checkpoint: Weights instead of the pretrained ones.
        data: ``KIND:DIR`` that it was trained on, for names and colours of a checkpoint without; None for what its run
            says.

    Raises:
        ValueError: A checkpoint that does not fit, or of another number of classes than the data.
    """
    recipe = run_recipe(checkpoint)
    model = as_bssnet(open_model(name or (recipe.model if recipe else None), checkpoint))
    known = model.pretrained_cfg.get("label_names")
    if not known:
        data = data or (recipe.data if recipe else None)
    if checkpoint and data:
        classes = dataset_classes(data)
        if len(classes.names) != model.num_classes:
            raise ValueError(f"{checkpoint} has {model.num_classes} classes, {data} has {len(classes.names)}")
        if not known:  # in the data they may stand in another order
            model.pretrained_cfg.update(tag=None, **classes.config)
    return model


def _check_same(folder: Path, recipe: Recipe) -> None:
    saved = saved_recipe(folder)
    for field in fields(Recipe):
        before, now = getattr(saved, field.name), getattr(recipe, field.name)
        if before != now and field.name not in MAY_CHANGE:
            raise ValueError(f"{folder} was started with {field.name}={before}, not {now}: a run can be resumed only "
                             "with its own recipe. To go on from its weights, start a run with --init")
