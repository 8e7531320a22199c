"""From a source's images to a data set: splits, sides, drift, statistics, hashes, disjointness."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel import params
from flywheel.data import DataError, drift, splits
from flywheel.data.dataset import Dataset, statistics
from flywheel.data.sources import SourceImages


def build(source: SourceImages, data: params.Data) -> Dataset:
    """Return the data set of a source's images. Raises DataError."""
    count = len(source.train_labels)
    train, validation = splits.stratified(source.train_labels, data.validation_fraction, data.seed, source.class_names)
    test = np.arange(count, count + source.test_count)
    simulation = np.arange(count + source.test_count, count + len(source.test_labels))
    drifted = drift.apply(
        source.test_images[source.test_count :], source.test_ids[source.test_count :], data.drift, data.seed
    )
    images = np.concatenate([source.train_images, source.test_images[: source.test_count], drifted])
    labels = np.concatenate([source.train_labels, source.test_labels])
    hashes = splits.content_hashes(images)
    named = {"train": train, "validation": validation, "test": test, "simulation": simulation}
    indices, duplicates = splits.disjoint(named, hashes)
    missing = set(range(len(source.class_names))) - set(labels[indices["train"]].tolist())
    if missing:
        raise DataError(f"class {source.class_names[min(missing)]} has no training image left after the splits")
    mean, std = statistics(images[np.sort(np.concatenate([indices["train"], indices["validation"]]))])
    if min(std) < 1e-9:  # rounding leaves a little of what is exactly 0
        raise DataError("all training images have the same colour; there is nothing to learn from them")
    description: dict[str, Any] = {
        "name": data.name,
        "source": data.source,
        "class_names": list(source.class_names),
        "image_size": data.image_size,
        "mean": mean,
        "std": std,
        "splits": {name: len(index) for name, index in indices.items()},
        "holdout": int(splits.is_holdout(hashes[indices["simulation"]]).sum()),
        "duplicates": {"within": dict(duplicates.within), "across": dict(duplicates.across)},
        "drift": data.drift.model_dump(),
        "skipped": len(source.skipped),
        "seed": data.seed,
    }
    ids = np.concatenate([source.train_ids, source.test_ids])
    return Dataset(images, labels, hashes, ids, indices, description)
