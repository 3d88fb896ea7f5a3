"""The training loop.

A run is a folder with ``recipe.yaml``, ``log.csv``, ``val.csv``, ``last.pth`` to go on from, ``best.safetensors`` and
two pictures to look at. It can be killed at any moment and resumed without a difference in the result.
"""
import json
import math
import os
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.check import check_dataset, distorted, fingerprint, missing_classes
from ..data.datasets import SegmentationDataset, with_kind
from ..data.sampler import TrainSampler
from ..device import PRECISIONS, keep_freed_memory, why_slow
from ..distributed import Process, init_process
from ..evaluation.accuracy import evaluate
from ..losses.bssnet_loss import BSSNetLosses
from ..models.bssnet import MIN_SIZE, as_bssnet
from ..models.metadata import class_metadata
from .feature_distillation import create_feature_teacher, create_projections, feature_loss
from .interrupt import StopRequest
from .parts import (
    TrainingLoss,
    create_criterion,
    create_state,
    create_student,
    open_datasets,
    train_batches,
    train_sampler,
    warmup_iterations,
    wrap_model,
)
from .pictures import save_curve, save_strip
from .recipes import Recipe
from .run_folder import open_run_folder
from .run_log import RunLog
from .state import TrainState, save_weights

__all__ = ["LOSS_NAMES", "forward_backward", "train", "update_weights"]

LOSS_NAMES = ("loss", *BSSNetLosses._fields, "teacher", "features")
LOG_NAMES = (*LOSS_NAMES, "grad_norm")


def train(
        recipe: Recipe,
        output: str | os.PathLike,
        resume: bool = False,
        stop_epoch: int | None = None,
) -> TrainState:
    """Trains a model by a recipe, in a run folder. Started by torchrun, it is one of several processes.

    Ctrl-C, or SIGTERM, ends the run after the current iteration, with a checkpoint and then a KeyboardInterrupt.

    Args:
        recipe: What to compute.
        output: The run folder.
        resume: Go on from ``last.pth`` in the run folder (from the beginning if the run ended before there was one).
            On a CPU in float32 with the same number of threads the result is that of an uninterrupted run, bit by bit.
        stop_epoch: End the run after this epoch, to be resumed later; the schedule stays that of the whole run.

    Returns:
        The state in the end; ``state.ema.module`` is the trained model.

    Raises:
        ValueError: A recipe that doesn't fit the data or the machine, a run folder that has a run already.
        RuntimeError: A loss that is not a finite number any more.

    Example:
        >>> recipe = Recipe(
        ...     data="folder:data/mine", base_size=(64, 96), crop_size=(64, 96), iterations=1, batch_size=2, workers=0)
        >>> state = train(recipe, "runs/example")  # doctest: +ELLIPSIS
        model: ...
        >>> state.iteration
        1
    """
    if stop_epoch is not None and stop_epoch < 1:
        raise ValueError(f"stop_epoch must be 1 or more, got {stop_epoch}")
    process = init_process(recipe.device, patient=True)
    if process.device.type == "cpu":
        keep_freed_memory()
    # all that refuses what can't work, before a folder is made
    recipe = replace(recipe, data=with_kind(recipe.data))
    train_set, val_set = open_datasets(recipe)
    train_sampler(train_set, recipe, process, 0)
    num_classes = len(train_set.classes.names)
    iterations = recipe.iterations or math.ceil(recipe.epochs * len(train_set) / recipe.batch_size)
    begun = resume and (Path(output) / "last.pth").exists()  # which has all weights
    student = create_student(replace(recipe, init=None) if begun else recipe, num_classes, process)
    feature_teacher, projections = create_feature_teacher(recipe), None
    if feature_teacher is not None:
        feature_teacher.to(process.device)
        projections = create_projections(as_bssnet(student), feature_teacher).to(process.device)
    criterion = create_criterion(recipe).to(process.device)
    state = create_state(student, recipe, iterations, projections)
    with open_run_folder(Path(output), recipe, resume, process.primary) as checkpoint:
        return _train(
            recipe, process, train_set, val_set, iterations, state, criterion, checkpoint, feature_teacher, stop_epoch)


