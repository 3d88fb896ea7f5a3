"""``bssnet-zoo bench``"""
import argparse
import json
import shlex
import sys
from dataclasses import asdict

import torch

from ..benchmark.backends import BACKENDS, PEAKS, Settings
from ..benchmark.table import SHARED, bench_size, choose_sides, machine_facts, markdown, shared_rows
from ..device import parse_device
from ..files import atomic_path, check_writable
from .options import Verbs, height_and_width


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "bench", help="speed of models by size, backend and precision",
        description="Times models, batch 1, up to the raw logits: all sides by turns, each in a process of its own. "
                    "Prints medians, 10th and 90th percentiles over the rounds, the share of what torch reaches in "
                    "one large convolution, the ratio to the plain model in float32, peak memory and multiply-adds.")
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"], metavar="NAME",
                        help="model or model.tag (default: bssnet_t bssnet_b)")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME", help="networks of others, with random "
                        "weights, on the backends that take them: of torchvision, as lraspp_mobilenet_v3_large, or "
                        "of segmentation_models_pytorch, as smp:unet/mobilenetv2_100")
    parser.add_argument("--size", type=height_and_width, nargs="+", default=[(1024, 2048)], metavar="HxW",
                        help="default: 1024x2048")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, metavar="NAME", help="default: all for the device: "
                        + "; ".join(f"{name}: {backend.about}" for name, backend in BACKENDS.items()))
    parser.add_argument("--precision", nargs="+", choices=PEAKS, default=["float32"], metavar="NAME",
                        help=f"{', '.join(PEAKS)} (default: float32)")
    parser.add_argument("--device", help="cpu, cuda, mps ... (default: cuda or mps if there is one)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N",
                        help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=6., metavar="S", help="for each row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="turns of each row (default: %(default)s)")
    parser.add_argument("--full-size", action="store_true", help="time logits at the size of the image")
    parser.add_argument("--calibration", metavar="DIR", default=Settings.calibration,
                        help="folder of images for int8 (default: the sample image)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--share", action="store_true", help="time T as the table of machines in docs/benchmark.md "
                        "does, whatever else is asked for, and print its rows for this machine")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``bssnet-zoo bench``: prints a table for each size. Returns the exit status."""
    if min(args.threads, args.rounds, args.seconds) <= 0:
        raise ValueError(f"--threads, --rounds and --seconds must be above 0, got {args.threads}, {args.rounds} and "
                         f"{args.seconds}")
    if args.json:
        check_writable(args.json)
    if args.share:
        vars(args).update(SHARED)
    device = parse_device(args.device)
    settings = Settings(device, args.threads, args.seconds, args.rounds, args.full_size, args.calibration)
    here = [name for name, backend in BACKENDS.items() if not backend.devices or device.type in backend.devices]
    sides = choose_sides(args.models, args.peers, args.backends or here, args.precision)
    machine = machine_facts(settings)
    sizes = []
    for size in args.size:
        sizes.append(bench_size(sides, size, settings))
        print(markdown(sizes[-1], machine, settings), end="\n\n", flush=True)
    if args.json:
        report = {"command": f"bssnet-zoo {shlex.join(sys.argv[1:])}", "machine": machine,
                  "settings": {**asdict(settings), "device": str(settings.device)}, "sizes": sizes}
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
    if args.share:
        print(shared_rows(sizes, machine, settings))
    return 0
