"""Draws the network: ``python docs/architecture.py docs/images/architecture.svg``.

Where a box stands is written here; its channels and stride are those that T and B have, found by running them. Boxes
are light with dark text and lines are grey, so that the drawing reads on a white page and on a dark one.
"""
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bssnet_zoo

COLOURS = {"trunk": "#dbe7f5", "border": "#fddcc0", "spatial": "#d3efd3", "semantic": "#e6dbf9", "fusion": "#fff0a8"}
WIDTH, HEIGHT = 118, 44
# module: (name, left, top, colour)
BOXES = {
    "stem": ("stem", 140, 20, "trunk"),
    "stages.1": ("stages 1, 2", 140, 100, "trunk"),
    "stages.2": ("stage 3", 140, 230, "trunk"),
    "stages.3": ("stage 4", 140, 310, "trunk"),
    "stages.4": ("stage 5", 140, 390, "trunk"),
    "decoder.border.conv1": ("3x3 conv", 310, 60, "border"),
    "decoder.border.luafm": ("LUAFM", 480, 60, "border"),
    "decoder.border.conv2": ("3x3 conv", 650, 60, "border"),
    "decoder.spatial.conv1": ("3x3 conv", 310, 140, "spatial"),
    "decoder.spatial.luafm": ("LUAFM", 480, 140, "spatial"),
    "decoder.spatial.conv2": ("3x3 conv", 650, 140, "spatial"),
    "decoder.semantic.pappm": ("PAPPM", 310, 390, "semantic"),
    "decoder.semantic.fuse4": ("LUAFM", 480, 310, "semantic"),
    "decoder.semantic.fuse3": ("LUAFM", 650, 230, "semantic"),
    "decoder.umf": ("UMF", 820, 140, "fusion"),
    "head": ("head", 820, 230, "fusion"),
    # for training only
    "border_head": ("border head", 480, 0, "border"),
    "spatial_head": ("spatial head", 480, 205, "spatial"),
    "fcn_heads.0": ("FCN head", 0, 230, "trunk"),
    "fcn_heads.1": ("FCN head", 0, 310, "trunk"),
}
SMALL = {"border_head": 34, "spatial_head": 34}
ARROWS = (
    ("stem", "stages.1"), ("stages.1", "stages.2"), ("stages.2", "stages.3"), ("stages.3", "stages.4"),
    ("stages.1", "decoder.border.conv1"), ("stages.1", "decoder.spatial.conv1"),
    ("decoder.border.conv1", "decoder.border.luafm"), ("decoder.border.luafm", "decoder.border.conv2"),
    ("decoder.spatial.conv1", "decoder.spatial.luafm"), ("decoder.spatial.luafm", "decoder.spatial.conv2"),
    ("stages.4", "decoder.semantic.pappm"), ("stages.3", "decoder.semantic.fuse4"),
    ("decoder.semantic.pappm", "decoder.semantic.fuse4"), ("decoder.semantic.fuse4", "decoder.semantic.fuse3"),
    ("decoder.border.conv2", "decoder.umf"), ("decoder.spatial.conv2", "decoder.umf"),
    ("decoder.semantic.fuse3", "decoder.umf"), ("decoder.umf", "head"),
)
TRAINING = {"border_head": "decoder.border.luafm", "spatial_head": "decoder.spatial.luafm",
            "fcn_heads.0": "stages.2", "fcn_heads.1": "stages.3"}


