"""Checkpoints of others: read the file, recognise its naming, rename to ours, and load all of it or nothing.

Recognised by their names: our own files; a published BSSNet (MMSegmentation: ``backbone.*``, ``decode_head.*``,
``auxiliary_head.*``); the trunk of a PIDNet, in MMSegmentation's naming or that of the original release.
"""
import logging
import os
import pickle
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import atomic_path
from .notes import read_notes

if TYPE_CHECKING:
    from .bssnet import BSSNet

__all__ = ["checkpoint_filter_fn", "convert_checkpoint", "load_checkpoint", "read_checkpoint", "read_state_dict"]

_logger = logging.getLogger(__name__)

WIDTHS = {32: "bssnet_t", 64: "bssnet_b"}
StateDict = dict[str, torch.Tensor]

UMF_WEIGHTS = "decoder.fuse.attention."
EMA_COPIES = ("state_dict_ema", "model_ema", "ema_state_dict")
PLAIN_COPIES = ("state_dict", "model")
WRAPPER_PREFIXES = ("_orig_mod.", "module.")
READ_ERRORS = (  # what damaged files make of the readers
    SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError,
    AttributeError, struct.error)
BOOKKEEPING = re.compile(r"(steps|n_averaged|data_preprocessor\..*)$")
TRAINING_HEADS = ("border_head.", "spatial_head.", "fcn_heads.")
CLASSIFIERS = ("head.classifier", "fcn_heads.0.classifier", "fcn_heads.1.classifier")  # with training heads
TRUNK = ("stem.", "stages.")

TRUNK_NAMES = [
    (r"^backbone\.(?=stem|i_branch)", ""),
    (r"^stem\.2\.", "stages.0."),
    (r"^stem\.4\.", "stages.1."),
    (r"^i_branch_layers\.0\.", "stages.2."),
    (r"^i_branch_layers\.1\.", "stages.3."),
    (r"^i_branch_layers\.2\.", "stages.4."),
]
BSSNET_NAMES = TRUNK_NAMES + [
    (r"\._conv\.", ".conv."),
    (r"\._batch_norm\.", ".bn."),
    (r"\.conv_xy_atten\.", ".attention."),
    (r"^backbone\.(?=[bd]_branch|compression|uafm|spp|fuse_bdi|upconv)", "decoder."),
    (r"^decoder\.b_branch_layers\.0\.", "decoder.border.conv1."),
    (r"^decoder\.b_branch_layers\.1\.", "decoder.border.conv2."),
    (r"^decoder\.d_branch_layers\.0\.", "decoder.spatial.conv1."),
    (r"^decoder\.d_branch_layers\.1\.", "decoder.spatial.conv2."),
    (r"^decoder\.compression_b\.", "decoder.border.compress."),
    (r"^decoder\.compression_d\.", "decoder.spatial.compress."),
    (r"^decoder\.uafm_ib\.", "decoder.border.fuse."),
    (r"^decoder\.uafm_id\.", "decoder.spatial.fuse."),
    (r"^decoder\.uafm4\.", "decoder.semantic.fuse4."),
    (r"^decoder\.uafm3\.", "decoder.semantic.fuse3."),
    (r"^decoder\.spp\.scales\.0\.", "decoder.semantic.pappm.scale0."),
    (r"^decoder\.spp\.scales\.1\.", "decoder.semantic.pappm.scales.0."),
    (r"^decoder\.spp\.scales\.2\.", "decoder.semantic.pappm.scales.1."),
    (r"^decoder\.spp\.scales\.3\.", "decoder.semantic.pappm.scales.2."),
    (r"^decoder\.spp\.scales\.4\.", "decoder.semantic.pappm.scales.3."),
    (r"^decoder\.spp\.processes\.", "decoder.semantic.pappm.process."),
    (r"^decoder\.spp\.", "decoder.semantic.pappm."),
    (r"^decoder\.fuse_bdi\.conv_y\.", "decoder.fuse.convs.1."),
    (r"^decoder\.fuse_bdi\.", "decoder.fuse."),
    (r"^decoder\.upconv\.", "decoder.refine.0."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
    (r"^decode_head\.fuse_b_d_head\.", "head."),
    (r"^decode_head\.b_cls_seg\.", "border_head.classifier."),
    (r"^decode_head\.b_head\.", "border_head."),
    (r"^decode_head\.d_cls_seg\.", "spatial_head.classifier."),
    (r"^decode_head\.d_head\.", "spatial_head."),
    (r"^auxiliary_head\.(\d)\.conv_seg\.", r"fcn_heads.\1.classifier."),
    (r"^auxiliary_head\.(\d)\.convs\.0\.", r"fcn_heads.\1.conv."),
]
PIDNET_NAMES = [
    (r"^conv1\.0\.", "stem.0.conv."),
    (r"^conv1\.1\.", "stem.0.bn."),
    (r"^conv1\.3\.", "stem.1.conv."),
    (r"^conv1\.4\.", "stem.1.bn."),
    (r"^layer([1-5])\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.conv([123])\.", r".conv\1.conv."),
    (r"\.bn([123])\.", r".conv\1.bn."),
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"\.downsample\.1\.", ".downsample.bn."),
]


