"""The command line: ``bssnet-zoo <verb>`` or ``python -m bssnet_zoo <verb>``. It parses and calls."""
import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from . import __version__
from .data import report
from .data.datasets import SPLITS
from .device import PRECISIONS, keep_freed_memory, parse_device
from .engine.bench import add_bench_arguments
from .engine.evaluate import add_eval_arguments
from .engine.export import FORMATS, accuracy, export_model, trained_model
from .engine.train import add_train_arguments
from .hub import publish
from .inference import predict_files
from .models import convert_checkpoint, create_trained_model
from .models.summary import model_table
from .models.verify import verify_weights

__all__ = ["main"]


def parse_size(text: str) -> list[int]:
    """``720`` is the shorter side, ``360x480`` is height and width."""
    return [int(number) for number in text.lower().split("x")]


def run_predict(args: argparse.Namespace) -> int:
    if args.num_classes is not None and args.checkpoint is None:
        raise ValueError("--num-classes needs --checkpoint: the pretrained weights have the classes they have")
    device = parse_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    model = create_trained_model(args.model, args.checkpoint, args.num_classes)
    model = model.eval().to(device, memory_format=torch.channels_last)
    precision = PRECISIONS[args.precision]
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        summary = predict_files(model, args.images, args.out, args.size)
    print(summary)
    return 1 if summary.failed else 0


def run_list(args: argparse.Namespace) -> int:
    print(model_table())
    return 0


def run_data(args: argparse.Namespace) -> int:
    print(report(args.data, args.split, args.out))
    print(f"contact sheet: {args.out}")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    convert_checkpoint(args.source, args.target, None if args.dtype == "keep" else PRECISIONS[args.dtype])
    return 0


def run_export(args: argparse.Namespace) -> int:
    model = trained_model(args.model, args.checkpoint, args.data)
    path = args.out or f"{model.pretrained_cfg['architecture']}{FORMATS[args.format].suffix}"
    size = None if args.dynamic else args.size or model.pretrained_cfg["input_size"][1:]
    print(export_model(
        model, path, args.format, size, args.precision, args.labels, args.normalize, args.raw, args.calibration))
    if args.data:
        print(accuracy(model, path, args.data))
    return 0


def run_publish(args: argparse.Namespace) -> int:
    print(publish(
        args.name, args.org, args.out, args.private, args.revision, args.dry_run, checkpoint=args.checkpoint,
        data=args.data, license=args.license, size=args.size, image=args.image))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    checks = verify_weights(args.names)
    print("\n".join(map(str, checks)) or "no weights are bundled or cached here")
    return 0 if all(check.ok for check in checks) else 1


def _predict_parser(verbs) -> None:
    parser = verbs.add_parser(
        "predict", help="segment images: label PNGs and overlays",
        description="Segments image files and folders. Writes NAME_labels.png (a palette PNG, pixel values are class "
                    "ids) and NAME_overlay.png (with a legend) for each. Exit status 1 if some file could not be read.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file or folder (searched to the bottom)")
    parser.add_argument("--model", default="bssnet_t", metavar="NAME",
                        help="model or model.tag, see 'bssnet-zoo list' (default: %(default)s)")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="folder to write to (default: %(default)s)")
    parser.add_argument("--size", type=parse_size, metavar="N",
                        help="what the network sees: the shorter side, or height x width as in 360x480 "
                             "(default: the image's own size). The bundled weights were trained at 360x480: on larger "
                             "images try 720, or 360 for speed")
    parser.add_argument("--checkpoint", metavar="FILE", help=".safetensors or .pth instead of pretrained weights")
    parser.add_argument("--num-classes", type=int, metavar="N", help="class count of the checkpoint, if not 11")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    parser.set_defaults(run=run_predict)


def _list_parser(verbs) -> None:
    parser = verbs.add_parser(
        "list", help="models, weights and their sizes",
        description="Shows each model and set of weights: classes, parameters at inference, multiply-adds of the "
                    "convolutions (counted now, not looked up), measured mIoU, size of the bundled file.")
    parser.set_defaults(run=run_list)


def _convert_parser(verbs) -> None:
    parser = verbs.add_parser(
        "convert", help="rename a published checkpoint to this package's names",
        description="Reads a checkpoint (a published BSSNet of MMSegmentation, a PIDNet trunk, or one of ours) and "
                    "writes it as .safetensors with this package's names.")
    parser.add_argument("source", help="checkpoint to read: .pth or .safetensors")
    parser.add_argument("target", help="file to write: .safetensors")
    parser.add_argument("--dtype", choices=[*PRECISIONS, "keep"], default="float16",
                        help="type of the floating point tensors in the file (default: %(default)s)")
    parser.set_defaults(run=run_convert)


