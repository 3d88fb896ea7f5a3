"""Image files and videos in, label maps and overlays out."""
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ..data.videos import VIDEO_SUFFIXES, is_stream, is_video, require_av, stream_name, video_files
from ..distributed import Process
from ..files import atomic_path, make_folder
from .overlap import ahead
from .prediction import Prediction
from .predictor import Predictor, Prepared
from .video import VIDEO_ENDINGS, VideoOptions, VideoSummary, predict_video, unfinished

__all__ = ["PredictionSummary", "predict_files"]

IMAGE_ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png"}
RESULT_ENDINGS = (*IMAGE_ENDINGS.values(), *VIDEO_ENDINGS.values())
SOFTWARE, NAME = "Software", "bssnet-zoo"
WRITING = 4  # predictions that wait for the thread that writes
ALONE = Process(torch.device("cpu"))

OnWritten = Callable[..., None]


@dataclass
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        classes: Names and palette of the classes.
        counts: Pixels of each class in all images and frames, (num_classes,).
        written: The label image and the overlay of each image, as far as they were asked for.
        videos: What was done with each video.
        failed: Unreadable files, damaged videos, and why.
        skipped: Images and videos whose results were there.
        seconds: Time for all images, reading and writing included.
        interrupted: Ctrl-C ended a video.
    """

    classes: ClassInfo
    counts: np.ndarray
    written: list[tuple[Path, ...]] = field(default_factory=list)
    videos: list[VideoSummary] = field(default_factory=list)
    failed: dict[str | Path, str] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.
    interrupted: bool = False

    @classmethod
    def merged(cls, parts: "Sequence[PredictionSummary]") -> "PredictionSummary":
        """What several processes did at the same time."""
        return cls(
            parts[0].classes,
            sum((part.counts for part in parts), np.zeros_like(parts[0].counts)),
            written=[pair for part in parts for pair in part.written],
            videos=[video for part in parts for video in part.videos],
            failed={file: why for part in parts for file, why in part.failed.items()},
            skipped=sum(part.skipped for part in parts),
            seconds=max(part.seconds for part in parts),
            interrupted=any(part.interrupted for part in parts))

    def add_video(self, source: str | Path, done: VideoSummary) -> None:
        self.videos.append(done)
        self.counts += done.counts
        self.interrupted = done.interrupted
        if done.problem:
            self.failed[source] = f"{source}: {done.problem}"

    def __str__(self) -> str:
        lines = []
        if self.counts.any():
            order = np.argsort(-self.counts, kind="stable")
            lines = [f"{self.classes.names[i]:<20}{self.counts[i] / self.counts.sum():>7.1%}" for i in order]
        if self.written:
            lines.append(f"{len(self.written)} images in {self.seconds:.2f} s, {len(self.written) / self.seconds:.2f} "
                         "images/s with reading and writing")
            lines.append(f"last written: {' and '.join(map(str, self.written[-1]))}")
        lines += [str(video) for video in self.videos]
        if self.skipped:
            lines.append(f"skipped {self.skipped} files whose results are there")
        return "\n".join(lines + [f"failed: {reason}" for reason in self.failed.values()])


def find_sources(
        paths: Iterable[str | os.PathLike],
        out: Path,
        recorded: Callable[[Path], bool] = lambda name: False,
) -> list[tuple[str | Path, Path]]:
    """Images and videos and the names, relative and without suffix, for their results: folders are searched to the
    bottom.

    Args:
        paths: Files, folders, addresses of streams.
        out: The folder of the results, which are left out if they are there from before.
        recorded: Whether a stream's name has results that must stay: what was recorded can't be had again.

    Raises:
        ValueError: A folder without images and videos.
    """
    found, taken = list[tuple[str | Path, Path]](), set[str]()
    for path in paths:
        files: list[tuple[str | Path, Path]]
        if is_stream(path):
            files = [(os.fspath(path), Path(stream_name(path)))]
        elif Path(path).is_dir():
            files = [(p, p.relative_to(path).with_suffix(""))
                     for p in sorted(image_files(Path(path)) + video_files(Path(path)))
                     if not (p.name.endswith(RESULT_ENDINGS) and out.resolve() in p.resolve().parents)]
            if not files:
                raise ValueError(f"no images or videos in {path}: looked for "
                                 f"{', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
        else:
            files = [(Path(path), Path(Path(path).stem))]
        for file, base in files:
            name, n = base, 1
            while str(name).casefold() in taken or is_stream(file) and recorded(name):
                n += 1
                name = base.with_name(f"{base.name}-{n}")
            taken.add(str(name).casefold())  # on many disks a.png and A.png are one file
            found.append((file, name))
    return found


def check_ours(path: Path) -> None:
    """Raises FileExistsError if there is a file that `save_prediction` did not write."""
    if not path.exists():
        return
    try:
        with Image.open(path) as picture:
            ours = picture.info.get(SOFTWARE) == NAME
    except (OSError, ValueError, Image.DecompressionBombError):
        ours = False
    if not ours:
        raise FileExistsError(f"{path} is there and was not written by {NAME} predict: choose another --out, or "
                              "--overwrite")


def result_paths(base: Path, outputs: Iterable[str], endings: Mapping[str, str]) -> dict[str, Path]:
    """``BASE_labels.png`` and the like, by kind."""
    return {kind: base.with_name(base.name + endings[kind]) for kind in outputs}


def save_prediction(
        prediction: Prediction,
        base: Path,
        overwrite: bool = False,
        outputs: tuple[str, ...] = ("labels", "overlay"),
) -> tuple[Path, ...]:
    """Writes ``BASE_labels.png`` and ``BASE_overlay.png``, as far as they are asked for. Returns their paths.

    Raises:
        FileExistsError: One is there that was not written by this function, and ``overwrite`` isn't set.
    """
    paths = result_paths(base, outputs, IMAGE_ENDINGS)
    for path in () if overwrite else paths.values():
        check_ours(path)
    signed = PngInfo()
    signed.add_text(SOFTWARE, NAME)
    if "labels" in paths:
        with atomic_path(paths["labels"]) as temporary:
            prediction.label_image().save(temporary, pnginfo=signed)
    if "overlay" in paths:  # to search a photograph for strings takes 5 times as long and gains 3 %
        with atomic_path(paths["overlay"]) as temporary:
            prediction.overlay().save(temporary, compress_level=1, compress_type=zlib.Z_RLE, pnginfo=signed)
    return tuple(paths.values())


def predict_files(
        predictor: Predictor,
        paths: Iterable[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        overwrite: bool = False,
        skip_existing: bool = False,
        images: tuple[str, ...] = ("labels", "overlay"),
        videos: VideoOptions | None = None,
        process: Process = ALONE,
        on_written: OnWritten | None = None,
) -> PredictionSummary:
    """Segments image files, then videos. Writes ``NAME_labels.png`` and ``NAME_overlay.png`` for each image,
    ``NAME_overlay.mp4`` and, if asked for, ``NAME_labels.mkv`` for each video.

    Reading, computing and writing overlap. A file that can't be read or written doesn't stop the rest: it is in the
    summary. Several processes share the files by rank, and all get the summary of all.

    Args:
        predictor: What segments them.
        paths: Image files, sources of videos as `Video` takes them, and folders, which are searched to the bottom.
        out: The folder to write to; below a folder of images, sub-folders are kept.
        overwrite: Replace files that were not written by this function.
        skip_existing: Leave out images and videos of which all files are there.
        images: What to write of images: "labels", "overlay", both or none.
        videos: What is wanted of videos.
        process: This process among those that share the files.
        on_written: Called with the file and its prediction once an image, or a frame with its ``time`` in seconds, is
            written, one after the other.

    Raises:
        ValueError: A folder without images and videos, an output folder that can't be written to.
        RuntimeError: There are videos, and PyAV isn't installed.
    """
    out, videos = Path(out), videos or VideoOptions()
    outputs = videos.outputs

    def recorded(name: Path) -> bool:
        results = result_paths(out / name, outputs, VIDEO_ENDINGS).values()
        return not (overwrite or skip_existing) and any(path.exists() for path in results)

    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    found = process.agree(find_sources(paths, out, recorded))
    if any(is_video(source) for source, _ in found):
        require_av()
    try:
        make_folder(out)
    except OSError as error:
        raise ValueError(f"can't write to the output folder {out}: {error.strerror}") from error
    classes = predictor.runner.classes
    if classes is None:
        raise ValueError("the model has no num_classes, which says how many classes to count")
    summary = PredictionSummary(classes, np.zeros(len(classes.names), dtype=np.int64))
    mine = []
    for source, name in found[process.rank::process.world_size]:
        kinds = (videos.outputs, VIDEO_ENDINGS) if is_video(source) else (images, IMAGE_ENDINGS)
        results = result_paths(out / name, *kinds).values()
        done = results and all(path.exists() for path in results) and not unfinished(out / name).exists()
        if skip_existing and done:
            summary.skipped += 1
        else:
            mine.append((source, name))

    def save(prediction: Prediction, file: str | Path, name: Path) -> tuple[Path, ...]:
        written = save_prediction(prediction, out / name, overwrite, images)
        if on_written is not None:
            on_written(file, prediction)
        return written

    start = time.perf_counter()
    _predict_images(predictor, [file for file in mine if not is_video(file[0])], save, summary, process.primary)
    summary.seconds = time.perf_counter() - start
    for source, name in mine:
        if is_video(source) and not summary.interrupted:
            try:
                summary.add_video(source, predict_video(
                    predictor, source, out / name, videos, [other for other, _ in found], overwrite, on_written))
            except BrokenPipeError:
                raise
            except (OSError, ValueError) as error:
                summary.failed[source] = str(error)
            except (MemoryError, RuntimeError) as error:
                summary.failed[source] = first_line(source, error)
    return PredictionSummary.merged(process.gather(summary))


def first_line(source: str | Path, error: Exception) -> str:
    """What to say of a source that was too large for memory: Python's error for that may be empty, torch's is long."""
    return f"{source}: {(str(error) or type(error).__name__).splitlines()[0]}"


def _predict_images(
        predictor: Predictor,
        files: Sequence[tuple[str | Path, Path]],
        save: Callable[[Prediction, str | Path, Path], tuple[Path, ...]],
        summary: PredictionSummary,
        show: bool,
) -> None:
    """Segments images, with a thread that reads and one that saves; what was done goes into the summary."""
    def read(file: tuple[str | Path, Path]) -> tuple[tuple[str | Path, Path], Prepared | str]:
        try:
            return file, predictor.prepare(file[0])
        except (OSError, ValueError) as error:
            return file, str(error)
        except (MemoryError, RuntimeError) as error:  # torch has no other error for an image that is too large
            return file, first_line(file[0], error)

    def finish(file: str | Path, written: Future[tuple[Path, ...]], counts: np.ndarray) -> None:
        try:
            summary.written.append(written.result())
            summary.counts += counts
        except BrokenPipeError:  # who reads what is printed has gone
            raise
        except OSError as error:
            summary.failed[file] = str(error)
        except (MemoryError, RuntimeError) as error:
            summary.failed[file] = first_line(file, error)

    bar = tqdm(total=len(files), unit="image", disable=len(files) < 2 or not show or None, leave=False)
    with ThreadPoolExecutor(1) as writer, bar:
        writing: deque[tuple[str | Path, Future[tuple[Path, ...]], np.ndarray]] = deque()
        for (file, name), prepared in ahead(read, files):
            if isinstance(prepared, str):
                summary.failed[file] = prepared
            else:
                try:
                    prediction = predictor.segment(prepared)
                except (MemoryError, RuntimeError) as error:
                    summary.failed[file] = first_line(file, error)
                else:
                    writing.append((file, writer.submit(save, prediction, file, name), prediction.counts()))
            if len(writing) > WRITING:
                finish(*writing.popleft())
            bar.update()
        for result in writing:
            finish(*result)
