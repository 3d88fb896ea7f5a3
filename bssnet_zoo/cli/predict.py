"""``bssnet-zoo predict``"""
import argparse
from pathlib import Path

import torch

from ..data.videos import Clip
from ..deployment.exported import is_exported
from ..device import PRECISIONS, keep_freed_memory, parse_device
from ..inference.files import predict_files
from ..inference.predictor import Predictor
from ..inference.runner import BACKENDS
from ..inference.video import VideoOptions, check_smooth
from ..models import create_trained_model
from .options import Verbs, image_size


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "predict", help="segment images and videos: label maps and overlays",
        description="Segments images, videos, streams and folders. Writes NAME_labels.png (a palette PNG, pixel values "
                    "are class ids) and NAME_overlay.png (with a legend) for an image, NAME_overlay.mp4 for a video. "
                    "Exit status 1 if some file could not be read to its end.")
    parser.add_argument("images", nargs="+", metavar="SOURCE", help="image, video, folder (searched to the bottom), "
                        "address of a stream (rtsp://, http://) or camera (/dev/video0)")
    parser.add_argument("--model", metavar="NAME", help="model or model.tag, see 'bssnet-zoo list' (default: bssnet_t, "
                        "or the one that the checkpoint fits)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights instead of the pretrained ones, .safetensors or "
                        ".pth; or a file of 'bssnet-zoo export'")
    parser.add_argument("--num-classes", type=int, metavar="N", help="class count of the checkpoint (default: found in "
                        "it)")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="folder to write to (default: %(default)s)")
    parser.add_argument("--size", type=size, metavar="N", help="what the network sees: the shorter side, or "
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
    parser.set_defaults(run=run)


def size(text: str) -> tuple[int, ...] | str:
    return text if text == "full" else image_size(text)


def outputs(overlay: bool, labels: bool | None, labels_by_default: bool) -> tuple[str, ...]:
    """What to write, "labels", "overlay" or both."""
    wanted = {"labels": labels_by_default if labels is None else labels, "overlay": overlay}
    return tuple(kind for kind in wanted if wanted[kind])


def run(args: argparse.Namespace) -> int:
    if args.num_classes is not None and args.checkpoint is None:
        raise ValueError("--num-classes needs --checkpoint: the pretrained weights have the classes they have")
    clip = Clip(args.start, args.end, args.stride, args.max_frames, args.live)
    check_smooth(args.smooth)
    model = args.checkpoint and Path(args.checkpoint) or args.model or "bssnet_t"
    if args.checkpoint and (args.model or args.num_classes):
        if is_exported(args.checkpoint):
            raise ValueError(f"{args.checkpoint} knows its model and classes: leave out --model and --num-classes")
        model = create_trained_model(args.model, args.checkpoint, args.num_classes).to(parse_device(args.device))
    predictor = Predictor(model, args.device, args.precision, args.backend, args.size)
    if predictor.runner.device.type == "cpu":
        keep_freed_memory()
    threads = torch.get_num_threads()
    try:
        if predictor.runner.backend == "openvino":  # which has threads of its own: torch's would spin beside them
            torch.set_num_threads(1)
        images, video = outputs(args.overlay, args.labels, True), outputs(args.overlay, args.labels, False)
        summary = predict_files(
            predictor, args.images, args.out, args.overwrite, images, VideoOptions(clip, args.smooth, video))
    finally:
        torch.set_num_threads(threads)
    print(summary)
    if summary.interrupted:
        raise KeyboardInterrupt
    return 1 if summary.failed else 0