def _rename(state_dict: StateDict, names: list) -> StateDict:
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _refuse_pickle(path: Path, error: Exception) -> ValueError:
    try:
        needs = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except ValueError:  # only zip files can be listed
        needs = ", ".join(re.findall(r"GLOBAL (\S+)", str(error))) or "unknown objects"
    return ValueError(
        f"{path} is refused: to unpickle it takes more than tensors and plain containers ({needs}), which can run "
        "code. Save its state_dict alone where you trust it (mmengine's and mmcv's files: "
        "torch.save(torch.load(f, weights_only=False)['state_dict'], g))")


def _is_safetensors(path: Path) -> bool:
    """By its bytes, as names lie: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    try:
        if _is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file:  # by the file's name torch would judge what it is
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not an instruction of any pickle that torch.save writes
            raise ValueError(f"{path} is not a checkpoint, or damaged") from error
        raise _refuse_pickle(path, error) from None
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is truncated or not a checkpoint: {reason}") from error


def _unwrap(checkpoint: Any, source: object) -> StateDict:
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{source} holds {type(checkpoint).__name__}, expected a dict of tensors")
    copies = [key for key in EMA_COPIES + PLAIN_COPIES if isinstance(checkpoint.get(key), dict)]
    if copies:
        if copies[0] in EMA_COPIES:
            _logger.info("%s: taking the EMA weights, '%s'", source, copies[0])
        return _unwrap(checkpoint[copies[0]], source)
    state_dict = {}
    for name, tensor in checkpoint.items():
        if not isinstance(tensor, torch.Tensor) or not isinstance(name, str):
            continue
        while name.startswith(WRAPPER_PREFIXES):
            name = name.split(".", 1)[1]
        if not BOOKKEEPING.match(name):
            _check_tensor(name, tensor, source)
            state_dict[name] = tensor
    return state_dict


def _check_tensor(name: str, tensor: torch.Tensor, source: object) -> None:
    """Raises ValueError for values that no trained network has: they would give wrong answers without a word."""
    if not tensor.isfinite().all():
        raise ValueError(f"{source} is broken: {name} has values that are NaN or infinite")
    if name.endswith("running_var") and (tensor < 0).any():
        raise ValueError(f"{source} is broken: {name} has variances below 0")


def _check_floats(state_dict: StateDict, source: object) -> StateDict:
    """Refuses integers where our networks have none (those of others may)."""
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{source} is broken: {name} holds {tensor.dtype}, not floating point numbers")
    return state_dict


def _subtract_stem_biases(state_dict: StateDict) -> StateDict:
    """PIDNet's stem convolutions have a bias and ours none: BatchNorm of x + b with mean m is that of x with m - b."""
    state_dict = dict(state_dict)
    for i in (0, 1):
        bias = state_dict.pop(f"stem.{i}.conv.bias", None)
        if bias is not None:
            name = f"stem.{i}.bn.running_mean"
            state_dict[name] = state_dict[name] - bias
    return state_dict


