"""The table of architectures. To add one, write its function and add a line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from flywheel.models import ModelError
from flywheel.models.compact import compact
from flywheel.models.resnet import resnet, resnet_small_images


@dataclass(frozen=True)
class Architecture:
    """How to build a network for a number of classes; `input_size` resizes the images (None: no resizing)."""

    build: Callable[[int], nn.Module]
    input_size: int | None = None


ARCHITECTURES = {
    "standard": Architecture(resnet),
    "upsample": Architecture(resnet, input_size=224),
    "modified": Architecture(resnet_small_images),
    "compact": Architecture(compact),
}


def architecture(name: str) -> Architecture:
    """Return the architecture with a name. Raises ModelError naming the known ones."""
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(ARCHITECTURES)}"
        raise ModelError(f"unknown architecture {name!r}; {hint}")
    return ARCHITECTURES[name]
