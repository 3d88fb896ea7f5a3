"""Image files in, label maps and overlays out."""
import os
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.images import IMAGE_SUFFIXES, image_files
from ..distributed import Process
from ..files import atomic_path
from .overlap import ahead
from .prediction import Prediction
from .predictor import Predictor, Prepared

__all__ = ["PredictionSummary", "predict_files"]

RESULT_ENDINGS = ("_labels.png", "_overlay.png")
SOFTWARE, NAME = "Software", "bssnet-zoo"
WRITING = 4  # predictions that wait for the thread that writes
ALONE = Process(torch.device("cpu"))


@dataclass
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        classes: Names and palette of the classes.
        counts: Pixels of each class in all images, (num_classes,).
        written: Label images and overlays written, in pairs.
        failed: Unreadable files and why.
        skipped: Images whose label images and overlays were there.
        seconds: Time for all files, reading and writing included.
    """

    classes: ClassInfo
    counts: np.ndarray
    written: list[tuple[Path, Path]] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.

    @classmethod
    def merged(cls, parts: "Sequence[PredictionSummary]") -> "PredictionSummary":
        """What several processes did at the same time."""
        return cls(
            parts[0].classes,
            sum((part.counts for part in parts), np.zeros_like(parts[0].counts)),
            written=[pair for part in parts for pair in part.written],
            failed={file: why for part in parts for file, why in part.failed.items()},
            skipped=sum(part.skipped for part in parts),
            seconds=max(part.seconds for part in parts))

    def __str__(self) -> str:
        lines = []
        if self.written:
            order = np.argsort(-self.counts, kind="stable")
            lines = [f"{self.classes.names[i]:<20}{self.counts[i] / self.counts.sum():>7.1%}" for i in order]
            lines.append(f"{len(self.written)} images in {self.seconds:.2f} s, {len(self.written) / self.seconds:.2f} "
                         "images/s with reading and writing")
            lines.append(f"last written: {self.written[-1][0]} and {self.written[-1][1]}")
        if self.skipped:
            lines.append(f"skipped {self.skipped} images whose results are there")
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


def check_ours(path: Path) -> None:
    """Raises FileExistsError if there is a file that `save_prediction` did not write."""
    if not path.exists():
        return
    try:
        with Image.open(path) as picture:
            ours = picture.info.get(SOFTWARE) == NAME
    except OSError:
        ours = False
    if not ours:
        raise FileExistsError(f"{path} is there and was not written by {NAME} predict: choose another --out, or "
                              "--overwrite")


def result_paths(base: Path) -> tuple[Path, Path]:
    """``BASE_labels.png`` and ``BASE_overlay.png``."""
    labels, overlay = (base.with_name(base.name + ending) for ending in RESULT_ENDINGS)
    return labels, overlay


def save_prediction(prediction: Prediction, base: Path, overwrite: bool = False) -> tuple[Path, Path]:
    """Writes ``BASE_labels.png`` and ``BASE_overlay.png``. Returns their paths.

    Raises:
        FileExistsError: One is there that was not written by this function, and ``overwrite`` isn't set.
    """
    labels, overlay = result_paths(base)
    for path in () if overwrite else (labels, overlay):
        check_ours(path)
    signed = PngInfo()
    signed.add_text(SOFTWARE, NAME)
    with atomic_path(labels) as temporary:
        prediction.label_image().save(temporary, pnginfo=signed)
    with atomic_path(overlay) as temporary:  # to search a photograph for strings takes 5 times as long and gains 3 %
        prediction.overlay().save(temporary, compress_level=1, compress_type=zlib.Z_RLE, pnginfo=signed)
    return labels, overlay


def predict_files(
        predictor: Predictor,
        paths: Iterable[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        overwrite: bool = False,
        skip_existing: bool = False,
        process: Process = ALONE,
        on_written: Callable[..., None] | None = None,
) -> PredictionSummary:
    """Segments image files and writes, for each, ``NAME_labels.png`` and ``NAME_overlay.png``.

    Reading, computing and writing overlap. A file that can't be read or written doesn't stop the rest: it is in the
    summary. Several processes share the files by rank, and all get the summary of all.

    Args:
        predictor: What segments them.
        paths: Image files and folders, which are searched to the bottom.
        out: The folder to write to; below a folder of images, sub-folders are kept.
        overwrite: Replace files that were not written by this function.
        skip_existing: Leave out images of which both files are there.
        process: This process among those that share the files.
        on_written: Called with an image's file and its prediction once its files are written, one after the other.

    Raises:
        ValueError: A folder without images, an output folder that can't be written to.
    """
    out = Path(out)
    files = find_images([paths] if isinstance(paths, (str, os.PathLike)) else paths, out)
    check_writable(out)
    classes = predictor.runner.classes
    if classes is None:
        raise ValueError("the model has no num_classes, which says how many classes to count")
    summary = PredictionSummary(classes, np.zeros(len(classes.names), dtype=np.int64))
    mine = process.agree(files)[process.rank::process.world_size]
    files = [(file, name) for file, name in mine
             if not (skip_existing and all(path.exists() for path in result_paths(out / name)))]
    summary.skipped = len(mine) - len(files)

    def read(file: tuple[Path, Path]) -> tuple[tuple[Path, Path], Prepared | str]:
        try:
            return file, predictor.prepare(file[0])
        except (OSError, ValueError) as error:
            return file, str(error)
        except (MemoryError, RuntimeError) as error:
            return file, f"{file[0]}: {str(error).splitlines()[0]}"

    def save(prediction: Prediction, file: Path, name: Path) -> tuple[Path, Path]:
        written = save_prediction(prediction, out / name, overwrite)
        if on_written is not None:
            on_written(file, prediction)
        return written

    def finish(file: Path, written: Future[tuple[Path, Path]], counts: np.ndarray) -> None:
        try:
            summary.written.append(written.result())
            summary.counts += counts
        except BrokenPipeError:  # who reads what `on_written` writes has gone
            raise
        except OSError as error:
            summary.failed[file] = str(error)

    start = time.perf_counter()
    bar = tqdm(total=len(files), unit="image", disable=len(files) < 2 or not process.primary or None, leave=False)
    with ThreadPoolExecutor(1) as writer, bar:
        writing: deque[tuple[Path, Future[tuple[Path, Path]], np.ndarray]] = deque()
        for (file, name), prepared in ahead(read, files):
            if isinstance(prepared, str):
                summary.failed[file] = prepared
            else:
                try:
                    prediction = predictor.segment(prepared)
                except (MemoryError, RuntimeError) as error:  # torch has no other error for an image that is too large
                    summary.failed[file] = f"{file}: {str(error).splitlines()[0]}"
                else:
                    written = writer.submit(save, prediction, file, name)
                    writing.append((file, written, prediction.counts()))
            if len(writing) > WRITING:
                finish(*writing.popleft())
            bar.update()
        for result in writing:
            finish(*result)
    summary.seconds = time.perf_counter() - start
    return PredictionSummary.merged(process.gather(summary))
