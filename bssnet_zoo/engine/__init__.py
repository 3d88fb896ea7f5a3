"""Training and evaluation: `recipes.Recipe` and `recipes.RECIPES`, `train.train`, `evaluate.evaluate`."""
