"""Run a network as one call without Python, so that other threads of the process can run meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

_graphs: dict[Hashable, Callable[..., Tensor]] = {}


def traced(network: nn.Module, example: Tensor, form: Hashable) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the network's outputs, also for other batch sizes than that of `example`.

    Networks with the same `form` share a graph, which gets the weights as inputs, because torch keeps every graph, and
    every weight in it, until the process ends. The network itself is returned if it cannot be traced, or its graph
    fails or gives other numbers, for example because its code depends on the batch size. torch.jit is deprecated, but
    torch has nothing else that needs neither Python nor a compiler; torch is pinned, and tests compare.
    """
    weights = (*network.parameters(), *network.buffers())
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; image sizes become constants
        batch = torch.rand((len(example) + 2, *example.shape[1:])).to(example)
        try:
            if form not in _graphs:
                trace: Any = torch.jit.trace
                _graphs[form] = trace(lambda x, *_: network(x), (example, *weights), check_trace=False)
            graph = _graphs[form]
            if not torch.equal(graph(batch, *weights), network(batch)):
                return network
        except RuntimeError:
            return network
    return lambda x: graph(x, *weights)
