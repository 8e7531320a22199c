"""The failures to train on: their pixels, without those that no training may use (test, validation, holdout)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flywheel.data import dataset as datasets
from flywheel.data import splits
from flywheel.data.dataset import Dataset
from flywheel.registry import Registry, Version
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example
from flywheel.training.loop import TrainingData

KEPT_APART = ("test", "validation")


@dataclass(frozen=True)
class HardExamples:
    """Images (n, s, s, 3) uint8, labels (n,) int64, hashes; `dropped` holds the ids left out, by reason."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    dropped: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.labels)


def find(registry: Registry, version: Version, opened: Dataset) -> HardExamples:
    """Return the images of a feedback version's side `train`, from the data sets in its lineage, newest first.

    Labels are those of the data set. Left out, with the reason: exact copies of a test or validation image of
    `opened`, images that their hash puts on the side `holdout` whatever is listed, and what no data set has.
    """
    listed = [example for example in feedback.read(registry, version) if example.side == "train"]
    older = {
        ancestor.ref: ancestor
        for *_, ancestor in registry.lineage(version)
        if ancestor is not None and ancestor.type == "dataset"
    }
    # Opened one after the other, and only while images are missing: mostly the first has all.
    return choose(listed, opened, (datasets.open_directory(registry.open(parent)) for parent in older.values()))


def choose(listed: Sequence[Example], opened: Dataset, older: Iterable[Dataset] = ()) -> HardExamples:
    """Return the pixels of listed images; see `find`."""
    apart = {
        row.tobytes().hex(): name for name in KEPT_APART for row in opened.hashes[np.asarray(opened.indices[name])]
    }
    dropped: dict[str, list[int]] = {}
    wanted: dict[str, Example] = {}
    for example in listed:
        digest = np.frombuffer(bytes.fromhex(example.hash), np.uint8)[None]
        if example.hash in apart:
            dropped.setdefault(f"a copy of a {apart[example.hash]} image", []).append(example.id)
        elif splits.is_holdout(digest)[0]:
            dropped.setdefault("held out by its hash", []).append(example.id)
        else:
            wanted[example.hash] = example
    found: dict[str, tuple[NDArray[np.uint8], int]] = {}
    for source in (opened, *([] if not wanted else older)):
        if len(found) == len(wanted):
            break
        if source.class_names != opened.class_names or source.image_size != opened.image_size:
            continue
        for index in source.indices["simulation"]:
            key = source.hashes[index].tobytes().hex()
            if key in wanted and key not in found:
                found[key] = (np.array(source.images[index]), int(source.labels[index]))
    for key, example in wanted.items():
        if key not in found:
            dropped.setdefault("in no data set of this store", []).append(example.id)
    keys = [key for key in wanted if key in found]
    size = opened.image_size
    images = np.stack([found[key][0] for key in keys]) if keys else np.zeros((0, size, size, 3), np.uint8)
    return HardExamples(images, np.array([found[key][1] for key in keys], np.int64), tuple(keys), dropped)


def repeats(count: int, weight: float, seed: int) -> NDArray[np.int64]:
    """Return how often each of `count` examples is repeated, (count,) int64: `weight`, its fraction by seeded rounding.

    2.5 gives each two or three, half of them three; 0.5 leaves half of them out.
    """
    extra = np.random.default_rng(seed).random(count) < weight % 1
    return int(weight) + extra.astype(np.int64)


def mix(
    data: TrainingData, images: NDArray[np.uint8], labels: NDArray[np.int64], weight: float, seed: int
) -> TrainingData:
    """Return every original image once and each example `weight` times; the loop shuffles them anew each epoch."""
    times = repeats(len(labels), weight, seed)
    return replace(
        data,
        images=np.concatenate([data.images, np.repeat(images, times, axis=0)]),
        labels=np.concatenate([data.labels, np.repeat(labels, times)]),
    )