def measure(variant: str, size: int = 512) -> dict[str, tuple[int, int]]:
    """Channels and stride of the map that each module of `BOXES` gives."""
    model = bssnet_zoo.create_model(variant, aux_heads=True, num_classes=11, device="meta").train()
    found: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            tensor = output if isinstance(output, torch.Tensor) else output[0]
            found[name] = (tensor.shape[1], size // tensor.shape[2])
        return hook

    for name in BOXES:
        model.get_submodule(name).register_forward_hook(note(name))
    model(torch.empty(2, 3, size, size, device="meta"))
    return found


def facts(name: str, t: dict[str, tuple[int, int]], b: dict[str, tuple[int, int]]) -> str:
    """What stands in the box: channels of T and B, and the stride."""
    (channels_t, stride_t), (channels_b, stride_b) = t[name], b[name]
    if "head" in name:
        channels = {"border_head": "border", "spatial_head": "image"}.get(name, "classes")
        stride = f"1/{stride_t}" if stride_t == stride_b else f"1/{stride_t} | 1/{stride_b}"
        return f"{channels}, {stride}"
    return f"{channels_t} | {channels_b}, 1/{stride_t}"


def box(name: str, text: str) -> str:
    title, left, top, colour = BOXES[name]
    height, dash = SMALL.get(name, HEIGHT), ' stroke-dasharray="4 3"' if name in TRAINING else ""
    middle = left + WIDTH / 2
    return (f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{height}" rx="6" fill="{COLOURS[colour]}" '
            f'stroke="#808080"{dash}/>'
            f'<text x="{middle}" y="{top + height * 0.42}" class="name">{title}</text>'
            f'<text x="{middle}" y="{top + height * 0.82}">{text}</text>')


def arrow(source: str, target: str, dashed: bool = False) -> str:
    (_, x1, y1, _), (_, x2, y2, _) = BOXES[source], BOXES[target]
    h1, h2 = SMALL.get(source, HEIGHT), SMALL.get(target, HEIGHT)
    if x1 == x2:  # one above the other
        start, end = (x1 + WIDTH / 2, y1 + h1 if y2 > y1 else y1), (x2 + WIDTH / 2, y2 if y2 > y1 else y2 + h2)
    else:
        start, end = (x1 + WIDTH if x2 > x1 else x1, y1 + h1 / 2), (x2 if x2 > x1 else x2 + WIDTH, y2 + h2 / 2)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="M {start[0]} {start[1]} L {end[0]} {end[1]}" class="arrow"{dash}/>'


def path(d: str) -> str:
    return f'<path d="{d}" class="arrow"/>'


def draw() -> str:
    """The drawing as SVG."""
    t, b = measure("bssnet_t"), measure("bssnet_b")
    lines = [arrow(*ends) for ends in ARROWS] + [arrow(source, head, True) for head, source in TRAINING.items()]
    # stage 3 also goes to the LUAFMs of all three branches; the image to the stem, the logits from the head
    lines += [path("M 258 244 L 440 244 L 440 190 L 500 190 L 500 184"),
              path("M 440 244 L 440 122 L 500 122 L 500 104"),
              path("M 258 260 L 650 260"), path("M 100 42 L 140 42"), path("M 879 274 L 879 310")]
    labels = ((50, 47, "image, 3"), (879, 328, "logits, resized to the image"))
    notes = (
        (310, 450, "semantic branch"), (310, 42, "border branch"), (310, 200, "spatial branch"),
        (650, 396, "Numbers: channels of T | B, and the size relative to the image."),
        (650, 414, "Dashed: heads that exist in training only."),
        (650, 432, "B convolves the fused map and doubles its size before the head."))
    return "\n".join((
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-6 -6 1056 476" font-family="sans-serif" font-size="13.5">',
        '<title>BSSNet: trunk, border, spatial and semantic branch, fused by UMF</title>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 8 4 L 0 8 z" fill="#808080"/></marker></defs>',
        '<style>text { text-anchor: middle; fill: #202020 } .name { font-weight: bold; font-size: 15px } '
        '.outside { fill: #808080 } .note { fill: #808080; text-anchor: start } '
        '.arrow { fill: none; stroke: #808080; stroke-width: 1.5; marker-end: url(#head) }</style>',
        *lines, *(box(name, facts(name, t, b)) for name in BOXES),
        *(f'<text x="{x}" y="{y}" class="outside">{text}</text>' for x, y, text in labels),
        *(f'<text x="{x}" y="{y}" class="note">{text}</text>' for x, y, text in notes),
        "</svg>\n"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
