"""``bssnet-zoo eval``"""
import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..data.check import check_dataset, data_warnings
from ..data.datasets import default_split, open_dataset, with_kind
from ..data.transforms import EvalTransform
from ..deployment.exported import ExportedModel, is_exported
from ..device import PRECISIONS, why_slow
from ..distributed import end_process, init_process
from ..evaluation.accuracy import evaluate
from ..models import open_model
from ..models.config import shown_size, trained_size
from ..models.weights import checkpoint_config
from ..training.run_folder import run_recipe
from .options import Verbs, height_and_width, image_size

_logger = logging.getLogger(__name__)


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "eval", help="mIoU of a model on a data set",
        description="Prints IoU of each class, mIoU, pixel accuracy, F1 of the boundaries (tolerance 2 pixels) and "
                    "images/s; predicts whole images unless told otherwise.")
    parser.add_argument("--model", metavar="NAME", help="model or model.tag (default: the checkpoint's, else bssnet_t)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights instead of the pretrained ones; from a run "
                        "folder, its recipe.yaml gives model, data, split and size unless they are given here; or a "
                        "file of 'bssnet-zoo export', which is run on the CPU")
    parser.add_argument("--trust", action="store_true", help="open a .torchscript or .pt2 file, which can run any code")
    parser.add_argument("--data", metavar="KIND:DIR", help="camvid:DIR, cityscapes:DIR, nightcity:DIR or folder:DIR")
    parser.add_argument("--split", metavar="NAME", help="default: the run's, else test for camvid and val for others")
    parser.add_argument("--size", type=image_size, metavar="N", help="what the network sees: the shorter side, "
                        "height x width as in 720x960 whatever the shape of an image, or 'full' for its own (default: "
                        "the run's shorter side, else what the weights were made for). Labels are compared at their "
                        "own size in any case")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.], metavar="X", help="average over these scales")
    parser.add_argument("--flip", action="store_true", help="average over the mirrored image")
    parser.add_argument("--sliding-window", type=height_and_width, nargs="?", const=True, default=False, metavar="HxW",
                        help="predict overlapping windows of this size (default: squares of the shorter side)")
    parser.add_argument("--save-dir", metavar="DIR", help="write the predictions as palette PNGs of class ids; for "
                        "cityscapes as label ids, named for its test server")
    parser.add_argument("--device", help="default: cuda or mps if there is one, else cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``bssnet-zoo eval``: prints the table. Returns the exit status."""
    if args.checkpoint and not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint not found: {args.checkpoint}")
    recipe = run_recipe(args.checkpoint)
    data = args.data or (recipe.data if recipe else None)
    if data is None:
        raise ValueError("say what to evaluate on: --data camvid:DIR, cityscapes:DIR, nightcity:DIR or folder:DIR")
    data = with_kind(data)
    split = args.split or (recipe.val_split if recipe else default_split(data))
    exported = None
    if is_exported(args.checkpoint):
        exported = ExportedModel(args.checkpoint, precision=args.precision, trust=args.trust)
    if exported:
        check_exported(args, exported)
    process = init_process("cpu" if exported else args.device)
    dataset = open_dataset(data, split)
    model = exported or open_model(args.model or (recipe.model if recipe else None), args.checkpoint)
    warnings = []
    if process.primary:
        # the labels of a test server's images are kept secret: all of them are ignored
        warnings = data_warnings(dataset, check_dataset(dataset, labelled=args.save_dir is None), split)
    if not exported and (slow := why_slow(args.precision, process.device)):
        warnings.append(slow)
    if recipe and recipe.trains_on(data, split):
        warnings.append(f"{args.checkpoint} was trained on {recipe.train_split}, and {split} is part of it: this is no "
                        "measure of other images")
    for line in warnings if process.primary else ():
        _logger.warning(line)
    size = args.size
    if size is None and not args.sliding_window:
        size = recipe.shorter_side if recipe and not exported else size_made_for(model, args.checkpoint)
    cfg = vars(exported) if exported else getattr(model, "pretrained_cfg", {})
    normalization = {key: cfg[key] for key in ("mean", "std") if cfg.get(key)}
    dataset.transform = EvalTransform(size=None if size == "full" else size, **normalization)
    result = evaluate(
        model.to(process.device).to(memory_format=torch.channels_last), dataset,
        scales=args.scales, flip=args.flip, sliding_window=args.sliding_window,
        precision=args.precision, workers=args.workers, save_dir=args.save_dir, process=process, progress=True)
    end_process()
    if process.primary:
        print(f"{data}, split {split}")
        print(result)
    return 0


def size_made_for(model: nn.Module, checkpoint: str | None) -> list[int] | None:
    """The shorter side that the weights were made for, as `Predictor` takes it; None if they don't say."""
    if isinstance(model, ExportedModel):
        return model.size or shown_size(model.trained_size)
    config = checkpoint_config(checkpoint, num_classes=0) if checkpoint else {}  # of our own weights it has nothing
    return shown_size(config.get("input_size", ())[1:] if config else trained_size(model))


def check_exported(args: argparse.Namespace, exported: ExportedModel) -> None:
    """Raises ValueError for options that an exported file can't follow."""
    if args.model:
        raise ValueError(f"{args.checkpoint} knows its model: leave out --model")
    if args.precision != "float32":
        exported.check_precision(args.precision)
    if exported.size:
        check_fixed_size(args, exported.size)


def check_fixed_size(args: argparse.Namespace, size: Sequence[int]) -> None:
    """Raises ValueError for options with which an exported file would get images of another size than its own."""
    fixed = "x".join(map(str, size))
    if args.size and args.size != tuple(size):
        wanted = args.size if args.size == "full" else "x".join(map(str, args.size))
        raise ValueError(f"{args.checkpoint} takes images of {fixed} only, not --size {wanted}: leave it out, or "
                         "export another file")
    windows = args.sliding_window and (args.sliding_window is True or list(args.sliding_window) != list(size))
    if windows or args.scales != [1.]:
        raise ValueError(f"{args.checkpoint} takes images of {fixed} only: leave out --scales and --sliding-window, or "
                         "export with --dynamic")
