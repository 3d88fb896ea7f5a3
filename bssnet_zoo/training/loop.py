"""The training loop.

A run is a folder with ``recipe.yaml``, ``log.csv``, ``val.csv``, ``last.pth`` to go on from, ``best.safetensors`` and
two pictures to look at. It can be killed at any moment and resumed without a difference in the result.
"""
import json
import math
import os
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.check import check_dataset, data_warnings, fingerprint
from ..data.datasets import SegmentationDataset, with_kind
from ..data.sampler import TrainSampler
from ..device import PRECISIONS, keep_freed_memory, why_slow
from ..distributed import Process, explained, init_process
from ..evaluation.accuracy import evaluate
from ..files import sha256
from ..losses.bssnet_loss import BSSNetLosses
from ..models.metadata import class_metadata
from .feature_distillation import FeatureTeacher, create_feature_teacher, create_projections, feature_loss
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
from .recipes import Recipe, save_recipe
from .run_folder import find_checkpoint, open_run_folder
from .run_log import RunLog
from .state import TrainState, save_weights, shown

__all__ = ["LOSS_NAMES", "forward_backward", "train", "update_weights"]

LOSS_NAMES = ("loss", *BSSNetLosses._fields, "teacher", "features")
LOG_NAMES = (*LOSS_NAMES, "grad_norm")


@dataclass
class Run:
    """What a training run works with; `TrainState` is what changes in it.

    Attributes:
        recipe: What to compute.
        process: This process.
        train_set: The images to train on.
        val_set: Those to validate on.
        criterion: The losses.
        feature_teacher: Gives features to distil from, if there is one.
        state: What `last.pth` holds.
        iterations: Length of the whole run.
        folder: The run folder.
    """

    recipe: Recipe
    process: Process
    train_set: SegmentationDataset
    val_set: SegmentationDataset
    criterion: TrainingLoss
    feature_teacher: FeatureTeacher | None
    state: TrainState
    iterations: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pth"

    @property
    def epoch(self) -> float:
        """Iterations in an epoch."""
        return len(self.train_set) / self.recipe.batch_size

    def save(self) -> None:
        if self.process.primary:
            self.state.save(self.checkpoint)


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
        recipe ...
        >>> state.iteration
        1
    """
    if stop_epoch is not None and stop_epoch < 1:
        raise ValueError(f"stop_epoch must be 1 or more, got {stop_epoch}")
    process = init_process(recipe.device, patient=True)
    if process.device.type == "cpu":
        keep_freed_memory()
    recipe = replace(recipe, data=with_kind(recipe.data))
    begun = find_checkpoint(Path(output), recipe, resume).exists()
    # whatever can't work is refused before a folder is made
    run = prepare(recipe, process, Path(output), begun)
    warnings = [] if begun else check_data(run)
    with open_run_folder(run.folder, process.primary):
        if begun:
            changed = run.state.load(run.checkpoint)
            if run.state.iteration == run.iterations and not run.state.unvalidated:
                if process.primary:
                    print(f"{run.folder} has all of its {run.iterations} iterations: best.safetensors is the model. To "
                          "train on, start a run from it with --init", flush=True)
                return run.state
            if changed:
                warnings += [f"{len(changed)} files have changed since the run began: {shown(changed)}"]
                warnings += check_data(run)
        if process.primary:
            save_recipe(recipe, run.folder / "recipe.yaml")
        last = run.iterations if stop_epoch is None else min(run.iterations, math.ceil(stop_epoch * run.epoch))
        return run_to(last, run, [*warnings, *warn_of_recipe(run)])


def prepare(recipe: Recipe, process: Process, folder: Path, begun: bool) -> Run:
    """All that a run needs. Raises ValueError for a recipe that can't work.

    Args:
        recipe: The recipe.
        process: This process.
        folder: The run folder, which isn't touched.
        begun: The weights are in ``last.pth``.
    """
    train_set, val_set = open_datasets(recipe)
    train_sampler(train_set, recipe, process, 0)
    iterations = recipe.iterations or math.ceil(recipe.epochs * len(train_set) / recipe.batch_size)
    student = create_student(replace(recipe, init=None) if begun else recipe, train_set.classes.names, process)
    student.pretrained_cfg.update(train_set.classes.config)  # those of its first weights mean nothing any more
    feature_teacher, projections = create_feature_teacher(recipe), None
    if feature_teacher is not None:
        feature_teacher.to(process.device)
        projections = create_projections(student, feature_teacher).to(process.device)
    criterion = create_criterion(recipe).to(process.device)
    state = create_state(student, recipe, iterations, projections)
    state.data = fingerprint(train_set)
    if recipe.feature_checkpoint is not None:
        state.data["feature_checkpoint"] = sha256(recipe.feature_checkpoint)
    return Run(recipe, process, train_set, val_set, criterion, feature_teacher, state, iterations, folder)


def check_data(run: Run) -> list[str]:
    """Reads all files, in one process. Returns what to warn of; ValueError if they can't be trained on."""
    recipe, warnings = run.recipe, []
    if run.process.primary:
        for dataset, split in ((run.train_set, recipe.train_split), (run.val_set, recipe.val_split)):
            taught = dataset is run.train_set and recipe.feature_teacher is not None
            scans = check_dataset(dataset, full=True, labelled=not taught)
            warnings += data_warnings(dataset, scans, split)
    run.process.gather(None)  # the others wait here, as the check may take longer than NCCL waits
    return warnings


