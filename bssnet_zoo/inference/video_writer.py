"""Video files that are written frame by frame: overlays as H.264, label maps as FFV1."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from .video_reader import require_av

__all__ = ["VideoWriter", "video_writer", "written_from"]

SIGNATURE = "bssnet-zoo predict"  # in the comment of our files, before " of " and the source
ANY_RATE = Fraction(1, 90_000)  # seconds: multiples of it hit nearly all frame rates in use
PRESET = {"preset": "ultrafast", "crf": "20"}  # of x264's the fastest: the next one takes twice the time for as much


class VideoWriter:
    """A file that grows by a frame at a time, at ``path``; errors call it ``name``.

    The first frame gives it its size, and begins at 0 seconds.

    Args:
        path: Where it grows.
        name: What it will be called.
        labels: Frames are class ids, and become grey FFV1, lossless; otherwise RGB, which becomes H.264.
        source: What it is made from, which it says.
        rate: Frames a second, on average.
        time_base: What timestamps are rounded to, in seconds.
        aspect: Width of a pixel by its height.
    """

    def __init__(
            self,
            path: Path,
            name: str,
            labels: bool = False,
            source: str = "",
            rate: Fraction = Fraction(25),
            time_base: Fraction = ANY_RATE,
            aspect: Fraction = Fraction(1),
    ):
        self.path, self.name, self.labels, self.source = path, name, labels, source
        self.rate, self.time_base, self.aspect = rate, time_base, aspect
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
        base = self.time_base
        frame = av.VideoFrame.from_ndarray(array, format="gray" if self.labels else "rgb24")
        if not self.labels:
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

        codec = "ffv1" if self.labels else "libx264"
        if codec not in av.codecs_available:
            raise RuntimeError(f"this PyAV has no encoder '{codec}', which {self.path.suffix} files need: "
                               "pip install --force-reinstall --only-binary av av")
        self._container = av.open(os.path.abspath(self.path), "w", container_options={
            } if self.labels else {"movflags": "faststart"})
        self._container.metadata["comment"] = f"{SIGNATURE} of {self.source}" if self.source else SIGNATURE
        self._stream = self._container.add_stream(codec, rate=self.rate, options={} if self.labels else PRESET)
        context = self._stream.codec_context
        self._stream.width, self._stream.height = width, height
        context.time_base = self._stream.time_base = self.time_base
        context.sample_aspect_ratio = self.aspect
        if self.labels:
            self._stream.pix_fmt, context.color_range = "gray", 2  # of the whole range: an id is no brightness
        else:  # half the colours, which all players take, needs even sides
            self._stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
            context.color_range = context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709


@contextmanager
def video_writer(path: str | os.PathLike[str], **options: Any) -> Iterator[VideoWriter]:
    """A `VideoWriter` with these options, whose file is there when the block ends.

    Ctrl-C and SIGTERM end it too, another error removes it.

    Raises:
        OSError: It can't be written.
    """
    require_av()
    stop: BaseException | None = None
    with atomic_path(path) as temporary:
        file = VideoWriter(temporary, os.fspath(path), **options)
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


def written_from(path: Path) -> str | None:
    """What a video that `video_writer` wrote was made from, as it says; None for a video of others."""
    av = require_av()
    try:
        with av.open(os.path.abspath(path)) as container:
            comment = container.metadata.get("comment", container.metadata.get("COMMENT", ""))
    except (av.FFmpegError, OSError):
        return None
    name, _, source = comment.partition(" of ")
    return source if name == SIGNATURE else None
