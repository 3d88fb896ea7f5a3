"""Export of a model to a file that runs without this package: ONNX, OpenVINO, TorchScript, ExportedProgram."""
import copy
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..data.images import ImageLike
from ..device import PRECISIONS
from ..files import atomic_path
from ..models import BSSNet
from ..models.bssnet import MIN_SIZE
from ..models.config import class_info, model_name, trained_size
from ..models.weights import STREET
from ..version import __version__
from .exported import ExportedModel, require
from .formats import FORMATS
from .graph import ExportedGraph
from .int8 import calibration_files, read_image
from .rewrites import deploy, is_deployed

__all__ = ["FORMATS", "ExportReport", "export_model"]

# largest difference of the logits, as a share of the largest, and least share of pixels with the same class
TOLERANCES = {"float32": (1e-3, 0.999), "float16": (0.05, 0.98), "bfloat16": (0.2, 0.95), "int8": (1., 0.9)}


class ExportReport(NamedTuple):
    """What `export_model` wrote, and how it compares with the deployed float32 model on the check image.

    ``max_difference`` of the logits is a share of the largest one (None for a file that ends in labels);
    ``same_class`` is the share of the pixels with the same class.

    Example:
        >>> report = ExportReport(Path("street.onnx"), max_difference=2e-6, same_class=1.)
        >>> report.within(max_difference=1e-3, same_class=0.999)
        True
    """

    path: Path
    max_difference: float | None
    same_class: float

    def within(self, max_difference: float, same_class: float) -> bool:
        return (self.max_difference or 0.) <= max_difference and self.same_class >= same_class

    def __str__(self) -> str:
        difference = "" if self.max_difference is None else (
            f"largest difference of the logits {self.max_difference:.1e} of the largest, ")
        return f"{self.path}: {difference}same class at {100 * self.same_class:.3f} % of the pixels"


@torch.inference_mode()
def compare(exported: ExportedModel, model: BSSNet, images: torch.Tensor) -> tuple[float | None, float]:
    """Largest difference of the logits (None for labels) and share of pixels with the same class."""
    expected, scores = model.forward_head(model.forward_features(images)), exported(images)
    if not exported.raw:
        expected = F.interpolate(expected, size=images.shape[-2:], mode="bilinear", align_corners=True)
    same = (scores.argmax(1) == expected.argmax(1)).float().mean().item()
    if exported.labels:
        return None, same
    return ((scores - expected).abs().max() / expected.abs().max()).item(), same


def describe(graph: ExportedGraph, size: Sequence[int] | None, precision: str) -> dict[str, str]:
    """What a user of the file must know, as text: what isn't text is JSON."""
    classes = class_info(graph.model)
    values = dict(
        model=model_name(graph.model), class_names=classes.names, palette=classes.hex_palette,
        mean=graph.mean.tolist(), std=graph.std.tolist(), size=size and list(size),
        trained_size=trained_size(graph.model) or None, precision=precision, labels=graph.labels,
        normalize=graph.normalize, raw=graph.raw, bssnet_zoo=__version__)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def check_options(
        model: BSSNet,
        path: Path,
        format: str,
        size: Sequence[int] | None,
        precision: str,
        labels: bool,
) -> None:
    """Raises ValueError for what `export_model` can't do, before it takes its time."""
    if not isinstance(model, BSSNet) or model.num_classes == 0:
        raise ValueError(f"export takes a BSSNet with classes, got {type(model).__name__}"
                         f"{' with num_classes=0' if isinstance(model, BSSNet) else ''}")
    if format not in FORMATS:
        raise ValueError(f"unknown format '{format}': there are {', '.join(FORMATS)}")
    suffix, precisions = FORMATS[format].suffix, FORMATS[format].precisions
    if precision not in precisions:
        hint = "; for bfloat16, export float32 and run it with INFERENCE_PRECISION_HINT" if format == "openvino" else ""
        raise ValueError(f"{format} files hold {', '.join(precisions)}, not {precision}{hint}")
    if path.suffix != suffix:
        raise ValueError(f"the name of an {format} file must end in {suffix}, got {path}")
    if size is not None and (len(size) != 2 or min(size) < MIN_SIZE):
        raise ValueError(f"size must be height and width of {MIN_SIZE} or more, got {list(size)}")
    if labels and model.num_classes > 256:
        raise ValueError(f"uint8 labels hold 256 classes at most, the model has {model.num_classes}")


