"""Knowledge distillation from any model that gives logits."""
import torch
from torch import nn

from ..losses.resized import ResizedKL, planar
from ..models.smp import create_network
from .recipes import Recipe

__all__ = ["create_teacher", "distillation_loss"]


def create_teacher(recipe: Recipe, num_classes: int) -> nn.Module | None:
    """The teacher that a recipe names, frozen; None if it names none.

    Raises:
        ValueError: A teacher with other classes, or what `create_network` refuses.
    """
    if recipe.teacher is None:
        if recipe.teacher_checkpoint is not None:
            raise ValueError("teacher_checkpoint needs teacher, the name of its model: --teacher bssnet_b")
        return None
    teacher = create_network(recipe.teacher, num_classes, recipe.teacher_checkpoint)
    if teacher.num_classes != num_classes:
        raise ValueError(f"the teacher '{recipe.teacher}' has {teacher.num_classes} classes, the data {num_classes}: "
                         "give a --teacher-checkpoint trained on these classes")
    return teacher.requires_grad_(False)


def distillation_loss(
        logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        temperature: float = 1.,
        labels: torch.Tensor | None = None,
        ignore_index: int = 255,
) -> torch.Tensor:
    """KL divergence of the student's class distribution from the teacher's, times the square of the temperature.

    The square keeps the size of the gradient as the temperature changes (Hinton et al., Distilling the Knowledge in a
    Neural Network, 2015). It is computed at the teacher's resolution.

    Args:
        logits: The student's (N, num_classes, h, w), of any size; resized (bilinear, align_corners=True).
        teacher_logits: The teacher's (N, num_classes, H, W).
        temperature: Logits are divided by it.
        labels: Class ids (N, H, W). If given, pixels in which the teacher is wrong don't count.
        ignore_index: Label of pixels without a class, which count.

    Returns:
        The mean over the pixels that count, a scalar.

    Raises:
        ValueError: The two have other numbers of classes, or the labels another size than the teacher's logits.
    """
    if teacher_logits.shape[1] != logits.shape[1]:
        raise ValueError(f"the teacher gives {teacher_logits.shape[1]} classes, the student {logits.shape[1]}")
    if labels is None:
        counted = teacher_logits.new_ones(teacher_logits[:, 0].shape, dtype=torch.bool)
    elif labels.shape != teacher_logits[:, 0].shape:
        raise ValueError(f"labels must have the size of the teacher's logits, {tuple(teacher_logits[:, 0].shape)}, got "
                         f"{tuple(labels.shape)}")
    else:
        counted = (teacher_logits.argmax(1) == labels) | (labels == ignore_index)
    total = ResizedKL.apply(planar(logits), teacher_logits, counted, temperature)
    return total / counted.count_nonzero().clamp(min=1)
