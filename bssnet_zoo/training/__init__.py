"""Training: a recipe and a data set in, a run folder with a model out.

- `recipes`: what a run computes, and the recipes there are.
- `loop`: the training itself; `parts` makes what it needs from the recipe, `state` is what changes while it runs.
- `run_folder`, `run_log`, `pictures`: what a run writes. `interrupt`: how it stops.
- `feature_distillation`: what the trunk may learn from an encoder.
"""
from .loop import train
from .recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "train"]
