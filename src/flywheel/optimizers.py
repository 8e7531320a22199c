"""What moves the weights: SGD, Adam, or Muon with AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flywheel.params import Recipe

# What `weight_decay: auto` stands for. AdamW's and Muon's is a share of the rate, SGD's and Adam's a term of the loss.
WEIGHT_DECAY = {"sgd": 5e-4, "adam": 5e-4, "muon": 0.1}


def make_optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return the recipe's optimizer; with `muon` AdamW, and Muon for the convolutions but the first.

    Biases and norms take no weight decay. All param groups have one learning rate: Muon's steps are scaled to be as
    large as Adam's (Liu et al., arXiv 2502.16982).
    """
    decay = WEIGHT_DECAY[recipe.optimizer] if recipe.weight_decay == "auto" else recipe.weight_decay
    inner = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 3] if recipe.optimizer == "muon" else []
    taken = {id(p) for p in inner}
    rest = [p for p in network.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return [torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)]
    adam = torch.optim.AdamW if recipe.optimizer == "muon" else torch.optim.Adam
    optimizer = adam(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))
    return [optimizer, Muon(inner, recipe, decay)] if inner else [optimizer]


class Muon(torch.optim.Muon):
    """torch's Muon for the weights of convolutions (channels_last): one is a matrix, (outputs, h * w * inputs).

    Source: Jordan et al., Muon: an optimizer for hidden layers (kellerjordan.github.io/posts/muon), which leaves the
    first and the last layer to AdamW, as we do.
    """

    def __init__(self, weights: Sequence[Tensor], recipe: Recipe, weight_decay: float):
        self._weights = weights
        super().__init__(
            [_as_stored(weight.detach()).view(len(weight), -1) for weight in weights],  # the same memory
            lr=recipe.learning_rate,
            weight_decay=weight_decay,
            momentum=recipe.momentum,
            adjust_lr_fn="match_rms_adamw",
        )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take the gradients of the convolutions and move their weights."""
        for matrix, weight in zip(self.param_groups[0]["params"], self._weights, strict=True):
            matrix.grad = None if weight.grad is None else _as_stored(weight.grad).reshape(matrix.shape)
        super().step(closure)  # type: ignore[no-untyped-call]


def _as_stored(weight: Tensor) -> Tensor:
    """Return (outputs, inputs, h, w) in the order in which channels_last stores it."""
    return weight.permute(0, 2, 3, 1)
