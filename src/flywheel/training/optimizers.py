"""What moves the weights: SGD, Adam, or Muon with AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flywheel.params import Recipe

# Parts of the rate by which AdamW moves what Muon leaves: Muon's rate is a share of a weight's length, AdamW's the
# step of every single number, and those of a last layer are small.
ADAMW_PART, LAST_LAYER_PART = 1 / 10, 1 / 90


def make_optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return the recipe's optimizer; with `muon` AdamW, and Muon for the convolutions but the first.

    The rate of a param group is its peak. Biases and norms take no weight decay, what is held fixed is left out. Fused:
    one pass over the weights instead of six; ResNet-18's are 45 MB.
    """
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    if recipe.optimizer != "muon":
        groups = [_group(weights, rate, decay), _group(others, rate, 0.0)]
        if recipe.optimizer == "sgd":
            return [torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)]
        return [torch.optim.Adam(groups, betas=(momentum, 0.999), fused=True)]
    inner = [p for p in weights if p.ndim == 4 and p.shape[1] > 3]
    last = [p for p in weights if p.ndim == 2][-1:]
    taken = {id(p) for p in (*inner, *last)}
    groups = [
        _group([p for p in weights if id(p) not in taken], ADAMW_PART * rate, decay),
        _group(last, LAST_LAYER_PART * rate, decay),
        _group(others, ADAMW_PART * rate, 0.0),
    ]
    adam = torch.optim.AdamW(groups, betas=(momentum, 0.999), fused=True)
    return [adam, *([Muon(inner, rate, momentum)] if inner else [])]


class Muon(torch.optim.Muon):
    """torch's Muon for the weights of convolutions (channels_last): one is a matrix, (outputs, h * w * inputs).

    Each has the length that so many directions of length 1 have, and the rate is the share of it that a step moves it.
    To the norm that follows a convolution the length means nothing, but the longer a weight the less a step turns it:
    so it is held, and there is nothing for weight decay to do. Sources: Jordan et al., Muon: an optimizer for hidden
    layers (kellerjordan.github.io/posts/muon), which leaves the first and the last layer to Adam, as we do; the length
    and three steps of Newton and Schulz: airbench94_muon (github.com/KellerJordan/cifar10-airbench).
    """

    def __init__(self, weights: Sequence[Tensor], learning_rate: float, momentum: float):
        self._weights = weights
        matrices = [_as_stored(weight.detach()).view(len(weight), -1) for weight in weights]  # the same memory
        super().__init__([_group(matrices, learning_rate, 0.0)], momentum=momentum, ns_steps=3, adjust_lr_fn="original")

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take the gradients of the convolutions and move their weights."""
        for matrix, weight in zip(self.param_groups[0]["params"], self._weights, strict=True):
            matrix.grad = None if weight.grad is None else _as_stored(weight.grad).reshape(matrix.shape)
            matrix.mul_(len(matrix) ** 0.5 / matrix.norm())
        super().step(closure)  # type: ignore[no-untyped-call]


def _group(params: Sequence[Tensor], learning_rate: float, weight_decay: float) -> dict[str, object]:
    return {"params": params, "lr": learning_rate, "weight_decay": weight_decay}


def _as_stored(weight: Tensor) -> Tensor:
    """Return (outputs, inputs, h, w) in the order in which channels_last stores it."""
    return weight.permute(0, 2, 3, 1)
