"""Inference: an image in, a `Prediction` out.

- `predict`: one image. `prediction`: the result, and pictures of it.
- `files`: image files and folders.
- `resize`: raw logits at the size of the image, a few rows at a time.
"""
