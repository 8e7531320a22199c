"""A traced network gives the same numbers as the network, whatever its weights, and runs without Python."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flywheel.models import packing, tracing
from flywheel.models.architectures import architecture

EXAMPLE = torch.zeros(1, 3, 16, 16).to(memory_format=torch.channels_last)


def built(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = architecture("compact").build(10).eval()
    packing.pack(network, EXAMPLE)
    return network


def python_calls(function: Callable[[Tensor], Tensor]) -> int:
    """Return how many Python functions a call calls."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    with torch.inference_mode():
        function(EXAMPLE)
        sys.setprofile(counted)
        try:
            function(EXAMPLE)
        finally:
            sys.setprofile(None)
    return count


def test_networks_of_one_form_share_a_graph_and_keep_their_own_weights() -> None:
    networks = [built(seed) for seed in range(3)]
    functions = [tracing.traced(network, EXAMPLE, "test: shared") for network in networks]
    assert not set(functions) & set(networks)
    assert "test: shared" in tracing._graphs
    with torch.inference_mode():
        for batch in (1, 2, 7, 64):
            x = torch.randn(batch, 3, 16, 16).to(memory_format=torch.channels_last)
            outputs = [function(x) for function in functions]
            for output, network in zip(outputs, networks, strict=True):
                assert torch.equal(output, network(x))
            assert not torch.equal(outputs[0], outputs[1])


def test_a_traced_network_runs_without_python() -> None:
    network = built(0)
    assert python_calls(network) > 50
    assert python_calls(tracing.traced(network, EXAMPLE, "test: calls")) < 5


class ByBatch(nn.Module):
    """Multiplies by the batch size, which a trace keeps as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


class ByShape(nn.Module):
    """Needs the batch size that a trace keeps as a constant: the graph fails for another one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 3, 16, 16)


class Untraceable(nn.Module):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("cannot be traced")
        return x


@pytest.mark.parametrize("network", [ByBatch(), ByShape(), Untraceable()])
def test_a_network_that_a_trace_does_not_describe_stays_as_it_is(network: nn.Module) -> None:
    assert tracing.traced(network, EXAMPLE + 1, f"test: {type(network).__name__}") is network
