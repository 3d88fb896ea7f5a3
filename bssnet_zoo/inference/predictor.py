"""The one path from images to predictions: what can be prepared is prepared once."""
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as TF

from ..data.images import ImageLike, read_image, resize_image
from ..models.config import unnamed_classes
from ..models.weights import STREET
from .overlap import ahead, newest
from .prediction import Prediction
from .resize import finite_logits, largest_class, resize_logits
from .runner import create_runner
from .video_reader import Clip, Frame, Video

__all__ = ["Predictor", "predict", "sample_image"]

_logger = logging.getLogger(__name__)

Size = int | Sequence[int] | Literal["full"] | None


class Prepared(NamedTuple):
    """An image, and what the network sees of it: normalised (1, 3, h, w), of which ``seen`` is the image."""

    picture: Image.Image
    images: torch.Tensor
    seen: tuple[int, int]


def check_size(size: Size) -> list[int] | None:
    """The size as a list of the shorter side, or of height and width; None for an image's own.

    Raises:
        ValueError: It is none of these.
    """
    if size is None or size == "full":
        return None
    try:
        sides = [int(side) for side in size] if isinstance(size, Sequence) else [int(size)]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"size must be the shorter side or (height, width) in pixels, or 'full', got {size!r}")
    return sides


def check_no_path(images: Iterable[ImageLike]) -> None:
    """Raises ValueError for a path, whose letters would be taken for images."""
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(f"a list of images is needed, got the path {os.fspath(images)!r}: put it into a list")


def check_smooth(smooth: float) -> None:
    """Raises ValueError for what is no weight of the past."""
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth must be 0 (off) or more and below 1, got {smooth:g}")


