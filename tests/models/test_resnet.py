"""The 3x3 convolution of ResNet-18: the same numbers as torch's for images of any size, and gradients as stored."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from flywheel.models.resnet import Conv3x3

SIZES = [(1, 1), (1, 2), (2, 2), (3, 3), (4, 1), (4, 4), (2, 4), (9, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_those_of_a_convolution(
    size: tuple[int, int], stride: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    convolution = Conv3x3(16, 24, stride).to(memory_format=torch.channels_last)
    x = torch.randn(5, 16, *size).to(memory_format=torch.channels_last).requires_grad_()
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, convolution.weight))
    expected = functional.conv2d(exact_x, exact_weight, stride=stride, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = convolution(x.to(dtype))
    exact = torch.autograd.grad(expected.square().sum(), (exact_x, exact_weight))
    gradients = torch.autograd.grad(found.float().square().sum(), (x, convolution.weight))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for one, other in zip((found, *gradients), (expected, *exact), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()
    assert gradients[1].stride() == convolution.weight.stride()  # autograd copies any other gradient
    with torch.no_grad():
        without_gradient = convolution(x)
    assert (without_gradient - expected).abs().max() <= tolerance * expected.abs().max()
