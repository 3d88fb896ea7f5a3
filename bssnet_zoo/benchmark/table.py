"""The table of ``bssnet-zoo bench``: speed, memory and multiply-adds of models by size, backend and precision.

All sides of a size are timed by turns, and do the same work: from one normalised image to raw logits at the network's
own stride or, with ``--full-size``, to logits at the size of the image.
"""
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..device import has_vnni
from .backends import BACKENDS, BASELINE, PEAKS, Settings, Side, count, is_peer, make_peak, make_side
from .rounds import Spread, Timing, spread, time_by_turns

__all__ = ["SHARED", "bench_size", "choose_sides", "machine_facts", "markdown", "shared_rows"]

# what the table of machines in docs/benchmark.md is made of
SHARED: dict[str, Any] = dict(
    models=["bssnet_t"], peers=[], size=[(360, 480), (720, 960)], precision=["float32", "bfloat16", "int8"],
    backends=["eager", "deploy", "onnxruntime", "openvino"], full_size=False)

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "nncf", "segmentation_models_pytorch")


def choose_sides(
        models: Sequence[str],
        peers: Sequence[str],
        backends: Sequence[str],
        precisions: Sequence[str],
) -> list[Side]:
    """Rows of the table in order; each network's baseline comes first, asked for or not.

    Raises:
        ValueError: An unknown model. Of peers `bench_size` says so.
    """
    for name in filter(is_peer, models):
        raise ValueError(f"unknown model '{name}': 'bssnet-zoo list' names ours; networks of others are --peers")
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
    counts, makers = {}, {}
    unavailable: dict[str, list[str]] = {}
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
        if settings.device.type == "cpu" and not has_vnni():  # torch's own int8 is no measure there: 1 G a second
            precisions.pop("int8", None)
        peak_makers = {precision: partial(make_peak, precision, settings.device) for precision in precisions}
        timings = time_by_turns(
            makers | peak_makers, settings.device, settings.threads, settings.seconds, settings.rounds)
    peaks = {precision: PEAKS[precision][1] / spread(timings[precision].seconds).median
             for precision in precisions if not timings[precision].error}
    results = []
    for side in makers:
        if timings[side].error:
            unavailable.setdefault(timings[side].error, []).append(str(side))
            continue
        results.append(result(
            side, timings[side], timings[Side(side.model, *BASELINE)],
            counts[side.model][side.upsample], peaks.get(side.precision), size))
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
        f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "-",
        Spread(**ratio).format(digits=2) if ratio else "-",
        "-" if row["memory"] is None else f"{row['memory'] / 2 ** 20:.0f}",
        f"{row['multiply_adds'] / 1e9:.2f}",
        f"1/{row['stride']}",
    )


def markdown(part: dict[str, Any], machine: dict[str, Any], settings: Settings) -> str:
    """What `bench_size` gives as a table for a terminal or a Markdown file."""
    rows: list[tuple[str, ...]] = [
        ("model", "backend", "precision", "ms", "FPS", "of peak", "times eager float32", "MiB", "GMAC", "logits")]
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


def shared_rows(sizes: Sequence[dict[str, Any]], machine: dict[str, Any], settings: Settings) -> str:
    """Rows of the table of machines, a size each: images/s of each backend in its fastest precision."""
    flags = f" ({' '.join(machine['cpu_flags'])})" if machine["cpu_flags"] else ""  # one name may be many CPUs
    name = machine["gpu"] or f"{machine['cpu']}{flags}, {settings.threads} threads"
    rows = []
    for part in sizes:
        fastest = {row["backend"]: row for row in sorted(part["results"], key=lambda row: row["fps"])}
        cells = [f"{fastest[backend]['fps']:.1f} {fastest[backend]['precision']}" if backend in fastest else "-"
                 for backend in SHARED["backends"]]
        rows.append(f"| {' | '.join([name, 'x'.join(map(str, part['size'])), *cells])} |")
    return "\n".join(rows)
