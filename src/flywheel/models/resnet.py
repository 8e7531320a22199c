"""ResNet-18 (He et al., arXiv 1512.03385), untrained, for large and for small images.

The parameters have the names of torchvision's, whose import takes over a second in every process that loads a model:
it imports TorchDynamo and SymPy.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input


def resnet(classes: int) -> nn.Module:
    """Return the network as published, for images of any size (3, h, w) -> (classes,)."""
    first = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return ResNet18(first, nn.MaxPool2d(kernel_size=3, stride=2, padding=1), classes)


def resnet_small_images(classes: int) -> nn.Module:
    """Return the network with a 3x3 first convolution and no max-pool, so that 32x32 images keep their detail."""
    first = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    return ResNet18(first, nn.Identity(), classes)


class ResNet18(nn.Module):
    """Four layers of two blocks after the given first convolution and pooling."""

    def __init__(self, first: nn.Conv2d, pool: nn.Module, classes: int):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = first, nn.BatchNorm2d(64), nn.ReLU(inplace=True), pool
        self.layer1 = nn.Sequential(Block(64, 64), Block(64, 64))
        self.layer2 = nn.Sequential(Block(64, 128, stride=2), Block(128, 128))
        self.layer3 = nn.Sequential(Block(128, 256, stride=2), Block(256, 256))
        self.layer4 = nn.Sequential(Block(256, 512, stride=2), Block(512, 512))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, 3, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; with a stride of 2, the shortcut is a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        shortcut: nn.Module | None = None
        if stride != 1:
            convolution = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        self.conv1, self.bn1 = Conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = Conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outputs, h / stride, w / stride) of (n, inputs, h, w)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        result: Tensor = self.relu(x)
        return result


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias, padded by one, that is fast for images of few pixels.

    It applies only its centre to images of a single pixel. The other eight weights see only padding there. ResNet-18
    ends in such images for inputs of 32 pixels: this is a ninth of the work, and with stride 2 it avoids a bug. In
    bfloat16, oneDNN leaves the gradient of those eight weights uninitialised, NaN included (torch 2.14.1).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)

    @property
    def centre(self) -> Tensor:
        """The weights at the centre of the kernel, (outputs, inputs, 1, 1)."""
        centre: Tensor = Centre.apply(self.weight)
        return centre

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outputs, ceil(h / stride), ceil(w / stride)) of (n, inputs, h, w)."""
        trains = torch.is_grad_enabled()
        if x.shape[-2:] == (1, 1):
            if trains:
                return functional.linear(x.flatten(1), self.centre.flatten(1)).view(len(x), -1, 1, 1)
            return functional.conv2d(x, self.centre)
        stride = self.stride[0]
        if trains and x.device.type == "cpu" and math.ceil(x.shape[2] / stride) * math.ceil(x.shape[3] / stride) <= 4:
            result: Tensor = FewOutputs.apply(x, self.weight.to(x.dtype), stride)
            return result
        return super().forward(x)


class Centre(torch.autograd.Function):
    """The centre of 3x3 kernels, with a gradient in the memory format of the kernels. That of a slice is contiguous."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Return (outputs, inputs, 1, 1) of (outputs, inputs, 3, 3)."""
        ctx.save_for_backward(weight)
        return weight[:, :, 1:2, 1:2].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return zeros with the gradient at the centre."""
        (weight,) = ctx.saved_tensors
        whole = torch.zeros_like(weight)
        whole[:, :, 1:2, 1:2] = gradient
        return whole


class FewOutputs(torch.autograd.Function):
    """A 3x3 convolution, padded by one, whose gradient of the weights is one matrix product.

    With outputs of four pixels or fewer, oneDNN takes up to six times as long (docs/log.md), and for images of one
    column with stride 2 it leaves weights that see only padding uninitialised, too (bfloat16, torch 2.14.1).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Return the convolution (n, outputs, h', w') of x (n, inputs, h, w) and the weight, of the same dtype."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and of the weight."""
        x, weight = ctx.saved_tensors
        by_pixel = functional.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        windows = by_pixel.unfold(1, 3, ctx.stride).unfold(2, 3, ctx.stride).permute(0, 1, 2, 4, 5, 3)
        outputs = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        of_weight = outputs.T @ windows.reshape(len(outputs), -1)  # in the order of channels_last memory
        of_x = conv2d_input(x.shape, weight, gradient, ctx.stride, padding=1)  # type: ignore[no-untyped-call]
        return of_x, of_weight.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2), None
