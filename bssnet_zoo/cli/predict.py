"""``bssnet-zoo predict``"""
import argparse
import logging
import os
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..deployment.exported import is_exported
from ..device import PRECISIONS, keep_freed_memory, parse_device, why_slow
from ..distributed import Process, end_process, init_process
from ..inference.polygons import require_opencv
from ..inference.predict_files import predict_files
from ..inference.prediction import Prediction
from ..inference.predictor import Predictor, check_smooth
from ..inference.runner import BACKENDS
from ..inference.video import VideoOptions
from ..inference.video_reader import Clip
from ..models import open_model
from ..models.weights import STREET, checkpoint_config
from .options import Verbs, image_size

_logger = logging.getLogger(__name__)


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "predict", help="segment images and videos: label maps and overlays",
        description="Segments images, videos, streams and folders. Writes NAME_labels.png (a palette PNG, pixel values "
                    "are class ids) and NAME_overlay.png (with a legend) for an image, NAME_overlay.mp4 for a video. "
                    "Exit status 1 if some file could not be read to its end.")
    parser.add_argument("images", nargs="*", metavar="SOURCE", help="image, video, folder (searched to the bottom), "
                        "address of a stream (rtsp://, http://) or camera (/dev/video0)")
    parser.add_argument("--sample", action="store_true", help="segment the street that comes with the package")
    parser.add_argument("--model", metavar="NAME", help="model or model.tag, see 'bssnet-zoo list' (default: bssnet_t, "
                        "or the one that the checkpoint fits)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights instead of the pretrained ones, .safetensors or "
                        ".pth; or a file of 'bssnet-zoo export'")
    parser.add_argument("--trust", action="store_true", help="open a .torchscript or .pt2 file, which can run any code")
    parser.add_argument("--num-classes", type=int, metavar="N", help="class count of the checkpoint (default: found in "
                        "it)")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="folder to write to (default: %(default)s)")
    parser.add_argument("--size", type=image_size, metavar="N", help="what the network sees: the shorter side, or "
                        "height x width as in 720x960, or 'full' for the image's own (default: what the weights were "
                        "made for)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the network: openvino (on a "
                        "CPU), deploy (torch, made fast) or eager (the model as it is); auto takes the first that is "
                        "installed (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: bfloat16 on a CPU that has it, else float32")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one)")
    parser.add_argument("--no-overlay", dest="overlay", action="store_false", help="write no overlays")
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, help="write label maps (default: of images, "
                        "not of videos; NAME_labels.mkv, grey FFV1 whose pixel values are class ids)")
    parser.add_argument("--max-pixels", type=float, metavar="N", help="millions of pixels that an image may have, "
                        "a guard against files that fill the memory (default: 179)")
    video = parser.add_argument_group("videos and streams", "need the extra [video]")
    video.add_argument("--start", type=float, default=0., metavar="S", help="seconds from the beginning to the first "
                       "frame (default: %(default)g)")
    video.add_argument("--end", type=float, metavar="S", help="seconds from the beginning at which to end")
    video.add_argument("--stride", type=int, default=1, metavar="N", help="take every N-th frame (default: "
                       "%(default)s)")
    video.add_argument("--max-frames", type=int, metavar="N", help="frames at most")
    video.add_argument("--smooth", type=float, default=0., metavar="A", help="exponential average of the logits over "
                       "frames: weight of the past, 0 (off) to below 1 (default: %(default)g)")
    video.add_argument("--live", action=argparse.BooleanOptionalAction, help="drop frames that come while the network "
                       "is busy (default: of cameras and of streams without an end)")
    parser.add_argument("--overwrite", action="store_true", help="replace files in DIR that 'predict' did not write")
    parser.add_argument("--skip-existing", action="store_true", help="leave out what has its files in DIR: to go on "
                        "where an earlier run ended")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each image or frame: its "
                        "classes' shares and polygons in the words of COCO (extra [polygons]); the summary goes to "
                        "stderr")
    parser.add_argument("--min-area", type=int, default=0, metavar="N", help="with --json: leave out regions of fewer "
                        "pixels, and fill such holes (default: %(default)s)")
    parser.set_defaults(run=run)


