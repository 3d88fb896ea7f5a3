"""Knowledge distillation from any model that gives logits."""
import torch
import torch.nn.functional as F
from torch import nn

from .networks import create_network
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


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.) -> torch.Tensor:
    """KL divergence of the student's class distribution from the teacher's, times the square of the temperature.

    The square keeps the size of the gradient as the temperature changes (Hinton et al., Distilling the Knowledge in a
    Neural Network, 2015). It is computed at the student's resolution.

    Args:
        logits: The student's (N, num_classes, H, W).
        teacher_logits: The teacher's (N, num_classes, h, w), of any size.
        temperature: Logits are divided by it.

    Returns:
        The mean over pixels, a scalar.

    Raises:
        ValueError: The two have other numbers of classes.
    """
    if teacher_logits.shape[1] != logits.shape[1]:
        raise ValueError(f"the teacher gives {teacher_logits.shape[1]} classes, the student {logits.shape[1]}")
    teacher_logits = F.interpolate(teacher_logits.float(), size=logits.shape[-2:], mode="bilinear", align_corners=True)
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    pixels = logits.shape[0] * logits.shape[2] * logits.shape[3]
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature ** 2 / pixels)
