"""The optimizers: SGD, Adam, or Muon with AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flywheel.params import Recipe

# Factors on the learning rate for the parameters that AdamW updates beside Muon. Muon's rate is relative to the norm of
# a matrix, AdamW's is the step of each single weight, and the weights of the last layer are small.
ADAMW_FACTOR, LAST_LAYER_FACTOR = 1 / 10, 1 / 90


def make_optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return the recipe's optimizer; with `muon` AdamW, and Muon for every convolution after the first.

    Each param group holds its peak learning rate. Biases and norms get no weight decay; parameters that do not require
    a gradient are left out. Fused: one pass over the weights (45 MB for ResNet-18) instead of six.
    """
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [_group(weights, rate, decay), _group(others, rate, 0.0)]
    match recipe.optimizer:
        case "sgd":
            return [_update_as_stored(torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True))]
        case "adam":
            return [_update_as_stored(torch.optim.Adam(groups, betas=(momentum, 0.999), fused=True))]
        case "muon":
            return _muon_and_adamw(weights, others, recipe)


class Muon(torch.optim.Muon):
    """torch's Muon for the weights of convolutions (channels_last), each seen as a matrix (outputs, h * w * inputs).

    Before each step, each matrix is rescaled to Frobenius norm sqrt(rows), so the learning rate is a relative step. The
    batch norm after a convolution cancels its scale, but a step turns a larger weight less: a fixed norm keeps the
    relative step constant and makes weight decay needless. Sources: Jordan et al., Muon: an optimizer for hidden layers
    (kellerjordan.github.io/posts/muon), which leaves the first and last layer to Adam, as we do; the norm and three
    Newton-Schulz steps: airbench94_muon (github.com/KellerJordan/cifar10-airbench).
    """

    def __init__(self, weights: Sequence[Tensor], learning_rate: float, momentum: float):
        matrices = [_stored(weight.detach()).view(len(weight), -1) for weight in weights]
        super().__init__([_group(matrices, learning_rate, 0.0)], momentum=momentum, ns_steps=3, adjust_lr_fn="original")
        _take_gradients(self, matrices, weights)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Rescale the weights and update them."""
        for matrix in self.param_groups[0]["params"]:
            matrix.mul_(len(matrix) ** 0.5 / matrix.norm())
        super().step(closure)  # type: ignore[no-untyped-call]


def _muon_and_adamw(weights: Sequence[Tensor], others: Sequence[Tensor], recipe: Recipe) -> list[torch.optim.Optimizer]:
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    inner = [p for p in weights if p.ndim == 4 and p.shape[1] > 3]
    last = [p for p in weights if p.ndim == 2][-1:]
    taken = {id(p) for p in (*inner, *last)}
    groups = [
        _group([p for p in weights if id(p) not in taken], ADAMW_FACTOR * rate, decay),
        _group(last, LAST_LAYER_FACTOR * rate, decay),
        _group(others, ADAMW_FACTOR * rate, 0.0),
    ]
    adam = _update_as_stored(torch.optim.AdamW(groups, betas=(momentum, 0.999), fused=True))
    return [adam, *([Muon(inner, rate, momentum)] if inner else [])]


def _group(params: Sequence[Tensor], learning_rate: float, weight_decay: float) -> dict[str, object]:
    return {"params": params, "lr": learning_rate, "weight_decay": weight_decay}


def _update_as_stored(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let an optimizer update the weights of convolutions in the order in which they are stored. Returns it.

    Fused optimizers copy the gradients of channels_last weights, which takes longer than the update (on the CPU, torch
    2.14.1).
    """
    weights: list[Tensor] = []
    views: list[Tensor] = []
    for group in optimizer.param_groups:
        for index, weight in enumerate(group["params"]):
            if weight.ndim == 4:
                group["params"][index] = _stored(weight.detach())
                weights.append(weight)
                views.append(group["params"][index])
    _take_gradients(optimizer, views, weights)
    return optimizer


def _take_gradients(optimizer: torch.optim.Optimizer, views: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Before each step, give the views of weights that an optimizer updates the gradients of these weights."""

    def take(*_: object) -> None:
        for view, weight in zip(views, weights, strict=True):
            view.grad = None if weight.grad is None else _stored(weight.grad).reshape(view.shape)

    optimizer.register_step_pre_hook(take)


def _stored(weight: Tensor) -> Tensor:
    """Return weights (outputs, inputs, h, w) as (outputs, h, w, inputs), the order of channels_last memory."""
    return weight.permute(0, 2, 3, 1)
