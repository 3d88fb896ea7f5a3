"""Evaluation: a model and a data set in, mIoU, pixel accuracy and boundary F1 out.

- `accuracy`: whole images, several scales, sliding windows; what an export costs. The metrics themselves are
  `bssnet_zoo.metrics`.
- `predictions`: label maps as files, for a test server.
"""
from .accuracy import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