def convert_names(state_dict: StateDict) -> StateDict:
    """Renames a checkpoint, whichever naming it has, to ours.

    Raises:
        ValueError: No naming that we know.
    """
    names = set(state_dict)
    if any(name.startswith("model.") for name in names):  # the original PIDNet saves a wrapper around its network
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
        names = set(state_dict)
    if "stem.0.conv.weight" in names and any(name.startswith("stages.") for name in names):
        return state_dict
    if any(name.startswith("backbone.fuse_bdi.") for name in names):
        return _rename(state_dict, BSSNET_NAMES)
    if any("i_branch_layers." in name for name in names):
        renamed = _rename(state_dict, TRUNK_NAMES)
    elif {"conv1.0.weight", "layer1.0.conv1.weight"} <= names:
        renamed = _subtract_stem_biases(_rename(state_dict, PIDNET_NAMES))
    else:
        raise ValueError(
            f"no names of a BSSNet or PIDNet in this checkpoint: it has {_few(names) or 'no tensors'}. Known are our "
            "own files, published BSSNet checkpoints (backbone.*, decode_head.*) and PIDNet trunks")
    return {name: tensor for name, tensor in renamed.items() if name.startswith(TRUNK)}


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Reads the tensors of a ``.safetensors`` or ``.pth`` checkpoint, of any network, by the names they have.

    Of several copies in a file the EMA weights are taken, and the log says so. Pickles load with ``weights_only=True``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A truncated file, a pickle that needs more than tensors and plain containers, no dict.
    """
    path = Path(path)
    return _unwrap(_read_file(path), path)


def read_checkpoint(path: str | os.PathLike) -> StateDict:
    """Reads a checkpoint as `read_state_dict` does and gives its tensors our names.

    Raises:
        FileNotFoundError: No such file.
        ValueError: What `read_state_dict` refuses, unknown names.

    Example:
        >>> from bssnet_zoo.models import WEIGHTS
        >>> tensors = read_checkpoint(WEIGHTS["bssnet_t.camvid"].path)
        >>> tensors["head.classifier.weight"].shape
        torch.Size([11, 128, 1, 1])
    """
    state_dict = read_state_dict(path)
    try:
        state_dict = convert_names(state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _check_floats(state_dict, path)


def checkpoint_num_classes(state_dict: StateDict) -> int | None:
    """Class count of a checkpoint in our names; None for a trunk."""
    classifier = state_dict.get("head.classifier.weight")
    return None if classifier is None else classifier.shape[0]


def is_plain_sum(state_dict: StateDict) -> bool:
    """Whether a checkpoint in our names is of a network that fuses its branches without UMF's weights."""
    return "decoder.fuse.convs.1.conv.weight" in state_dict and not any(
        name.startswith(UMF_WEIGHTS) for name in state_dict)


def checkpoint_architecture(state_dict: StateDict) -> str:
    """The model that a checkpoint in our names fits, by the width of its stem.

    Raises:
        ValueError: None of ours.
    """
    width = len(state_dict.get("stem.1.bn.weight", ()))
    if width not in WIDTHS:
        raise ValueError(f"the checkpoint fits none of {', '.join(WIDTHS.values())}: its stem has {width} channels")
    return WIDTHS[width]


def _fit(state_dict: StateDict, model: nn.Module, adaptable: set[str]) -> StateDict:
    """The state dict of ``model`` with the checkpoint's values; names in ``adaptable`` may differ in shape."""
    target = model.state_dict()
    is_trunk = all(name.startswith(TRUNK) for name in state_dict)
    state_dict = {name: tensor for name, tensor in state_dict.items()
                  if name in target or not name.startswith(TRAINING_HEADS)}

    unknown = [name for name in state_dict if name not in target]
    if any(name.startswith(TRUNK) for name in unknown):
        raise ValueError(f"the checkpoint's trunk has layers that this model lacks ({_few(unknown)}): of PIDNet, S "
                         "fits bssnet_t, M fits bssnet_b and L neither")
    wrong = [name for name in state_dict if name in target and name not in adaptable
             and state_dict[name].shape != target[name].shape]
    if wrong:
        name = wrong[0]
        width = len(state_dict.get("stem.1.bn.weight", ()))
        fits = f", it fits {WIDTHS[width]}" if width in WIDTHS else ""
        raise ValueError(
            f"the checkpoint is of another model{fits}: {name} has shape {tuple(state_dict[name].shape)}, here "
            f"{tuple(target[name].shape)}; {len(wrong)} tensors differ ({_few(wrong)})")
    if unknown and all(name.startswith(UMF_WEIGHTS) for name in unknown):
        raise ValueError("the checkpoint fuses its branches by UMF, the model by a plain sum (weighted=False): start "
                         "such a model from a trunk (pidnet_in1k) or from nothing")
    if unknown:
        raise ValueError(f"the checkpoint has {len(unknown)} tensors that this model lacks: {_few(unknown)}")

    missing = [name for name in target if name not in state_dict]
    required = [name for name in missing if not name.endswith("num_batches_tracked")
                and not name.startswith(TRAINING_HEADS) and (name.startswith(TRUNK) or not is_trunk)]
    if required:
        raise ValueError(f"the checkpoint leaves {len(required)} tensors of the model unset: {_few(required)}")
    for name in set(state_dict) & adaptable:
        if state_dict[name].shape != target[name].shape and name.startswith(TRAINING_HEADS):
            missing.append(name)
    initialised = sorted({name.rsplit(".", 1)[0] for name in missing if not name.endswith("num_batches_tracked")})
    if initialised:
        _logger.info("Not in the checkpoint, left as initialised: %s", ", ".join(initialised))
    return {**state_dict, **{name: target[name] for name in missing}}


