"""``bssnet-zoo verify``"""
import argparse

from ..models.verify import verify_weights
from .options import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "verify", help="hash the weights files on this machine again",
        description="Hashes the weights in the package and the downloaded ones, and compares with the sha256 that is "
                    "pinned for ours, and that the Hub announced for those of others. Exit status 1 if one differs.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="model, model.tag or organisation/model.tag (default: all that are here)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    checks = verify_weights(args.names)
    print("\n".join(map(str, checks)) or "no weights are bundled or cached here")
    return 0 if all(check.ok for check in checks) else 1
