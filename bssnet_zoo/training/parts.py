"""The parts of a training run, made from its recipe."""
from collections.abc import Generator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import PolyLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..data.datasets import SegmentationDataset, add_dataset, add_teacher_labels, open_dataset
from ..data.sampler import TrainSampler
from ..data.transforms import EvalTransform, TrainTransform
from ..distributed import Process, leave_signals_to_parent, loading
from ..losses.bssnet_loss import BSSNetLoss, OhemCrossEntropyLoss
from ..models import BSSNet, create_model, list_models
from ..models.bssnet import as_bssnet
from ..models.checkpoints import CLASSIFIERS
from ..models.config import match_classes, named_classes
from ..models.widen import widen_
from .feature_distillation import FeatureStudent
from .recipes import Recipe
from .state import TrainState

__all__ = [
    "TrainingLoss", "create_criterion", "create_state", "create_student", "open_datasets", "train_batches",
    "train_sampler", "warmup_iterations", "wrap_model"]


WIDEN = "widen:"


def open_datasets(recipe: Recipe) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The data sets to train and to validate on, with the recipe's transforms.

    Raises:
        ValueError: Files or classes that can't be trained on.
    """
    augment = TrainTransform(recipe.scale_range, recipe.base_size, recipe.crop_size, gamma=recipe.gamma)
    train_set = open_dataset(recipe.data, recipe.train_split, augment, seed=recipe.seed, class_mix=recipe.class_mix)
    if recipe.class_weights is not None and len(recipe.class_weights) != len(train_set.classes.names):
        raise ValueError(f"class_weights are {len(recipe.class_weights)}, classes {len(train_set.classes.names)}: give "
                         "one for each ('bssnet-zoo data' computes them), or --class-weights none")
    for spec in recipe.more_data or ():
        add_dataset(train_set, spec, recipe.train_split)
    if recipe.teacher_labels is not None:
        add_teacher_labels(train_set, recipe.teacher_labels)
    if recipe.cache:
        train_set.cache = {}
    return train_set, open_dataset(recipe.data, recipe.val_split, EvalTransform(recipe.shorter_side))


def train_sampler(dataset: SegmentationDataset, recipe: Recipe, process: Process, iteration: int) -> TrainSampler:
    """This process's share of the batches after an iteration, ``grad_accum`` of them for each iteration to come.

    Raises:
        ValueError: A batch that can't be shared equally, or leaves one image a step.
    """
    parts = process.world_size * recipe.grad_accum
    synced = recipe.sync_bn and process.world_size > 1 and process.device.type == "cuda"
    if recipe.batch_size % parts:
        raise ValueError(f"batch_size={recipe.batch_size} can't be shared by {process.world_size} processes with "
                         f"grad_accum={recipe.grad_accum}: it must be a multiple of {parts}")
    if recipe.batch_size == parts and not recipe.freeze_bn and not synced:
        raise ValueError(f"batch_size={recipe.batch_size} is one image a step ({process.world_size} processes, "
                         f"grad_accum={recipe.grad_accum}), and BatchNorm needs two: give --batch-size {2 * parts}, or "
                         "--freeze-bn")
    return TrainSampler(
        len(dataset), recipe.batch_size // parts, recipe.seed, process.rank, process.world_size,
        start=iteration * recipe.grad_accum)


def train_batches(
        dataset: SegmentationDataset,
        sampler: TrainSampler,
        recipe: Recipe,
        device: torch.device,
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Images (N, 3, H, W) and labels (N, H, W), with a teacher's (N, 2, H, W), on a device, without end."""
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=recipe.workers, pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator())  # without its own, it draws from the one that dropout uses
    with loading(loader) as batches:
        for images, labels in batches:
            yield (images.to(device, memory_format=memory_format(device), non_blocking=True),
                   labels.to(device, non_blocking=True))


