"""Packed convolutions give the same numbers as those they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flywheel.models import device as devices
from flywheel.models import packing
from flywheel.models.architectures import architecture

CPU = torch.device("cpu")


def both(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        before = network(x)
        packing.pack(network, x[:1])
        return before, network(x)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("name", ["standard", "compact"])
@pytest.mark.skipif(not devices.has_bfloat16(CPU), reason="this processor does not compute bfloat16")
def test_bfloat16_to_the_last_bit(name: str, batch: int) -> None:
    network = architecture(name).build(10).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    x = torch.randn(batch, 3, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
    before, after = both(network.to(memory_format=torch.channels_last), x)
    assert torch.equal(before, after)
    assert not any(type(module) is nn.Conv2d for module in network.modules())


def test_every_form_of_convolution() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=True),
        nn.Conv2d(8, 8, 3, dilation=2, groups=4, bias=False),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 4, 1),
    )
    before, after = both(network, torch.randn(5, 3, 20, 24))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)
    assert [type(module) is nn.Conv2d for module in network] == [False, False, True, True, False]


def test_only_where_onednn_computes() -> None:
    assert packing.can_pack(CPU, torch.float32)
    assert not packing.can_pack(torch.device("cuda"), torch.float32)
    assert packing.can_pack(CPU, torch.bfloat16) == devices.has_bfloat16(CPU)