def normalise(rgb: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """(x - mean) / std of what `read_image` gives, in one pass: ``scale`` is 1 / std, ``shift`` is -mean / std."""
    white = 1. if rgb.is_floating_point() else 255.
    return torch.addcmul(shift, rgb.to(torch.float32, memory_format=torch.contiguous_format), scale / white)


class Predictor:
    """Segments images: prepare once, then call it with one image after the other.

    Args:
        model: A model that gives logits (N, num_classes, H, W), which is left as it is; a name, as for
            `create_model`; a checkpoint, ``.safetensors`` or ``.pth``; or a file of ``bssnet-zoo export``, with the
            classes, normalisation and size that it carries.
        device: cpu, cuda, cuda:1, mps; None for the model's own, or of a name the best there is.
        precision: float32, bfloat16 or float16. None for bfloat16 on a CPU that has instructions for it, else float32.
        backend: What runs the network. "openvino": OpenVINO, on the CPU. "deploy": torch, after `deploy`. "eager": the
            model as it is, in the precision that it has. "auto": the first of these that is installed and takes the
            model. An exported file is run by the library that it is for.
        size: What the network sees, as in torchvision: the length of the shorter side, or (height, width). None for the
            size that the weights were made for, the shorter side of their pretrained config; "full" for the image's
            own. The result has the size of the image in any case.
        trust: Open an exported file of torch, ``.torchscript`` or ``.pt2``, which can run any code.

    Attributes:
        runner: What runs the network: its backend, precision, device, classes.
        size: What the network sees: [shorter side], [height, width], or None for the image's own size.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown name, backend, precision or device, or one that doesn't fit the model; a model without
            classes or not for RGB; another size than that of a file with a fixed one.
        RuntimeError: A missing package.

    Example:
        >>> import numpy as np
        >>> predictor = Predictor("bssnet_t", backend="deploy")
        >>> predictor(np.zeros((90, 120, 3), np.uint8)).labels.shape
        (90, 120)
    """

    def __init__(
            self,
            model: nn.Module | str | os.PathLike[str],
            device: str | torch.device | None = None,
            precision: str | None = None,
            backend: str = "auto",
            size: Size = None,
            trust: bool = False,
    ):
        sides = check_size(size)
        self.runner = create_runner(model, device, precision, backend, trust)
        self.size = self.runner.size if size is None else sides
        self._made_of = None if isinstance(model, nn.Module) else (model, device, precision, backend, size, trust)
        if self.runner.fixed and self.size != self.runner.size:
            fixed = "x".join(map(str, self.runner.size or ()))
            raise ValueError(f"{model} takes images of {fixed} only: leave out the size, or export another file")
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (self.runner.mean, self.runner.std))
        self._scale, self._shift = 1 / std, -mean / std
        _logger.info("%r", self)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.size)) if self.size else "full"
        return (f"Predictor(backend={self.runner.backend}, precision={self.runner.precision}, "
                f"device={self.runner.device}, size={size})")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made_of is None:  # what runs the network belongs to this process
            raise TypeError("a Predictor of a model can't be pickled: make it of a name or a file, or in each process")
        return Predictor, self._made_of

    def __call__(self, image: ImageLike, probabilities: bool = False) -> Prediction:
        """Segments one image.

        Args:
            image: A path, a PIL image of any mode, a uint8 array (H, W), (H, W, 3) or (H, W, 4), or floats in [0, 1]: a
                tensor (3, H, W) or (1, H, W), or an array of one of these shapes.
            probabilities: Give the softmax over the classes too.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not an image, wrong type, shape or range; a network that gives NaN.
        """
        return self.segment(self.prepare(image), probabilities)

    def batch(
            self,
            images: Iterable[ImageLike],
            probabilities: bool = False,
            batch_size: int = 8,
    ) -> list[Prediction]:
        """Segments images; neighbours that the network sees at the same size run as batches of ``batch_size`` at most.

        Raises:
            ValueError: ``batch_size`` is below 1, and as in a call.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        check_no_path(images)
        predictions, group = list[Prediction](), list[Prepared]()
        limit = 1 if self.runner.one_by_one else batch_size
        for prepared in map(self.prepare, images):
            if group and (len(group) == limit or group[0].images.shape != prepared.images.shape):
                predictions += self._segment(group, probabilities)
                group = []
            group.append(prepared)
        return predictions + (self._segment(group, probabilities) if group else [])

    def stream(self, images: Iterable[ImageLike], probabilities: bool = False) -> Iterator[Prediction]:
        """Segments images one by one, as they come; the next ones are read while the network computes.

        An image that can't be read raises in its turn; ``next`` then gives the one after it.
        """
        check_no_path(images)

        def read(image: ImageLike) -> Prepared | Exception:
            try:
                return self.prepare(image)
            except Exception as error:
                return error

        def segment(prepared: Prepared | Exception) -> Prediction:
            if isinstance(prepared, Exception):
                raise prepared
            return self.segment(prepared, probabilities)

        return map(segment, ahead(read, images))  # a generator would end at its first error

    def frames(self, video: Video, smooth: float = 0.) -> Iterator[tuple[Frame, Prediction]]:
        """Segments the frames of an open video; the next ones are decoded while the network computes.

        Args:
            video: The frames. Of a live one, ``video.dropped`` counts those that came while the network was busy.
            smooth: As for `video`.
        """
        check_smooth(smooth)

        def drop() -> None:
            video.dropped += 1

        def prepare(frame: Frame) -> tuple[Frame, Prepared]:
            return frame, self.prepare(frame.image())

        average: torch.Tensor | None = None
        frames = islice(newest(video, drop), video.clip.max_frames) if video.live else video
        try:
            for frame, prepared in ahead(prepare, frames, number=1 if video.live else 2):
                scores = self.scores(prepared)
                if smooth:
                    if scores.dtype == torch.uint8:
                        raise ValueError("this file ends in labels, which can't be averaged: leave out smooth, or "
                                         "export it without --labels")
                    scores = finite_logits(scores)
                    average = scores if average is None else torch.lerp(scores, average, smooth)
                    scores = average
                yield frame, self.answer(prepared, scores)
        finally:
            video.close()

    def video(
            self,
            source: str | os.PathLike[str],
            start: float = 0.,
            end: float | None = None,
            stride: int = 1,
            max_frames: int | None = None,
            live: bool | None = None,
            smooth: float = 0.,
    ) -> Iterator[tuple[float, Prediction]]:
        """Segments a video: gives the time in seconds and the prediction of each frame. It needs the extra ``[video]``.

        The next frames are decoded while the network computes. Of a damaged file what can be read is given, and a
        warning says what is missing.

        Args:
            source: A file, an address (``rtsp://``, ``http://``, ...), ``pipe:0``, or a camera such as ``/dev/video0``.
            start: Seconds from the beginning of the video to the first frame.
            end: Seconds from the beginning of the video at which it ends; None for all of it.
            stride: 1 for all frames, 2 for every second one, and so on.
            max_frames: Frames at most.
            live: Drop frames that come while the network is busy. None for true of cameras and endless streams.
            smooth: Weight of the past in an exponential average of the raw logits over frames: 0, off, to below 1.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a video, one that can't be decoded, arguments that can't be.
            RuntimeError: PyAV isn't installed.
        """
        check_smooth(smooth)
        video = Video(source, Clip(start, end, stride, max_frames, live))

        def predictions() -> Iterator[tuple[float, Prediction]]:
            for frame, prediction in self.frames(video, smooth):
                yield frame.time, prediction
            if video.problem:
                warnings.warn(f"{video.source}: {video.problem}", stacklevel=2)

        return predictions()

    def prepare(self, image: ImageLike) -> Prepared:
        """Reads an image, resizes and normalises it. The first half of a call."""
        rgb = read_image(image)
        picture = TF.to_pil_image(rgb) if rgb.is_floating_point() else Image.fromarray(rgb.permute(1, 2, 0).numpy())
        rgb = resize_image(rgb, self.size)
        images = normalise(rgb, self._scale, self._shift)
        height, width = rgb.shape[-2:]
        padding = (0, max(0, self.runner.min_size - width), 0, max(0, self.runner.min_size - height))
        if any(padding):
            images = F.pad(images, padding, mode="replicate")
        return Prepared(picture, images[None], (height, width))

    def segment(self, prepared: Prepared, probabilities: bool = False) -> Prediction:
        """Runs the network on what `prepare` gave. The second half of a call."""
        return self._segment([prepared], probabilities)[0]

    @torch.inference_mode()
    def scores(self, prepared: Prepared) -> torch.Tensor:
        """What the network gives for what `prepare` gave: raw logits (1, C, h, w), or labels of an exported file."""
        return self.runner.run(prepared.images)

    @torch.inference_mode()
    def answer(self, prepared: Prepared, scores: torch.Tensor) -> Prediction:
        """The prediction that scores stand for."""
        return self._prediction(prepared, scores, probabilities=False)

    @torch.inference_mode()
    def _segment(self, group: Sequence[Prepared], probabilities: bool) -> list[Prediction]:
        scores = self.runner.run(torch.cat([prepared.images for prepared in group]))
        return [self._prediction(prepared, scores[i:i + 1], probabilities) for i, prepared in enumerate(group)]

    def _prediction(self, prepared: Prepared, scores: torch.Tensor, probabilities: bool) -> Prediction:
        picture, images, seen = prepared
        size = picture.height, picture.width
        classes = self.runner.classes or unnamed_classes(scores.shape[1])
        softmax = None
        if scores.dtype == torch.uint8:  # labels of an exported file
            if probabilities:
                raise ValueError("this file ends in labels: export it without --labels to have probabilities")
            labels = F.interpolate(scores[None, :, :seen[0], :seen[1]], size=size, mode="nearest-exact")[0, 0]
        else:
            strips = resize_logits(scores, images.shape[-2:], seen, size)
            if probabilities:
                logits = torch.cat(list(strips), dim=2)
                strips, softmax = iter([logits]), logits[0].softmax(0).cpu().numpy()
            labels, row = torch.empty(size, dtype=torch.uint8, device=scores.device), 0
            for strip in strips:  # a list of small results would keep the memory of the strips in pieces
                labels[row:row + strip.shape[2]] = largest_class(strip[0])
                row += strip.shape[2]
        return Prediction(labels.cpu().numpy(), picture, classes.names, classes.palette, softmax)


def sample_image() -> Image.Image:
    """The street that comes with the package, 480x360: a frame of CamVid's test split, for research only.

    Example:
        >>> sample_image().size
        (480, 360)
    """
    with Image.open(STREET) as image:
        return image.convert("RGB")


def predict(
        model: nn.Module,
        image: ImageLike,
        size: Size = None,
        probabilities: bool = False,
) -> Prediction:
    """Segments one image with a model as it is: the short form of `Predictor`, which is faster for more than one.

    Args:
        model: A model that gives logits (N, num_classes, H, W) at input size. It runs in eval mode on the device it is
            on, with the mean and std of its pretrained config, and is left in the mode it was in.
        image: As for `Predictor`.
        size: As for `Predictor`.
        probabilities: Give the softmax over the classes too.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, wrong type, shape, range or size; a model without classes or not for RGB.

    Example:
        >>> import numpy as np
        >>> from bssnet_zoo import create_model
        >>> model = create_model("bssnet_t", pretrained=True).eval()
        >>> predict(model, np.zeros((90, 120, 3), np.uint8)).labels.shape
        (90, 120)
    """
    return Predictor(model, backend="eager", size=size)(image, probabilities)