def memory_format(device: torch.device) -> torch.memory_format:
    """Of convolutions. On mps only the plain one: backward in channels_last is wrong or fails there, and is slow."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def create_student(recipe: Recipe, classes: Sequence[str], process: Process) -> BSSNet:
    """The model to train on its device, with its training heads, initialised as the recipe says.

    Args:
        recipe: The recipe.
        classes: Their names, in the order of the data set. Classifiers of weights for other classes are left out.
        process: This process.

    Raises:
        ValueError: ``init`` is neither a tag of the model nor a file, or does not fit.
    """
    torch.manual_seed(recipe.seed)
    kwargs: dict[str, Any] = {"num_classes": len(classes), "aux_heads": True}
    model: nn.Module
    if recipe.init is not None and recipe.init.startswith(WIDEN):
        if recipe.model != "bssnet_b":
            raise ValueError(f"init '{recipe.init}' widens a bssnet_t to a bssnet_b, model is {recipe.model}")
        narrow = as_bssnet(create_model("bssnet_t", checkpoint_path=recipe.init.removeprefix(WIDEN), **kwargs))
        order_classifiers_(narrow, classes, process)
        model = widen_(as_bssnet(create_model("bssnet_b", **kwargs)), narrow)
    elif recipe.init is None:
        model = create_model(recipe.model, **kwargs)
    elif f"{recipe.model}.{recipe.init}" in list_models(pretrained=True):
        model = create_model(f"{recipe.model}.{recipe.init}", pretrained=True, **kwargs)
        order_classifiers_(as_bssnet(model), classes, process)
    elif Path(recipe.init).exists():
        model = create_model(recipe.model, pretrained=True, pretrained_cfg_overlay={"file": recipe.init}, **kwargs)
        order_classifiers_(as_bssnet(model), classes, process)
    else:
        tags = ", ".join(name.split(".")[1] for name in list_models(pretrained=True) if name.startswith(recipe.model))
        raise ValueError(f"init '{recipe.init}' is neither a file nor a tag of {recipe.model}: its tags are {tags}")
    if recipe.freeze_bn:
        model = freeze_batch_norm_2d(model)
    elif recipe.sync_bn and process.world_size > 1 and process.device.type == "cuda":
        model = convert_sync_batchnorm(model)  # torch's own drops the activations that timm's norms have
    elif recipe.sync_bn and process.world_size > 1 and process.primary:
        print(f"SyncBN does not exist on {process.device.type}: plain BatchNorm, each process with its own statistics")
    return as_bssnet(model).to(process.device).to(memory_format=memory_format(process.device)).train()


@torch.no_grad()
def order_classifiers_(model: BSSNet, classes: Sequence[str], process: Process) -> None:
    """Gives classifiers that were trained on the same classes in another order the order of the data set, in place.

    Those that were trained on other classes are made anew; if nobody knows, they stay.
    """
    known = named_classes(model)
    if known is None:
        return
    try:
        order = match_classes(known.names, classes)
    except ValueError as error:
        if process.primary:
            print(f"The classifiers start from random weights: {error}", flush=True)
        model.reset_classifier(len(classes))
        return
    for name in CLASSIFIERS if order else ():
        for parameter in model.get_submodule(name).parameters():
            parameter.copy_(parameter[order])


class TrainingLoss(nn.Module):
    """The losses of a recipe: BSSNet's six on the labels, and cross-entropy on a teacher's label maps beside them.

    The teacher's is a mean over all pixels in which it is sure, easy or hard: hard example mining would pick those in
    which it is wrong. What has no label has the teacher's alone.

    Args:
        labels: The six losses.
        teacher: The loss on a teacher's labels.
        teacher_weight: Factor of it.
    """

    def __init__(self, labels: BSSNetLoss, teacher: OhemCrossEntropyLoss, teacher_weight: float):
        super().__init__()
        self.labels = labels
        self.teacher = teacher
        self.teacher_weight = teacher_weight

    def forward(self, output: Any, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """The seven losses, each a scalar with its weight.

        Args:
            output: The model's, see `BSSNetLoss`.
            images: (N, 3, H, W).
            labels: Class ids (N, H, W); or (N, 2, H, W), the second map a teacher's.
        """
        if labels.ndim == 3:
            losses = self.labels(output, images, labels)
            return [*losses, torch.zeros_like(losses.seg)]
        labels, taught = labels.unbind(1)
        return [*self.labels(output, images, labels), self.teacher_weight * self.teacher(output.seg, taught)]


def create_criterion(recipe: Recipe) -> TrainingLoss:
    """The losses of a recipe.

    Raises:
        ValueError: Loss weights that make no sense.
    """
    return TrainingLoss(
        BSSNetLoss(recipe.class_weights, loss_weights=recipe.loss_weights),
        OhemCrossEntropyLoss(threshold=1., min_kept=0, class_weights=recipe.class_weights), recipe.teacher_weight)


def warmup_iterations(recipe: Recipe, iterations: int) -> int:
    """The recipe's warm-up; of a run that would not leave it for long, a fifth of the run."""
    return recipe.warmup_iterations if 2 * recipe.warmup_iterations <= iterations else iterations // 5


def create_state(
        model: nn.Module,
        recipe: Recipe,
        iterations: int,
        projections: nn.ModuleDict | None = None,
) -> TrainState:
    """Averaged weights, optimiser, schedule and gradient scaler of a model.

    Args:
        model: The network itself, without wrappers, on its device.
        recipe: The recipe.
        iterations: Length of the whole run.
        projections: What is to be trained beside it.

    Raises:
        ValueError: An optimiser that timm doesn't know.
    """
    # on a CPU, PyTorch's own choice would be one parameter at a time; not every optimiser can do otherwise
    try:
        optimizer_class = get_optimizer_class(recipe.opt.lower().split("_")[-1], bind_defaults=False)
    except ValueError:
        raise ValueError(f"opt '{recipe.opt}' is no optimiser of timm: timm.optim.list_optimizers() has them") from None
    parameters = signature(optimizer_class).parameters
    optimizer = create_optimizer_v2(
        model, opt=recipe.opt, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        filter_bias_and_bn=not recipe.decay_all, layer_decay=recipe.layer_decay,
        foreach=True if "foreach" in parameters else None)
    if projections is not None:
        optimizer.add_param_group({"params": list(projections.parameters())})
    # the average must forget the first, random weights: its decay rises as iteration / (10 + iteration)
    ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True, warmup_gamma=10, warmup_power=1)
    scheduler = PolyLRScheduler(
        optimizer, t_initial=iterations, power=recipe.poly_power, warmup_t=warmup_iterations(recipe, iterations),
        t_in_epochs=False)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    return TrainState(model, ema, optimizer, scheduler, scaler, projections)


def wrap_model(state: TrainState, recipe: Recipe, process: Process) -> nn.Module:
    """The model as it is called in training: with its projections, compiled, averaging gradients over processes."""
    model = state.model
    if state.projections is not None:
        model = FeatureStudent(as_bssnet(model), state.projections)
    if recipe.compile:
        model = cast(nn.Module, torch.compile(model))  # torch's types speak of a function
    if process.world_size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[process.device] if process.device.type == "cuda" else None)