def warn_of_recipe(run: Run) -> list[str]:
    """What a recipe does that may surprise."""
    recipe, warnings = run.recipe, []
    if recipe.trains_on(recipe.data, recipe.val_split):
        warnings.append(f"{recipe.val_split} is trained on: validation says that the run goes well, no more")
    if slow := why_slow(recipe.precision, run.process.device):
        warnings.append(slow)
    if (warmup := warmup_iterations(recipe, run.iterations)) < recipe.warmup_iterations:
        warnings.append(f"The run has {run.iterations} iterations: a warm-up of {warmup} instead of "
                        f"{recipe.warmup_iterations}")
    return warnings


def run_to(last: int, run: Run, warnings: list[str]) -> TrainState:
    """The loop: trains until an iteration, or until a signal, and validates."""
    recipe, state, process = run.recipe, run.state, run.process
    model = wrap_model(state, recipe, process)
    sampler = train_sampler(run.train_set, recipe, process, state.iteration)
    batches = train_batches(run.train_set, sampler, recipe, process.device)
    log = RunLog(run.folder, LOG_NAMES, run.train_set.classes.names, state.iteration, run.iterations,
                 recipe.batch_size, enabled=process.primary, unvalidated=state.unvalidated)
    stopped = False
    with StopRequest() as stop, closing(log), explained(), closing(batches):
        for line in (recipe.summary(), *warnings):
            log.say(line)
        log.say(f"{len(run.train_set)} images to train on, {len(run.val_set)} to validate, iteration "
                f"{state.iteration} of {run.iterations}")
        if state.unvalidated:  # it ended in there
            validate(run, log)
            run.save()
        log.resume_clock()
        while state.iteration < last and not stopped:
            process.seed(recipe.seed, state.iteration)
            losses = forward_backward(
                model, run.criterion, islice(batches, recipe.grad_accum), recipe, state.scaler, run.feature_teacher)
            grad_norm = clip_gradients(state, recipe)
            means = process.mean(torch.stack([*losses, grad_norm, grad_norm.new_tensor(stop.requested)]))
            *values, stopped = means.tolist()
            if not (math.isfinite(values[0]) and (math.isfinite(values[-1]) or state.scaler.is_enabled())):
                raise diverged(values, run, sampler)
            lr = max(group["lr"] for group in state.optimizer.param_groups)
            update_weights(state)
            log.iteration(state.iteration, state.iteration / run.epoch, lr, values)

            validated = state.iteration % (recipe.validate_every * run.epoch) < 1 or state.iteration == last
            if validated:
                state.unvalidated = True
                run.save()
                validate(run, log)
            if validated or stopped or state.iteration % recipe.checkpoint_every == 0:
                run.save()
            log.resume_clock()
        if state.iteration < run.iterations:
            log.say(f"Stopped after iteration {state.iteration} of {run.iterations}. To go on:\n"
                    f"bssnet-zoo train --resume {run.folder}")
    if stopped:
        raise KeyboardInterrupt(f"{run.checkpoint} holds iteration {state.iteration}")
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


def validate(run: Run, log: RunLog) -> None:
    """Evaluates the averaged weights, keeps them if they are the best, and writes what there is to look at."""
    recipe, process, state, dataset = run.recipe, run.process, run.state, run.val_set
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
            state.ema.module, run.folder / "best.safetensors", architecture=recipe.model,
            **class_metadata(dataset.classes), input_size=json.dumps([height, width]),
            mean=json.dumps(IMAGENET_DEFAULT_MEAN), std=json.dumps(IMAGENET_DEFAULT_STD), recipe=recipe,
            iteration=state.iteration, miou=result.miou, split=recipe.val_split, size=recipe.shorter_side,
            precision=recipe.precision)
    save_strip(state.ema.module, dataset, run.folder / "validation.png", recipe.shorter_side)
    try:
        save_curve(run.folder)
    except RuntimeError as error:
        log.say(str(error))


def diverged(values: list[float], run: Run, sampler: TrainSampler) -> RuntimeError:
    """The error that names the batch whose loss or gradient is no finite number."""
    grad_accum = run.recipe.grad_accum
    first = run.state.iteration * grad_accum
    indices = [index for i in range(first, first + grad_accum) for _, index in sampler.batch(i)]
    files = ", ".join(str(run.train_set.files[index][0]) for index in indices)
    return RuntimeError(
        f"loss {values[0]:g}, norm of the gradient {values[-1]:g} in iteration {run.state.iteration + 1}, with "
        f"{files}. last.pth and best.safetensors are of before. Look at these files, or start a run with a lower --lr, "
        "with --clip-grad or --precision float32")
