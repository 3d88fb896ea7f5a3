"""Frames of a video file, a stream or a camera, decoded by PyAV."""
import errno
import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import av

__all__ = [
    "VIDEO_SUFFIXES", "Clip", "Frame", "Video", "is_stream", "is_video", "require_av", "stream_name",
    "without_password"]

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv")
DEVICES = ("avfoundation", "dshow", "lavfi", "v4l2")  # of FFmpeg, written DEVICE:NAME
SECRET = re.compile(  # in an address, as of recorders: rtsp://10.0.0.1/user=admin_password=tiger_channel=1
    r"(\w*(?:pass|pwd|key|token|secret|auth)\w*=)(?:(?!_\w+=)[^&/#;])*", re.IGNORECASE)
LIVE_PROTOCOLS = ("rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "udp")
TIMEOUT = 10.  # seconds that a network or camera may be silent


def require_av() -> Any:
    """PyAV.

    Raises:
        RuntimeError: It isn't installed.
    """
    try:
        import av
    except ImportError:
        raise RuntimeError("videos need av: the extra [video], as in pip install '.[video]'") from None
    return av


def _scheme(source: str | os.PathLike[str]) -> str:
    """``rtsp`` of rtsp://camera, ``v4l2`` of v4l2:/dev/video0 and of /dev/video0, nothing of a file."""
    text = os.fspath(source)
    if text.startswith("/dev/video"):
        return "v4l2"
    head, colon, rest = text.partition(":")
    if len(head) == 1 or re.split(r"[?#]", text.lower())[0].endswith(IMAGE_SUFFIXES):  # C://street.mp4, http://a.jpg
        return ""
    return head.lower() if colon and (rest.startswith("//") or head.lower() in (*DEVICES, "pipe")) else ""


def is_stream(source: str | os.PathLike[str]) -> bool:
    """Whether a source is an address or a camera, not a file."""
    return bool(_scheme(source))


def is_video(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a stream, a camera, or a file that is named as videos are."""
    return is_stream(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def without_password(source: str | os.PathLike[str]) -> str:
    """A source to be shown: ``rtsp://camera/1`` of rtsp://user:password@camera/1."""
    shown = os.fspath(source)
    return SECRET.sub(r"\1***", re.sub("//.*@", "//", shown)) if is_stream(source) else shown


def stream_name(source: str | os.PathLike[str]) -> str:
    """A name for the files of a stream: ``live`` of rtsp://camera/live.sdp?key=1, ``video0`` of /dev/video0."""
    shown = without_password(source)
    address = re.split(r"[?#]", shown.partition(":")[2] or shown)[0]
    last = address.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", Path(last).stem).strip("._") or "stream"


@dataclass(frozen=True)
class Clip:
    """What is wanted of a video.

    Attributes:
        start: Seconds from its beginning to the first frame.
        end: Seconds from its beginning, at which it ends; None for all of it.
        stride: 1 for all frames, 2 for every second one, and so on.
        max_frames: Frames at most; None for any number.
        live: The source doesn't wait: frames that come while the network is busy are dropped, except the newest. None
            for true of cameras and of streams that have no end, false of files.

    Raises:
        ValueError: One of them can't be.
    """

    start: float = 0.
    end: float | None = None
    stride: int = 1
    max_frames: int | None = None
    live: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise ValueError(f"start must be 0 seconds or more, got {self.start:g}")
        if self.end is not None and not self.end > self.start:
            raise ValueError(f"end must be after the start, {self.start:g} seconds, got {self.end:g}")
        if self.stride < 1:
            raise ValueError(f"stride must be 1 or more, got {self.stride}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be 1 or more, got {self.max_frames}")


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        time: Seconds from the beginning of the video.
        duration: Seconds until the next frame, 0 if unknown.
    """

    time: float
    duration: float
    decoded: "av.VideoFrame" = field(repr=False)
    size: tuple[int, int]

    def image(self) -> np.ndarray:
        """The frame as RGB, (H, W, 3) uint8, upright, at the size of the video's first frame."""
        width, height = self.size
        rgb = self.decoded.to_ndarray(
            format="rgb24", width=width, height=height, src_color_range=self.decoded.color_range,
            dst_color_range="JPEG")
        turns = round(self.decoded.rotation / 90)
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


class Video:
    """An open video, whose frames can be taken once.

    Args:
        source: A file, an address (``rtsp://``, ``http://``, ...), ``pipe:0``, ``/dev/video0``, or a device of FFmpeg
            and its name, as in ``avfoundation:0``.
        clip: What is wanted of it.

    Attributes:
        live: Frames that are not taken in time are dropped.
        rate: Frames a second, on average, before the stride; None if unknown.
        time_base: What its timestamps are multiples of, in seconds.
        aspect: Width of a pixel by its height, upright; 1 if unknown. Known with the first frame.
        read: Frames of the clip that were decoded so far, those between strides too.
        dropped: Frames of a live source that came while nobody took them; counted by who takes them.
        problem: Why it ended early, or what was damaged; None if all went well.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a video, or one that can't be decoded here.
        RuntimeError: PyAV isn't installed.
    """

    def __init__(self, source: str | os.PathLike[str], clip: Clip | None = None):
        self.source, self.clip = without_password(source), clip or Clip()
        self._container = _open(os.fspath(source))
        self._stream = _video_stream(self._container, self.source)
        self.rate: Fraction | None = self._stream.average_rate or self._stream.guessed_rate or None
        self.time_base: Fraction = self._stream.time_base
        self.aspect = Fraction(1)
        scheme = _scheme(source)
        self._endless = scheme in ("http", "https") and self._container.duration is None
        self.live = scheme in LIVE_PROTOCOLS + DEVICES or self._endless if self.clip.live is None else self.clip.live
        self._stream.thread_type = "SLICE" if self.live else "AUTO"  # threads by frame hold frames back
        self.read = self.dropped = self._damaged = 0
        self.problem: str | None = None
        self._left = False

    def expected(self) -> int:
        """Frames that the clip will have, about; 0 if unknown."""
        clip, length = self.clip, self._length()
        if self.live or not length or not self.rate:
            return clip.max_frames or 0
        seconds = min(length, clip.end or math.inf) - clip.start
        frames = self._stream.frames if seconds == length and self._stream.frames else round(seconds * self.rate)
        frames = -(-max(frames, 0) // clip.stride)
        return min(frames, clip.max_frames or frames)

    def __iter__(self) -> Iterator[Frame]:
        container, clip, taken = self._container, self.clip, 0  # closed here alone, by the thread that decodes
        try:
            for frame in self._from(clip.start):
                if self._left or clip.end is not None and frame.time >= clip.end:
                    return
                self.read += 1
                if (self.read - 1) % clip.stride:
                    continue
                yield frame
                taken += 1
                if taken == clip.max_frames and not self.live:  # of a live source who takes them counts
                    return
        finally:
            container.close()

    def close(self) -> None:
        """No more frames: the thread that takes them ends with the next one."""
        self._left = True

    def _length(self) -> float:
        """Seconds of the video stream; 0 if unknown."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        matroska = re.fullmatch(r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", ""))
        if matroska:
            hours, minutes, seconds = map(float, matroska.groups())
            return 3600 * hours + 60 * minutes + seconds
        return self._container.duration / 1e6 if self._container.duration and len(self._container.streams) == 1 else 0.

    def _from(self, start: float) -> Iterator[Frame]:
        """Frames from a time on. Decoding begins at the key frame before it, where the container finds one."""
        frames = self._frames()
        first = self._stream.start_time
        if start and first is not None and not self.live and self._seek(first + int(start / self.time_base)):
            frame = next(frames, None)
            if frame is not None and frame.time <= start:
                frames = itertools.chain([frame], frames)
            else:  # it came to a later one, or to none: from the beginning, where timestamps may be below the first
                self._seek(first - int(10 / self.time_base))
                frames, self.problem, self._damaged = self._frames(), None, 0
        return (frame for frame in frames if frame.time >= start)

    def _seek(self, timestamp: int) -> bool:
        try:
            self._container.seek(timestamp, stream=self._stream)
            return True
        except OSError:
            return False

    def _frames(self) -> Iterator[Frame]:
        """All frames from where the container stands; at the end ``problem`` says what was wrong with them."""
        origin, rate = self._stream.start_time, self.rate or 25
        size, end, longest = None, 0., float(1 / rate)
        for decoded in self._decoded():
            if decoded.pts is None:  # as in raw H.264
                time = end
            else:
                origin = decoded.pts if origin is None else origin
                time = float((decoded.pts - origin) * self.time_base)
            if size is None:
                size, end = (decoded.width, decoded.height), time
                aspect = self._stream.sample_aspect_ratio or Fraction(1)
                self.aspect = 1 / aspect if round(decoded.rotation / 90) % 2 else aspect
            duration = float((decoded.duration or 0) * self.time_base) or float(1 / rate)
            longest, end = max(longest, time - end), time + duration
            yield Frame(time, duration, decoded, size)
        if not self.live and not self.problem and self._length() - end > max(1., 2 * longest):
            self.problem = f"ends after {end:.1f} of {self._length():.1f} seconds: is the file complete?"
        elif not self.live and not self.problem and self._damaged:
            self.problem = f"{self._damaged} damaged packets were left out"

    def _decoded(self) -> Iterator["av.VideoFrame"]:
        import av

        packets = self._container.demux(self._stream)
        while not self._left:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:
                if not (self._endless and error.errno == errno.EIO):  # FFmpeg's end of an answer that has no length
                    self.problem = f"can't be read to its end: {_reason(error)}"
                packets, packet = iter(()), None  # the decoder holds a few frames still
            try:
                frames = packet.decode() if packet is not None else self._stream.codec_context.decode(None)
            except av.EOFError:
                return
            except av.FFmpegError:  # the next key frame may be whole
                self._damaged += 1
                continue
            yield from frames
            if packet is None:
                return


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _open(source: str) -> Any:
    """A container, for reading.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It can't be opened, or is no video.
    """
    av, scheme, name = require_av(), _scheme(source), source
    if scheme in DEVICES:
        name = source.removeprefix(f"{scheme}:")
    elif not scheme:
        if not os.path.exists(source):
            raise FileNotFoundError(f"video not found: {source}")
        name = os.path.abspath(source)  # FFmpeg takes what is before a colon for a protocol
    try:
        return av.open(
            name, format=scheme if scheme in DEVICES else None, timeout=TIMEOUT,
            options={"framerate": "30"} if scheme == "avfoundation" else None)  # Macs' cameras refuse FFmpeg's 29.97
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f"can't read a video from {without_password(source)}: {_reason(error)}") from error


def _video_stream(container: Any, source: str) -> Any:
    """The first video stream.

    Raises:
        ValueError: There is none, or no decoder for it.
    """
    import av

    streams = [stream for stream in container.streams.video
               if not stream.disposition & av.stream.Disposition.attached_pic]  # the picture on a song's cover
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ValueError(f"no video in {source}: it has {kinds} only")
    if streams[0].codec_context is None:
        raise ValueError(f"can't decode {source}: this PyAV has no decoder for its video; convert it, for example to "
                         "H.264")
    return streams[0]