def outputs(overlay: bool, labels: bool | None, labels_by_default: bool) -> tuple[str, ...]:
    """What to write, "labels", "overlay" or both."""
    wanted = {"labels": labels_by_default if labels is None else labels, "overlay": overlay}
    return tuple(kind for kind in wanted if wanted[kind])


def check_options(args: argparse.Namespace, process: Process) -> None:
    """Raises ValueError or RuntimeError for options that don't go together."""
    if not args.images and not args.sample:
        raise ValueError("say what to segment: an image, a video, a folder, a stream, or --sample")
    if args.num_classes is not None and args.checkpoint is None:
        raise ValueError("--num-classes needs --checkpoint: the pretrained weights have the classes they have")
    if args.min_area and not args.json:
        raise ValueError("--min-area is for the polygons of --json")
    if args.skip_existing and args.overwrite:
        raise ValueError("--skip-existing leaves the files that are there, --overwrite replaces them: take one")
    check_smooth(args.smooth)
    if args.json:
        require_opencv()
        if process.world_size > 1 and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            raise ValueError("several processes would mix their lines in one pipe: let --json go to a file, > FILE")


def create_predictor(args: argparse.Namespace, device: str | None) -> Predictor:
    model = args.checkpoint and Path(args.checkpoint) or args.model or "bssnet_t"
    if args.checkpoint and (args.model or args.num_classes):
        if is_exported(args.checkpoint):
            raise ValueError(f"{args.checkpoint} knows its model and classes: leave out --model and --num-classes")
        model = open_model(args.model, args.checkpoint, args.num_classes).to(parse_device(device))
    predictor = Predictor(model, device, args.precision, args.backend, args.size, args.trust)
    if args.checkpoint and args.size is None and not is_exported(args.checkpoint):
        warn_of_unknown_size(args.checkpoint, predictor)
    return predictor


def print_line(min_area: int, file: Path, prediction: Prediction, **facts: Any) -> None:
    """Prints a line of JSON, in one piece, as other processes may write to the same file."""
    sys.stdout.write(prediction.to_json(min_area=min_area, file_name=str(file), **facts) + "\n")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> int:
    exported = args.checkpoint is not None and is_exported(args.checkpoint)
    process = init_process("cpu" if exported else args.device, patient=True)
    check_options(args, process)
    if args.max_pixels is not None:
        Image.MAX_IMAGE_PIXELS = int(args.max_pixels * 1e6 / 2)  # Pillow warns from there on, and refuses twice as much
    clip = Clip(args.start, args.end, args.stride, args.max_frames, args.live)
    predictor = create_predictor(args, args.device if process.world_size == 1 else str(process.device))
    runner = predictor.runner
    slow = why_slow(runner.precision, runner.device)
    if slow and process.primary and runner.backend in ("deploy", "eager"):
        _logger.warning(slow)
    if runner.device.type == "cpu":
        keep_freed_memory()

    threads = torch.get_num_threads()
    try:
        if runner.backend == "openvino":  # which has threads of its own: torch's would spin beside them
            torch.set_num_threads(1)
        sources = [*args.images, STREET] if args.sample else args.images
        summary = predict_files(
            predictor, sources, args.out, overwrite=args.overwrite, skip_existing=args.skip_existing,
            images=outputs(args.overlay, args.labels, True),
            videos=VideoOptions(clip, args.smooth, outputs(args.overlay, args.labels, False)),
            process=process, on_written=partial(print_line, args.min_area) if args.json else None)
    finally:
        torch.set_num_threads(threads)
    if process.primary:
        print(summary, file=sys.stderr if args.json else sys.stdout)
    end_process()
    if summary.interrupted:
        raise KeyboardInterrupt
    return 1 if summary.failed else 0


def warn_of_unknown_size(checkpoint: str, predictor: Predictor) -> None:
    config = checkpoint_config(checkpoint, num_classes=0)
    if config and "input_size" not in config:
        shorter_side = predictor.size[0] if predictor.size else "any length"
        _logger.warning("%s doesn't say what size its weights were made for: the network sees images with a shorter "
                        "side of %s; --size says another", checkpoint, shorter_side)
