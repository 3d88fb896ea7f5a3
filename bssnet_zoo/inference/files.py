"""Image files in, label maps and overlays out."""
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.images import IMAGE_SUFFIXES, image_files, load_image
from ..files import atomic_path
from ..models.classes import class_info
from .predict import check_size, predict

__all__ = ["PredictionSummary", "predict_files"]

RESULT_ENDINGS = ("_labels.png", "_overlay.png")


@dataclass
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        classes: Names and palette of the classes.
        counts: Pixels of each class in all images, (num_classes,).
        written: Label images and overlays written, in pairs.
        failed: Unreadable files and why.
        seconds: Time for all files, reading and writing included.
    """

    classes: ClassInfo
    counts: np.ndarray
    written: list[tuple[Path, Path]] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    seconds: float = 0.

    def __str__(self) -> str:
        lines = []
        if self.written:
            order = np.argsort(-self.counts, kind="stable")
            lines = [f"{self.classes.names[i]:<20}{self.counts[i] / self.counts.sum():>7.1%}" for i in order]
            lines.append(f"{len(self.written)} images in {self.seconds:.2f} s, {len(self.written) / self.seconds:.2f} "
                         "images/s with reading and writing")
            lines.append(f"last written: {self.written[-1][0]} and {self.written[-1][1]}")
        return "\n".join(lines + [f"failed: {reason}" for reason in self.failed.values()])


def find_images(paths: Iterable[str | os.PathLike], out: Path) -> list[tuple[Path, Path]]:
    """Image files and the names, relative and without suffix, for their results: folders are searched to the bottom.

    Args:
        paths: Files and folders.
        out: The folder of the results, which are left out if they are there from before.

    Raises:
        ValueError: A folder without images.
    """
    found, taken = [], set()
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            files = [p for p in image_files(path)
                     if not (p.name.endswith(RESULT_ENDINGS) and out.resolve() in p.resolve().parents)]
            if not files:
                raise ValueError(f"no images in {path}: looked for {', '.join(IMAGE_SUFFIXES)}")
        for file in files:
            base = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("")
            name, n = base, 1
            while name in taken:
                n += 1
                name = base.with_name(f"{base.name}-{n}")
            taken.add(name)
            found.append((file, name))
    return found


def check_writable(folder: Path) -> None:
    """Makes the folder, and raises ValueError if files can't be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"can't write to the output folder {folder}: {error.strerror}") from error


def predict_files(
        model: nn.Module,
        paths: Iterable[str | os.PathLike],
        out: str | os.PathLike,
        size: int | Sequence[int] | None = None,
) -> PredictionSummary:
    """Segments image files and writes, for each, ``NAME_labels.png`` and ``NAME_overlay.png``.

    An unreadable file doesn't stop the rest: it is in the summary.

    Args:
        model: As for `predict`.
        paths: Image files and folders, which are searched to the bottom.
        out: The folder to write to; below a folder of images, sub-folders are kept.
        size: As for `predict`.

    Raises:
        ValueError: A folder without images, an output folder that can't be written to.
    """
    out = Path(out)
    if size is not None:
        check_size(size)
    files = find_images(paths, out)
    check_writable(out)
    classes = class_info(model)
    summary = PredictionSummary(classes, np.zeros(len(classes.names), dtype=np.int64))
    start = time.perf_counter()
    for file, name in tqdm(files, unit="image", disable=len(files) < 2, leave=False):
        try:
            prediction = predict(model, load_image(file), size)
        except (OSError, ValueError) as error:
            summary.failed[file] = str(error)
            continue
        targets = [(out / name).with_name(name.name + ending) for ending in RESULT_ENDINGS]
        for target, picture in zip(targets, (prediction.label_image(), prediction.overlay()), strict=True):
            with atomic_path(target) as temporary:
                picture.save(temporary)
        summary.written.append(tuple(targets))
        summary.counts += prediction.counts()
    summary.seconds = time.perf_counter() - start
    return summary