def _check_num_classes(state_dict: StateDict, allowed: tuple[int, ...]) -> None:
    num_classes = checkpoint_num_classes(state_dict)
    if num_classes is not None and num_classes not in allowed:
        raise ValueError(f"the checkpoint has {num_classes} classes, {allowed[0]} are asked for: "
                         f"num_classes must be {num_classes}")


def _check_in_chans(state_dict: StateDict, in_chans: int) -> None:
    weight = state_dict.get("stem.0.conv.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[1] != in_chans:
        raise ValueError(
            f"the checkpoint takes {weight.shape[1]} channels, the model {in_chans}: in_chans must be "
            f"{weight.shape[1]}, or adapt it by pretrained=True and pretrained_cfg_overlay=dict(file=...)")


def _without_classifiers(state_dict: StateDict) -> StateDict:
    return {name: tensor for name, tensor in state_dict.items()
            if name.rpartition(".")[0] not in CLASSIFIERS}


def checkpoint_filter_fn(state_dict: StateDict, model: "BSSNet") -> StateDict:
    """timm's hook between file and model: makes a checkpoint exactly the state dict of ``model``, or says why it can't.

    Names are converted. Training heads are dropped if the model has none. What may stay as the model initialised it
    is taken from the model and logged: everything but the trunk for a PIDNet checkpoint; training heads that the
    checkpoint lacks; the classifier of the spatial head for another ``in_chans``, those of the FCN heads for another
    ``num_classes`` than the config's. timm then adapts the first convolution, and drops the segmentation classifier.

    Args:
        state_dict: Tensors of a checkpoint, under any of the known names.
        model: A BSSNet.

    Raises:
        ValueError: Unknown or missing names, shapes of another variant, a class count that is neither the model's nor
            the pretrained config's.
    """
    state_dict = _check_floats(convert_names(_unwrap(state_dict, "checkpoint")), "checkpoint")
    cfg = model.pretrained_cfg
    _check_num_classes(state_dict, (model.num_classes, cfg.get("num_classes", model.num_classes)))
    adaptable = {"stem.0.conv.weight", "spatial_head.classifier.weight", "spatial_head.classifier.bias"}
    if model.num_classes != cfg.get("num_classes"):
        adaptable.update(f"{name}.{kind}" for name in CLASSIFIERS for kind in ("weight", "bias"))
    if model.num_classes == 0:
        state_dict = _without_classifiers(state_dict)
    return _fit(state_dict, model, adaptable)


def load_checkpoint(model: "BSSNet", path: str | os.PathLike) -> None:
    """Loads a checkpoint file of any known naming into ``model``: all of it, or a PIDNet trunk alone.

    Raises:
        FileNotFoundError: No such file.
        ValueError: What `read_checkpoint` and `checkpoint_filter_fn` refuse; another class count than the model's.

    Example:
        >>> from bssnet_zoo.models import WEIGHTS, create_model
        >>> model = create_model("bssnet_t", num_classes=11)
        >>> load_checkpoint(model, WEIGHTS["bssnet_t.camvid"].path)
    """
    state_dict = read_checkpoint(path)
    try:
        if model.num_classes == 0:
            state_dict = _without_classifiers(state_dict)
        _check_num_classes(state_dict, (model.num_classes,))
        _check_in_chans(state_dict, model.in_chans)
        state_dict = _fit(state_dict, model, adaptable=set())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model.load_state_dict(state_dict)


def convert_checkpoint(
        source: str | os.PathLike,
        target: str | os.PathLike,
        dtype: torch.dtype | None = torch.float16,
) -> None:
    """Writes a checkpoint of any known naming as a ``.safetensors`` file in our names.

    Args:
        source: What `read_checkpoint` reads.
        target: The file to write, whole or not at all.
        dtype: Type of the floating point tensors in the file; None keeps theirs.

    Raises:
        ValueError: ``target`` does not end in ``.safetensors``; a value that ``dtype`` can't hold; what
            `read_checkpoint` refuses.

    Example:
        >>> from bssnet_zoo.models import WEIGHTS
        >>> convert_checkpoint(WEIGHTS["bssnet_t.camvid"].path, "bfloat16.safetensors", torch.bfloat16)
    """
    if Path(target).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, got {target}")
    state_dict = {}
    for name, tensor in read_checkpoint(source).items():
        state_dict[name] = tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        if not state_dict[name].isfinite().all():
            raise ValueError(
                f"{source}: {name} has values up to {tensor.abs().max():g}, which {state_dict[name].dtype} can't hold")
    with atomic_path(target) as temporary:
        save_file(state_dict, temporary, metadata={**read_notes(source), "format": "pt"})
