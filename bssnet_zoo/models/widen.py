"""Start a wide network from a narrow one (Net2Net: Chen, Goodfellow, Shlens, ICLR 2016)."""
from typing import Any

import torch
from torch import nn

from .bssnet import BSSNet

__all__ = ["widen_"]


def widened(source: torch.Tensor, shape: torch.Size, noise: float) -> torch.Tensor:
    """A tensor with each channel that the wider network has twice, twice in a row.

    Weights that read a doubled channel are halved; one of the two gets noise that the other one takes away, so that
    the sum is what it was and yet the two learn different things.
    """
    result = source
    if source.ndim and shape[0] == 2 * source.shape[0]:
        result = result.repeat_interleave(2, 0)
    if source.ndim == 4 and shape[1] == 2 * source.shape[1]:
        difference = torch.randn_like(result) * (noise * source.std())
        result = torch.stack((result / 2 + difference, result / 2 - difference), dim=2).flatten(1, 2)
    if result.shape != shape:
        raise ValueError(f"a tensor of {tuple(source.shape)} can't be widened to {tuple(shape)}")
    return result


@torch.no_grad()
def widen_(model: BSSNet, narrow: BSSNet, noise: float = 0.1) -> BSSNet:
    """Gives ``model`` (B) the weights of ``narrow`` (T), each channel doubled, so that it computes the same features.

    The convolution that only B has becomes the identity: its BatchNorm gets the statistics of the map that it reads,
    which T's head knows. B's head then works at twice the resolution, which is all that changes. So it is in eval mode;
    in training up to the batch's own statistics, and the ReLU then clips a little.

    Args:
        model: The wide network; it is changed.
        narrow: A network of half the width, with the same classes and training heads.
        noise: Standard deviation of what is added to one of two halved weights and taken from the other, in units of
            that of the layer's weights.

    Raises:
        ValueError: The two don't fit.
    """
    for name in ("num_classes", "in_chans"):
        if getattr(model, name) != getattr(narrow, name):
            raise ValueError(f"{name} is {getattr(narrow, name)} in the narrow network, {getattr(model, name)} in the "
                             "wide one: create both with the same")
    source = narrow.state_dict()
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("decoder.refine."):
            if name not in source:
                raise ValueError(f"the narrow network has no {name}: give both the training heads or neither")
            state[name] = widened(source[name].to(tensor), tensor.shape, noise)
    refine: Any = model.get_submodule("decoder.refine")
    if not isinstance(refine, nn.Identity):
        conv, norm = "decoder.refine.0.conv.weight", "decoder.refine.0.bn."
        mean, var = (state[f"head.conv.bn.running_{name}"] for name in ("mean", "var"))
        state[conv] = nn.init.dirac_(torch.empty_like(model.state_dict()[conv]))
        eps = refine[0].bn.eps
        state |= {f"{norm}running_mean": mean, f"{norm}running_var": var, f"{norm}bias": mean,
                  f"{norm}weight": (var + eps).sqrt()}
    model.load_state_dict(state, strict=False)
    return model
