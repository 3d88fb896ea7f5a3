"""The folder of a training run."""
from dataclasses import fields
from pathlib import Path

from .recipes import Recipe, load_recipe, save_recipe

__all__ = ["open_run_folder", "saved_recipe"]

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


def _check_same(folder: Path, recipe: Recipe) -> None:
    saved = saved_recipe(folder)
    for field in fields(Recipe):
        before, now = getattr(saved, field.name), getattr(recipe, field.name)
        if before != now and field.name not in MAY_CHANGE:
            raise ValueError(f"{folder} was started with {field.name}={before}, not {now}: a run can be resumed only "
                             "with its own recipe. To go on from its weights, start a run with --init")
