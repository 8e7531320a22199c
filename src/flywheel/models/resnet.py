"""ResNet-18 (He et al., arXiv 1512.03385) by torchvision, from scratch, in the three forms of the pipeline."""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet18


def resnet(classes: int) -> nn.Module:
    """Return the network as published, for images of any size (3, h, w) -> (classes,)."""
    model: nn.Module = resnet18(weights=None, num_classes=classes)
    return model


def resnet_small_images(classes: int) -> nn.Module:
    """Return the network with a 3x3 first convolution and no max-pool, so that 32x32 images keep their detail."""
    model = resnet18(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    small: nn.Module = model
    return small
