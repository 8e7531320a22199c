"""A small, fast network for small images: seven 3x3 convolutions, each with batch norm and GELU.

In the spirit of the CIFAR-10 speed records (Jordan, arXiv 2404.00498): few, wide layers on maps that shrink early.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

FIRST, WIDTHS = 32, (64, 256, 256)


def compact(classes: int) -> nn.Module:
    """Return the network, (3, h, w) -> (classes,), for images of 8 pixels or more a side."""
    # Without padding, so that 32 pixels become 30, 15, 7 and 3: a third less to compute than 32, 16, 8 and 4.
    layers: list[nn.Module] = [*_convolution(3, FIRST, padding=0)]
    channels = FIRST
    for width in WIDTHS:
        layers += [Halve(), *_convolution(channels, width), *_convolution(width, width)]
        channels = width
    return nn.Sequential(*layers, GlobalMax(), nn.Linear(channels, classes))


class Halve(nn.Module):
    """The maximum of each 2 x 2 pixels, (n, c, h, w) -> (n, c, h // 2, w // 2); of a single pixel itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        return functional.max_pool2d(x, kernel_size=2) if min(x.shape[2:]) > 1 else x


class GlobalMax(nn.Module):
    """The maximum of each channel, (n, c, h, w) -> (n, c); unlike AdaptiveMaxPool2d repeatable on CUDA.

    By `max`, which keeps where the maximum was: `amax` looks for it again, and torch.compile, which computes the input
    anew in another rounding, then finds none and divides by zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        return x.flatten(2).max(dim=2).values


def _convolution(inputs: int, outputs: int, padding: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=padding, bias=False),
        # Running statistics follow fast (torch's default is 0.1): a short trial has few steps to settle them.
        nn.BatchNorm2d(outputs, momentum=0.4),
        nn.GELU(),
    )
