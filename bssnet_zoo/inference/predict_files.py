"""Image files and videos in, label maps and overlays out."""
import os
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data.classes import ClassInfo
from ..data.images import IMAGE_SUFFIXES
from ..distributed import Process
from ..files import atomic_path, make_folder, visible_files
from .overlap import ahead
from .prediction import Prediction
from .predictor import Predictor, Prepared
from .results import (
    IMAGE_ENDINGS,
    RESULT_ENDINGS,
    VIDEO_ENDINGS,
    ResultNames,
    check_free,
    is_result,
    origin,
    png_info,
    result_paths,
    unfinished,
    written_from,
)
from .video import VideoOptions, VideoSummary, predict_video
from .video_reader import VIDEO_SUFFIXES, is_stream, is_video, require_av, stream_name, without_password

__all__ = ["PredictionSummary", "predict_files"]

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
        left_out: Number of files of searched folders that are no input, by suffix or kind.
        seconds: Time for all images, reading and writing included.
        interrupted: Ctrl-C ended a video.
    """

    classes: ClassInfo
    counts: np.ndarray
    written: list[tuple[Path, ...]] = field(default_factory=list)
    videos: list[VideoSummary] = field(default_factory=list)
    failed: dict[str | Path, str] = field(default_factory=dict)
    skipped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
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
            left_out=parts[0].left_out,
            seconds=max(part.seconds for part in parts),
            interrupted=any(part.interrupted for part in parts))

    def add_video(self, source: str | Path, done: VideoSummary) -> None:
        self.videos.append(done)
        self.counts += done.counts
        self.interrupted = done.interrupted
        if done.problem:
            self.failed[source] = f"{done.source}: {done.problem}"

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
        if self.left_out:
            lines.append("left out " + ", ".join(f"{number} {kind}" for kind, number in self.left_out.most_common()))
        return "\n".join(lines + [f"failed: {reason}" for reason in self.failed.values()])


def find_sources(
        paths: Iterable[str | os.PathLike],
        names: ResultNames,
        summary: PredictionSummary,
) -> list[tuple[str | Path, Path]]:
    """Images and videos, and the names for their results, relative and without suffix.

    Folders are searched to the bottom; the summary says what they have that is no input, and what can't be searched.

    Raises:
        ValueError: There are none.
    """
    found, problems = list[tuple[str | Path, Path]](), dict[str | Path, str]()

    def unreadable(error: OSError) -> None:
        problems[str(error.filename)] = f"can't search {error.filename}: {error.strerror}"

    for path in [os.fspath(path) for path in paths]:
        if is_stream(path):
            found.append((path, Path(stream_name(path))))
        elif os.path.isdir(path):
            before, files = len(problems), visible_files(path, unreadable=unreadable)
            inputs = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
            results = set(filter(is_result, inputs))
            summary.left_out.update(file.suffix.lower() or "without suffix" for file in set(files).difference(inputs))
            summary.left_out.update(["results of earlier runs"] * len(results))
            if not inputs and len(problems) == before:
                problems[path] = (f"no images or videos in {path}: looked for "
                                  f"{', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
            found += [(file, file.relative_to(path).with_suffix("")) for file in inputs if file not in results]
        else:
            found.append((path if "://" in path else Path(path), Path(Path(path).stem)))
    if problems and not found:
        raise ValueError(next(iter(problems.values())))
    summary.failed.update(problems)
    return [(source, names.choose(source, base)) for source, base in found]


def save_prediction(
        prediction: Prediction,
        source: str | Path,
        base: Path,
        inputs: Iterable[str | Path] = (),
        overwrite: bool = False,
        outputs: tuple[str, ...] = ("labels", "overlay"),
) -> tuple[Path, ...]:
    """Writes ``BASE_labels.png`` and ``BASE_overlay.png``, as far as they are asked for. Returns their paths.

    Raises:
        FileExistsError: One is an input, or was not written by this function and ``overwrite`` isn't set.
    """
    paths = result_paths(base, outputs, IMAGE_ENDINGS)
    for path in paths.values():
        check_free(path, inputs, overwrite)
    signed = png_info(source, base)
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
        out: The folder to write to; below a folder of images, sub-folders are kept. A source whose name has the results
            of another one gets ``NAME-2``.
        overwrite: Replace files that were not written by this function.
        skip_existing: Leave out images and videos of which all files are there, made from them and newer.
        images: What to write of images: "labels", "overlay", both or none.
        videos: What is wanted of videos.
        process: This process among those that share the files.
        on_written: Called with the file and its prediction once an image, or a frame with its ``time`` in seconds, is
            written, one after the other.

    Raises:
        ValueError: No images and videos in the folders, an output folder that can't be written to.
        RuntimeError: There are videos, and PyAV isn't installed.
    """
    out, videos = Path(out), videos or VideoOptions()
    classes = predictor.runner.classes
    if classes is None:
        raise ValueError("the model has no num_classes, which says how many classes to count")
    summary = PredictionSummary(classes, np.zeros(len(classes.names), dtype=np.int64))
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    names = ResultNames(out, keep_recordings=not (overwrite or skip_existing))
    found = process.agree(find_sources(paths, names, summary))
    if any(is_video(source) for source, _ in found):
        require_av()
    try:
        make_folder(out)
    except OSError as error:
        raise ValueError(f"can't write to the output folder {out}: {error.strerror}") from error
    mine, named = [], [source for source, _ in found if str(source).endswith(RESULT_ENDINGS)]
    for source, name in found[process.rank::process.world_size]:
        kinds = (videos.outputs, VIDEO_ENDINGS) if is_video(source) else (images, IMAGE_ENDINGS)
        if skip_existing and is_done(source, out / name, list(result_paths(out / name, *kinds).values())):
            summary.skipped += 1
        else:
            mine.append((source, name))

    def save(prediction: Prediction, file: str | Path, name: Path) -> tuple[Path, ...]:
        written = save_prediction(prediction, file, out / name, named, overwrite, images)
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
                    predictor, source, out / name, videos, named, overwrite, on_written))
            except BrokenPipeError:
                raise
            except (OSError, ValueError) as error:
                summary.failed[source] = str(error)
            except (MemoryError, RuntimeError) as error:
                summary.failed[source] = first_line(source, error)
    return PredictionSummary.merged(process.gather(summary))


def is_done(source: str | Path, base: Path, results: Sequence[Path]) -> bool:
    """Whether all results of a source are there, whole, and newer than it is."""
    try:
        if not results or not all(os.path.exists(path) for path in results) or os.path.exists(unfinished(base)):
            return False
        if is_stream(source):
            return True
        own, newest = origin(source, base), os.path.getmtime(source)
        return all(written_from(path) == own and os.path.getmtime(path) >= newest for path in results)
    except OSError:  # who reads the source says what is wrong
        return False


def first_line(source: str | Path, error: Exception) -> str:
    """What to say of a source that was too large for memory: Python's error for that may be empty, torch's is long."""
    return f"{without_password(source)}: {(str(error) or type(error).__name__).splitlines()[0]}"


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
                except (MemoryError, RuntimeError, ValueError) as error:
                    summary.failed[file] = first_line(file, error)
                else:
                    writing.append((file, writer.submit(save, prediction, file, name), prediction.counts()))
            if len(writing) > WRITING:
                finish(*writing.popleft())
            bar.update()
        for result in writing:
            finish(*result)