def _train(
        recipe: Recipe,
        process: Process,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset,
        iterations: int,
        state: TrainState,
        criterion: TrainingLoss,
        checkpoint: Path,
        feature_teacher: nn.Module | None,
        stop_epoch: int | None,
) -> TrainState:
    epoch = len(train_set) / recipe.batch_size  # in iterations
    warnings = []
    if process.primary and not checkpoint.exists():
        for dataset, split in ((train_set, recipe.train_split), (val_set, recipe.val_split)):
            scans = check_dataset(dataset, full=True)
            warnings += missing_classes(dataset, scans, split)
        smallest = min(min(scan.image_size) for scan in scans)
        if recipe.val_size is None and smallest < MIN_SIZE:
            raise ValueError(f"{recipe.data}, {recipe.val_split}: images must be {MIN_SIZE} pixels high and wide or "
                             f"more, one has {smallest}: give --val-size")
        warnings += distorted(scans, recipe.val_size, recipe.val_split)
        if recipe.trains_on(recipe.data, recipe.val_split):
            warnings.append(f"{recipe.val_split} is trained on: validation says that the run goes well, no more")
    process.gather(None)  # the others wait here for the first one's check, which may take longer than NCCL waits
    if slow := why_slow(recipe.precision, process.device):
        warnings.append(slow)
    if (warmup := warmup_iterations(recipe, iterations)) < recipe.warmup_iterations:
        warnings.append(f"The run has {iterations} iterations: a warm-up of {warmup} instead of "
                        f"{recipe.warmup_iterations}")
    last = min(iterations, math.ceil(stop_epoch * epoch)) if stop_epoch is not None else iterations

    classes = train_set.classes
    state.data = fingerprint(train_set)
    if checkpoint.exists():
        state.load(checkpoint)
    model = wrap_model(state, recipe, process)
    sampler = train_sampler(train_set, recipe, process, state.iteration)
    batches = train_batches(train_set, sampler, recipe, process.device)
    log = RunLog(checkpoint.parent, LOG_NAMES, classes.names, state.iteration, iterations, recipe.batch_size,
                 enabled=process.primary, unvalidated=state.unvalidated)

    stopped = False
    with StopRequest() as stop, closing(log), closing(batches):
        log.say(f"{recipe}{len(train_set)} images to train on, {len(val_set)} to validate, iteration {state.iteration}")
        for line in warnings:
            log.say(line)
        if state.unvalidated:  # it ended in there
            validate(state, val_set, recipe, process, log, checkpoint.parent)
            if process.primary:
                state.save(checkpoint)
            log.resume_clock()
        while state.iteration < last and not stopped:
            process.seed(recipe.seed, state.iteration)
            losses = forward_backward(
                model, criterion, islice(batches, recipe.grad_accum), recipe, state.scaler, feature_teacher)
            grad_norm = clip_gradients(state, recipe)
            means = process.mean(torch.stack([*losses, grad_norm, grad_norm.new_tensor(stop.requested)]))
            *values, stopped = means.tolist()
            if not (math.isfinite(values[0]) and (math.isfinite(values[-1]) or state.scaler.is_enabled())):
                raise diverged(values, state, train_set, sampler, recipe)
            lr = max(group["lr"] for group in state.optimizer.param_groups)
            update_weights(state)
            log.iteration(state.iteration, state.iteration / epoch, lr, values)

            validated = state.iteration % (recipe.validate_every * epoch) < 1 or state.iteration == last
            if validated:
                state.unvalidated = True
                if process.primary:
                    state.save(checkpoint)
                validate(state, val_set, recipe, process, log, checkpoint.parent)
            if process.primary and (validated or stopped or state.iteration % recipe.checkpoint_every == 0):
                state.save(checkpoint)
            log.resume_clock()
        if state.iteration < iterations:
            log.say(f"Stopped after iteration {state.iteration} of {iterations}. To go on:\n"
                    f"bssnet-zoo train --resume {checkpoint.parent}")
    if stopped:
        raise KeyboardInterrupt(f"{checkpoint} holds iteration {state.iteration}")
    return state


