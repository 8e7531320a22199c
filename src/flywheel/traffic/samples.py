"""Samples of predictions that were drawn for labelling, with the probability of each: only these prove an accuracy.

samples/<number>.json   {"made", "model", "population", "images": [{prediction_id, hash, probability}, …]}
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from flywheel import files
from flywheel.params import StorePaths


class Drawn(BaseModel, frozen=True):
    """A prediction in a sample, and how probable it was that it would be drawn."""

    prediction_id: str
    hash: str
    probability: float


class Sample(BaseModel, frozen=True):
    """A sample: `images` in the order in which they are shown, drawn from `population` predictions of a model."""

    version: int = 1
    made: str
    model: str
    population: int
    images: tuple[Drawn, ...]


def write(paths: StorePaths, sample: Sample) -> Path:
    """Write a sample under the next free number."""
    number = max((int(path.stem) for path in _files(paths)), default=0) + 1
    path = paths.traffic_samples / f"{number}.json"
    files.write_json(path, sample.model_dump(mode="json"))
    return path


def read(paths: StorePaths) -> Iterator[Sample]:
    """Yield the samples, the oldest first; a file that is none is skipped."""
    for path in sorted(_files(paths), key=lambda path: int(path.stem)):
        with contextlib.suppress(OSError, ValidationError, ValueError):
            yield Sample.model_validate(files.read_json(path))


def probabilities(samples: Iterable[Sample]) -> dict[str, float]:
    """Return prediction_id -> probability for everything that was drawn; the first draw counts."""
    found: dict[str, float] = {}
    for sample in samples:
        for drawn in sample.images:
            found.setdefault(drawn.prediction_id, drawn.probability)
    return found


def _files(paths: StorePaths) -> list[Path]:
    return [path for path in paths.traffic_samples.glob("*.json") if path.stem.isdigit()]
