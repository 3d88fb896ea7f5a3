"""``bssnet-zoo publish``"""
import argparse

from ..hub import publish
from .options import Verbs, height_and_width


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "publish", help="put weights on the Hugging Face Hub",
        description="Writes a Hub repository (weights, timm's config.json, model card, pictures) and uploads it as "
                    "ORG/NAME, with the token of 'hf auth login' or HF_TOKEN. Weights that are there already are never "
                    "replaced.")
    parser.add_argument("name", metavar="NAME", help="model.tag: the zoo's own, as bssnet_t.camvid, or yours")
    parser.add_argument("--org", required=True, metavar="ORG", help="organisation or user of the Hub")
    parser.add_argument("--checkpoint", metavar="FILE", help="your weights; they need --license too, and --data "
                        "if 'bssnet-zoo train' did not make them")
    parser.add_argument("--data", metavar="KIND:DIR", help="what they were trained on, for names and colours of the "
                        "classes: folder:DIR (its dataset.yaml is read), camvid:DIR, cityscapes:DIR, nightcity:DIR")
    parser.add_argument("--license", metavar="ID", help="their licence in the Hub's words: apache-2.0, cc-by-4.0 ...")
    parser.add_argument("--size", type=height_and_width, metavar="HxW", help="what the network should see "
                        "(default: what the checkpoint was validated at, else what the bundled weights were made for)")
    parser.add_argument("--image", metavar="FILE", help="sample image for the card (default: a street)")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="write the files, upload nothing")
    parser.add_argument("--out", metavar="DIR", help="keep the files there, to look at: a new or empty folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(publish(
        args.name, args.org, args.out, args.private, args.revision, args.dry_run, checkpoint=args.checkpoint,
        data=args.data, license=args.license, size=args.size, image=args.image))
    return 0
