"""torchvision's ResNet-18 (He et al., arXiv 1512.03385), untrained, for large and for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock


def resnet(classes: int) -> nn.Module:
    """Return the network as published, for images of any size (3, h, w) -> (classes,)."""
    return _resnet18(classes)


def resnet_small_images(classes: int) -> nn.Module:
    """Return the network with a 3x3 first convolution and no max-pool, so that 32x32 images keep their detail."""
    model = _resnet18(classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _resnet18(classes: int) -> nn.Module:
    model: nn.Module = resnet18(weights=None, num_classes=classes)
    for block in [module for module in model.modules() if isinstance(module, BasicBlock)]:
        block.conv1, block.conv2 = Conv3x3.like(block.conv1), Conv3x3.like(block.conv2)
    return model


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias, padded by one, that applies only its centre to images of a single pixel.

    The other eight weights see only padding there. ResNet-18 ends in such images for inputs of 32 pixels: this is a
    ninth of the work, and with stride 2 it avoids a bug. In bfloat16, oneDNN leaves the gradient of those eight weights
    uninitialised, NaN included (torch 2.14.1).
    """

    @classmethod
    def like(cls, other: nn.Conv2d) -> Conv3x3:
        """Return a copy of a 3x3 convolution that shares its weights."""
        new = cls(other.in_channels, other.out_channels, kernel_size=3, stride=other.stride[0], padding=1, bias=False)
        new.weight = other.weight
        return new

    @property
    def centre(self) -> Tensor:
        """The weights at the centre of the kernel, (outputs, inputs, 1, 1)."""
        return self.weight[:, :, 1:2, 1:2]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outputs, ceil(h / stride), ceil(w / stride)) of (n, inputs, h, w)."""
        if x.shape[-2:] == (1, 1):
            return functional.conv2d(x, self.centre)
        return super().forward(x)
