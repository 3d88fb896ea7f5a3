"""``bssnet-zoo convert``"""
import argparse

from ..device import PRECISIONS
from ..models import convert_checkpoint
from .options import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "convert", help="rename a published checkpoint to this package's names",
        description="Reads a checkpoint (a published BSSNet of MMSegmentation, a PIDNet trunk, or one of ours) and "
                    "writes it as .safetensors with this package's names.")
    parser.add_argument("source", help="checkpoint to read: .pth or .safetensors")
    parser.add_argument("target", help="file to write: .safetensors")
    parser.add_argument("--dtype", choices=[*PRECISIONS, "keep"], default="float16",
                        help="type of the floating point tensors in the file (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    convert_checkpoint(args.source, args.target, None if args.dtype == "keep" else PRECISIONS[args.dtype])
    return 0
