"""Build a data set from a source's images: splits, drift, hashes, disjointness, statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flywheel import params
from flywheel.data import DataError, drift, splits
from flywheel.data.dataset import Dataset, Images, SourceImages, Split, allocate, histogram, statistics
from flywheel.data.images import Pixels, from_array
from flywheel.machine import threads

CHUNK_BYTES = 4_000_000  # of the images that a thread works on


def build(source: SourceImages, data: params.Data, directory: Path | None = None) -> Dataset:
    """Return the data set of a source's images, which are in memory or in the directory. Raises DataError."""
    test, clean = (source.test.take(part) for part in (slice(source.test_count), slice(source.test_count, None)))
    drifts = any(data.drift.model_dump().values())
    parts = [source.train, test, clean, *([clean] if drifts else [])]
    labels, ids = (np.concatenate([getattr(part, key) for part in parts]) for key in ("labels", "ids"))
    first_test = len(source.train.labels)
    first_simulation = first_test + source.test_count
    end = first_simulation + len(clean.labels)
    images = allocate((len(labels), data.image_size, data.image_size, 3), directory and directory / "images.npy")
    hashes = np.empty((len(labels), 32), np.uint8)

    def write(chunk: tuple[slice, Split]) -> tuple[int, NDArray[np.int64] | int]:
        """Write images and hashes; return their number and, of training images, the histogram."""
        rows, part = chunk
        pixels = _resized(part.images, data.image_size)
        if first_simulation <= rows.start < end:
            pixels = drift.apply(pixels, part.ids, data.drift, data.seed)
        images[rows], hashes[rows] = pixels, splits.content_hashes(pixels)
        return len(pixels), histogram(pixels) if rows.start < first_test else 0

    counts: Any = 0
    with tqdm(desc="data: writing", total=len(labels), unit=" images", mininterval=0.5, disable=None) as bar:
        chunks = _chunks(parts, max(1, CHUNK_BYTES // images[0].nbytes))
        for count, found in threads.ordered(write, chunks, threads.cpus(), ahead=2 * threads.cpus()):
            counts = counts + found
            bar.update(count)
    train, validation = np.split(np.arange(first_test), [first_test - source.validation_count])
    if not source.validation_count:
        fraction = data.validation_fraction
        train, validation = splits.stratified(source.train.labels, fraction, data.seed, source.class_names)
    simulation = np.arange(first_simulation, end)
    named = {"train": train, "validation": validation}
    named |= {"test": np.arange(first_test, first_simulation), "simulation": simulation}
    twins = len(labels) - end  # from a simulation image to the same one without drift
    undrifted = np.concatenate([hashes[:first_simulation], hashes[simulation + twins]])
    indices, within, across = splits.disjoint(named, undrifted)
    if twins:
        indices, _, drifted = splits.disjoint(indices, hashes)
        across = Counter(across) + Counter(drifted)
    indices["clean"] = indices["simulation"] + twins
    missing = set(range(len(source.class_names))) - set(labels[indices["train"]].tolist())
    if missing:
        raise DataError(f"class {source.class_names[min(missing)]} has no training image left after the splits")
    for row in set(range(first_test)).difference(indices["train"], indices["validation"]):  # copies of other images
        counts = counts - histogram(images[row : row + 1])
    mean, std = statistics(counts)
    if min(std) < 1e-9:  # rounding turns an exact 0 into a little more
        raise DataError("all training images have the same colour; there is nothing to learn from them")
    description: dict[str, Any] = {
        "name": data.name,
        "source": data.source,
        "class_names": list(source.class_names),
        "image_size": data.image_size,
        "mean": mean,
        "std": std,
        "splits": {name: len(indices[name]) for name in splits.SPLITS},
        "holdout": int(splits.is_holdout(hashes[indices["simulation"]]).sum()),
        "duplicates": {"within": within, "across": dict(across)},
        "drift": data.drift.model_dump(),
        "skipped": len(source.skipped),
        **({"files": source.files} if source.files else {}),
        "seed": data.seed,
    }
    return Dataset(images, labels, hashes, ids, indices, description)


def _chunks(parts: Sequence[Split], step: int) -> Iterator[tuple[slice, Split]]:
    """Yield up to `step` images of a part at a time, with the rows where they belong."""
    first = 0
    for part in parts:
        for start in range(0, len(part.labels), step):
            chunk = part.take(slice(start, start + step))
            yield slice(first + start, first + start + len(chunk.labels)), chunk
        first += len(part.labels)


def _resized(images: Images, size: int) -> Pixels:
    pixels = images[:]
    return pixels if pixels.shape[1:] == (size, size, 3) else np.stack([from_array(image, size) for image in pixels])
