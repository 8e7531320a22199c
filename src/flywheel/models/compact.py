"""A small, fast network for small images: seven 3x3 convolutions, each with batch norm and GELU."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256)


def compact(classes: int) -> nn.Module:
    """Return the network, (3, h, w) -> (classes,), for images of 8 pixels or more a side."""
    channels = 32
    layers: list[nn.Module] = [*_convolution(3, channels)]
    for width in WIDTHS:
        layers += [nn.MaxPool2d(2), *_convolution(channels, width), *_convolution(width, width)]
        channels = width
    return nn.Sequential(*layers, GlobalMax(), nn.Linear(channels, classes))


class GlobalMax(nn.Module):
    """The maximum of each channel, (n, c, h, w) -> (n, c); unlike AdaptiveMaxPool2d repeatable on CUDA.

    By `max`, which keeps where the maximum was: `amax` looks for it again, and torch.compile, which computes the input
    anew in another rounding, then finds none and divides by zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        return x.flatten(2).max(dim=2).values


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        # Running statistics follow fast (torch's default is 0.1): a short trial has few steps to settle them.
        nn.BatchNorm2d(outputs, momentum=0.4),
        nn.GELU(),
    )
