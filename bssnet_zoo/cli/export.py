"""``bssnet-zoo export``"""
import argparse

from ..deployment.export import export_model
from ..deployment.formats import FORMATS
from ..device import PRECISIONS
from ..evaluation.accuracy import exported_accuracy
from ..training.run_folder import trained_model
from .options import Verbs, height_and_width


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "export", help="one file for ONNX Runtime, OpenVINO or TorchScript",
        description="Writes a model as a file that runs without this package, if it answers what the model answers "
                    "on a street. docs/deploy.md tells how to run each.")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: %(default)s")
    parser.add_argument("--model", metavar="NAME", help="model or model.tag (default: the run's, else bssnet_t)")
    parser.add_argument("--checkpoint", metavar="FILE", help=".safetensors or .pth instead of pretrained weights")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: the model's name)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", type=height_and_width, metavar="HxW",
                      help="height and width of the images (default: what the weights were made for)")
    size.add_argument("--dynamic", action="store_true", help="images of any size, in batches of any size "
                                                             "(exported-program: 513x513 and more, one at a time)")
    parser.add_argument("--precision", choices=[*PRECISIONS, "int8"], default="float32", help="default: %(default)s")
    parser.add_argument("--labels", action="store_true", help="end in class ids, uint8, instead of logits")
    parser.add_argument("--normalize", action="store_true",
                        help="take RGB images, uint8 (N, H, W, 3), instead of normalised ones, float32 (N, 3, H, W)")
    parser.add_argument("--raw", action="store_true", help="end at the model's own stride, 1/8 of the image (B: 1/4)")
    parser.add_argument("--calibration", metavar="DIR", help="for int8: images like those that the model will see")
    parser.add_argument("--data", metavar="KIND:DIR", help="print mIoU before and after on this data set (camvid:DIR, "
                        "cityscapes:DIR, nightcity:DIR, folder:DIR); names the classes of a nameless --checkpoint")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    model = trained_model(args.model, args.checkpoint, args.data)
    path = args.out or f"{model.pretrained_cfg['architecture']}{FORMATS[args.format].suffix}"
    size = None if args.dynamic else args.size or model.pretrained_cfg["input_size"][1:]
    print(export_model(
        model, path, args.format, size, args.precision, args.labels, args.normalize, args.raw, args.calibration))
    if args.data:
        print(exported_accuracy(model, path, args.data))
    return 0
