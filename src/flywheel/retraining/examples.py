"""The production images to train on: their pixels, without those that no training may use (test, validation, holdout).

`mix` puts them beside the originals; the arms of a comparison draw from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flywheel.data import dataset as datasets
from flywheel.data import splits
from flywheel.data.dataset import Dataset, ImageRows, Images
from flywheel.registry import Registry, Version
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example
from flywheel.training.loop import TrainingData

KEPT_APART = ("test", "validation")
Arm = Literal["all", "failures", "random", "none"]


@dataclass(frozen=True)
class Labelled:
    """Labelled production images (n, s, s, 3) uint8, labels (n,) int64, hashes, which were answered rightly (n,) bool.

    `dropped` holds the ids (hashes, where there is none) left out, by reason; `disputed` counts the images whose
    labellers disagree, which are left out, too.
    """

    images: ImageRows
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    right: NDArray[np.bool_]
    dropped: dict[str, list[int | str]]
    disputed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def arm(self, name: Arm, seed: int) -> NDArray[np.int64]:
        """Return the indices of the images that an arm trains on; `random` draws as many as there are failures."""
        failures = np.flatnonzero(~self.right)
        if name == "random":
            return np.sort(np.random.default_rng(seed).permutation(len(self))[: len(failures)])
        return {"all": np.arange(len(self)), "failures": failures, "none": failures[:0]}[name]


def find(registry: Registry, version: Version, opened: Dataset) -> Labelled:
    """Return the images of a feedback version's side `train`.

    Their pixels come from the version itself or from the data sets in its lineage, newest first. Left out, with the
    reason: exact copies of a test or validation image of `opened`, images of a data set that their hash puts on the
    side `holdout` whatever is listed, and what is nowhere.
    """
    listed = [example for example in feedback.read(registry, version) if example.side == "train"]
    older = {
        ancestor.ref: ancestor
        for *_, ancestor in registry.lineage(version)
        if ancestor is not None and ancestor.type == "dataset"
    }
    own = feedback.pixels(registry, version, listed)
    # Opened one after the other, and only while images are missing: mostly the first has all.
    return choose(listed, opened, (datasets.open_directory(registry.open(parent)) for parent in older.values()), own)


def choose(
    listed: Sequence[Example],
    opened: Dataset,
    older: Iterable[Dataset] = (),
    own: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Labelled:
    """Return the pixels of listed images; `own` holds those that are in no data set. See `find`."""
    apart = {
        row.tobytes().hex(): name for name in KEPT_APART for row in opened.hashes[np.asarray(opened.indices[name])]
    }
    dropped: dict[str, list[int | str]] = {}
    wanted: dict[str, Example] = {}
    disputed = 0
    for example in listed:
        digest = np.frombuffer(bytes.fromhex(example.hash), np.uint8)[None]
        # A group, such as a camera, may decide the side of real traffic instead of the hash.
        of_dataset = example.source == "simulation" or example.hash in opened.simulation_rows
        reason = None
        if example.hash in apart:
            reason = f"a copy of a {apart[example.hash]} image"
        elif of_dataset and splits.is_holdout(digest)[0]:
            reason = "held out by its hash"
        elif example.label not in opened.class_names:
            reason = f"of a class that {opened.description['name']} does not have"
        if reason is not None:
            dropped.setdefault(reason, []).append(_id(example))
        elif example.disputed:
            disputed += 1
        else:
            wanted[example.hash] = example
    size = opened.image_size
    found = {key: image for key, image in (own or {}).items() if key in wanted and image.shape[0] == size}
    for source in (opened, *([] if not wanted else older)):
        if len(found) == len(wanted):
            break
        if source.class_names == opened.class_names and source.image_size == size:
            rows = source.simulation_rows
            found |= {key: source.images[rows[key]] for key in wanted.keys() & rows.keys() - found.keys()}
    for key, example in wanted.items():
        if key not in found:
            dropped.setdefault("whose pixels are not in this store", []).append(_id(example))
    kept = [example for key, example in wanted.items() if key in found]
    return Labelled(
        ImageRows(*(found[example.hash][None] for example in kept), np.zeros((0, size, size, 3), np.uint8)),
        np.array([opened.class_names.index(example.label) for example in kept], np.int64),
        tuple(example.hash for example in kept),
        np.array([example.right for example in kept], bool),
        dropped,
        disputed,
    )


def repeats(count: int, weight: float, seed: int) -> NDArray[np.int64]:
    """Return how often each of `count` examples is repeated, (count,) int64: `weight`, its fraction by seeded rounding.

    2.5 gives each two or three, half of them three; 0.5 leaves half of them out.
    """
    extra = np.random.default_rng(seed).random(count) < weight % 1
    return int(weight) + extra.astype(np.int64)


def mix(
    data: TrainingData, images: Images, labels: NDArray[np.int64], weight: float, seed: int, length: int | None = None
) -> TrainingData:
    """Return every original image once and each example `weight` times; the loop shuffles them anew each epoch.

    `length` repeats this mix, by a seeded draw in its last repetition, up to that many images: as many optimizer steps.
    """
    times = repeats(len(labels), weight, seed)
    mixed = ImageRows.of(data.images, ImageRows.of(images).select(np.repeat(np.arange(len(labels)), times)))
    mixed_labels = np.concatenate([data.labels, np.repeat(labels, times)])
    if length is not None:
        index = np.resize(np.random.default_rng(seed).permutation(len(mixed_labels)), length)
        mixed, mixed_labels = mixed.select(index), mixed_labels[index]
    return replace(data, images=mixed, labels=mixed_labels)


def _id(example: Example) -> int | str:
    return example.hash if example.id is None else example.id
