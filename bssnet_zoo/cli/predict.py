"""``bssnet-zoo predict``"""
import argparse

import torch

from ..device import PRECISIONS, keep_freed_memory, parse_device
from ..inference.files import predict_files
from ..models import create_trained_model
from .options import Verbs, image_size


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "predict", help="segment images: label PNGs and overlays",
        description="Segments image files and folders. Writes NAME_labels.png (a palette PNG, pixel values are class "
                    "ids) and NAME_overlay.png (with a legend) for each. Exit status 1 if some file could not be read.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file or folder (searched to the bottom)")
    parser.add_argument("--model", default="bssnet_t", metavar="NAME",
                        help="model or model.tag, see 'bssnet-zoo list' (default: %(default)s)")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="folder to write to (default: %(default)s)")
    parser.add_argument("--size", type=image_size, metavar="N",
                        help="what the network sees: the shorter side, or height x width as in 360x480 "
                             "(default: the image's own size). The bundled weights were trained at 360x480: on larger "
                             "images try 720, or 360 for speed")
    parser.add_argument("--checkpoint", metavar="FILE", help=".safetensors or .pth instead of pretrained weights")
    parser.add_argument("--num-classes", type=int, metavar="N", help="class count of the checkpoint, if not 11")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
