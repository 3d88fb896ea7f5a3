"""Checkpoints of others: read the file, recognise its naming, rename to ours, and load all of it or nothing.

Recognised by their names: our own files; a published BSSNet (MMSegmentation: ``backbone.*``, ``decode_head.*``,
``auxiliary_head.*``); the trunk of a PIDNet, in MMSegmentation's naming or that of the original release. Wrappers of
compilers and trainers around the network (``module.``, ``model._orig_mod.``) are looked through.
"""
import argparse
import json
import logging
import os
import pickle
import re
import struct
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import atomic_path
from .metadata import read_metadata

__all__ = ["checkpoint_filter_fn", "convert_checkpoint", "load_checkpoint", "read_checkpoint", "read_state_dict"]

_logger = logging.getLogger(__name__)

WIDTHS = {32: "bssnet_t", 64: "bssnet_b"}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
StateDict = dict[str, torch.Tensor]

# not mmengine's ema_state_dict, which is the raw copy: its hook swaps the two
EMA_COPIES = ("state_dict_ema", "model_ema", "ema_model", "ema")
PLAIN_COPIES = ("state_dict", "model", "model_state_dict", "net", "network", "module", "params", "weights")
READ_ERRORS = (  # what damaged files make of the readers
    SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError,
    AttributeError, struct.error)
SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
PLAIN_OBJECTS: list[Any] = [  # that trainers' files have beside tensors, and that can't run code
    argparse.Namespace, SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), (SCALAR, "numpy._core.multiarray.scalar"),
    ARRAY, (ARRAY, "numpy.core.multiarray._reconstruct"), (ARRAY, "numpy._core.multiarray._reconstruct"), np.ndarray,
    np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"}]
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
FIRST_CONV = re.compile(r"(.*?)(?:backbone\.)?(?:stem\.0\.conv|conv1\.0)\.weight")
NO_WEIGHTS = re.compile(r"(.*\.)?(loss|criterion|metric)\w*\.|(steps|n_averaged)$|data_preprocessor\.")
TRAINING_HEADS = ("border_head.", "spatial_head.", "fcn_heads.")
CLASSIFIERS = ("head.classifier", "fcn_heads.0.classifier", "fcn_heads.1.classifier")  # with training heads
TRUNK = ("stem.", "stages.")

