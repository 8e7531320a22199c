"""A small, fast network for small images, in the manner of the CIFAR-10 speed records.

Its blocks are those of airbench94 (Jordan, arXiv 2404.00498): convolution, pooling, convolution; each convolution is
followed by batch norm (without scale) and GELU. It is narrower, and its first layer is trained: a fixed layer that
whitens the training images amplifies features found only in drifted images (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FIRST, WIDTHS = 16, (48, 160, 256)


def compact(classes: int) -> nn.Module:
    """Return the network, (3, h, w) -> (classes,), for images of 8 pixels or more a side."""
    layers: list[nn.Module] = [nn.Conv2d(3, FIRST, kernel_size=2), nn.GELU()]
    channels = FIRST
    for width in WIDTHS:
        layers += [_convolution(channels, width), Halve(), *_norm(width), _convolution(width, width), *_norm(width)]
        channels = width
    head = nn.Linear(channels, classes, bias=False)
    # Small first logits, so that the first steps need not undo random ones (airbench94 divides the logits by nine).
    with torch.no_grad():
        head.weight.div_(9)
    return nn.Sequential(*layers, GlobalMax(), head)


class Halve(nn.Module):
    """The maximum of every 2 x 2 pixels, (n, c, h, w) -> (n, c, h // 2, w // 2); a single pixel stays."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        return functional.max_pool2d(x, min(2, x.shape[-1]))


class GlobalMax(nn.Module):
    """The maximum of each channel, (n, c, h, w) -> (n, c); unlike AdaptiveMaxPool2d deterministic on CUDA.

    `max` stores the index of the maximum. The backward pass of `amax` searches for it again; torch.compile recomputes
    the input with another rounding, so the search finds nothing and divides by zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        return x.flatten(2).max(dim=2).values


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def _norm(channels: int) -> tuple[nn.Module, ...]:
    # Fast running statistics (torch's default is 0.1), because a short trial has few steps.
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad = False
    return norm, nn.GELU()