def export_model(
        model: BSSNet,
        path: str | os.PathLike,
        format: str = "onnx",
        size: Sequence[int] | None = None,
        precision: str = "float32",
        labels: bool = False,
        normalize: bool = False,
        raw: bool = False,
        calibration: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        check_image: ImageLike = STREET,
) -> ExportReport:
    """Writes a model as one file (for OpenVINO two, .xml and .bin) that runs without this package.

    The file is compared with the deployed float32 model before it gets its name: it is there and right, or not there.

    Args:
        model: A `BSSNet`, deployed or not; it is left as it is.
        path: File to write.
        format: A name of ``FORMATS``.
        size: Height and width of the images, for batches of 1; None for any. A TorchScript file takes any in any
            case, but `Predictor` keeps to this one.
        precision: One of the format's.
        labels: End in class ids, uint8 (N, H, W), instead of logits (N, num_classes, H, W), float32 in any precision.
        normalize: Take RGB images as a decoder gives them, uint8 (N, H, W, 3), instead of normalised ones, float32
            (N, in_chans, H, W) in any precision.
        raw: End at the model's own stride, without the resize to the images' size.
        calibration: For int8, a folder of images or a list of files like those that the model will see.
        check_image: What to compare on.

    Raises:
        ValueError: An unknown format, a precision that the format does not have, a wrong name or size, no images to
            calibrate on, a model without classes.
        RuntimeError: A missing package, something in the model that the format can't express, a file that gives other
            answers than the model.

    Example:
        >>> from bssnet_zoo import create_model
        >>> model = create_model("bssnet_t", pretrained=True).eval()
        >>> report = export_model(model, "street.torchscript", "torchscript", size=(64, 96), labels=True)
    """
    path = Path(path)
    check_options(model, path, format, size, precision, labels)
    if format == "openvino" and path.with_suffix(".bin").exists() and not path.exists():
        raise ValueError(f"{path.with_suffix('.bin')} is there and not the weights of {path.name}: choose another name")
    files = calibration_files(calibration) if precision == "int8" else []
    kind = FORMATS[format]
    require(kind.packages + (kind.int8_packages if files else ()), f"exporting {precision} {format}")
    model = model if is_deployed(model) else deploy(model)
    model = copy.deepcopy(model).cpu().float().eval()
    graph = ExportedGraph(copy.deepcopy(model), None if format == "torchscript" else size, labels, normalize, raw)
    metadata = describe(graph, size, precision)
    if format != "openvino" and not files:
        graph.model.to(PRECISIONS[precision])
    sizes = [size] if size else kind.check_sizes
    with whole_files(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        try:
            convert = kind.convert_int8 if files and kind.convert_int8 else kind.convert
            converted = convert(graph.eval(), size)
        except OSError:
            raise
        except Exception as error:  # each exporter has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(f"this model can't become {format}: {reason}") from error
        if files and kind.quantize:
            converted = kind.quantize(converted, files, size, metadata)
        kind.write(converted, temporary, metadata)
        exported = ExportedModel(temporary, trust=True)
        images = [read_image(check_image, check_size, metadata) for check_size in sizes]
        differences, same = zip(*(compare(exported, model, image) for image in images), strict=True)
        report = ExportReport(path, None if labels else max(differences), min(same))
        if not report.within(*TOLERANCES[precision]):
            raise RuntimeError(f"not written, its answers are not those of the model: {report}")
    return report


@contextmanager
def whole_files(path: Path) -> Iterator[Path]:
    """`atomic_path` for a file and, if there is one, the file of its weights that OpenVINO writes beside it."""
    with atomic_path(path) as temporary:
        weights = temporary.with_suffix(".bin")
        try:
            yield temporary
            if weights.exists():
                weights.replace(path.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)
