"""Batches of images, augmented on the device, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flywheel.data.dataset import Images
from flywheel.models import transfer


class AugmentedBatches:
    """Shuffled, augmented batches of a training set; every epoch has the same number of full batches.

    Images are (n, h, w, 3) uint8; they stay on the device if they fit there, otherwise a thread reads the next batches.
    One gather of rows and columns shifts and flips a batch; reflection fills the border
    that a shift uncovers. An epoch leaves out the images that do not fill a batch, different ones each time. A random
    half is mirrored in odd epochs, the other half in even ones, so two epochs show both sides of every image; with
    independent draws they would do so for half of the images (Jordan, arXiv 2404.00498, 3.6).
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int64],
        batch_size: int,
        *,
        flip: bool,
        translate: int,
        seed: int,
        device: torch.device,
    ):
        self.size = images.shape[1]
        self.translate = min(translate, self.size - 1)
        self.flip = flip
        self.labels = transfer.tensor(labels, device)
        self.images = transfer.resident(images, device)
        self.batch_size = min(batch_size, len(labels))
        self.device = device
        self.random = torch.Generator(device).manual_seed(seed)
        self._mirrored = torch.rand(len(labels), generator=self.random, device=device) < 0.5  # in odd epochs

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (b, h, w, 3) uint8, labels (b,) int64) on the device; `number` counts epochs from 1."""
        order = torch.randperm(len(self.labels), generator=self.random, device=self.device)
        indices = order[: len(self) * self.batch_size].reshape(-1, self.batch_size)
        keys = indices if isinstance(self.images, Tensor) else indices.cpu().numpy()
        for index, images in zip(indices, transfer.batches(self.images, keys, self.device), strict=True):
            yield self._augmented(images, index, number), self.labels[index]

    def _augmented(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return images augmented; `index` are their numbers in the training set."""
        if not self.translate and not self.flip:
            return images
        rows, columns = self._offsets(len(index)), self._offsets(len(index))
        if self.flip:
            mirrored = self._mirrored[index] ^ (epoch % 2 == 0)
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        each = torch.arange(len(index), device=self.device)[:, None, None]
        return images[each, rows[:, :, None], columns[:, None, :]]

    def _offsets(self, count: int) -> Tensor:
        """Return the row (or column) indices of `count` randomly shifted images, (count, size)."""
        last = self.size - 1
        shape = (count, 1)
        shifts = torch.randint(-self.translate, self.translate + 1, shape, generator=self.random, device=self.device)
        rows = (torch.arange(self.size, device=self.device) + shifts).abs()  # reflected at the first row
        reflected: Tensor = last - (last - rows).abs()  # and at the last
        return reflected
