"""The data set as an artifact: memory-mapped arrays, the indices of each split, and a description.

images.npy   (n, s, s, 3) uint8      labels.npy  (n,) int64
hashes.npy   (n, 32) uint8           ids.npy     (n,) int64, index in the source's train or test images
train.npy, validation.npy, test.npy, simulation.npy   indices into the above, int64
clean.npy    indices of the simulation images without drift, in the same order (format 1 has none)
dataset.json
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flywheel import files
from flywheel.data import DataError, splits
from flywheel.data.images import Pixels

FORMAT, OLDEST = 2, 1
ADVISED_BYTES = 32_768  # of a row; at 224 pixels and a cold cache ten times as fast, at 32 a millisecond lost a batch
INDICES = (*splits.SPLITS, "clean")
ARRAYS = ("images", "labels", "hashes", "ids", *INDICES)


class ImageRows:
    """Rows of image arrays (n, h, w, 3) uint8, mostly memory-mapped files: indexing reads rows, nothing else does.

    Pickled, a memory-mapped file is its path: another process on this machine maps the same file.
    """

    def __init__(self, *arrays: Pixels, index: NDArray[np.int64] | None = None):
        self._arrays = arrays
        self._starts = np.cumsum([0, *map(len, arrays)])
        self._index = np.arange(self._starts[-1]) if index is None else index  # into the arrays one after the other

    @classmethod
    def of(cls, *parts: Images) -> ImageRows:
        """Return the rows of arrays or of other rows, one after the other."""
        rows = [part if isinstance(part, ImageRows) else cls(part) for part in parts]
        if len(rows) == 1:
            return rows[0]
        starts = np.cumsum([0, *(one._starts[-1] for one in rows)])
        index = np.concatenate([one._index + start for one, start in zip(rows, starts, strict=False)])
        return cls(*(array for one in rows for array in one._arrays), index=index)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that reading all rows gives."""
        return (len(self._index), *self._arrays[0].shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: Any) -> Pixels:
        """Read the rows of an integer, a slice, a mask or an array of indices."""
        rows = self._index[key]
        if len(self._arrays) == 1:
            return _read(self._arrays[0], rows)
        holders = np.searchsorted(self._starts, rows, "right") - 1
        if not rows.ndim:
            return _read(self._arrays[holders], rows - self._starts[holders])
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for holder in np.unique(holders):
            mask = holders == holder
            found[mask] = _read(self._arrays[holder], rows[mask] - self._starts[holder])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def select(self, index: NDArray[Any] | slice) -> ImageRows:
        """Return some of the rows without reading them."""
        return ImageRows(*self._arrays, index=self._index[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": tuple(_path_of(array) or array for array in self._arrays)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._arrays = tuple(np.load(one, mmap_mode="r") if isinstance(one, str) else one for one in self._arrays)


def _read(array: Pixels, rows: NDArray[np.int64]) -> Pixels:
    """Return array[rows]; large rows of a file are asked for first, or the disk would be asked page by page."""
    file, size = array.base, array.strides[0]
    if isinstance(array, np.memmap) and isinstance(file, mmap.mmap) and rows.ndim and size >= ADVISED_BYTES:
        for start in (array.offset + rows * size).tolist():
            page = start - start % mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, page, start + size - page)
    return np.asarray(array[rows])


def _path_of(array: Pixels) -> str | None:
    """Return the .npy file that an array maps, None for an array in memory or a part of a file."""
    return str(array.filename) if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) else None


Images = Pixels | ImageRows


@dataclass(frozen=True)
class Split:
    """Images (n, s, s, 3) uint8, labels (n,) int64, and ids (n,) int64, which are indices in the source."""

    images: Images
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def take(self, index: NDArray[Any] | slice) -> Split:
        """Return the split of some indices; images are read when they are indexed."""
        return Split(ImageRows.of(self.images).select(index), self.labels[index], self.ids[index])


@dataclass(frozen=True)
class SourceImages:
    """The images of a source, of any size. An id is the index in the source's train or test images before shuffling.

    The first `test_count` test images become the split `test`, the others `simulation`. The last `validation_count`
    training images become `validation`; if there are none, some are drawn. `files` counts a folder's image files.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split
    test_count: int
    validation_count: int = 0
    skipped: tuple[str, ...] = ()
    files: Mapping[str, Any] | None = None


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

    @cached_property
    def simulation_rows(self) -> dict[str, int]:
        """Content hash (hex) -> index of the simulation images, with and without drift."""
        rows = np.concatenate([self.indices["simulation"], self.indices.get("clean", [])]).astype(np.int64)
        return {self.hashes[row].tobytes().hex(): int(row) for row in rows}

    def split(self, name: str) -> Split:
        """Return a split; its images are read when they are indexed."""
        return Split(self.images, self.labels, self.ids).take(self.indices[name])


def histogram(images: Pixels) -> NDArray[np.int64]:
    """Return how often each value occurs in each channel, (3, 256), of images (n, h, w, 3) uint8."""
    tall = Image.fromarray(images.reshape(-1, *images.shape[2:]))
    return np.array(tall.histogram(), np.int64).reshape(3, 256)


def statistics(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of uint8 images, divided by 255.

    Exact, from the counts (3, 256) of the values. CIFAR-10's 50,000 training images give 0.4914 0.4822 0.4465 and
    0.2470 0.2435 0.2616; the often copied 0.2023 0.1994 0.2010 are means of the deviations of single images.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for counts in histogram:
        average = float(counts @ values / counts.sum())
        mean.append(average)
        std.append(float(np.sqrt(counts @ (values - average) ** 2 / counts.sum())))
    return mean, std


def allocate(shape: Sequence[int], path: Path | None) -> Pixels:
    """Return an array for images, mapped to a new .npy file unless `path` is None. Raises DataError on a full disk."""
    if path is None:
        return np.empty(shape, np.uint8)
    try:
        mapped: Pixels = np.lib.format.open_memmap(path, "w+", np.uint8, tuple(shape))
        if hasattr(os, "posix_fallocate"):  # a full disk would end the process later, when a page is written
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None
    return mapped


def save(dataset: Dataset, directory: Path) -> None:
    """Write the files of a data set into a directory, except images that are there. Raises DataError on a full disk."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        path, array = directory / f"{name}.npy", dataset.indices[name] if name in INDICES else getattr(dataset, name)
        try:
            if isinstance(array, np.memmap) and Path(str(array.filename)) == path.resolve():
                array.flush()
            else:
                np.save(path, array, allow_pickle=False)
        except OSError as error:
            raise _cannot_write(path, error) from None
    files.write_json(directory / "dataset.json", {"format": FORMAT, **dataset.description})


def _cannot_write(path: Path, error: OSError) -> DataError:
    reason = error.strerror or "No space left on device"  # numpy's message names neither file nor reason
    free = files.human_size(shutil.disk_usage(path.parent).free)
    advice = files.advice(error) or "; free space there and run again"
    return DataError(f"cannot write {path} ({reason}, {free} are free){advice}")


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
