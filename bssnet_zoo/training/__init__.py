"""Training: a recipe and a data set in, a run folder with a model out.

- `recipes`: what a run computes, and the recipes there are.
- `loop`: the training itself; `parts` makes what it needs from the recipe, `state` is what changes while it runs.
- `run_folder`, `run_log`, `pictures`: what a run writes. `interrupt`: how it stops.
- `distillation`, `feature_distillation`: what it may learn from other networks.
"""
from .loop import train
from .recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "train"]
