"""``bssnet-zoo train``: its options come from the fields of `Recipe`."""
import argparse
import re
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from ..data.datasets import with_kind
from ..distributed import end_process
from ..training.loop import train
from ..training.recipes import RECIPES, Recipe, load_recipe
from ..training.run_folder import saved_recipe
from .options import Verbs, height_and_width


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "train", help="train a model by a recipe",
        description="Trains a model by a recipe; each of its fields is an option. Several processes: torchrun "
                    "--nproc-per-node N -m bssnet_zoo train ...")
    add_recipe_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="run folder (default: runs/RECIPE-MODEL)")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in this folder, by its own recipe")
    parser.add_argument("--stop-epoch", type=int, metavar="N", help="end after this epoch, to be resumed later; the "
                        "learning rate is that of the whole run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``bssnet-zoo train``. Returns the exit status."""
    if args.resume and (args.recipe or args.output):
        raise ValueError("--resume takes recipe and folder from the run: leave out --recipe and --output")
    name = args.recipe or default_recipe(getattr(args, "data", Recipe.data))
    recipe = recipe_from_arguments(args, saved_recipe(Path(args.resume)) if args.resume else load_recipe(name))
    output = args.resume or args.output or Path("runs") / re.sub("[:/]", "-", f"{Path(name).stem}-{recipe.model}")
    try:
        train(recipe, output, resume=bool(args.resume), stop_epoch=args.stop_epoch)
    except KeyboardInterrupt:
        return 130
    finally:
        end_process()
    return 0


DEFAULT_RECIPES = {"camvid": "camvid_360x480", "cityscapes": "cityscapes", "nightcity": "nightcity_t"}


def default_recipe(data: str) -> str:
    """The recipe for a data set ``KIND:DIR`` or ``DIR`` unless told otherwise."""
    return DEFAULT_RECIPES.get(with_kind(data).partition(":")[0], "finetune")


def _argument(hint: Any) -> dict[str, Any]:
    """What argparse needs to know of a field's type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    optional = isinstance(hint, UnionType)
    if optional:
        hint = next(t for t in get_args(hint) if t is not type(None))
    kind, *rest = get_args(hint) or (hint,)
    is_size = rest == [int]

    def convert(text: str) -> Any:
        if optional and text == "none":
            return None
        return height_and_width(text) if is_size else kind(text)

    convert.__name__ = kind.__name__  # argparse's error message names it
    if is_size:
        return {"type": convert, "metavar": "HxW"}
    nargs = "+" if rest and (optional or Ellipsis in rest) else 1 + len(rest) if rest else None
    return {"type": convert, "nargs": nargs, "metavar": {str: "NAME", int: "N", float: "X"}[kind]}


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--recipe`` and an option for every field of `Recipe`; those not given keep the recipe's value.

    ``none`` takes the value away from a field that may be without.
    """
    parser.add_argument("--recipe", default=None, metavar="NAME",
                        help=f"{', '.join(RECIPES)}, or a recipe.yaml (default: finetune for "
                             "folder:DIR, camvid_360x480, cityscapes or nightcity_t for the others)")
    group = parser.add_argument_group("fields of the recipe")
    hints = get_type_hints(Recipe)
    for f in fields(Recipe):
        group.add_argument(f"--{f.name.replace('_', '-')}", dest=f.name, default=argparse.SUPPRESS,
                           help=f.metadata["help"], **_argument(hints[f.name]))


def recipe_from_arguments(args: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe with the fields that were given on the command line."""
    options = {f.name: getattr(args, f.name) for f in fields(Recipe) if f.name in args}
    for name, value in options.items():
        if isinstance(value, list):
            options[name] = None if None in value else tuple(value)
    return recipe.with_options(**options)
