"""Bring images to a device: all of them where they fit, otherwise batches that a thread reads ahead."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flywheel.data.dataset import ImageRows, Images
from flywheel.machine import threads
from flywheel.models import device as devices

RESIDENT_FRACTION = 0.4  # of a device's free memory, for images; training needs the rest
CHUNK = 1024  # images copied to the device at a time
AHEAD = 2  # batches


def tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on the device; on the CPU it shares the array's memory (Ray's is read-only)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        shared = torch.from_numpy(np.ascontiguousarray(array))
    return shared.to(device)  # blocking: non_blocking gains nothing from pageable memory and is unsafe on MPS


def resident(images: Images, device: torch.device) -> Images | Tensor:
    """Return the images as a tensor on the device if they are there or fit, otherwise as they are.

    For the CPU, images in memory fit and files do not: the operating system keeps in memory what it can of a file, once
    for all processes.
    """
    if device.type == "cpu" and not isinstance(images, ImageRows):
        return tensor(images, device)
    if math.prod(images.shape) > RESIDENT_FRACTION * devices.free_bytes(device):
        return images
    placed = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), CHUNK):
        placed[start : start + CHUNK] = torch.from_numpy(images[start : start + CHUNK])
    return placed


def batches(images: Images | Tensor, keys: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    """Yield images[key] on the device for each key (a slice or an array); of files, a thread reads the next ones."""
    pinned = device.type == "cuda"  # the copy then overlaps with computing

    def read(key: Any) -> Tensor:
        if isinstance(images, Tensor):
            return images[key]
        batch = torch.from_numpy(np.require(images[key], requirements=("C", "W")))
        return batch.pin_memory() if pinned else batch

    read_batches = threads.ordered(read, keys, 1, AHEAD) if isinstance(images, ImageRows) else map(read, keys)
    for batch in read_batches:
        yield batch.to(device, non_blocking=pinned)
