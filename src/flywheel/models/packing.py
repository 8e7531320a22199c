"""Convolutions with weights in oneDNN's own layout, so that they are not reordered at every call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flywheel.models import device as devices
from flywheel.models.resnet import Conv3x3

# The operator as a graph, because torch.jit.trace does not take an empty list of scalars.
GRAPH = """
graph(%x : Tensor, %weight : Tensor, %bias : Tensor?):
  %padding : int[] = prim::Constant[value={}]()
  %stride : int[] = prim::Constant[value={}]()
  %dilation : int[] = prim::Constant[value={}]()
  %groups : int = prim::Constant[value={}]()
  %function : str = prim::Constant[value="none"]()
  %scalars : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %y : Tensor = mkldnn::_convolution_pointwise(
    %x, %weight, %bias, %padding, %stride, %dilation, %groups, %function, %scalars, %algorithm)
  return (%y)
"""


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes convolutions of a dtype (float32 or bfloat16) on a device."""
    known = dtype == torch.float32 or devices.has_bfloat16(device)
    return device.type == "cpu" and known and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def pack(network: nn.Module, example: Tensor) -> None:
    """Replace the 2-d convolutions of a network in place by packed ones that give the same numbers.

    The layout is the one oneDNN prefers for `example`, an input (n, 3, h, w) of the network's dtype on the CPU. Other
    batch sizes work too, other heights and widths do not, because weights that only meet padding are left out. These
    are the operators that torch.compile uses on the CPU (torch/_inductor, mkldnn_fusion). They are private, so torch
    is pinned and a test compares the results.
    """
    sizes: dict[nn.Module, list[int]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: sizes.__setitem__(module, list(inputs[0].shape)))
        for module in network.modules()
        if type(module) in (nn.Conv2d, Conv3x3) and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
    ]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d) and module in sizes:
                setattr(parent, name, PackedConvolution(module, sizes[module]))


class PackedConvolution(nn.Module):
    """A convolution for inference on the CPU, made from a Conv2d and the shape (n, c, h, w) of its usual input."""

    def __init__(self, convolution: nn.Conv2d, size: list[int]):
        super().__init__()
        weight, padding = convolution.weight, convolution.padding
        if isinstance(convolution, Conv3x3) and size[2:] == [1, 1]:
            weight, padding = convolution.centre.contiguous(), (0, 0)
        form = (padding, convolution.stride, convolution.dilation, convolution.groups)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self._convolve = _graph(*form)
        self.register_buffer("weight", reorder(weight.detach().to_mkldnn(), *form, size))
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (n, channels, h', w') of x (n, c, h, w) of the weight's dtype."""
        return self._convolve(x, self.weight, self.bias)


@functools.cache
def _graph(
    padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Callable[..., Tensor]:
    graph: Any = torch._C.parse_ir(GRAPH.format(list(padding), list(stride), list(dilation), groups))
    function: Callable[..., Tensor] = torch._C._create_function_from_graph("convolution", graph)
    return function