def _export_parser(verbs) -> None:
    parser = verbs.add_parser(
        "export", help="one file for ONNX Runtime, OpenVINO or TorchScript",
        description="Writes a model as a file that runs without this package, if it answers what the model answers "
                    "on a street. docs/deploy.md tells how to run each.")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: %(default)s")
    parser.add_argument("--model", metavar="NAME", help="model or model.tag (default: the run's, else bssnet_t)")
    parser.add_argument("--checkpoint", metavar="FILE", help=".safetensors or .pth instead of pretrained weights")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: the model's name)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", type=parse_size, metavar="HxW",
                      help="height and width of the images (default: the pretrained config's, 360x480)")
    size.add_argument("--dynamic", action="store_true", help="images of any size, in batches of any size")
    parser.add_argument("--precision", choices=[*PRECISIONS, "int8"], default="float32", help="default: %(default)s")
    parser.add_argument("--labels", action="store_true", help="end in class ids, uint8, instead of logits")
    parser.add_argument("--normalize", action="store_true",
                        help="take RGB images, uint8 (N, H, W, 3), instead of normalised ones, float32 (N, 3, H, W)")
    parser.add_argument("--raw", action="store_true", help="end at the model's own stride, 1/8 of the image (B: 1/4)")
    parser.add_argument("--calibration", metavar="DIR", help="for int8: images like those that the model will see")
    parser.add_argument("--data", metavar="KIND:DIR", help="print mIoU before and after on this data set (camvid:DIR, "
                        "cityscapes:DIR, nightcity:DIR, folder:DIR); names the classes of a --checkpoint")
    parser.set_defaults(run=run_export)


def _publish_parser(verbs) -> None:
    parser = verbs.add_parser(
        "publish", help="put weights on the Hugging Face Hub",
        description="Writes a Hub repository (weights, timm's config.json, model card, pictures) and uploads it as "
                    "ORG/NAME, with the token of 'hf auth login' or HF_TOKEN. Weights that are there already are never "
                    "replaced.")
    parser.add_argument("name", metavar="NAME", help="model.tag: the zoo's own, as bssnet_t.camvid, or yours")
    parser.add_argument("--org", required=True, metavar="ORG", help="organisation or user of the Hub")
    parser.add_argument("--checkpoint", metavar="FILE", help="your weights; they need --data and --license too")
    parser.add_argument("--data", metavar="KIND:DIR", help="what they were trained on, for names and colours of the "
                        "classes: folder:DIR (its dataset.yaml is read), camvid:DIR, cityscapes:DIR, nightcity:DIR")
    parser.add_argument("--license", metavar="ID", help="their licence in the Hub's words: apache-2.0, cc-by-4.0 ...")
    parser.add_argument("--size", type=int, nargs=2, metavar="N", help="height and width that the network should see "
                        "(default: what the checkpoint was validated at, else 360 480)")
    parser.add_argument("--image", metavar="FILE", help="sample image for the card (default: a street)")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, upload nothing")
    parser.add_argument("--out", metavar="DIR", help="keep the files there, to look at")
    parser.set_defaults(run=run_publish)


def _verify_parser(verbs) -> None:
    parser = verbs.add_parser(
        "verify", help="hash the weights files on this machine again",
        description="Hashes the weights in the package and the downloaded ones, and compares with the sha256 that is "
                    "pinned for ours, and that the Hub announced for those of others. Exit status 1 if one differs.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="model, model.tag or organisation/model.tag (default: all that are here)")
    parser.set_defaults(run=run_verify)


def _data_parser(verbs) -> None:
    parser = verbs.add_parser(
        "data", help="look at a data set: sizes, classes, weights, contact sheet",
        description="Checks a data set (missing pairs, sizes, label values) and prints its image sizes, the share of "
                    "each class and class weights computed from it; writes a contact sheet of images with their masks.")
    parser.add_argument("data", metavar="[KIND:]DIR", help="camvid, cityscapes, nightcity or folder, and the folder; "
                        "the kind is found out if left out")
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: %(default)s")
    parser.add_argument("--out", default="contact_sheet.png", metavar="PNG", help="default: %(default)s")
    parser.set_defaults(run=run_data)


def _train_parser(verbs) -> None:
    parser = verbs.add_parser(
        "train", help="train a model by a recipe",
        description="Trains a model by a recipe; each of its fields is an option. Several processes: torchrun "
                    "--nproc-per-node N -m bssnet_zoo train ...")
    add_train_arguments(parser)


def _eval_parser(verbs) -> None:
    parser = verbs.add_parser(
        "eval", help="mIoU of a model on a data set",
        description="Prints IoU of each class, mIoU, pixel accuracy, F1 of the boundaries (tolerance 2 pixels) and "
                    "images/s; predicts whole images at their own size unless told otherwise.")
    add_eval_arguments(parser)


def _bench_parser(verbs) -> None:
    parser = verbs.add_parser(
        "bench", help="speed of models by size, backend and precision",
        description="Times models, batch 1, up to the raw logits: all sides by turns, each in a process of its own. "
                    "Prints medians, 10th and 90th percentiles over the rounds, the ratio to the plain model in "
                    "float32, peak memory, multiply-adds and their share of what torch reaches in one large "
                    "convolution.")
    add_bench_arguments(parser)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bssnet-zoo", description="BSSNet: real-time semantic segmentation of road scenes.",
        epilog="'bssnet-zoo VERB --help' tells more of each verb.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is loaded from where")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")
    for add in (_predict_parser, _list_parser, _convert_parser, _data_parser, _train_parser, _eval_parser,
                _bench_parser, _export_parser, _publish_parser, _verify_parser):
        add(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0, 1 if some input failed, 2 if nothing could be done."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    try:
        return args.run(args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"bssnet-zoo: error: {error}", file=sys.stderr)
        return 2
