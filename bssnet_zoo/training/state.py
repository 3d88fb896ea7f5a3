"""What a run needs to go on exactly where it was: ``last.pth``; and what comes out of it: ``best.safetensors``."""
import os
from dataclasses import dataclass, field
from io import BytesIO

import torch
from safetensors.torch import save_file
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from ..files import atomic_path
from ..models.checkpoints import READ_ERRORS

__all__ = ["TrainState", "save_weights", "shown"]

MEANINGS = ("the classes", "id_map", "feature_checkpoint")  # other than files, these may not be repaired


@dataclass
class TrainState:
    """All that changes during training. Randomness isn't here: it follows from the seed and the iteration.

    Attributes:
        model: The network itself, without wrappers.
        ema: Its averaged weights.
        optimizer: Of the model's parameters.
        scheduler: Stepped by updates.
        scaler: Of the gradients; does nothing unless the precision is float16.
        projections: What is trained beside the model and left behind, see `feature_distillation`.
        iteration: Updates done.
        best: Best validation mIoU so far.
        data: `fingerprint` of what it is trained on.
        unvalidated: It is to be validated in this iteration, and was not yet.
    """

    model: nn.Module
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    projections: nn.ModuleDict | None = None
    iteration: int = 0
    best: float = -1.
    data: dict[str, str] = field(default_factory=dict)
    unvalidated: bool = False

    def save(self, path: str | os.PathLike) -> None:
        """Writes the state, whole or not at all. ``create_model(checkpoint_path=...)`` reads its EMA weights."""
        with atomic_path(path) as temporary:
            state = {
                "model": self.model.state_dict(),
                "model_ema": self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "iteration": self.iteration,
                "best": self.best,
                "data": self.data,
                "unvalidated": self.unvalidated,
            }
            if self.projections is not None:
                state["projections"] = self.projections.state_dict()
            buffer = BytesIO()  # torch aborts the process where a disk is full
            torch.save(state, buffer)
            temporary.write_bytes(buffer.getbuffer())

    def load(self, path: str | os.PathLike) -> list[str]:
        """Takes over a saved state. Returns the files whose content has changed since, as after a repair.

        Raises:
            ValueError: A damaged file, the state of another model or optimiser, or of a run on other files or classes.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except READ_ERRORS as error:
            raise ValueError(f"{path} is damaged, the run can't go on from it: start another one with --init "
                             "best.safetensors") from error
        changed = _changed(saved.get("data"), self.data, path)
        try:
            for name in ("model", "optimizer", "scheduler", "scaler"):
                getattr(self, name).load_state_dict(saved[name])
            self.ema.module.load_state_dict(saved["model_ema"])
            if self.projections is not None:
                self.projections.load_state_dict(saved["projections"])
            self.iteration, self.best = saved["iteration"], saved["best"]
            self.unvalidated = saved.get("unvalidated", False)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} is not a state of this recipe: {str(error).splitlines()[0]}") from error
        return changed


def _changed(before: object, now: dict[str, str], path: str | os.PathLike) -> list[str]:
    """What has another content than before; ValueError if images came or went, or if labels mean something else."""
    if not isinstance(before, dict):  # of an earlier version
        return []
    other = [f"{key} ('{before.get(key)}' before, '{now.get(key)}' now)" for key in MEANINGS
             if before.get(key) != now.get(key)]
    if other := other or sorted(before.keys() ^ now.keys()):
        raise ValueError(f"{path}: the data set is another one than that of the run, in {shown(other)}. Bring it back, "
                         "or start a run from these weights with --init")
    return [key for key in now if before[key] != now[key]]


def shown(items: list[str]) -> str:
    """The first few of them."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def save_weights(model: nn.Module, path: str | os.PathLike, **metadata: object) -> None:
    """Writes the weights of a model as safetensors, whole or not at all, with metadata as text."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"format": "pt", **{k: str(v) for k, v in metadata.items()}})
