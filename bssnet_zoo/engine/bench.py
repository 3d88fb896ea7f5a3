"""``bssnet-zoo bench``: speed, memory and multiply-adds of models by size, backend and precision.

All sides of a size are timed by turns, and do the same work: from one normalised image to raw logits at the network's
own stride or, with ``--full-size``, to logits at the size of the image.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..device import parse_device
from ..files import atomic_path
from .backends import BACKENDS, BASELINE, PEAKS, Settings, Side, count, is_peer, make_peak, make_side
from .timing import Spread, Timing, spread, time_by_turns

__all__ = ["add_bench_arguments", "bench_size", "choose_sides", "markdown", "plot"]

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "nncf", "segmentation_models_pytorch", "torch_tensorrt")
COLORS = {"float32": "#4c72b0", "bfloat16": "#dd8452", "float16": "#8172b3", "int8": "#55a868"}


def choose_sides(
        models: Sequence[str],
        peers: Sequence[str],
        backends: Sequence[str],
        precisions: Sequence[str],
) -> list[Side]:
    """Rows of the table in order; each network's baseline comes first, asked for or not."""
    sides = []
    for name in (*models, *peers):
        sides.append(Side(name, *BASELINE))
        sides += [Side(name, backend, precision) for backend in backends for precision in precisions
                  if (backend, precision) != BASELINE and (not is_peer(name) or BACKENDS[backend].peers)]
    return sides


def result(
        side: Side,
        timing: Timing,
        baseline: Timing,
        multiply_adds: int,
        peak: float | None,
        size: Sequence[int],
) -> dict[str, Any]:
    """A side's numbers: seconds, bytes, multiply-adds; ``ratio`` is how much longer the baseline takes, by round."""
    seconds = spread(timing.seconds)
    ratio = None
    if not baseline.error:
        ratio = asdict(spread([slow / fast for slow, fast in zip(baseline.seconds, timing.seconds, strict=True)]))
    return {
        **asdict(side),
        "seconds": asdict(seconds),
        "fps": 1 / seconds.median,
        "ratio": ratio,
        "memory": timing.memory,
        "multiply_adds": multiply_adds,
        "share_of_peak": multiply_adds / seconds.median / peak if peak else None,
        "stride": round(size[0] / timing.shape[-2]),
        "rounds": timing.seconds,
    }


