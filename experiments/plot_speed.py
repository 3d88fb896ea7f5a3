"""Draws the speeds that ``bssnet-zoo bench --json`` wrote.

    python experiments/plot_speed.py speed.json docs/images/benchmark.png

Needs matplotlib.
"""
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLORS = {"float32": "#4c72b0", "bfloat16": "#dd8452", "float16": "#8172b3", "int8": "#55a868"}


def plot(report: dict[str, Any], path: str) -> None:
    """The FPS of each side: a column for each size, a row for each network."""
    parts = report["sizes"]
    labels: dict[str, dict[tuple[str, str], None]] = {}  # of each network: its sides at any size, in order
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
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    source, target = sys.argv[1:]
    plot(json.loads(Path(source).read_text()), target)
