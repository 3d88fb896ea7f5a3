"""The page as static files: what the browser loads, with the models and a manifest that says what they are."""
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..deployment.export import export_model
from ..deployment.exported import require
from ..deployment.formats import FORMATS
from ..deployment.int8 import calibration_files
from ..files import atomic_path, sha256
from ..models import BSSNet
from ..models.config import class_info, model_name, trained_size
from ..version import __version__
from .runtime import copy_runtime, find_runtime, runtime_facts

__all__ = ["HEADERS", "write_site"]

Calibration = str | os.PathLike | Sequence[str | os.PathLike]

PAGE = Path(__file__).parent / "page"
MANIFEST = "manifest.json"
MADE_BY = "bssnet-zoo demo"
SMALLEST, LARGEST = 64, 2048  # shorter side; an exported file for any size takes 64 and more
FIRST_SIZE = 480  # a second's work is too long to wait for in a browser
PRECISIONS = ("float32", "float16")  # for WebAssembly, for WebGPU

# SharedArrayBuffer, which threads need, is only for pages that are isolated from other origins
HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}

SPACE_README = f"""---
title: BSSNet in the browser
emoji: 🛣️
colorFrom: blue
colorTo: gray
sdk: static
app_file: index.html
pinned: false
custom_headers:
  cross-origin-opener-policy: {HEADERS["Cross-Origin-Opener-Policy"]}
  cross-origin-embedder-policy: {HEADERS["Cross-Origin-Embedder-Policy"]}
---

# BSSNet in the browser

Static files made by `{MADE_BY}` {__version__}: real-time semantic segmentation of road scenes that runs in the
visitor's browser, on [ONNX Runtime Web](https://www.npmjs.com/package/onnxruntime-web) (MIT). Pictures stay there.

The lines above are for a static Hugging Face Space, `_headers` is for hosts such as Netlify and Cloudflare Pages. Where
the headers can't be set, as on GitHub Pages, the page runs in one thread. To see it here: `python -m http.server`.

The sample pictures are frames of CamVid, for research only: `samples/LICENSE.md`.
"""


def check_site(models: Sequence[BSSNet], size: int | None) -> None:
    """Raises ValueError for what the page can't show."""
    for model in models:
        if model.in_chans != 3:
            raise ValueError(f"the page shows pictures in RGB, {model_name(model)} takes {model.in_chans} channels")
        if model.num_classes > 256:
            raise ValueError(f"the page shows 256 classes at most, {model_name(model)} has {model.num_classes}")
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size is the shorter side in pixels, {SMALLEST} to {LARGEST}, got {size}")
    names = [model_name(model) for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"a model is named twice: {', '.join(names)}")


