"""The parser of all verbs, and what an error does to the exit status."""
import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..version import __version__
from . import bench, convert, data, evaluate, export, predict, publish, train, verify
from . import list as list_

__all__ = ["build_parser", "main"]

VERBS = (predict, list_, convert, data, train, evaluate, bench, export, publish, verify)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ('{self.prog} --help' shows the options)")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bssnet-zoo", description="BSSNet: real-time semantic segmentation of road scenes.",
        epilog="'bssnet-zoo VERB --help' tells more of each verb.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is loaded from where")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0, 1 if some input failed, 2 if nothing could be done."""
    try:
        args = build_parser().parse_args(argv)
        logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
        return args.run(args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"bssnet-zoo: error: {error}", file=sys.stderr)
        return 2
