"""``bssnet-zoo data``"""
import argparse

from ..data import report
from ..data.datasets import SPLITS
from .options import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "data", help="look at a data set: sizes, classes, weights, contact sheet",
        description="Checks a data set (missing pairs, sizes, label values) and prints its image sizes, the share of "
                    "each class and class weights computed from it; writes a contact sheet of images with their masks.")
    parser.add_argument("data", metavar="[KIND:]DIR", help="camvid, cityscapes, nightcity or folder, and the folder; "
                        "the kind is found out if left out")
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: %(default)s")
    parser.add_argument("--out", default="contact_sheet.png", metavar="PNG", help="default: %(default)s")
    parser.add_argument("--full", action="store_true", help="decode every image, not just its header")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(report(args.data, args.split, args.out, args.full))
    return 0
