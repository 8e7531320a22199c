"""ResNet-18 (He et al., arXiv 1512.03385), untrained, for large and for small images.

The parameters have the names of torchvision's, whose import takes over a second in every process that loads a model:
it imports TorchDynamo and SymPy.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


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
    """A 3x3 convolution without bias, padded by one, that applies only its centre to images of a single pixel.

    The other eight weights see only padding there. ResNet-18 ends in such images for inputs of 32 pixels: this is a
    ninth of the work, and with stride 2 it avoids a bug. In bfloat16, oneDNN leaves the gradient of those eight weights
    uninitialised, NaN included (torch 2.14.1).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)

    @property
    def centre(self) -> Tensor:
        """The weights at the centre of the kernel, (outputs, inputs, 1, 1)."""
        return self.weight[:, :, 1:2, 1:2]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outputs, ceil(h / stride), ceil(w / stride)) of (n, inputs, h, w)."""
        if x.shape[-2:] == (1, 1):
            return functional.conv2d(x, self.centre)
        return super().forward(x)