def forward_backward(
        model: nn.Module,
        criterion: TrainingLoss,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        recipe: Recipe,
        scaler: torch.amp.GradScaler,
        feature_teacher: nn.Module | None = None,
) -> torch.Tensor:
    """Adds up the gradients of ``grad_accum`` batches, so that they are those of the mean loss.

    Args:
        model: The model, wrapped or not, in training mode.
        criterion: The losses.
        batches: Images (N, 3, H, W) and labels (N, H, W) or, with a teacher's, (N, 2, H, W), on the model's device.
        recipe: Precision, accumulation and the weights of what is learned from others.
        scaler: Scales the loss.
        feature_teacher: Gives features to distil from; the model is then a `FeatureStudent`.

    Returns:
        The mean losses over the batches, in the order of `LOSS_NAMES`: (9,) float32.
    """
    means = []
    for step, (images, labels) in enumerate(batches, start=1):
        autocast = torch.autocast(
            images.device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32")
        more_to_come = step < recipe.grad_accum
        with model.no_sync() if more_to_come and isinstance(model, DistributedDataParallel) else nullcontext():
            with autocast:
                output = model(images)
            output, predicted = output if feature_teacher is not None else (output, {})
            losses = criterion(output, images, labels)
            if feature_teacher is not None:
                with autocast:
                    features = feature_teacher(images)
                losses.append(recipe.feature_weight * feature_loss(predicted, features))
            else:
                losses.append(torch.zeros_like(losses[0]))
            total = torch.stack(losses).sum()
            scaler.scale(total / recipe.grad_accum).backward()
        means.append(torch.stack([total, *losses]).detach())
    return torch.stack(means).mean(0)


def clip_gradients(state: TrainState, recipe: Recipe) -> torch.Tensor:
    """Clips the gradients if the recipe says so. Returns their norm before that."""
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
    if recipe.clip_grad is not None:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), recipe.clip_grad, norm)
    return norm


def update_weights(state: TrainState) -> None:
    """One update from the gradients: optimiser, schedule, averaged weights."""
    state.iteration += 1
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.scheduler.step_update(state.iteration)
    state.ema.update(state.model, step=state.iteration)


def validate(
        state: TrainState,
        dataset: SegmentationDataset,
        recipe: Recipe,
        process: Process,
        log: RunLog,
        folder: Path,
) -> None:
    """Evaluates the averaged weights, keeps them if they are the best, and writes what there is to look at."""
    state.unvalidated = False
    if process.world_size > 1:
        distribute_bn(state.ema.module, process.world_size)
    result = evaluate(
        state.ema.module, dataset, precision=recipe.precision, workers=recipe.workers, process=process, progress=True)
    if not process.primary:
        return
    log.validation(state.iteration, [result.miou, result.pixel_accuracy, result.boundary_f1, *result.iou])
    log.say(f"validation after iteration {state.iteration}\n{result}")
    if result.miou > state.best:
        state.best = result.miou
        height, width = recipe.val_size or recipe.base_size
        save_weights(
            state.ema.module, folder / "best.safetensors", architecture=recipe.model, **class_metadata(dataset.classes),
            input_size=json.dumps([height, width]), mean=json.dumps(IMAGENET_DEFAULT_MEAN),
            std=json.dumps(IMAGENET_DEFAULT_STD), recipe=recipe, iteration=state.iteration, miou=result.miou,
            split=recipe.val_split, size=recipe.val_size, precision=recipe.precision)
    save_strip(state.ema.module, dataset, folder / "validation.png", recipe.val_size or "full")
    try:
        save_curve(folder)
    except RuntimeError as error:
        log.say(str(error))


def diverged(
        values: list[float],
        state: TrainState,
        dataset: SegmentationDataset,
        sampler: TrainSampler,
        recipe: Recipe,
) -> RuntimeError:
    """The error that names the batch whose loss or gradient is no finite number."""
    first = state.iteration * recipe.grad_accum
    indices = [index for i in range(first, first + recipe.grad_accum) for _, index in sampler.batch(i)]
    files = ", ".join(str(dataset.files[index][0]) for index in indices)
    return RuntimeError(
        f"loss {values[0]:g}, norm of the gradient {values[-1]:g} in iteration {state.iteration + 1}, with {files}. "
        "last.pth and best.safetensors are of before. Look at these files, or start a run with a lower --lr, with "
        "--clip-grad or --precision float32")
