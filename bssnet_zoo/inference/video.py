"""Videos and streams in, predictions, overlays and label maps out."""
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

from .overlap import behind
from .prediction import Prediction
from .predictor import Predictor
from .results import VIDEO_ENDINGS, check_free, origin, result_paths, unfinished
from .video_reader import Clip, Frame, Video
from .video_writer import VideoWriter, video_writer

__all__ = ["VideoOptions", "VideoSummary", "predict_video", "write_overlay"]


@dataclass(frozen=True)
class VideoOptions:
    """What is wanted of videos.

    Attributes:
        clip: Which frames.
        smooth: As for `Predictor.video`.
        outputs: "overlay", "labels", both or none.
    """

    clip: Clip = field(default_factory=Clip)
    smooth: float = 0.
    outputs: tuple[str, ...] = ("overlay",)


@dataclass
class VideoSummary:
    """What `predict_video` did.

    Attributes:
        source: The video.
        counts: Pixels of each class in the segmented frames, (num_classes,).
        outputs: The files written.
        read: Frames decoded.
        written: Frames segmented, and written.
        dropped: Frames of a live source that came while the network was busy.
        seconds: Time for all of it.
        problem: Why it ended early, or what was damaged; None if all went well.
        interrupted: Ctrl-C ended it.
    """

    source: str
    counts: np.ndarray
    outputs: list[Path] = field(default_factory=list)
    read: int = 0
    written: int = 0
    dropped: int = 0
    seconds: float = 0.
    problem: str | None = None
    interrupted: bool = False

    def __str__(self) -> str:
        files = " and ".join(map(str, self.outputs)) or "no file"
        return (f"{self.source}: {self.read} frames read, {self.written} written, {self.dropped} dropped in "
                f"{self.seconds:.2f} s, {self.written / max(self.seconds, 1e-9):.1f} FPS; {files}")


def write_overlay(
        frames: Iterable[tuple[float, Prediction]],
        path: str | os.PathLike[str],
        alpha: float = 0.55,
) -> int:
    """Writes overlays as a video, H.264 in MP4.

    The file is there when the last frame is written; Ctrl-C ends it where it is.

    Args:
        frames: Time in seconds and prediction of each frame, as `Predictor.video` gives them.
        path: The file, which is replaced.
        alpha: Weight of the colours, 0 to 1.

    Returns:
        The number of frames.

    Raises:
        ValueError: There are no frames.
        OSError: The file can't be written.

    Example:
        >>> import numpy as np
        >>> from bssnet_zoo import Predictor, write_overlay
        >>> predictor = Predictor("bssnet_t", backend="deploy", size=64)
        >>> frames = [(i / 10, predictor(np.zeros((64, 96, 3), np.uint8))) for i in range(3)]
        >>> write_overlay(frames, "drive_overlay.mp4")  # or predictor.video("drive.mp4") as the frames
        3
    """
    with video_writer(path) as file, behind(file.write) as write:
        for time, prediction in frames:
            write(np.asarray(prediction.overlay(alpha, legend=False)), time)
    return file.frames


def frame_rate(rate: Fraction | None, stride: int) -> Fraction:
    """Of a video with each ``stride``-th frame, in numbers that FFmpeg can hold."""
    return max((Fraction(rate or 25) / stride).limit_denominator(10 ** 6), Fraction(1, 10 ** 6))


def predict_video(
        predictor: Predictor,
        source: str | os.PathLike[str],
        base: Path,
        options: VideoOptions | None = None,
        sources: Iterable[str | os.PathLike[str]] = (),
        overwrite: bool = False,
        on_written: Callable[..., None] | None = None,
) -> VideoSummary:
    """Segments a video and writes ``BASE_overlay.mp4`` and ``BASE_labels.mkv``, as far as they are asked for.

    Decoding, computing and encoding overlap. What could be read of a damaged video is written, and the summary says
    what is missing. Ctrl-C ends the files where they are, and the summary says so.

    Args:
        predictor: What segments it.
        source: As for `Video`.
        base: Folder and beginning of the names of the files.
        options: What is wanted.
        sources: Files that must not be written over.
        overwrite: Replace files that were not written by this function.
        on_written: Called with the source, the prediction and the ``time`` in seconds of each frame that is written.

    Raises:
        FileExistsError: A file is there that must not be replaced.
        OSError: A file can't be read or written.
        ValueError: Not a video, no frames in the clip.
    """
    options = options or VideoOptions()
    paths = result_paths(base, options.outputs, VIDEO_ENDINGS)
    for path in paths.values():
        check_free(path, [source, *sources], overwrite)
    video = Video(source, options.clip)
    classes = predictor.runner.classes
    summary = VideoSummary(video.source, np.zeros(len(classes.names) if classes else 0, dtype=np.int64))
    start = perf_counter()
    bar = tqdm(total=video.expected() or None, unit="frame", desc=Path(video.source).name, disable=None, leave=False)
    try:
        with bar, ExitStack() as files:
            written: dict[str, VideoWriter] = {}

            def write(frame: Frame, prediction: Prediction) -> None:
                if not written:
                    written.update({kind: files.enter_context(video_writer(
                        path, labels=kind == "labels", source=origin(source, path), time_base=video.time_base,
                        rate=frame_rate(video.rate, options.clip.stride), aspect=video.aspect,
                    )) for kind, path in paths.items()})
                for kind, file in written.items():
                    array = prediction.labels if kind == "labels" else np.asarray(prediction.overlay(legend=False))
                    file.write(array, frame.time, frame.duration * options.clip.stride)
                summary.written += 1
                if on_written is not None:
                    on_written(video.source, prediction, time=round(float(frame.time), 6))

            with behind(write) as write_later:
                for frame, prediction in predictor.frames(video, options.smooth):
                    write_later(frame, prediction)
                    summary.counts += prediction.counts()
                    bar.set_postfix(dropped=video.dropped, refresh=False) if video.live else None
                    bar.update()
            if not summary.written:
                raise ValueError(f"{video.source}: {video.problem or 'no frames in what was asked for'}")
    except (KeyboardInterrupt, SystemExit) as stop:
        if paths and summary.written and not video.live:
            unfinished(base).touch()
        if isinstance(stop, SystemExit):
            raise
        summary.interrupted = True
    else:
        unfinished(base).unlink(missing_ok=True)
    summary.seconds = perf_counter() - start
    summary.read, summary.dropped, summary.problem = video.read, video.dropped, video.problem
    summary.outputs = [path for path in paths.values() if summary.written]
    return summary