def old_files(out: Path, overwrite: bool) -> set[Path]:
    """Files that an earlier `write_site` wrote there.

    Raises:
        ValueError: The folder has files that it did not write, and ``overwrite`` isn't set.
    """
    if not out.exists():
        return set()
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        if manifest["made_by"] == MADE_BY:
            return {out / name for name in manifest["files"]
                    if ".." not in Path(name).parts and not Path(name).is_absolute()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not overwrite and any(out.iterdir()):
        raise ValueError(f"{out} has files that '{MADE_BY}' did not write: choose another --out, or --overwrite")
    return set()


def sizes_to_choose(trained: int, size: int) -> list[int]:
    """Shorter sides that the page offers: around what the weights were made for, and the one asked for."""
    around = {round(trained * factor / 8) * 8 for factor in (1 / 2, 2 / 3, 1, 4 / 3, 2)}
    return sorted({side for side in around if SMALLEST <= side <= LARGEST} | {trained, size})


def write_model(
        model: BSSNet,
        out: Path,
        size: int | None,
        calibration: Calibration | None,
        bar: tqdm,
        written: list[Path],
) -> dict[str, Any]:
    """Writes ``models/NAME.PRECISION-HASH.onnx`` and says so in ``written``. Returns the manifest's entry.

    The hash is in the name so that a browser that kept an older file asks for the new one.
    """
    cfg, classes, files = model.pretrained_cfg, class_info(model), {}
    file_name = re.sub(r"[^\w.-]", "_", model_name(model))  # its tag comes from a config, which may be a stranger's
    for precision in (*PRECISIONS, *(["int8"] if calibration else [])):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            export_model(model, path, "onnx", precision=precision, raw=True, calibration=calibration)
            digest = sha256(path)
            target = out / "models" / f"{file_name}.{precision}-{digest[:8]}.onnx"
            with atomic_path(target) as temporary:
                shutil.copyfile(path, temporary)
            written.append(target)
        files[precision] = dict(url=f"models/{target.name}", bytes=target.stat().st_size, sha256=digest)
        bar.update()
    trained = min(trained_size(model))
    size = size or min(trained, FIRST_SIZE)
    return dict(
        name=model_name(model), mean=list(cfg["mean"]), std=list(cfg["std"]), trained_size=trained,
        size=size, sizes=sizes_to_choose(trained, size), files=files,
        classes=[dict(name=name, colour=colour) for name, colour in zip(
            classes.names, classes.hex_palette, strict=True)])


def copy_page(out: Path) -> Iterator[Path]:
    """Copies ``page/``, and writes what hosts read. Yields the files."""
    for source in sorted(path for path in PAGE.rglob("*") if path.is_file()):
        target = out / source.relative_to(PAGE)
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
        yield target
    headers = "/*\n" + "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())
    for name, text in (("README.md", SPACE_README), ("_headers", headers), (".nojekyll", "")):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        yield out / name


def _write_site(
        models: Sequence[BSSNet],
        out: Path,
        dist: Path | None,
        size: int | None,
        calibration: Calibration | None,
        written: list[Path],
) -> None:
    exports = len(models) * (len(PRECISIONS) + bool(calibration))
    with tqdm(total=exports, desc="exporting", unit="file", disable=None, leave=False) as bar:
        entries = [write_model(model, out, size, calibration, bar, written) for model in models]
    written += copy_page(out)
    written += copy_runtime(dist, out / "runtime") if dist else []
    manifest = dict(
        made_by=MADE_BY, version=__version__, runtime=runtime_facts(local=dist is not None), models=entries,
        files=sorted(path.relative_to(out).as_posix() for path in (*written, out / MANIFEST)))
    with atomic_path(out / MANIFEST) as temporary:  # last: what it names is there
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    written.append(out / MANIFEST)


def write_site(
        models: Sequence[BSSNet],
        out: str | os.PathLike[str],
        runtime: str | os.PathLike[str] | None = None,
        size: int | None = None,
        overwrite: bool = False,
        calibration: Calibration | None = None,
) -> list[Path]:
    """Writes the page as static files, for any host.

    Args:
        models: What the page offers, the first one at first; with the names and colours of their classes.
        out: The folder to write to. A site that is there is replaced; other files stay.
        runtime: An npm installation of onnxruntime-web to copy beside the page; None to load it from a CDN.
        size: What the networks see at first, the shorter side in pixels; None for what their weights were made for,
            480 at most.
        overwrite: Write into a folder that has files of others.
        calibration: A folder of images or a list of files like those that the model will see: WebAssembly then runs it
            in int8.

    Returns:
        The files.

    Raises:
        ValueError: No RGB model, a size out of range, a folder with files of others, a runtime of another version, no
            images to calibrate on.
        RuntimeError: A missing package, or a model that can't be exported.
    """
    out = Path(out)
    check_site(models, size)
    if calibration:
        calibration = calibration_files(calibration)
    before = old_files(out, overwrite)
    require(FORMATS["onnx"].packages, "the demo")
    dist = find_runtime(runtime) if runtime is not None else None
    written: list[Path] = []
    try:
        _write_site(models, out, dist, size, calibration, written)
    except BaseException:  # Ctrl-C too: without a manifest, the next try would take what is there for files of others
        for path in set(written) - before:
            path.unlink(missing_ok=True)
        for folder in ("models", "samples", "runtime"):
            with suppress(OSError):  # not there, or not empty
                (out / folder).rmdir()
        raise
    for path in before - set(written):
        path.unlink(missing_ok=True)
    return written
