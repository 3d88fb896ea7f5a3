"""Video files that are written frame by frame: overlays as H.264, label maps as FFV1."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..data.videos import require_av
from ..files import atomic_path

__all__ = ["VideoFormat", "label_format", "overlay_format", "video_file", "written_by_us"]

SIGNATURE = "bssnet-zoo predict"  # in the comment of our files
ANY_RATE = Fraction(1, 90_000)  # seconds: multiples of it hit nearly all frame rates in use


@dataclass(frozen=True)
class VideoFormat:
    """How frames become a file.

    Attributes:
        codec: Name of FFmpeg's encoder.
        source: Layout of the arrays that are given to it.
        options: Of the encoder.
        container: Options of the file.
        rate: Frames a second, on average.
        time_base: What timestamps are rounded to, in seconds.
        aspect: Width of a pixel by its height.
    """

    codec: str
    source: str
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    rate: Fraction = Fraction(25)
    time_base: Fraction = ANY_RATE
    aspect: Fraction = Fraction(1)


def overlay_format(**like: Any) -> VideoFormat:
    """H.264 in MP4, for RGB. Its arguments are ``rate``, ``time_base`` and ``aspect`` of `VideoFormat`."""
    # of x264's presets the fastest: the next one takes twice the time for files as large
    return VideoFormat("libx264", "rgb24", {"preset": "ultrafast", "crf": "20"}, {"movflags": "faststart"}, **like)


def label_format(**like: Any) -> VideoFormat:
    """FFV1 in Matroska, for class ids: lossless, and grey pixels are the ids. Arguments as for `overlay_format`."""
    return VideoFormat("ffv1", "gray", **like)


class VideoFile:
    """A file that grows by a frame at a time, at ``path``; errors call it ``name``.

    The first frame gives it its size, and begins at 0 seconds.
    """

    def __init__(self, path: Path, name: str, format: VideoFormat):
        self.path, self.name, self.format = path, name, format
        self.frames = 0
        self._container: Any = None
        self._begin = 0.
        self._last = -1

    def write(self, array: np.ndarray, time: float, duration: float = 0.) -> None:
        """Adds a frame.

        Args:
            array: RGB (H, W, 3) or class ids (H, W), uint8.
            time: Seconds; a frame is later than the one before by the time base at least.
            duration: Seconds until the next frame, which only the last one needs.
        """
        import av

        if self._container is None:
            self._open(*array.shape[:2])
            self._begin = time
        base = self.format.time_base
        frame = av.VideoFrame.from_ndarray(array, format=self.format.source)
        if self.format.source == "rgb24":
            frame = frame.reformat(format=self._stream.pix_fmt, src_color_range="JPEG", dst_color_range="MPEG",
                                   dst_colorspace="ITU709")
        self._last = frame.pts = max(self._last + 1, round((time - self._begin) / base))
        frame.time_base, frame.duration = base, max(1, round(duration / base))
        with self._errors_named():
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds, and the end of the file."""
        if self._container is not None:
            with self._errors_named():
                self._container.mux(self._stream.encode(None))
                self._container.close()

    def abandon(self) -> None:
        """Closes the file as it is."""
        if self._container is not None:
            try:
                self._container.close()
            except OSError:  # the disk is full, for the second time
                pass

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"can't write {self.name}: {error.strerror or error}") from error

    def _open(self, height: int, width: int) -> None:
        import av

        form = self.format
        if form.codec not in av.codecs_available:
            raise RuntimeError(f"this PyAV has no encoder '{form.codec}', which {self.path.suffix} files need: "
                               "pip install --force-reinstall --only-binary av av")
        self._container = av.open(os.path.abspath(self.path), "w", container_options=form.container)
        self._container.metadata["comment"] = SIGNATURE
        self._stream = self._container.add_stream(form.codec, rate=form.rate, options=form.options)
        context = self._stream.codec_context
        self._stream.width, self._stream.height = width, height
        context.time_base = self._stream.time_base = form.time_base
        context.sample_aspect_ratio = form.aspect
        if form.source == "gray":
            self._stream.pix_fmt, context.color_range = "gray", 2  # of the whole range: an id is no brightness
        else:  # half the colours, which all players take, needs even sides
            self._stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
            context.color_range = context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709


@contextmanager
def video_file(path: str | os.PathLike[str], format: VideoFormat) -> Iterator[VideoFile]:
    """A `VideoFile` that is there when the block ends; Ctrl-C and SIGTERM end it too, another error removes it.

    Raises:
        OSError: It can't be written.
    """
    require_av()
    stop: BaseException | None = None
    with atomic_path(path) as temporary:
        file = VideoFile(temporary, os.fspath(path), format)
        try:
            try:
                yield file
            except (KeyboardInterrupt, SystemExit) as error:
                if not file.frames:
                    raise
                stop = error
            if not file.frames:
                raise ValueError(f"no frames for {path}")
            file.close()
        except BaseException:
            file.abandon()
            raise
    if stop is not None:
        raise stop


def written_by_us(path: Path) -> bool:
    """Whether a file is a video that `video_file` wrote."""
    av = require_av()
    try:
        with av.open(os.path.abspath(path)) as container:
            return container.metadata.get("comment", container.metadata.get("COMMENT")) == SIGNATURE
    except (av.FFmpegError, OSError):
        return False
