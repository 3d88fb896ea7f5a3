"""The folder of a training run, and the model that it trained."""
from dataclasses import fields
from pathlib import Path

from ..data.datasets import dataset_classes
from ..models import BSSNet, create_trained_model
from ..models.bssnet import as_bssnet
from ..models.checkpoints import checkpoint_num_classes, read_checkpoint
from .recipes import Recipe, load_recipe, save_recipe

__all__ = ["open_run_folder", "run_recipe", "saved_recipe", "trained_model"]

MAY_CHANGE = ("workers", "cache", "device", "compile", "checkpoint_every", "validate_every")


def open_run_folder(folder: Path, recipe: Recipe, resume: bool, primary: bool = True) -> Path:
    """Makes the folder and saves the recipe in it; or, to resume, checks that it is the same recipe.

    Args:
        folder: The run folder.
        recipe: The recipe.
        resume: Go on with the run that is there.
        primary: This is the process that writes.

    Returns:
        The checkpoint to go on from, if there is one.

    Raises:
        ValueError: There is a run and ``resume`` isn't set; there is none and it is; another recipe.
    """
    checkpoint = folder / "last.pth"
    if not resume and checkpoint.exists():
        raise ValueError(f"{folder} has a run already: go on with --resume {folder}, or choose another --output")
    if resume:
        _check_same(folder, recipe)
    if primary:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*-????????.*"):  # files that a killed run was writing
            leftover.unlink()
        save_recipe(recipe, folder / "recipe.yaml")
    return checkpoint


def saved_recipe(folder: Path) -> Recipe:
    """The recipe of the run in a folder; ValueError if there is none."""
    if not (folder / "recipe.yaml").exists():
        raise ValueError(f"{folder} has no run to resume: there is no recipe.yaml in it")
    return load_recipe(folder / "recipe.yaml")


def run_recipe(checkpoint: str | None) -> Recipe | None:
    """The recipe of the run whose folder a checkpoint is in, None if it is in none."""
    path = Path(checkpoint).parent / "recipe.yaml" if checkpoint else None
    return load_recipe(path) if path and path.exists() else None


def trained_model(name: str | None = None, checkpoint: str | None = None, data: str | None = None) -> BSSNet:
    """The model to export: a pretrained one, or that of a checkpoint with the names and colours of its classes.

    Args:
        name: Model or model.tag; None for that of the checkpoint's run, else bssnet_t.
        checkpoint: Weights instead of the pretrained ones.
        data: ``KIND:DIR`` that it was trained on, for names and colours; None for what its run says.
    """
    recipe = run_recipe(checkpoint)
    num_classes = checkpoint_num_classes(read_checkpoint(checkpoint)) if checkpoint else None
    model = as_bssnet(create_trained_model(
        name or (recipe.model if recipe else "bssnet_t"), checkpoint, num_classes))
    data = data or (recipe.data if recipe else None)
    if checkpoint and data:
        classes = dataset_classes(data)
        model.pretrained_cfg.update(tag=None, label_names=classes.names, label_descriptions=dict(
            zip(classes.names, classes.hex_palette, strict=True)))
    return model


def _check_same(folder: Path, recipe: Recipe) -> None:
    saved = saved_recipe(folder)
    for field in fields(Recipe):
        before, now = getattr(saved, field.name), getattr(recipe, field.name)
        if before != now and field.name not in MAY_CHANGE:
            raise ValueError(f"{folder} was started with {field.name}={before}, not {now}: a run can be resumed only "
                             "with its own recipe. To go on from its weights, start a run with --init")
