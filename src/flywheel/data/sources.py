"""The sources of images: CIFAR-10 from torchvision, a folder or archive, or scikit-learn's digits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import params
from flywheel.data import DataError, fetch, folder
from flywheel.data.dataset import Split

log = logging.getLogger(__name__)

CIFAR10_TEST_IMAGES = 8_000  # as in the original pipeline: test images 0-7,999; 8,000 on are simulation
UNEVEN = 3  # the largest class has this many times the images of the smallest
NAMED_CLASSES = 5  # the largest and the smallest, where there are many
DIGITS_TRAIN_IMAGES, DIGITS_TEST_IMAGES = 800, 450  # of 1,797; the remaining 547 are simulation


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


def load(data: params.Data, cache: Path, scratch: Path | None = None) -> SourceImages:
    """Return the images of the source that the params name. Raises DataError.

    A folder's decoded images are in a file in `scratch` that vanishes with them, or in memory if that is None.
    """
    if data.source == "cifar10":
        return cifar10(cache)
    if data.source == "digits":
        return digits(data)
    return from_folder(data, scratch)


def cifar10(cache: Path, dataset_class: Any = None) -> SourceImages:
    """Return CIFAR-10 from torchvision's archive, fetched into `cache` once and verified.

    `dataset_class` is torchvision.datasets.CIFAR10 or a subclass with its own URL and checksums. Source:
    https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009).
    """
    if dataset_class is None:
        from torchvision.datasets import CIFAR10

        dataset_class = CIFAR10
    fetch.archive(dataset_class.url, cache / dataset_class.filename, dataset_class.tgz_md5, dataset_class.base_folder)
    try:
        train, test = (dataset_class(str(cache), train=train, download=False) for train in (True, False))
    except RuntimeError:
        raise DataError(
            f"{cache / dataset_class.base_folder} does not match its checksums; remove it and run make data again"
        ) from None

    def split(part: Any) -> Split:
        return Split(part.data, np.asarray(part.targets, np.int64), np.arange(len(part.data)))

    return SourceImages(tuple(train.classes), split(train), split(test), min(CIFAR10_TEST_IMAGES, len(test.data) - 1))


def digits(data: params.Data) -> SourceImages:
    """Return scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), shuffled with the seed.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    every = Split(grey, bunch.target.astype(np.int64), np.arange(len(grey)))
    # Neighbours in the file have one writer, so the images are shuffled before they are split.
    order = np.random.default_rng(data.seed).permutation(len(grey))
    train, test = every.take(order[:DIGITS_TRAIN_IMAGES]), every.take(order[DIGITS_TRAIN_IMAGES:])
    return SourceImages(tuple(str(digit) for digit in range(10)), train, test, DIGITS_TEST_IMAGES)


def from_folder(data: params.Data, scratch: Path | None = None) -> SourceImages:
    """Return the images of `data.path`.

    A folder's test images are shuffled with the seed and split by `test_fraction`; without any, all its images are
    divided by `folder_split`.
    """
    assert data.path is not None
    found = folder.read(Path(data.path).expanduser(), data, scratch)
    test, test_count, count = found.test, found.test_count, len(found.test.labels)
    if test_count is None:
        test = test.take(np.random.default_rng(data.seed).permutation(count))
        test_count = min(max(round(count * data.test_fraction), 1), count - 1)
    of_class = np.bincount(found.train.labels, minlength=len(found.class_names))
    if of_class.max() >= UNEVEN * of_class.min():
        counts = [f"{found.class_names[index]} {of_class[index]:,}" for index in np.argsort(-of_class, kind="stable")]
        shown = counts if len(counts) <= 2 * NAMED_CLASSES else [*counts[:NAMED_CLASSES], "…", *counts[-NAMED_CLASSES:]]
        log.info(f"data: the classes are uneven, so read the accuracy of each: {', '.join(shown)} training images")
    return SourceImages(
        found.class_names, found.train, test, test_count, found.validation_count, found.skipped, found.files
    )