TRUNK_NAMES = [
    (r"^backbone\.(?=stem|i_branch)", ""),
    (r"^stem\.2\.", "stages.0."),
    (r"^stem\.4\.", "stages.1."),
    (r"^i_branch_layers\.([012])\.", lambda match: f"stages.{int(match[1]) + 2}."),
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
    (r"^decoder\.uafm_ib\.", "decoder.border.luafm."),
    (r"^decoder\.uafm_id\.", "decoder.spatial.luafm."),
    (r"^decoder\.uafm([34])\.", r"decoder.semantic.fuse\1."),
    (r"^decoder\.spp\.scales\.0\.", "decoder.semantic.pappm.scale0."),
    (r"^decoder\.spp\.scales\.([1-4])\.", lambda match: f"decoder.semantic.pappm.scales.{int(match[1]) - 1}."),
    (r"^decoder\.spp\.processes\.", "decoder.semantic.pappm.process."),
    (r"^decoder\.spp\.", "decoder.semantic.pappm."),
    (r"^decoder\.fuse_bdi\.conv_y\.", "decoder.umf.convs.1."),
    (r"^decoder\.fuse_bdi\.", "decoder.umf."),
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
EARLIER_NAMES = {  # in our own files, the bundled ones too
    r"^decoder\.fuse\.": "decoder.umf.",
    r"^decoder\.border\.fuse\.": "decoder.border.luafm.",
    r"^decoder\.spatial\.fuse\.": "decoder.spatial.luafm.",
}
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


class Checkpoint(NamedTuple):
    """A file that has been read: its tensors under our names, and what it says of itself (`metadata`)."""

    path: str | os.PathLike
    tensors: StateDict
    metadata: dict[str, str]


def _rename(state_dict: StateDict, names: Iterable) -> StateDict:
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _few(names: Collection[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _refuse_pickle(path: Path, error: Exception) -> ValueError:
    try:
        with torch.serialization.safe_globals(PLAIN_OBJECTS):
            needs = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except ValueError:  # only zip files can be listed
        needs = ", ".join(re.findall(r"GLOBAL (\S+)", str(error))) or "unknown objects"
    with path.open("rb") as file:
        start = file.read(1 << 24)
    keys = [key for key in PLAIN_COPIES if b"X" + struct.pack("<I", len(key)) + key.encode() in start]
    return ValueError(
        f"{path} is refused: to unpickle it takes more than tensors and plain containers ({needs}), which can run "
        "code. Save its tensors alone where you trust it: "
        f"torch.save(torch.load(f, weights_only=False){f'[{keys[0]!r}]' if keys else ''}, g)")


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
        with path.open("rb") as file, torch.serialization.safe_globals(PLAIN_OBJECTS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is said in our line
            return torch.load(file, map_location="cpu", weights_only=True)  # by a file's name it would judge its kind
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not an instruction of any pickle that torch.save writes
            raise ValueError(f"{path} is not a checkpoint, or damaged") from error
        raise _refuse_pickle(path, error) from None
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "TorchScript" in reason:  # torch's next words are how to run what is in it
            raise ValueError(f"{path} is a TorchScript file, a program, and no checkpoint: give the weights that it "
                             "was made from") from None
        raise ValueError(f"{path} is truncated or not a checkpoint: {reason}") from error


def _unwrap(checkpoint: Any, source: object) -> StateDict:
    """The tensors of what was in a file."""
    for _ in range(5):  # not for ever: a dict may hold itself
        if not isinstance(checkpoint, dict):
            raise ValueError(f"{source} holds {type(checkpoint).__name__}, expected a dict of tensors")
        key = next((key for key in EMA_COPIES + PLAIN_COPIES if isinstance(checkpoint.get(key), dict)), None)
        if key is None:
            break
        if key in EMA_COPIES:
            _logger.info("%s: taking the EMA weights, '%s'", source, key)
        checkpoint = checkpoint[key]
    tensors = {WRAPPERS.sub("", name): tensor for name, tensor in checkpoint.items()
               if isinstance(tensor, torch.Tensor) and isinstance(name, str)}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, source)
    return tensors


def _check_tensor(name: str, tensor: torch.Tensor, source: object) -> None:
    """Raises ValueError for values that no trained network has: they would give wrong answers without a word."""
    is_plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
    if not is_plain or tensor.dtype not in FLOATS + INTEGERS:
        kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else f"{tensor.layout} {tensor.dtype}"
        raise ValueError(f"{source}: {name} is a tensor of kind {kind.removeprefix('torch.strided ')}: save it as a "
                         "dense one of float32, with its values")
    if not tensor.isfinite().all():
        raise ValueError(f"{source} is broken: {name} has values that are NaN or infinite")
    if name.endswith("running_var") and (tensor < 0).any():
        raise ValueError(f"{source} is broken: {name} has variances below 0")


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
    """Gives a network's tensors our names, whichever naming they have, and leaves out what is around the network.

    Raises:
        ValueError: No naming that we know, or several networks.
    """
    prefixes = {match[1] for match in map(FIRST_CONV.fullmatch, state_dict) if match}
    if len(prefixes) > 1:
        raise ValueError(f"{len(prefixes)} networks in this checkpoint, named {_few(prefixes)}: save the one you mean")
    prefix = "".join(prefixes)
    network = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()
               if name.startswith(prefix) and not NO_WEIGHTS.match(name.removeprefix(prefix))}
    if prefixes and any(name.startswith("stages.") for name in network):
        return _rename(network, EARLIER_NAMES.items())
    if any(name.startswith("backbone.fuse_bdi.") for name in network):
        return _rename(network, BSSNET_NAMES)
    if any("i_branch_layers." in name for name in network):
        renamed = _rename(network, TRUNK_NAMES)
    elif prefixes and "layer1.0.conv1.weight" in network:
        renamed = _subtract_stem_biases(_rename(network, PIDNET_NAMES))
    else:
        raise ValueError(
            f"no names of a BSSNet or PIDNet in this checkpoint: it has {_few(state_dict) or 'no tensors'}. Known are "
            "our own files, published BSSNet checkpoints (backbone.*, decode_head.*) and PIDNet trunks")
    return {name: tensor for name, tensor in renamed.items() if name.startswith(TRUNK)}


def _ours(checkpoint: Any, source: object) -> StateDict:
    """The tensors of what was in a file, under our names."""
    state_dict = _unwrap(checkpoint, source)
    try:
        state_dict = convert_names(state_dict)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{source} is broken: {name} holds {tensor.dtype}, not floating point numbers")
    return state_dict


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Reads the tensors of a ``.safetensors`` or ``.pth`` checkpoint, of any network, by the names they have.

    Of several copies in a file the EMA weights are taken, and the log says so. Pickles load with ``weights_only=True``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A truncated file, a pickle that needs more than tensors and plain containers, no dict, tensors that
            hold no plain numbers.
    """
    path = Path(path)
    return _unwrap(_read_file(path), path)


def open_checkpoint(path: str | os.PathLike | Checkpoint) -> Checkpoint:
    """What `read_checkpoint` reads, with the file's metadata; a file that has been read is given back."""
    if isinstance(path, Checkpoint):
        return path
    content = _read_file(Path(path))
    tensors = _ours(content, path)
    return Checkpoint(path, tensors, read_metadata(path) or _mmseg_metadata(content, checkpoint_num_classes(tensors)))


def _mmseg_metadata(content: Any, num_classes: int | None) -> dict[str, str]:
    """MMSegmentation's names and colours of the classes, as metadata of ours."""
    try:
        meta = content["meta"]
        found = meta.get("dataset_meta") or {key.lower(): value for key, value in meta.items()}
        names, palette = found["classes"], found["palette"]
        colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette]
        return {"class_names": json.dumps(list(names)), "palette": json.dumps(colours)} if len(
            names) == len(colours) == num_classes else {}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


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
    return open_checkpoint(path).tensors


def checkpoint_num_classes(state_dict: StateDict) -> int | None:
    """Class count of a checkpoint in our names; None for a trunk."""
    classifier = state_dict.get("head.classifier.weight")
    return None if classifier is None else classifier.shape[0]


def checkpoint_architecture(state_dict: StateDict) -> str:
    """The model that a checkpoint in our names fits, by the width of its stem.

    Raises:
        ValueError: None of ours.
    """
    width = len(state_dict.get("stem.1.bn.weight", ()))
    if width not in WIDTHS:
        raise ValueError(f"the checkpoint fits none of {', '.join(WIDTHS.values())}: its stem has {width} channels")
    return WIDTHS[width]


def _fit(state_dict: StateDict, model: Any, adapt: bool) -> StateDict:
    """The state dict of ``model`` with the values of a checkpoint in our names.

    Args:
        state_dict: The checkpoint.
        model: A BSSNet.
        adapt: timm will adapt the first convolution and, for another number of classes than the pretrained config's,
            drop the classifiers: these may differ in shape.

    Raises:
        ValueError: It doesn't fit.
    """
    own, num_classes = model.state_dict(), model.num_classes
    from_classes = model.pretrained_cfg.get("num_classes", num_classes) if adapt else num_classes
    may_differ: tuple[str, ...] = ("stem.0.conv.", "spatial_head.classifier.") if adapt else ()
    if num_classes == 0:
        state_dict = {name: x for name, x in state_dict.items() if name.rpartition(".")[0] not in CLASSIFIERS}
    elif num_classes != from_classes:
        may_differ += CLASSIFIERS
    found = checkpoint_num_classes(state_dict)
    if from_classes >= 0 and found not in (None, num_classes, from_classes):  # -1 is timm's for any, to be replaced
        raise ValueError(f"the checkpoint has {found} classes, {num_classes} are asked for: num_classes must be "
                         f"{found}")
    is_trunk = all(name.startswith(TRUNK) for name in state_dict)
    state_dict = {name: x for name, x in state_dict.items() if name in own or not name.startswith(TRAINING_HEADS)}
    differ = [name for name, x in state_dict.items() if name in own and x.shape != own[name].shape]
    _check_fit(state_dict, own, [name for name in differ if not name.startswith(may_differ)])
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    left = [name for name in own if name not in state_dict]
    required = [name for name in left if name not in counters and not name.startswith(TRAINING_HEADS)
                and (name.startswith(TRUNK) or not is_trunk)]
    if required:
        raise ValueError(f"the checkpoint leaves {len(required)} tensors of the model unset: {_few(required)}")
    left += [name for name in differ if name.startswith(TRAINING_HEADS)]
    if initialised := {name.rpartition(".")[0] for name in left if name not in counters}:
        _logger.info("Not in the checkpoint, left as initialised: %s", ", ".join(sorted(initialised)))
    return {**state_dict, **{name: own[name] for name in left}}


def _check_fit(state_dict: StateDict, own: StateDict, wrong: list[str]) -> None:
    """Raises ValueError for tensors that the model hasn't, and those that it has in another shape (``wrong``)."""
    unknown = [name for name in state_dict if name not in own]
    if any(name.startswith(TRUNK) for name in unknown):
        raise ValueError(f"the checkpoint's trunk has layers that this model lacks ({_few(unknown)}): of PIDNet, S "
                         "fits bssnet_t, M fits bssnet_b and L neither")
    if wrong:
        name = wrong[0]
        found, here = tuple(state_dict[name].shape), tuple(own[name].shape)
        if name == "stem.0.conv.weight" and found[:1] == here[:1] and found[2:] == here[2:]:
            raise ValueError(f"the checkpoint takes {found[1]} channels, the model {here[1]}: in_chans must be "
                             f"{found[1]}, or adapt it by pretrained=True and pretrained_cfg_overlay=dict(file=...)")
        fits = WIDTHS.get(len(state_dict.get("stem.1.bn.weight", ())))
        raise ValueError(f"the checkpoint is of another model{f', it fits {fits}' if fits else ''}: {name} has shape "
                         f"{found}, here {here}; {len(wrong)} tensors differ ({_few(wrong)})")
    if unknown:
        raise ValueError(f"the checkpoint has {len(unknown)} tensors that this model lacks: {_few(unknown)}")


def checkpoint_filter_fn(state_dict: StateDict, model: Any) -> StateDict:
    """timm's hook between file and model: makes a checkpoint exactly the state dict of ``model``, or says why it can't.

    What the checkpoint lacks and the model may keep as initialised is logged: everything but the trunk for a PIDNet
    checkpoint; training heads; classifiers for another class count than the config's.

    Args:
        state_dict: Tensors of a checkpoint, under any of the known names.
        model: A BSSNet.

    Raises:
        ValueError: Unknown or missing names, shapes of another variant, a class count that is neither the model's nor
            the pretrained config's.
    """
    return _fit(_ours(state_dict, "checkpoint"), model, adapt=True)


def load_checkpoint(model: Any, path: str | os.PathLike | Checkpoint) -> None:
    """Loads a checkpoint file of any known naming into ``model``: all of it, or a PIDNet trunk alone.

    Args:
        model: A BSSNet.
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: What `read_checkpoint` and `checkpoint_filter_fn` refuse; another class count than the model's.

    Example:
        >>> from bssnet_zoo.models import WEIGHTS, create_model
        >>> model = create_model("bssnet_t", num_classes=11)
        >>> load_checkpoint(model, WEIGHTS["bssnet_t.camvid"].path)
    """
    checkpoint = open_checkpoint(path)
    try:
        state_dict = _fit(checkpoint.tensors, model, adapt=False)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None
    model.load_state_dict(state_dict)


def convert_checkpoint(
        source: str | os.PathLike | Checkpoint,
        target: str | os.PathLike,
        dtype: torch.dtype | None = torch.float16,
) -> None:
    """Writes a checkpoint of any known naming as a ``.safetensors`` file in our names.

    Args:
        source: What `read_checkpoint` reads.
        target: The file to write, whole or not at all.
        dtype: Floating point type of the tensors in the file; None keeps theirs.

    Raises:
        ValueError: ``target`` does not end in ``.safetensors``; a type or value that can't be; what `read_checkpoint`
            refuses.

    Example:
        >>> from bssnet_zoo.models import WEIGHTS
        >>> convert_checkpoint(WEIGHTS["bssnet_t.camvid"].path, "bfloat16.safetensors", torch.bfloat16)
    """
    if Path(target).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, got {target}")
    if dtype not in (None, *FLOATS):
        raise ValueError(f"dtype must be {', '.join(map(str, FLOATS))} or None, got {dtype}")
    checkpoint, state_dict = open_checkpoint(source), {}
    for name, tensor in checkpoint.tensors.items():
        state_dict[name] = tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        if not state_dict[name].isfinite().all():
            raise ValueError(f"{checkpoint.path}: {name} has values up to {tensor.abs().max():g}, which "
                             f"{state_dict[name].dtype} can't hold")
    with atomic_path(target) as temporary:
        save_file(state_dict, temporary, metadata={**checkpoint.metadata, "format": "pt"})