def bench_size(sides: Sequence[Side], size: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Times all sides at one size, by turns.

    Returns:
        ``size``; ``peaks``, multiply-adds per second of each precision; ``results``, a dict for each side; and
        ``unavailable``, reasons and the sides each is for. This is what ``--json`` writes.

    Raises:
        ValueError: An unknown model or peer, or no side that can be timed.
    """
    counts, makers, unavailable = {}, {}, {}
    for name in dict.fromkeys(side.model for side in sides):
        try:
            counts[name] = count(name, size)
        except RuntimeError as error:  # the network can't take this size
            unavailable.setdefault(" ".join(str(error).split()), []).append(name)
    with tempfile.TemporaryDirectory() as folder:
        for side in (side for side in sides if side.model in counts):
            try:
                makers[side] = make_side(side, size, settings, Path(folder))
            except (ValueError, RuntimeError, OSError) as error:  # a side that can't be made doesn't stop the others
                unavailable.setdefault(" ".join(str(error).split()), []).append(str(side))
        precisions = dict.fromkeys(side.precision for side in makers)
        peak_makers = {precision: partial(make_peak, precision, settings.device) for precision in precisions}
        timings = time_by_turns(
            {**makers, **peak_makers}, settings.device, settings.threads, settings.seconds, settings.rounds)
    peaks = {precision: PEAKS[precision][1] / spread(timings[precision].seconds).median
             for precision in precisions if not timings[precision].error}
    results = []
    for side in makers:
        if timings[side].error:
            unavailable.setdefault(timings[side].error, []).append(str(side))
            continue
        results.append(result(
            side, timings[side], timings[Side(side.model, *BASELINE)],
            counts[side.model][BACKENDS[side.backend].upsample], peaks.get(side.precision), size))
    if not results:
        raise ValueError("; ".join(f"{', '.join(names)}: {reason}" for reason, names in unavailable.items()))
    return {"size": list(size), "peaks": peaks, "results": results, "unavailable": unavailable}


def machine_facts(settings: Settings) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": values.get("model name") or platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in values.get("flags", "").split()],
        "gpu": torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else None,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    seconds, ratio = Spread(**row["seconds"]), row["ratio"]
    return (
        row["model"], row["backend"], row["precision"],
        seconds.format(digits=1, scale=1000), f"{row['fps']:.1f}",
        Spread(**ratio).format(digits=2) if ratio else "-",
        "-" if row["memory"] is None else f"{row['memory'] / 2 ** 20:.0f}",
        f"{row['multiply_adds'] / 1e9:.2f}",
        f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "-",
        f"1/{row['stride']}",
    )


def markdown(part: dict[str, Any], machine: dict[str, Any], settings: Settings) -> str:
    """What `bench_size` gives as a table for a terminal or a Markdown file."""
    rows = [("model", "backend", "precision", "ms", "FPS", "times eager float32", "MiB", "GMAC", "of peak", "logits")]
    rows += [_cells(row) for row in part["results"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    height, width = part["size"]
    peaks = "; ".join(f"{precision} {peak / 1e9:.0f} ({PEAKS[precision][0]})"
                      for precision, peak in part["peaks"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    notes = [f"{', '.join(sides)}: not available: {reason}" for reason, sides in part["unavailable"].items()]
    return "\n".join([
        f"{height}x{width}, batch 1, {'logits at full size' if settings.full_size else 'raw logits'}, "
        f"{settings.device}, {settings.threads} threads, {machine['gpu'] or machine['cpu']} "
        f"({' '.join(machine['cpu_flags'])}), {versions}", "", *lines, "",
        f"Peak in torch, G multiply-adds/s: {peaks}.", *(f"- {note}" for note in notes)])


def plot(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the FPS of each side: a column for each size, a row for each network.

    Raises:
        RuntimeError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise RuntimeError("--plot needs matplotlib: the extra [bench], as in pip install '.[bench]'") from None
    parts = report["sizes"]
    labels = {}  # of each network: its sides at any size, in order
    for row in (row for part in parts for row in part["results"]):
        labels.setdefault(row["model"], {})[row["backend"], row["precision"]] = None
    heights = [len(sides) + 1 for sides in labels.values()]
    figure = Figure(figsize=(1.5 + 3.5 * len(parts), 1.2 + 0.22 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(labels), len(parts), squeeze=False, sharex="col", height_ratios=heights)
    for column, part in enumerate(parts):
        for axes, (model, sides) in zip(grid[:, column], labels.items(), strict=True):
            rows = {(row["backend"], row["precision"]): row for row in part["results"] if row["model"] == model}
            for place, side in enumerate(sides):
                if side not in rows:
                    axes.text(0, place, " not available", va="center", fontsize=7, color="gray")
                    continue
                fps, seconds = rows[side]["fps"], rows[side]["seconds"]
                axes.barh(place, fps, color=COLORS[side[1]])
                axes.plot([1 / seconds["high"], 1 / seconds["low"]], [place] * 2, color="black", linewidth=1)
                axes.annotate(f"{fps:.1f}", (max(fps, 1 / seconds["low"]), place), (3, 0), textcoords="offset points",
                              va="center", fontsize=7)
            axes.set_yticks(range(len(sides)), [backend for backend, _ in sides] if column == 0 else [""] * len(sides),
                            fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.tick_params(length=0, labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_title(model, loc="left", fontsize=9, fontweight="bold")
        grid[-1, column].set_xlabel(f"images/s at {part['size'][0]}x{part['size'][1]}", fontsize=8)
    shown = dict.fromkeys(precision for sides in labels.values() for _, precision in sides)
    figure.legend(handles=[Patch(color=COLORS[precision], label=precision) for precision in shown],
                  loc="outside upper right", ncols=len(shown), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``bssnet-zoo bench``."""
    parser.add_argument("--models", nargs="+", default=["bssnet_t", "bssnet_b"], metavar="NAME",
                        help="model or model.tag (default: bssnet_t bssnet_b)")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME", help="networks of others, with random "
                        "weights, on the backends that take them: of torchvision, as lraspp_mobilenet_v3_large, or "
                        "of segmentation_models_pytorch, as smp:unet/mobilenetv2_100")
    parser.add_argument("--size", nargs="+", default=["1024x2048"], metavar="HxW", help="default: 1024x2048")
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
    parser.add_argument("--plot", metavar="PNG", help="draw the speed by size and backend there")
    parser.set_defaults(run=run)


def parse_sizes(texts: Sequence[str]) -> list[tuple[int, int]]:
    sizes = [re.fullmatch(r"(\d+)x(\d+)", text.lower()) for text in texts]
    for text, size in zip(texts, sizes, strict=True):
        if size is None:
            raise ValueError(f"--size takes height x width, as in 360x480, got '{text}'")
    return [(int(size[1]), int(size[2])) for size in sizes]


def run(args: argparse.Namespace) -> int:
    """``bssnet-zoo bench``: prints a table for each size. Returns the exit status."""
    if min(args.threads, args.rounds, args.seconds) <= 0:
        raise ValueError(f"--threads, --rounds and --seconds must be above 0, got {args.threads}, {args.rounds} and "
                         f"{args.seconds}")
    device = parse_device(args.device)
    settings = Settings(device, args.threads, args.seconds, args.rounds, args.full_size, args.calibration)
    here = [name for name, backend in BACKENDS.items() if not backend.devices or device.type in backend.devices]
    sides = choose_sides(args.models, args.peers, args.backends or here, args.precision)
    machine = machine_facts(settings)
    report = {"command": f"bssnet-zoo {shlex.join(sys.argv[1:])}", "machine": machine,
              "settings": {**asdict(settings), "device": str(settings.device)}, "sizes": []}
    for size in parse_sizes(args.size):
        report["sizes"].append(bench_size(sides, size, settings))
        print(markdown(report["sizes"][-1], machine, settings), end="\n\n", flush=True)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot(report, args.plot)
    return 0
