"""The data set as an artifact: memory-mapped arrays, the indices of each split, and a description.

images.npy   (n, s, s, 3) uint8      labels.npy  (n,) int64
hashes.npy   (n, 32) uint8           ids.npy     (n,) int64, index in the source's train or test images
train.npy, validation.npy, test.npy, simulation.npy   indices into the above, int64
clean.npy    indices of the simulation images without drift, in the same order (format 1 has none)
dataset.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel import files
from flywheel.data import DataError, splits
from flywheel.data.images import Pixels

FORMAT, OLDEST = 2, 1
INDICES = (*splits.SPLITS, "clean")
ARRAYS = ("images", "labels", "hashes", "ids", *INDICES)


@dataclass(frozen=True)
class Split:
    """Images (n, s, s, 3) uint8, labels (n,) int64, and ids (n,) int64, which are indices in the source."""

    images: Pixels
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def take(self, index: NDArray[np.int64] | slice) -> Split:
        """Return a copy of the images at some indices, or a view of a slice."""
        return Split(self.images[index], self.labels[index], self.ids[index])


@dataclass(frozen=True)
class Dataset:
    """A data set, in memory or memory-mapped. `description` is the content of dataset.json."""

    images: Pixels
    labels: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    ids: NDArray[np.int64]
    indices: Mapping[str, NDArray[np.int64]]
    description: Mapping[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return tuple(self.description["class_names"])

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel over train and validation, of pixels in [0, 1]."""
        return tuple(self.description["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel over train and validation, of pixels in [0, 1]."""
        return tuple(self.description["std"])

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.images.shape[1])

    def traffic(self, drift: str) -> NDArray[np.int64]:
        """Return the indices of the simulation images, with drift (`data`) or without (`none`). Raises DataError."""
        if drift == "data":
            return self.indices["simulation"]
        if "clean" not in self.indices:
            raise DataError("the data set has no simulation images without drift; run make data FORCE=1")
        return self.indices["clean"]

    @cached_property
    def holdout(self) -> NDArray[np.bool_]:
        """A mask of the simulation images on the side `holdout`."""
        return splits.is_holdout(self.hashes[self.indices["simulation"]])

    def split(self, name: str) -> Split:
        """Return a copy of the images of a split."""
        return Split(self.images, self.labels, self.ids).take(self.indices[name])


def statistics(images: Pixels) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of uint8 images, divided by 255.

    Exact, from the counts of the 256 values. CIFAR-10's 50,000 training images give 0.4914 0.4822 0.4465 and
    0.2470 0.2435 0.2616; the often copied 0.2023 0.1994 0.2010 are means of the deviations of single images.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[3]):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        average = float(counts @ values / counts.sum())
        mean.append(average)
        std.append(float(np.sqrt(counts @ (values - average) ** 2 / counts.sum())))
    return mean, std


def save(dataset: Dataset, directory: Path) -> None:
    """Write the files of a data set into a directory. Raises DataError when the disk is full."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        array = dataset.indices[name] if name in INDICES else getattr(dataset, name)
        try:
            np.save(directory / f"{name}.npy", array, allow_pickle=False)
        except OSError as error:  # numpy's message names neither file nor reason
            reason = error.strerror or "No space left on device"
            advice = "free space or set paths.store to another disk, and run again"
            raise DataError(f"cannot write {directory / name}.npy ({reason}); {advice}") from None
    files.write_json(directory / "dataset.json", {"format": FORMAT, **dataset.description})


def open_directory(directory: Path) -> Dataset:
    """Return the data set in a directory with memory-mapped arrays. Raises DataError."""
    try:
        description = files.read_json(directory / "dataset.json")
        held = ARRAYS if description.get("format") != OLDEST else ARRAYS[:-1]
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in held}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{directory} is not a data set ({error}); run make data FORCE=1") from None
    if description.get("format") not in (OLDEST, FORMAT):
        raise DataError(f"{directory} is of format {description.get('format')}, not {FORMAT}; run make data FORCE=1")
    indices = {name: arrays.pop(name) for name in INDICES if name in arrays}
    return Dataset(**arrays, indices=indices, description=description)
