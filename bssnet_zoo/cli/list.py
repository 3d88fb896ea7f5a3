"""``bssnet-zoo list``"""
import argparse

from ..models.summary import model_table
from .options import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "list", help="models, weights and their sizes",
        description="Shows each model and set of weights: classes, parameters at inference, multiply-adds of the "
                    "convolutions (counted now, not looked up), measured mIoU, size of the bundled file.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(model_table())
    return 0
